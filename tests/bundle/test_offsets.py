"""Offsets in UTF-16 units and bytes cut the same piece out of the text as code points do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bundle.offsets import converter

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@st.composite
def pieces(draw: st.DrawFn) -> tuple[str, int, int]:
    text = draw(anything)
    start = draw(st.integers(0, len(text)))
    return text, start, draw(st.integers(start, len(text)))


@given(pieces())
def test_utf16_offsets_are_what_javascript_slices_by(piece: tuple[str, int, int]) -> None:
    text, start, end = piece
    at = converter(text, "utf16")
    units = text.encode("utf-16-le")
    assert units[2 * at(start) : 2 * at(end)].decode("utf-16-le") == text[start:end]


@given(pieces())
def test_byte_offsets_slice_utf8(piece: tuple[str, int, int]) -> None:
    text, start, end = piece
    at = converter(text, "byte")
    assert text.encode()[at(start) : at(end)].decode() == text[start:end]


@given(pieces())
def test_code_points_stay_as_they_are(piece: tuple[str, int, int]) -> None:
    text, start, end = piece
    at = converter(text, "codepoint")
    assert (at(start), at(end)) == (start, end)
