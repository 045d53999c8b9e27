"""Builds tiny, complete bundles with PaddleNLP: random weights, a small vocabulary, golden rows from real dygraph.

Run as a program (`python tests/export/tiny.py FOLDER`), so that Paddle is imported once, in a process of its own,
and its warnings are not the tests' warnings. Weights are drawn wide, so that logits differ and errors show.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 160)] + list("abcdefgh，。！？")
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{letter}" for letter in "abcdefgh")]
CLASSES = ("bad", "fine", "good")
ENTITIES = ("LOC", "PER")
LAYERS, HIDDEN, HEADS = 2, 48, 4

BASE: dict[str, Any] = {
    "vocab_size": len(VOCAB),
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "initializer_range": 0.25,
    "pad_token_id": 0,
}
# name → (class, task kind, configuration on top of BASE); a multi-task class is none of PaddleNLP's
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-classes": ("BertForSequenceClassification", "single-label", {}),
    "bert-pairs": ("BertForSequenceClassification", "text-pair", {}),
    "bert-tags": ("BertForTokenClassification", "token-classification", {}),
    "bert-multilabel": ("BertForSequenceClassification", "multi-label", {}),
    "ernie-multitask": ("ErnieForMultiTask", "multi-task", {"use_task_id": True, "task_type_vocab_size": 3}),
    "ernie-classes": (
        "ErnieForSequenceClassification",
        "single-label",
        {"use_task_id": True, "task_type_vocab_size": 3, "task_id": 1, "type_vocab_size": 4},
    ),
    "ernie-pairs": ("ErnieForSequenceClassification", "text-pair", {"hidden_act": "relu", "use_task_id": False}),
    "ernie-tags": (
        "ErnieForTokenClassification",
        "token-classification",
        {"use_task_id": True, "task_type_vocab_size": 3, "type_vocab_size": 4},
    ),
    "roberta-classes": ("RobertaForSequenceClassification", "single-label", {"cls_token_id": 2}),
    "electra-classes": ("ElectraForSequenceClassification", "single-label", {"embedding_size": 32}),
    "electra-tags": ("ElectraForTokenClassification", "token-classification", {"embedding_size": HIDDEN}),
}
# Every base × every head, for `tests/export/test_families.py`: name → as in MODELS.
BASES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Ernie": {"use_task_id": True, "task_type_vocab_size": 3, "task_id": 1, "type_vocab_size": 4},
    "Roberta": {"cls_token_id": 2},
    "Electra": {"embedding_size": 32},
}
KINDS = {
    "single-label": "SequenceClassification",
    "multi-label": "SequenceClassification",
    "text-pair": "SequenceClassification",
    "token-classification": "TokenClassification",
    "multi-task": "MultiTask",
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{base.lower()}.{kind}": (f"{base}For{head}", kind, extra)
    for base, extra in BASES.items()
    for kind, head in KINDS.items()
}


def text_of(dice: random.Random, length: int) -> str:
    """A random text of the tiny vocabulary, `length` characters."""
    return "".join(dice.choice(CHARACTERS) for _ in range(length))


def build(folder: Path, name: str, rows_per_split: int = 40) -> None:
    """Writes `folder/<name>/bundle`, laid out as finetune lays it out."""
    import json

    import numpy as np
    import paddle
    from paddlenlp import transformers

    from bundle.encode import Encoder, wordpiece_tokenizer
    from bundle.folder import Bundle, create_bundle
    from bundle.golden import golden_of, write_golden
    from bundle.manifest import (
        Artifact,
        FileRef,
        Manifest,
        Provenance,
        Source,
        Task,
        TextSpec,
        bio_labels,
        signature_of,
    )
    from bundle.predict import answers_of, encode_rows, predict, thresholds_of
    from bundle.rows import Entity, Row, write_rows

    architecture, kind, extra = (MODELS | FAMILIES)[name]
    family = architecture.split("For")[0].lower()
    root = folder / name / "bundle"
    root.mkdir(parents=True)
    dice = random.Random(name)
    paddle.seed(sum(map(ord, name)))
    task = Task(
        kind=kind,
        labels=bio_labels(ENTITIES) if kind == "token-classification" else CLASSES,
        token_labels=bio_labels(ENTITIES) if kind == "multi-task" else (),
    )

    config_class = getattr(transformers, f"{architecture.split('For')[0]}Config")
    config = config_class(**{**BASE, **extra}, num_labels=len(task.labels))
    # Two heads are put together here a second time, so that the export's own class is compared with another.
    model = getattr(transformers, architecture.replace("MultiTask", "SequenceClassification"))(config)
    layers = [model]
    if kind == "multi-task":
        layers.append(paddle.nn.Linear(HIDDEN, len(task.token_labels)))
        layers[1].weight.set_value(paddle.randn(layers[1].weight.shape) * 0.25)

    def answer(ids: Any, types: Any) -> list[Any]:
        """The model's outputs in the signature's order."""
        ids, types = paddle.to_tensor(ids), paddle.to_tensor(types)
        with paddle.no_grad():
            if kind == "multi-task":
                found = getattr(model, family)(ids, token_type_ids=types)
                sequence = found[0] if isinstance(found, (tuple, list)) else found
                pooled = found[1] if family in ("bert", "ernie") else sequence
                outputs = [model.classifier(pooled), layers[1](sequence)]
            else:
                found = model(ids, types)
                outputs = [found[0] if isinstance(found, (tuple, list)) else found]
        return [values.numpy() for values in outputs]

    for key, value in [pair for layer in layers for pair in layer.state_dict().items()]:
        if key.endswith("bias") or "norm" in key.lower():
            # Zero biases and unit scales would hide a fusion that drops or swaps them.
            value.set_value(value + paddle.randn(value.shape) * 0.2)
    model.eval()
    # Every label must be somebody's answer.
    ids = np.array([[2, *(dice.randrange(5, 165) for _ in range(20)), 3] for _ in range(64)])
    for layer, logits in zip(layers, answer(ids, np.zeros_like(ids)), strict=True):
        for value in layer.state_dict().values():
            if value.shape == [logits.shape[-1]]:
                value.set_value(value - paddle.to_tensor(logits.reshape(-1, logits.shape[-1]).mean(axis=0)))
    model.save_pretrained(str(root / "paddle"))
    if kind == "multi-task":
        state = {**model.state_dict(), **{f"token_classifier.{key}": v for key, v in layers[1].state_dict().items()}}
        paddle.save(state, str(root / "paddle" / "model_state.pdparams"))
        settings = json.loads((root / "paddle" / "config.json").read_text(encoding="utf-8"))
        settings |= {"architectures": [architecture], "num_token_labels": len(task.token_labels)}
        (root / "paddle" / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    tokenizer = wordpiece_tokenizer(VOCAB)
    (root / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    empty = FileRef(file="tokenizer.json", sha256="", bytes=0)
    spec = TextSpec(
        tokenizer=empty,
        max_tokens=32,
        overlap=6,
        max_windows=8,
        pooling="mean",
        pad_id=0,
        cls_id=2,
        sep_id=3,
        length_buckets=(16, 32),
    )
    encoder = Encoder(tokenizer, spec)

    lengths = [3, 9, 17, 26, 40, 75, 120]
    pairs = kind == "text-pair"

    def sample(count: int) -> list[Row]:
        return [
            Row(text_of(dice, dice.choice(lengths)), pair=text_of(dice, dice.choice((4, 9))) if pairs else None)
            for _ in range(count)
        ]

    def labelled(rows: list[Row]) -> list[Row]:
        """Rows labelled with what the model says, so that a faithful conversion scores 1.0."""
        predicted = predict(encode_rows(rows, encoder), encoder, answer)
        return [
            labelled_row(row, found, number)
            for number, (row, found) in enumerate(zip(rows, answers_of(predicted, task, spec.joining), strict=True))
        ]

    def labelled_row(row: Row, found: Any, number: int) -> Row:
        if kind == "multi-label":
            return Row(row.text, labels=tuple(task.labels[index] for index in found))
        if kind == "multi-task":
            # As from two data sets: a row tells a label, entities, or both.
            entities = tuple(Entity(*span) for span in found[1])
            label = task.labels[found[0]]
            return Row(row.text, label if number % 5 else None, entities=entities if number % 5 != 1 else None)
        if kind == "token-classification":
            return Row(row.text, entities=tuple(Entity(*span) for span in found))
        return Row(row.text, task.labels[found], row.pair)

    if kind == "multi-label":
        # Half of all rows have a label, each of the three on its own: none, one and several of them.
        rows = sample(60)
        predicted = predict(encode_rows(rows, encoder), encoder, answer)
        scores = np.stack([item.classified(task, spec.joining).scores for item in predicted])
        halves = Task(kind=kind, labels=CLASSES, thresholds=tuple(map(float, np.median(scores, axis=0))))
        gold = [
            Row(row.text, labels=tuple(task.labels[index] for index in found))
            for row, found in zip(rows, answers_of(predicted, halves, spec.joining), strict=True)
        ]
        task = task.model_copy(update={"thresholds": thresholds_of(gold, predicted, task, spec.joining)})

    for split, share in (("dev", 1), ("test", 1), ("calibration", 1.2)):
        write_rows(root / "data" / f"{split}.jsonl", labelled(sample(int(share * rows_per_split))))
    golden_rows = [
        Row(text_of(dice, length), pair=text_of(dice, 7) if pairs else None) for length in (*lengths, 5, 12, 33)
    ]
    predicted = predict(encode_rows(golden_rows, encoder), encoder, answer, batch_tokens=1)
    write_golden(
        root / "golden.jsonl",
        [golden_of(item, encoder, row.text, row.pair) for item, row in zip(predicted, golden_rows, strict=True)],
    )

    source = Source(name="random", licence="none")
    draft = Manifest(
        name=name,
        made=Provenance(
            recipe=name,
            recipe_sha256="0" * 64,
            commit="none",
            created="2026-01-01T00:00:00Z",
            seed=1,
            data=source,
            base=source,
            architecture=architecture,
            packages={"numpy": np.__version__},
        ),
        task=task,
        text=spec,
        signature=signature_of(task),
        golden=empty,
    )
    here = Bundle(root, draft)
    weights = here.refer("paddle/model_state.pdparams")
    manifest = draft.model_copy(
        update={
            "text": spec.model_copy(update={"tokenizer": here.refer("tokenizer.json")}),
            "golden": here.refer("golden.jsonl"),
            "splits": {split: here.refer(f"data/{split}.jsonl") for split in ("dev", "test", "calibration")},
            "artifacts": {
                "paddle": Artifact(
                    file=weights.file,
                    sha256=weights.sha256,
                    bytes=weights.bytes,
                    files=(here.refer("paddle/config.json"),),
                    format="paddle",
                    precision="fp32",
                )
            },
        }
    )
    create_bundle(root, manifest)


if __name__ == "__main__":
    for wanted in sys.argv[2:] or list(MODELS):
        build(Path(sys.argv[1]), wanted)
        print(wanted, flush=True)
