"""The profile of the property tests, their marker ``properties``, the count of what ran, and who runs what.

`make test` shares the tests among two processes (pytest-xdist): the tests of a room that share what is dear to make,
such as bundles and servers, stay together, the others are shared by file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

from tests.properties import PROFILE, Tally, property_files

settings.load_profile(PROFILE)

# Folders whose tests share fixtures of the session.
TOGETHER = ("export", "serving")
TALLY = pytest.StashKey[Tally]()
BEGUN = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()
    config.stash[BEGUN] = time.monotonic()
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Gathered())


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who of several processes runs what: a room of `TOGETHER`, or a file, goes to one of them as a whole."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            room = file.removeprefix("tests/").partition("/")[0]
            return room if room in TOGETHER else file

    return ByRoom(config, log)


class Gathered:
    """In the process that shares the tests out: adds up what the others counted."""

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        tally, (ran, whole) = node.config.stash[TALLY], node.workeroutput["properties"] if not error else (0, False)
        tally.ran, tally.whole = tally.ran + ran, tally.whole or whole


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workeroutput"):
        # Each process collects all tests and runs a share of them, so only the sum can be too few.
        session.config.workeroutput["properties"] = (session.config.stash[TALLY].ran, session.config.stash[TALLY].whole)
        return
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
