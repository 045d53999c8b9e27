"""How many cases the property tests generate, and how many really ran.

The environment variable SLIPWAY_PROPERTIES chooses between the profiles ``ci`` (the same cases every time) and ``long``
(twenty times as many, others every time). `conftest` loads the profile, marks the tests and prints the count.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("SLIPWAY_PROPERTIES", "ci")
SCALES = {"ci": 1, "long": 20}
# Generated cases that all property tests together must come to, in the profile ci.
LEAST = 20_000

# A busy machine is no reason to fail, so neither profile looks at the clock.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", calm, derandomize=True, database=None)
settings.register_profile("long", calm, print_blob=True)


def cases(count: int, *allowed: HealthCheck) -> settings:
    """A decorator for a property test: how many cases it generates in the profile ci; others scale it.

    Args:
        allowed: health checks of hypothesis that this test may fail.
    """
    return settings(max_examples=count * SCALES[PROFILE], suppress_health_check=[*calm.suppress_health_check, *allowed])


class Tally:
    """Counts the generated cases that ran to their end; a case that `assume` turns away is none.

    Attributes:
        ran: cases so far.
        whole: whether every property test of the project is part of this session.
    """

    def __init__(self) -> None:
        self.ran = 0
        self.whole = False

    def watch(self, test: Any) -> None:
        """Counts the cases of one property test from now on."""
        inner: Callable[..., Any] = test.hypothesis.inner_test
        if hasattr(inner, "__counted__"):
            return  # a parametrized test is collected several times

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            self.ran += 1
            return result

        counted.__counted__ = True  # type: ignore[attr-defined]
        test.hypothesis.inner_test = counted

    @property
    def too_few(self) -> bool:
        """Whether a session that ran everything fell below the promised number."""
        return self.whole and self.ran < LEAST * SCALES[PROFILE]

    def sentence(self, seconds: float) -> str:
        """The line at the end of a session."""
        line = f"properties: {self.ran:,} generated cases (profile {PROFILE}, session of {seconds:.0f} s)"
        return f"{line}; too few, {LEAST * SCALES[PROFILE]:,} are promised" if self.too_few else line


def property_files(folder: Path) -> set[Path]:
    """The test files under a folder that hold a property test."""
    return {path for path in folder.rglob("test_*.py") if "\n@given(" in path.read_text(encoding="utf-8")}
