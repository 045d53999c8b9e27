"""Paddle Inference as it runs when it is told nothing: the reference of a plan, where Paddle is installed.

It answers one window at a time in a process of its own (`export.forms`); passing arrays between the processes is not
counted against it. It is no candidate: no engine of Slipway's serves it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.encode import WindowRow
from bundle.folder import Bundle
from bundle.manifest import Setup
from export.forms import DEFAULT, PADDLE, Stand
from export.journal import Journal
from export.traffic import Lap

if TYPE_CHECKING:
    from export.forms import Candidate


@dataclass(frozen=True)
class PaddleDefault:
    """The reference, opened and warm."""

    candidate: Candidate

    @property
    def setup(self) -> Setup:
        return Setup(
            runtime="paddle-inference", artifact=PADDLE["paddle_inference"], threads=0, sessions=1, windows=1
        )  # fmt: skip

    def drive(self, texts: Sequence[Sequence[WindowRow]]) -> Lap:
        """One lap, a text after the other: with one predictor more clients would only wait.

        Raises:
            ExportError: its process died.
        """
        latencies = [sum(self.candidate.time(row.ids[None], row.types[None])[0] for row in text) for text in texts]
        return Lap(sum(latencies), tuple(1000 * value for value in latencies))


@contextmanager
def paddle_default(
    bundle: Bundle, warmup: Sequence[Sequence[WindowRow]], journal: Journal, wanted: bool
) -> Iterator[PaddleDefault | None]:
    """Opens the reference; None where it is not wanted, not installed, or cannot be opened (which is told)."""
    if not wanted:
        yield None
        return
    if find_spec("paddle") is None or PADDLE["paddle_inference"] not in bundle.manifest.artifacts:
        journal.say("    without Paddle Inference: it is not installed, or the bundle has no static graph")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="slipway-plan-") as folder, Stand(bundle, 1, Path(folder)) as stand:
        for reason in stand.start([DEFAULT]).values():
            journal.say(f"    without Paddle Inference: {reason}")
        found = PaddleDefault(stand.candidates[0]) if stand.candidates else None
        if found:
            found.drive(warmup)
        yield found
