"""The profile of the property tests, their marker ``properties``, and the count of what ran."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

from tests.properties import PROFILE, Tally, property_files

settings.load_profile(PROFILE)

TALLY = pytest.StashKey[Tally]()
BEGUN = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()
    config.stash[BEGUN] = time.monotonic()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tally = config.stash[TALLY]
    files = set()
    for item in items:
        test = getattr(item, "obj", None)
        if is_hypothesis_test(test):
            item.add_marker("properties")
            tally.watch(test)
            files.add(item.path)
    named = any("::" in argument for argument in config.args)
    tally.whole = not named and files >= property_files(Path(__file__).parent)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("properties"):
            item.config.stash[TALLY].whole = False


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if (
        exitstatus == pytest.ExitCode.OK
        and session.config.stash[TALLY].too_few
        and not session.config.option.collectonly
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if tally.ran:
        line = tally.sentence(time.monotonic() - config.stash[BEGUN])
        terminalreporter.write_line(line, red=tally.too_few)
