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
# name → (PaddleNLP class, task kind, configuration on top of BASE)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-classes": ("BertForSequenceClassification", "single-label", {}),
    "bert-pairs": ("BertForSequenceClassification", "text-pair", {}),
    "bert-tags": ("BertForTokenClassification", "token-classification", {}),
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


def text_of(dice: random.Random, length: int) -> str:
    """A random text of the tiny vocabulary, `length` characters."""
    return "".join(dice.choice(CHARACTERS) for _ in range(length))


def build(folder: Path, name: str) -> None:
    """Writes `folder/<name>/bundle`, laid out as finetune lays it out."""
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
        Signature,
        Source,
        Task,
        Tensor,
        TextSpec,
        bio_labels,
    )
    from bundle.predict import answers_of, encode_rows, predict
    from bundle.rows import Entity, Row, write_rows

    architecture, kind, extra = MODELS[name]
    root = folder / name / "bundle"
    root.mkdir(parents=True)
    dice = random.Random(name)
    paddle.seed(sum(map(ord, name)))
    task = Task(kind=kind, labels=bio_labels(ENTITIES) if kind == "token-classification" else CLASSES)

    config_class = getattr(transformers, f"{architecture.split('For')[0]}Config")
    config = config_class(**{**BASE, **extra}, num_labels=len(task.labels))
    model = getattr(transformers, architecture)(config)
    for key, value in model.state_dict().items():
        if key.endswith("bias") or "norm" in key.lower():
            # Zero biases and unit scales would hide a fusion that drops or swaps them.
            value.set_value(value + paddle.randn(value.shape) * 0.2)
    model.eval()
    # Every label must be somebody's answer.
    ids = np.array([[2, *(dice.randrange(5, 165) for _ in range(20)), 3] for _ in range(64)])
    with paddle.no_grad():
        logits = model(paddle.to_tensor(ids), paddle.zeros_like(paddle.to_tensor(ids)))
    logits = (logits[0] if isinstance(logits, (tuple, list)) else logits).numpy()
    for value in model.state_dict().values():
        if value.shape == [len(task.labels)]:
            value.set_value(value - paddle.to_tensor(logits.reshape(-1, len(task.labels)).mean(axis=0)))
    model.save_pretrained(str(root / "paddle"))

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

    def run(ids: Any, types: Any) -> Any:
        with paddle.no_grad():
            answer = model(paddle.to_tensor(ids), paddle.to_tensor(types))
        return (answer[0] if isinstance(answer, (tuple, list)) else answer).numpy()

    lengths = [3, 9, 17, 26, 40, 75, 120]
    pairs = kind == "text-pair"

    def sample(count: int) -> list[Row]:
        return [
            Row(text_of(dice, dice.choice(lengths)), pair=text_of(dice, dice.choice((4, 9))) if pairs else None)
            for _ in range(count)
        ]

    def labelled(rows: list[Row]) -> list[Row]:
        """Rows labelled with what the model says, so that a faithful conversion scores 1.0."""
        predicted = predict(encode_rows(rows, encoder), encoder, run)
        answers: list[Any] = answers_of(predicted, task, spec.pooling)
        if kind == "token-classification":
            return [
                Row(row.text, entities=tuple(Entity(*span) for span in spans))
                for row, spans in zip(rows, answers, strict=True)
            ]
        return [Row(row.text, task.labels[answer], row.pair) for row, answer in zip(rows, answers, strict=True)]

    for split, count in (("dev", 40), ("test", 40), ("calibration", 48)):
        write_rows(root / "data" / f"{split}.jsonl", labelled(sample(count)))
    golden_rows = [
        Row(text_of(dice, length), pair=text_of(dice, 7) if pairs else None) for length in (*lengths, 5, 12, 33)
    ]
    predicted = predict(encode_rows(golden_rows, encoder), encoder, run, batch_tokens=1)
    write_golden(
        root / "golden.jsonl",
        [golden_of(item, encoder, row.text, row.pair) for item, row in zip(predicted, golden_rows, strict=True)],
    )

    tokens: tuple[int | str, ...] = ("windows", "tokens")
    out: tuple[int | str, ...] = (
        ("windows", "tokens", "labels") if kind == "token-classification" else ("windows", "labels")
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
        signature=Signature(
            inputs=(
                Tensor(name="input_ids", dtype="int64", shape=tokens),
                Tensor(name="token_type_ids", dtype="int64", shape=tokens),
            ),
            outputs=(Tensor(name="logits", dtype="float32", shape=out),),
        ),
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
