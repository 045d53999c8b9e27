"""A bundle on disk: open, check, create, add an artifact.

Every write goes to a temporary name in the same folder and is renamed, so that a reader sees the old bundle or the
new one and never a half. Paths inside a manifest may not leave the bundle folder.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from errno import EISDIR
from pathlib import Path

from bundle.errors import BundleError, ChecksumMismatch
from bundle.manifest import Artifact, FileRef, Manifest, parse_manifest

MANIFEST = "bundle.json"


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes 0600; a bundle is meant to be read by the account that serves it.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Makes the folder of a file that long work will end in, and sees that it can be written.

    Raises:
        BundleError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder", str(path))
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class Bundle:
    """A bundle folder and its manifest as read."""

    root: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    def path(self, file: str) -> Path:
        """The absolute path of a file of the bundle.

        Raises:
            BundleError: the name leads out of the folder.
        """
        root = self.root.resolve()
        path = (root / file).resolve()
        if not path.is_relative_to(root):
            raise BundleError(f"{self.root / MANIFEST}: {file!r} leads out of the bundle folder")
        return path

    def refer(self, file: str) -> FileRef:
        """A reference to a file that now lies in the bundle, with its checksum and size."""
        path = self.path(file)
        if not path.is_file():
            raise BundleError(f"{path}: no such file")
        return FileRef(file=file, sha256=sha256_of(path), bytes=path.stat().st_size)

    def files(self, artifacts: list[str] | None = None) -> Iterator[FileRef]:
        """Every file that the manifest names; with ``artifacts``, only those artifacts' files and the shared ones."""
        manifest = self.manifest
        yield manifest.text.tokenizer
        yield manifest.golden
        if artifacts is None:
            yield from manifest.splits.values()
        for name, artifact in manifest.artifacts.items():
            if artifacts is None or name in artifacts:
                yield FileRef(file=artifact.file, sha256=artifact.sha256, bytes=artifact.bytes)
                yield from artifact.files

    def verify(self, artifacts: list[str] | None = None) -> None:
        """Compares every file with its recorded checksum.

        Raises:
            BundleError: a file is missing.
            ChecksumMismatch: a file differs.
        """
        for ref in self.files(artifacts):
            path = self.path(ref.file)
            if not path.is_file():
                raise BundleError(f"{path}: named in {MANIFEST} but missing")
            found = sha256_of(path)
            if found != ref.sha256:
                raise ChecksumMismatch(path, ref.sha256, found)

    def save(self, manifest: Manifest) -> Bundle:
        """Writes a new manifest and returns the bundle as it now is; a plan of files that it no longer names goes."""
        manifest = manifest.without_stale_plan()
        write_atomic(self.root / MANIFEST, manifest.dumps())
        return replace(self, manifest=manifest)

    def add_artifact(self, name: str, artifact: Artifact) -> Bundle:
        """Adds or replaces one artifact. ``published`` is left as it is, unless it named the replaced one."""
        artifacts: Mapping[str, Artifact] = {**self.manifest.artifacts, name: artifact}
        published = "" if self.manifest.published == name else self.manifest.published
        return self.save(self.manifest.model_copy(update={"artifacts": dict(artifacts), "published": published}))

    def publish(self, name: str) -> Bundle:
        """Names the artifact that is to be served."""
        if name not in self.manifest.artifacts:
            raise BundleError(f"{self.root}: there is no artifact {name!r} to publish")
        return self.save(self.manifest.model_copy(update={"published": name}))


def open_bundle(root: Path | str, *, verify: bool = True) -> Bundle:
    """Opens a bundle folder.

    Args:
        root: the folder that holds ``bundle.json``.
        verify: compare every file with its checksum.

    Raises:
        BundleError: no such folder or file, or a file that the manifest names is missing.
        ManifestInvalid: ``bundle.json`` does not follow the schema.
        ChecksumMismatch: a file differs from its checksum.
    """
    root = Path(root)
    file = root / MANIFEST
    if not file.is_file():
        raise BundleError(f"{file}: no such file; `make finetune` writes it")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: cannot be read: {error}") from error
    bundle = Bundle(root, parse_manifest(text, file))
    if verify:
        bundle.verify()
    return bundle


def create_bundle(root: Path | str, manifest: Manifest) -> Bundle:
    """Writes ``bundle.json`` into a folder whose files already lie there, and checks them."""
    root = Path(root)
    bundle = Bundle(root, manifest)
    bundle.verify()
    return bundle.save(manifest)
