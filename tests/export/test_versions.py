"""Keeping an exported bundle as a version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundle.errors import BundleError, ExportError
from bundle.folder import open_bundle
from bundle.versions import home_of, kept, next_version
from export.__main__ import app
from export.to_triton import write_repository
from export.versions import keep
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "news" / "bundle", "news", "single-label")
    return tmp_path / "news"


def test_a_version_is_kept_with_a_model_of_its_own_in_triton(home: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    # What the export asked Triton for holds for the version as well.
    write_repository(open_bundle(home / "bundle"), repository, backend="onnxruntime", response_cache=True)
    command = ["version", str(home), "--repository", str(repository)]
    done = CliRunner().invoke(app, command)

    assert done.exit_code == 0, done.output
    version = open_bundle(home / "versions" / "1")
    assert version.manifest == open_bundle(home / "bundle").manifest
    assert sorted(folder.name for folder in repository.iterdir()) == ["news", "news@1", "news@1_16", "news_16"]
    config = (repository / "news@1" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'name: "news@1"' in config and 'backend: "onnxruntime"' in config
    assert "response_cache { enable: true }" in config
    assert (repository / "news@1" / "1" / "model.onnx").is_file()

    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and list(kept(home)) == [1], "what is kept already is not kept twice"


def test_another_bundle_gets_the_next_number_and_the_kept_one_stays_as_it_was(home: Path) -> None:
    first = keep(open_bundle(home / "bundle"))
    before = {path: path.read_bytes() for path in first.root.rglob("*") if path.is_file()}
    shutil.rmtree(home / "bundle")
    second = keep(make_bundle(home / "bundle", "news", "single-label", seed=1))

    assert (second.manifest.version, second.root) == (2, home / "versions" / "2")
    assert open_bundle(home / "bundle").manifest.version == 2
    assert {path: path.read_bytes() for path in first.root.rglob("*") if path.is_file()} == before
    assert next_version(home) == 3
    assert [path.name for path in (home / "versions").iterdir() if path.name.startswith(".")] == []


def test_what_is_not_exported_or_not_whole_is_not_kept(home: Path) -> None:
    bundle = open_bundle(home / "bundle")
    with pytest.raises(ExportError, match="make export"):
        keep(bundle.save(bundle.manifest.model_copy(update={"published": ""})))
    bundle.save(bundle.manifest)
    bundle.path("golden.jsonl").unlink()
    with pytest.raises(BundleError, match=r"golden\.jsonl"):
        keep(bundle)
    assert kept(home) == {}


def test_a_kept_version_that_is_given_is_only_written_to_triton_again(home: Path, tmp_path: Path) -> None:
    version = keep(open_bundle(home / "bundle"))
    done = CliRunner().invoke(app, ["version", str(version.root), "--repository", str(tmp_path / "elsewhere")])

    assert done.exit_code == 0, done.output
    assert (tmp_path / "elsewhere" / "news@1" / "config.pbtxt").is_file()
    assert list(kept(home)) == [1]


def test_only_folders_with_a_plain_number_are_versions(home: Path) -> None:
    for name in ("2", "02", ".3.part", "latest", "٤"):
        (home / "versions" / name).mkdir(parents=True)
    (home / "versions" / "5").write_text("no folder")

    assert list(kept(home)) == [2]
    assert home_of(home / "versions" / "2") == home_of(home / "bundle") == home
