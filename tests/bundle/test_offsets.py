"""Offsets in UTF-16 units and bytes cut the same piece out of the text as code points do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bundle.offsets import OffsetUnit, converter
from tests.bundle.texts import ANY_TEXT, CHARACTERS
from tests.properties import cases

UNITS: dict[OffsetUnit, tuple[str, int]] = {
    "codepoint": ("utf-32-le", 4),
    "utf16": ("utf-16-le", 2),
    "byte": ("utf-8", 1),
}


@cases(2000)
@given(ANY_TEXT | st.text(CHARACTERS, max_size=30), st.sampled_from(sorted(UNITS)), st.data())
def test_an_offset_counts_the_units_before_it_and_cuts_the_same_piece(
    text: str, unit: OffsetUnit, data: st.DataObject
) -> None:
    at = converter(text, unit)
    coding, width = UNITS[unit]
    for offset in range(len(text) + 1):  # the slow reference: encode what stands before it
        assert at(offset) == len(text[:offset].encode(coding)) // width
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert text.encode(coding)[width * at(start) : width * at(end)].decode(coding) == text[start:end]
