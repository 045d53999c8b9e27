"""The count of generated cases is an honest one."""

from __future__ import annotations

from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.properties import LEAST, PROFILE, SCALES, Tally, cases, property_files


def test_only_cases_that_ran_to_their_end_count() -> None:
    seen = []

    @cases(50)
    @given(st.integers())
    def holds(number: int) -> None:
        assume(number % 3)
        seen.append(number)

    tally = Tally()
    tally.watch(holds)
    tally.watch(holds)  # as of a test that is collected twice
    holds()
    assert tally.ran == len(seen) == 50 * SCALES[PROFILE]


def test_a_session_of_all_properties_may_not_fall_below_what_is_promised() -> None:
    tally = Tally()
    tally.whole, tally.ran = True, LEAST * SCALES[PROFILE]
    assert not tally.too_few and "too few" not in tally.sentence(1)
    tally.ran -= 1
    assert tally.too_few and "too few" in tally.sentence(1)
    tally.whole = False  # a part of the tests promises nothing
    assert not tally.too_few


def test_the_property_files_are_found() -> None:
    names = {path.name for path in property_files(Path(__file__).parent)}
    assert {"test_tokens.py", "test_decode.py", "test_splits.py"} <= names
    assert "test_properties.py" not in names
