"""How a step's result enters the bundle: built under a temporary name, checked, renamed, recorded.

A step is up to date when the artifact it reads and its own settings are those recorded beside its last result, and
the files still have their checksums. An interrupted step leaves the bundle as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import JsonValue

from bundle.errors import BundleError, ChecksumMismatch, ExportError
from bundle.folder import Bundle, sha256_of
from bundle.manifest import Artifact, FileRef, Manifest, Parity, Quality, Runtime

SOURCE = "source_sha256"
SETTINGS = "settings"


def identity(artifact: Artifact) -> str:
    """One checksum over an artifact's file and its companions."""
    return artifact.identity


def source_of(bundle: Bundle, name: str) -> Artifact:
    """The artifact that a step reads, with its files checked.

    Raises:
        ExportError: the step before has not run.
        ChecksumMismatch: a file is not the one that was recorded.
    """
    artifact = bundle.manifest.artifacts.get(name)
    if artifact is None:
        raise ExportError(f"{bundle.root}: there is no artifact {name!r} yet; run the step before, or all of them")
    for ref in _refs(artifact):
        path = bundle.path(ref.file)
        if not path.is_file():
            raise BundleError(f"{path}: named in bundle.json but missing; run the step before again")
        if (found := sha256_of(path)) != ref.sha256:
            raise ChecksumMismatch(path, ref.sha256, found)
    return artifact


def is_intact(bundle: Bundle, artifact: Artifact) -> bool:
    """Whether an artifact's files are there and have their recorded checksums."""
    return all(
        bundle.path(ref.file).is_file() and sha256_of(bundle.path(ref.file)) == ref.sha256 for ref in _refs(artifact)
    )


def _refs(artifact: Artifact) -> tuple[FileRef, ...]:
    return FileRef(file=artifact.file, sha256=artifact.sha256, bytes=artifact.bytes), *artifact.files


def is_current(bundle: Bundle, name: str, source: str, settings: Mapping[str, JsonValue]) -> bool:
    """Whether a step would only repeat itself: same source, same settings, files intact."""
    artifact, origin = bundle.manifest.artifacts.get(name), bundle.manifest.artifacts.get(source)
    return (
        artifact is not None
        and origin is not None
        and artifact.details.get(SOURCE) == identity(origin)
        and artifact.details.get(SETTINGS) == dict(settings)
        and is_intact(bundle, artifact)
    )


@contextmanager
def workplace(bundle: Bundle, folder: str) -> Iterator[Path]:
    """A temporary folder inside ``folder`` of the bundle, on the same disk as the final place; always removed."""
    parent = bundle.path(folder)
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def adopt(
    bundle: Bundle,
    name: str,
    built: Mapping[Path, str],
    *,
    source: str,
    settings: Mapping[str, JsonValue],
    artifact_format: str,
    precision: str = "fp32",
    batch_invariant: bool = True,
    runtime: Runtime | None = None,
    parity: Parity | None = None,
    quality: Quality | None = None,
    details: Mapping[str, JsonValue] | None = None,
) -> Bundle:
    """Moves finished files to their names in the bundle and records them as one artifact.

    Args:
        built: temporary path → name in the bundle; the first is the file that a runtime opens.
        source: name of the artifact it was made from.
        runtime: the only one that it is meant for; None: any.

    Returns:
        the bundle with the artifact; artifacts made from an older form of it are dropped from the manifest.
    """
    names = list(built.values())
    if len(set(names)) != len(names):
        raise BundleError(f"{name}: two files would have the same name")
    changed = any(
        not bundle.path(file).is_file() or sha256_of(bundle.path(file)) != sha256_of(path)
        for path, file in built.items()
    )
    if changed:
        # While files change their content under a recorded name, the manifest must not vouch for them.
        bundle = bundle.save(_without(bundle.manifest, name))
    for path, file in built.items():
        target = bundle.path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.chmod(0o644)
        path.replace(target)
    refs = [bundle.refer(file) for file in names]
    artifact = Artifact.model_validate(
        {
            **refs[0].model_dump(),
            "files": tuple(refs[1:]),
            "format": artifact_format,
            "precision": precision,
            "made_from": source,
            "batch_invariant": batch_invariant,
            "runtime": runtime,
            "parity": parity,
            "quality": quality,
            "details": {
                SOURCE: identity(bundle.manifest.artifacts[source]),
                SETTINGS: dict(settings),
                **(details or {}),
            },
        }
    )
    published = bundle.manifest.published
    bundle = bundle.add_artifact(name, artifact)
    if published == name and not changed:
        bundle = bundle.publish(name)
    return bundle


def amend(bundle: Bundle, name: str, *, quality: Quality | None = None, **details: JsonValue) -> Bundle:
    """Adds measurements to an artifact that is already recorded; its files and ``published`` stay as they are."""
    artifact = bundle.manifest.artifacts[name]
    update: dict[str, object] = {"details": {**artifact.details, **details}}
    if quality is not None:
        update["quality"] = quality
    artifacts = {**bundle.manifest.artifacts, name: artifact.model_copy(update=update)}
    return bundle.save(bundle.manifest.model_copy(update={"artifacts": artifacts}))


def _without(manifest: Manifest, name: str) -> Manifest:
    """The manifest without an artifact and without what was made from it."""
    gone = {name}
    while more := {key for key, item in manifest.artifacts.items() if item.made_from in gone} - gone:
        gone |= more
    kept = {key: item for key, item in manifest.artifacts.items() if key not in gone}
    published = "" if manifest.published in gone else manifest.published
    return manifest.model_copy(update={"artifacts": kept, "published": published})


def place(source: Path, target: Path) -> None:
    """A second name for a finished file where the file system allows it, a copy elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
