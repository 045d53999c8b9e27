"""Windows read all of the text, share what they should, and never change it."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bundle.encode import Encoded, Encoder, assert_covered, pad, wordpiece_tokenizer
from bundle.errors import BundleError, CoverageLost, InvalidText, TextTooLong
from tests.bundle.reference import plan_of, rank_of_cut
from tests.bundle.samples import SHAPES, make_encoder
from tests.bundle.texts import ANY_TEXT, PROSE
from tests.properties import cases

HANZI = st.text(alphabet="今天气很好北京上海人。，！ abc123\n", min_size=1, max_size=300)


def has_tokens(encoder: Encoder, text: str) -> bool:
    return len(encoder.tokenize(text)[0]) > 0


@cases(1000)
@given(PROSE | ANY_TEXT, SHAPES)
def test_windows_read_every_token_and_every_character(text: str, shape: tuple[int, int]) -> None:
    encoder = make_encoder(*shape)
    assume(has_tokens(encoder, text))
    encoded = encoder.encode(text)
    windows = encoded.windows
    assert windows[0].first == 0 and windows[0].start == 0
    assert windows[-1].last == len(encoded.ids) and windows[-1].end == len(text)
    assert encoded.covered == 1 and not encoded.truncated
    for left, right in pairwise(windows):
        assert right.first == left.last - shape[1], "neighbours share exactly the overlap"
        assert right.start <= left.end, "no character lies between two windows"
    read: set[int] = set()  # the slow reference: a set of positions
    for index, window in enumerate(windows):
        read.update(range(window.start, window.end))
        row = encoder.row(encoded, index)
        assert len(row.ids) <= shape[0]
        assert len(row.ids) == encoder.lengths(encoded)[index]
        np.testing.assert_array_equal(row.ids[row.content], encoded.ids[window.first : window.last])
    assert read == set(range(len(text)))


def reference_windows(encoder: Encoder, encoded: Encoded, room: int, overlap: int) -> list[tuple[int, int]]:
    """Where the slow reference would cut a text."""
    pieces = {number: piece for piece, number in encoder.tokenizer.get_vocab().items()}
    spans = [(int(start), int(end)) for start, end in encoded.spans]
    ranks = [
        rank_of_cut(encoded.text, spans, place, pieces[token].startswith("##")) if place else 0
        for place, token in enumerate(encoded.ids.tolist())
    ]
    return plan_of(ranks, room, overlap)


@cases(1200)
@given(PROSE | ANY_TEXT, SHAPES)
def test_windows_end_where_the_slow_reference_ends_them(text: str, shape: tuple[int, int]) -> None:
    encoder = make_encoder(*shape)
    assume(has_tokens(encoder, text))
    encoded = encoder.encode(text)
    found = [(window.first, window.last) for window in encoded.windows]
    assert found == reference_windows(encoder, encoded, shape[0] - 2, shape[1])


@cases(500)
@given(
    PROSE,
    st.lists(st.sampled_from(["今", "北京", "hello", "。", " "]), max_size=12).map("".join),
    SHAPES,
    st.booleans(),
)
def test_a_pair_is_cut_as_a_text_in_the_room_that_its_other_side_leaves(
    long: str, short: str, shape: tuple[int, int], first: bool
) -> None:
    encoder = make_encoder(*shape)
    sides = [len(encoder.tokenize(side)[0]) for side in (long, short)]
    assume(sides[0] > sides[1] > 0)
    room = shape[0] - 3
    text, pair = (short, long) if first else (long, short)
    if sum(sides) > room and sides[1] > room // 2:
        with pytest.raises(TextTooLong):
            encoder.encode(text, pair)
        return
    encoded = encoder.encode(text, pair)
    room -= sides[1]
    found = [(window.first, window.last) for window in encoded.windows]
    assert found == reference_windows(encoder, encoded, room, min(shape[1], (room - 1) // 2))
    assert (encoded.text, encoded.tokens, encoded.covered) == (long, sum(sides), 1)
    for index, window in enumerate(encoded.windows):
        row = encoder.row(encoded, index)
        assert len(row.ids) <= shape[0]
        np.testing.assert_array_equal(row.ids[row.content], encoded.ids[window.first : window.last])
        assert set(row.types[row.content]) == {int(first)}


@cases(400)
@given(ANY_TEXT)
def test_no_visible_character_is_outside_all_tokens(text: str) -> None:
    encoder = make_encoder()
    _, spans = encoder.tokenize(text)
    covered = set()
    for start, end in spans:  # the slow reference: a set of positions
        covered.update(range(start, end))
    for position, character in enumerate(text):
        if position not in covered:
            assert (
                character.isspace()
                or character == "\ufffd"
                or unicodedata.category(character)[0] == "C"
                or unicodedata.category(character) in ("Mn", "Mc")
                or unicodedata.category(character)[0] == "Z"
            )


@cases(300)
@given(HANZI, SHAPES, st.integers(0, 299), st.integers(1, 18))
def test_a_span_shorter_than_the_overlap_lies_whole_in_some_window(
    text: str, shape: tuple[int, int], start: int, length: int
) -> None:
    encoder = make_encoder(*shape)
    assume(has_tokens(encoder, text))
    encoded = encoder.encode(text)
    length = min(length, shape[1])
    start = min(start, max(len(encoded.ids) - length, 0))
    end = min(start + length, len(encoded.ids))
    assert any(window.first <= start and end <= window.last for window in encoded.windows)


@cases(500)
@given(PROSE, SHAPES, st.integers(1, 5))
def test_a_truncated_text_is_read_as_far_as_its_windows_reach(text: str, shape: tuple[int, int], limit: int) -> None:
    encoder = make_encoder(*shape)
    assume(has_tokens(encoder, text))
    whole, found = encoder.encode(text), encoder.encode(text, truncate=True, max_windows=limit)
    assert found.windows == whole.windows[:limit]
    assert found.truncated == (len(whole.windows) > limit) == (found.covered < 1)
    assert found.covered == whole.windows[: len(found.windows)][-1].end / len(text)
    if found.truncated:
        with pytest.raises(TextTooLong) as error:
            encoder.encode(text, max_windows=limit)
        assert (error.value.windows, error.value.tokens) == (len(whole.windows), len(whole.ids))


PIECES_OF_TEXT = st.text(alphabet="今天，。 a1\n\u0301\ufe0f😀.é", max_size=80) | ANY_TEXT | PROSE


@cases(500)
@given(PIECES_OF_TEXT, st.integers(1, 12))
def test_tokenizing_in_pieces_gives_the_tokens_of_the_whole(text: str, piece: int) -> None:
    encoder = make_encoder()
    whole = encoder.tokenize(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bundle.encode.PIECE_CHARACTERS", piece)
        found = encoder.tokenize(text)
    np.testing.assert_array_equal(found[0], whole[0])
    np.testing.assert_array_equal(found[1], whole[1])


def test_a_cut_prefers_the_end_of_a_sentence(encoder: Encoder) -> None:
    text = "今天天气很好人人人人人。北京上海今天天气很好"
    first = encoder.encode(text).windows[0]
    assert text[first.start : first.end].endswith("。")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("今天今天hello ab. hello ab ab ab", "今天今天hello ab. "),
        ("今天今天hello ab, hello ab ab ab", "今天今天hello ab, "),
        ("今天今天今hello ab\r\nhello ab ab ab", "今天今天今hello ab\r\n"),
        ("今天今天hello 3.1 ab hello ab", "今天今天hello 3.1 ab "),
        ("今天今天今，1,2 ab hello ab ab", "今天今天今，1,2 "),
        ("今天今天今天 hello ab ab ab ab", "今天今天今天 hello ab ab "),
        ("今天今天今天今 天今今今", "今天今天今天今 "),
    ],
)
def test_a_cut_prefers_the_end_of_a_latin_sentence_or_clause_but_not_a_point_in_a_number(text: str, first: str) -> None:
    assert make_encoder(11, 2).encode(text).windows[0].end == len(first)


def test_a_latin_word_is_not_split_when_it_can_be_helped() -> None:
    encoder = make_encoder(12, 2)
    text = "今天今天今天今天今abcab今天"
    encoded = encoder.encode(text)
    first = encoded.windows[0]
    assert text[first.start : first.end] == "今天今天今天今天今", "the window ends before the word, not inside it"


def test_a_lone_surrogate_is_refused_with_the_field(encoder: Encoder) -> None:
    with pytest.raises(InvalidText) as error:
        encoder.encode("今天\ud800", field="inputs[2].text")
    assert error.value.field == "inputs[2].text"


@pytest.mark.parametrize("text", ["", "   \n\t", "\x00\x00", "\u200b"])
def test_text_without_any_token_is_refused(encoder: Encoder, text: str) -> None:
    with pytest.raises(InvalidText, match="empty"):
        encoder.encode(text, field="inputs")


def test_too_many_windows_are_refused_with_the_numbers() -> None:
    encoder = make_encoder(16, 4, max_windows=3)
    with pytest.raises(TextTooLong) as error:
        encoder.encode("今" * 200, field="inputs[0]")
    assert (error.value.limit, error.value.tokens) == (3, 200)
    assert str(error.value.windows) in str(error.value)


@pytest.mark.parametrize(("text", "pair", "side"), [("今" * 200, "北京", "text"), ("北京", "今" * 200, "pair")])
def test_the_side_of_a_pair_that_is_too_long_is_named(text: str, pair: str, side: str) -> None:
    with pytest.raises(TextTooLong) as error:
        make_encoder(16, 4, max_windows=3).encode(text, pair, field="inputs[0].text")
    assert (error.value.field, error.value.tokens) == (f"inputs[0].{side}", 200)


def test_truncation_is_said_when_it_was_asked_for() -> None:
    encoder = make_encoder(16, 4, max_windows=3)
    encoded = encoder.encode("今" * 200, truncate=True)
    assert encoded.truncated and len(encoded.windows) == 3
    assert not encoder.encode("今" * 20, truncate=True).truncated


def test_a_special_token_typed_by_a_caller_is_plain_text(encoder: Encoder) -> None:
    ids, _ = encoder.tokenize("[SEP]")
    assert 3 not in ids


@pytest.mark.parametrize(("text", "pair"), [("今天" * 20, "北京"), ("北京", "今天" * 20)])
def test_a_pair_runs_windows_over_its_longer_side(encoder: Encoder, text: str, pair: str) -> None:
    encoded = encoder.encode(text, pair)
    assert len(encoded.windows) > 1
    for index in range(len(encoded.windows)):
        row = encoder.row(encoded, index)
        assert len(row.ids) <= 16
        assert row.ids[0] == 2 and list(row.ids).count(3) == 2
        left, right = row.ids[row.types == 0][1:-1], row.ids[row.types == 1][:-1]
        short = left if text == "北京" else right
        np.testing.assert_array_equal(short, encoder.tokenize("北京")[0])


def test_a_pair_of_two_long_sides_is_refused(encoder: Encoder) -> None:
    with pytest.raises(TextTooLong):
        encoder.encode("今天" * 30, "北京" * 30)
    assert encoder.encode("今天" * 30, "北京" * 30, truncate=True).truncated


def test_an_empty_side_of_a_pair_is_refused_with_its_field(encoder: Encoder) -> None:
    with pytest.raises(InvalidText) as error:
        encoder.encode("今天", " ", field="inputs[1].text")
    assert error.value.field == "inputs[1].pair"


def test_padding_keeps_every_row(encoder: Encoder) -> None:
    rows = [encoder.row(encoder.encode(text), 0) for text in ("今天", "今天天气很好", "北")]
    ids, types = pad(rows, 0)
    assert ids.shape == types.shape == (3, 8)
    for row, padded in zip(rows, ids, strict=True):
        np.testing.assert_array_equal(padded[: len(row.ids)], row.ids)
        assert not padded[len(row.ids) :].any()


def test_lost_text_is_noticed() -> None:
    with pytest.raises(CoverageLost, match="code point 2"):
        assert_covered("今天气很好", np.array([[0, 2], [3, 5]]))
    assert_covered("今 \u0301天", np.array([[0, 1], [3, 4]]))


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(BundleError, match=r"\[PAD\]"):
        wordpiece_tokenizer(["今", "天"])
