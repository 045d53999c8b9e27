"""How busy the machine is: what runs now counts, and what has ended does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle import machine


def test_a_core_that_is_kept_busy_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout and busy.stdout.readline()
        assert 0.2 < machine.load() <= (os.cpu_count() or 1)
    finally:
        busy.kill()
        busy.communicate()


def test_a_system_that_does_not_tell_is_asked_for_its_load_average(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "none")
    monkeypatch.setattr(os, "getloadavg", lambda: (1.234, 0.0, 0.0))
    assert machine.load() == 1.23
