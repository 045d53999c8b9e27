"""Where the versions of a model lie, so that the rooms which write, keep and serve them agree.

    artifacts/news/bundle/        the bundle that `finetune` and `export` work on
    artifacts/news/versions/2/    a version that `python -m export version` kept: a whole bundle, not changed again

In a Triton repository a kept version is a model of its own, ``news@2``: Triton has one configuration for all versions
of a model, and batching, instances and labels differ from one graph to the next.
"""

from __future__ import annotations

import re
from pathlib import Path

from bundle.manifest import Manifest

VERSIONS = "versions"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def is_kept(root: Path) -> bool:
    """Whether a bundle folder is a kept version, by its place."""
    root = root.absolute()
    return root.parent.name == VERSIONS and _NUMBER.fullmatch(root.name) is not None


def home_of(root: Path) -> Path:
    """The folder that holds a bundle and the versions kept of it."""
    root = root.absolute()
    if is_kept(root):
        return root.parent.parent
    return root.parent if root.name == "bundle" else root


def kept(home: Path) -> dict[int, Path]:
    """The folders of the kept versions, by number in ascending order; what is in them is not looked at."""
    folder = home / VERSIONS
    found = [child for child in folder.iterdir() if _NUMBER.fullmatch(child.name)] if folder.is_dir() else []
    return {int(child.name): child for child in sorted(found, key=lambda child: int(child.name)) if child.is_dir()}


def next_version(home: Path) -> int:
    """The number of a model that is trained now: above every kept one."""
    return max(kept(home), default=0) + 1


def triton_name(root: Path, manifest: Manifest) -> str:
    """The name of a bundle's model in a Triton repository."""
    return f"{manifest.name}@{manifest.version}" if is_kept(root) else manifest.name
