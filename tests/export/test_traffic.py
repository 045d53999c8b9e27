"""Clients against a model: what is computed, together with what, and when a request counts as answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bundle.encode import IntArray, WindowRow
from bundle.errors import ExportError
from bundle.manifest import Setup
from export.traffic import Mix, Traffic

SETUP = Setup(artifact="any", threads=1, sessions=1, windows=1)


def text_of(*lengths: int, mark: int = 1) -> tuple[WindowRow, ...]:
    """A text whose windows have these lengths; every id is ``mark``."""
    rows = (np.full(length, mark, dtype=np.int64) for length in lengths)
    return tuple(WindowRow(ids, np.zeros_like(ids), slice(1, -1)) for ids in rows)


class Noted:
    """A model that notes what it is given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[IntArray] = []
        self.threads: set[int] = set()
        self._seconds = seconds

    def __call__(self, ids: IntArray, types: IntArray) -> Sequence[Any]:
        assert ids.shape == types.shape
        self.calls.append(ids)
        self.threads.add(threading.get_ident())
        time.sleep(self._seconds)
        return []


def drive(texts: Sequence[Sequence[WindowRow]], run: Noted, clients: int = 4, **setup: object) -> tuple[float, ...]:
    changed = SETUP.model_copy(update=setup)
    return Traffic(changed, [run] * changed.sessions, texts, clients, pad_id=0).drive().latencies


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("windows", [1, 3, 8])
def test_every_window_is_computed_once_and_every_request_is_answered(windows: int, by_length: bool) -> None:
    texts = [text_of(*[4 + number % 5] * (1 + number % 7), 9, mark=number + 1) for number in range(30)]
    run = Noted()
    latencies = drive(texts, run, sessions=3, windows=windows, by_length=by_length)

    assert len(latencies) == len(texts) and min(latencies) > 0
    assert max(len(call) for call in run.calls) <= windows
    computed = sorted(int(row[0]) for call in run.calls for row in call)
    assert computed == sorted(number + 1 for number, text in enumerate(texts) for _ in text)
    # Nothing of a window is lost to another's length.
    assert sum(int((call != 0).sum()) for call in run.calls) == sum(len(row.ids) for text in texts for row in text)


def test_windows_of_several_requests_come_together_only_where_the_setup_says_so() -> None:
    texts = [text_of(6, mark=number + 1) for number in range(12)]
    alone, together = Noted(0.002), Noted(0.002)
    drive(texts, alone, clients=6, windows=1)
    drive(texts, together, clients=6, windows=4)
    assert {len(call) for call in alone.calls} == {1}
    assert any(len({int(row[0]) for row in call}) > 1 for call in together.calls)


def test_like_lengths_come_together_or_all_are_padded() -> None:
    texts = [text_of(4, 30, mark=number + 1) for number in range(6)]
    sorted_by, padded = Noted(), Noted()
    drive(texts, sorted_by, windows=8, by_length=True)
    drive(texts, padded, windows=8, by_length=False)
    assert all(not (call == 0).any() for call in sorted_by.calls)
    assert any((call == 0).any() for call in padded.calls)


def test_sessions_compute_at_the_same_time() -> None:
    run = Noted(0.01)
    drive([text_of(5)] * 8, run, clients=4, sessions=4)
    assert len(run.threads) > 1


def test_one_client_waits_for_its_answer_before_it_sends_the_next_text() -> None:
    run = Noted(0.005)
    drive([text_of(5, mark=number + 1) for number in range(5)], run, clients=1, windows=8, sessions=2)
    assert [call.shape[0] for call in run.calls] == [1] * 5


def test_a_model_that_fails_ends_the_lap_with_its_reason() -> None:
    def broken(ids: IntArray, types: IntArray) -> Sequence[Any]:
        raise RuntimeError("out of paper")

    with pytest.raises(ExportError, match="out of paper"):
        Traffic(SETUP, [broken], [text_of(5)] * 3, 2, pad_id=0).drive()


def test_a_lap_spans_the_lengths_and_is_the_same_for_everyone() -> None:
    mix = Mix(tuple(text_of(length) for length in range(3, 103)), pad_id=0)
    lengths = sorted(len(text[0].ids) for text in mix.lap(1, 10))
    assert all(3 + 10 * number <= length < 13 + 10 * number for number, length in enumerate(lengths))
    again, other = mix.lap(1, 10), mix.lap(2, 10)
    assert [len(text[0].ids) for text in again] == [len(text[0].ids) for text in mix.lap(1, 10)]
    assert [len(text[0].ids) for text in again] != [len(text[0].ids) for text in other]
    assert len(mix.lap(1, 1000)) == 100
