"""A small vocabulary and text settings that every test of this room can use."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from bundle.encode import Encoder, wordpiece_tokenizer
from bundle.manifest import FileRef, TextSpec

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *"今天气很好北京上海人。，！",
    *("a", "b", "c", "ab", "##a", "##b", "##c", "##cd", "hello", "##world", "1", "2", "3", ".", ","),
]
TOKENIZER = wordpiece_tokenizer(PIECES)

# (max_tokens, overlap) of windows.
SHAPES = st.sampled_from([(size, overlap) for size in range(8, 41) for overlap in range((size - 3) // 2 + 1)])


def make_spec(max_tokens: int = 16, overlap: int = 4, max_windows: int = 1000) -> TextSpec:
    return TextSpec(
        tokenizer=FileRef(file="tokenizer.json", sha256="0" * 64, bytes=1),
        max_tokens=max_tokens,
        overlap=overlap,
        max_windows=max_windows,
        pooling="mean",
        pad_id=0,
        cls_id=2,
        sep_id=3,
        length_buckets=(16, 32),
    )


@cache
def make_encoder(max_tokens: int = 16, overlap: int = 4, max_windows: int = 1000) -> Encoder:
    return Encoder(TOKENIZER, make_spec(max_tokens, overlap, max_windows))
