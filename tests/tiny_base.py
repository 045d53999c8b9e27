"""A small ERNIE or BERT encoder, laid out exactly like a hub download: config.json, model_state.pdparams, vocab.txt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from finetune.machine import quiet_paddle

TEXT = (
    "今天气很好北京上海广州人民日报记者张三李四王五在去来了说是不的一大中国这那我们你他她它和与"
    "坏差喜欢讨厌糟糕极棒赞烂快慢高低。，！？、"
)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(TEXT), *"abcdefgh0123456789", "##a", "##1"]


def tiny_base(folder: Path, family: str = "ernie", seed: int = 7, shape: Mapping[str, object] | None = None) -> Path:
    """Writes the folder and returns it. Two layers of 32; the weights are random but larger than usual, so that
    answers differ from text to text.

    Args:
        shape: other keys of the configuration.
    """
    more = shape or {}
    quiet_paddle()
    import paddle
    from paddlenlp.transformers import BertConfig, BertModel, ErnieConfig, ErnieModel

    paddle.seed(seed)
    shape = {
        "vocab_size": len(PIECES),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
        **more,
    }
    with paddle.utils.unique_name.guard():
        if family == "ernie":
            model = ErnieModel(ErnieConfig(**shape, type_vocab_size=4, task_type_vocab_size=3, use_task_id=True))
        else:
            model = BertModel(BertConfig(**shape, type_vocab_size=2))
        model.save_pretrained(str(folder))
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family
    return folder


def mood_rows(count: int, seed: int = 3) -> list[tuple[str, str]]:
    """Sentences whose mood one word tells, which two layers learn in seconds; every fifth is long."""
    import random

    generator = random.Random(seed)
    filler = "今天北京上海广州人民日报记者张三李四王五在去来了说是不的一大中国这那我们你他她"
    rows = []
    for number in range(count):
        good = number % 2 == 0
        word = generator.choice(["喜欢", "极棒", "赞"] if good else ["讨厌", "糟糕", "烂"])
        length = 90 if number % 5 == 0 else generator.randrange(4, 14)
        words = [generator.choice(filler) for _ in range(length)]
        for _ in range(max(1, length // 8)):
            words.insert(generator.randrange(len(words)), word)
        rows.append(("".join(words) + "。", "好评" if good else "差评"))
    return rows


WORDS = {"好评": "赞", "差评": "烂", "速度": "快"}


def many_label_rows(count: int, seed: int = 9) -> list[dict[str, object]]:
    """Sentences to which none, some or all of three labels apply, each told by one word."""
    import random

    generator = random.Random(seed)
    filler = "今天北京上海广州人民日报记者在去来了说是不的一大中国这那我们你他她"
    rows: list[dict[str, object]] = []
    for number in range(count):
        labels = [label for label in WORDS if generator.random() < 0.4]
        words = [generator.choice(filler) for _ in range(60 if number % 6 == 0 else generator.randrange(4, 14))]
        for label in labels:
            for _ in range(max(2, len(words) // 6)):
                words.insert(generator.randrange(len(words)), WORDS[label])
        rows.append({"text": "".join(words) + "。", "labels": labels})
    return rows


def pair_rows(count: int, seed: int = 11) -> list[tuple[str, str, str]]:
    """(text, pair, label): the second text, sometimes a long one, says whether it likes what the first names."""
    import random

    generator = random.Random(seed)
    rows = []
    for number, (text, mood) in enumerate(mood_rows(count, seed)):
        title = "".join(generator.choice("今天北京上海广州人民日报记者") for _ in range(4))
        left, right = (text, title) if number % 4 == 3 else (title, text)
        rows.append((left, right, "yes" if mood == "好评" else "no"))
    return rows
