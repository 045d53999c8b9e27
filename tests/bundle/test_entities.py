"""An answer's ``text[start:end]`` is the entity, whatever the text is made of, however it is cut, in every unit."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bundle.decode import FloatArray, Tagged, tag, token_labels
from bundle.encode import Encoded, Window
from bundle.manifest import Joining, Task, bio_labels
from bundle.offsets import converter
from tests.bundle.samples import SHAPES, make_encoder
from tests.bundle.texts import ANY_TEXT
from tests.properties import cases

TASK = Task(kind="token-classification", labels=bio_labels(["PER", "LOC"]))
ANY_JOINING = st.sampled_from([Joining(stitching="context"), Joining(stitching="average")])


def sure_of(path: list[int], windows: tuple[Window, ...]) -> list[FloatArray]:
    """The logits of a model that has no doubt about the labels ``path``."""
    logits = np.where(np.arange(5) == np.array(path)[:, None], 10, -10).astype(np.float32)
    return [logits[window.first : window.last] for window in windows]


def path_with(first: int, last: int, count: int) -> list[int]:
    """Labels of a text in which the tokens ``[first, last)`` are an entity of the second type."""
    return [3 if place == first else 4 if first < place < last else 0 for place in range(count)]


def end_with_marks(text: str, end: int, following: int) -> int:
    """Where the character before ``end`` ends for a reader: with its accents, selectors, joiners and tags."""
    while end < following and (
        unicodedata.category(text[end]) in ("Mn", "Mc", "Me")
        or text[end] in "\u200c\u200d"
        or "\U000e0020" <= text[end] <= "\U000e007f"
    ):
        end += 1
    return end


def whole(encoded: Encoded, first: int, last: int) -> tuple[int, int]:
    """The code points of the tokens ``[first, last)``."""
    following = int(encoded.spans[last, 0]) if last < len(encoded.ids) else len(encoded.text)
    return int(encoded.spans[first, 0]), end_with_marks(encoded.text, int(encoded.spans[last - 1, 1]), following)


@st.composite
def marked(draw: st.DrawFn) -> tuple[Encoded, int, int]:
    """A text cut into windows, and some of its tokens."""
    text = draw(ANY_TEXT)
    encoder = make_encoder(*draw(SHAPES))
    count = len(encoder.tokenize(text)[0])
    assume(count)
    first = draw(st.integers(0, count - 1))
    return encoder.encode(text), first, draw(st.integers(first + 1, count))


@cases(1800)
@given(marked(), ANY_JOINING)
def test_an_entity_stands_where_its_tokens_stand_in_every_unit(
    case: tuple[Encoded, int, int], joining: Joining
) -> None:
    encoded, first, last = case
    text = encoded.text
    (found,) = tag(sure_of(path_with(first, last, len(encoded.ids)), encoded.windows), encoded, TASK, joining)
    assert (found.start, found.end) == whole(encoded, first, last)
    entity = text[found.start : found.end]
    units, octets = converter(text, "utf16"), converter(text, "byte")
    in_utf16 = text.encode("utf-16-le")[2 * units(found.start) : 2 * units(found.end)]
    assert in_utf16.decode("utf-16-le") == entity
    assert text.encode()[octets(found.start) : octets(found.end)].decode() == entity


@cases(700)
@given(marked())
def test_gold_labels_of_an_answer_give_the_answer_again(case: tuple[Encoded, int, int]) -> None:
    """What evaluation compares: an entity that is read from rows and one that is answered have the same ends."""
    encoded, first, last = case
    start, end = whole(encoded, first, last)
    path = token_labels(encoded, [(start, end, "LOC")], TASK)
    (found,) = tag(sure_of(path.tolist(), encoded.windows), encoded, TASK)
    assert (found.start, found.end, found.label) == (start, end, "LOC")


@pytest.mark.parametrize(
    "entity",
    [
        "Beyonce\u0301",
        "👨‍👩‍👧",
        "❤️",
        "👍🏽",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "1️⃣",
        "ＡＢ",
        "İ",
        "ﬁ",
        "㍿",
        "한국",
        "e\u0301\u302e",
    ],
)
def test_an_entity_keeps_its_last_accent_and_every_part_of_an_emoji(entity: str) -> None:
    text = f"\t  北京 {entity}\r\n，{entity}。"
    encoded = make_encoder().encode(text)
    second = text.rindex(entity)
    gold = [(text.index(entity), text.index(entity) + len(entity), "PER"), (second, second + len(entity), "LOC")]
    path = token_labels(encoded, gold, TASK)
    found = tag(sure_of(path.tolist(), encoded.windows), encoded, TASK)
    assert [(item.start, item.end, item.label) for item in found] == gold


def test_a_score_is_the_mean_of_the_tokens_probabilities() -> None:
    encoded = make_encoder().encode("今天")
    (found,) = tag([np.log(np.array([[1, 1, 1, 6, 1], [1, 1, 1, 1, 4]], np.float32))], encoded, TASK)
    assert found == Tagged(0, 2, "LOC", pytest.approx((0.6 + 0.5) / 2))
