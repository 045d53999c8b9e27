"""Tiny bundles, built once a session with PaddleNLP in a process of its own, and exported once each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.folder import Bundle, open_bundle
from export.fuse import fuse
from export.gate import DevSplit, gate
from export.journal import Journal
from export.pooling import pooling
from export.to_int8 import to_int8
from tests.export.converter import Converter
from tests.export.triton_script import Said

Copy = Callable[[str], Bundle]


def made_by(script: str, folder: Path) -> Path:
    """The folder, filled by a script beside this file in a process of its own: Paddle stays out of this one."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles as finetune leaves them: `<name>/bundle`."""
    return made_by("tiny.py", tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    converter = Converter(tmp_path_factory.mktemp("converter") / "log")
    yield converter
    converter.close()


@pytest.fixture(scope="session")
def exported(trained: Path, converter: Converter, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The named bundle after the whole chain. It is shared: do not change it, take a copy."""
    folder = tmp_path_factory.mktemp("exported")
    done: dict[str, Bundle] = {}

    def export(name: str) -> Bundle:
        if name not in done:
            root = folder / name / "bundle"
            shutil.copytree(trained / name / "bundle", root)
            converter(root)
            journal = Journal(folder / name / "export.log")
            bundle = fuse(open_bundle(root), journal)
            dev = DevSplit(bundle)
            done[name] = gate(to_int8(pooling(bundle, journal, dev), journal, dev), journal, dev)
        return done[name]

    return export


def copier(source: Copy, folder: Path) -> Copy:
    """What copies the bundles of a shared fixture, once each, for a test that changes them."""

    def copy(name: str) -> Bundle:
        root = folder / name / "bundle"
        shutil.copytree(source(name).root, root)
        return open_bundle(root)

    return copy


@pytest.fixture
def copied(exported: Copy, tmp_path: Path) -> Copy:
    """A copy of an exported bundle that a test may change."""
    return copier(exported, tmp_path)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "export.log")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    found = Said()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", found)
    return found
