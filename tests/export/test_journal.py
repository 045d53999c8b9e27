"""What a person reads of a long step."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from export import journal
from export.journal import Journal


@pytest.mark.parametrize(("terminal", "every", "lines"), [(False, 0.0, 2), (False, 60.0, 0), (True, 0.0, 0)])
def test_a_log_file_gets_a_line_now_and_then_in_the_place_of_a_bar(
    terminal: bool, every: float, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ALIVE", every)
    words = io.StringIO()
    shown = Journal(tmp_path / "export.log", Console(file=words, width=80, force_terminal=terminal))
    with shown.progress("plan") as update:
        update(100, 2000)
        update(1200, 2000)
    told = [line for line in words.getvalue().split("\n") if " of " in line]
    assert len(told) == lines
    if lines:
        assert told[1].strip().startswith("plan: 1,200 of 2,000 after ")
