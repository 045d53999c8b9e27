"""A model with versions on disk: two that differ, one that is the first again, and some that must be refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bundle.folder import Bundle
from export.to_triton import write_repository
from export.versions import keep
from tests.serving.tiny_bundle import make_bundle, rebind

# Number of a version → what is wrong with it, and what the refusal says.
BROKEN = {
    11: ("a byte of its graph is another", "model.onnx: its sha256 is"),
    12: ("its graph was not copied yet", "named in bundle.json but missing"),
    13: ("its bundle.json was not copied yet", "bundle.json: no such file"),
    14: ("it computes something else", "golden rows do not match"),
    15: ("it is another version", "is version 2 of 'news'"),
    16: ("it does another task", "its task is token-classification"),
}


def kept(root: Path, number: int, seed: int, kind: str = "single-label") -> Bundle:
    """Makes a bundle where `make finetune export` would, and keeps it."""
    working = root / "artifacts" / "news" / "bundle"
    shutil.rmtree(working, ignore_errors=True)
    bundle = keep(make_bundle(working, "news", kind, seed=seed, version=number))
    shutil.rmtree(working)
    write_repository(bundle, root / "model_repository")
    return bundle


def make_versions(root: Path, *, broken: bool = True) -> Path:
    """Writes ``artifacts/news/versions`` and a Triton repository; version 1 is decided to serve.

    Returns:
        the folder of bundles.
    """
    for number, seed in ((1, 0), (2, 5), (3, 0)):
        kept(root, number, seed)
    for number in BROKEN if broken else ():
        bundle = kept(root, number, 5, "token-classification" if number == 16 else "single-label")
        graph = bundle.path("onnx_fp32/model.onnx")
        content = bytearray(graph.read_bytes())
        if number == 11:
            content[len(content) // 2] ^= 1
            graph.unlink()
            graph.write_bytes(content)
        elif number == 12:
            graph.unlink()
        elif number == 13:
            (bundle.root / "bundle.json").unlink()
        elif number == 14:
            other = make_bundle(root / "other", "other", "single-label", seed=7)
            write_repository(rebind(bundle, other.path("onnx_fp32/model.onnx")), root / "model_repository")
        elif number == 15:
            bundle.save(bundle.manifest.model_copy(update={"version": 2}))
    artifacts = root / "artifacts"
    (artifacts / "versions.json").write_text(json.dumps({"news": {"serving": 1}}))
    return artifacts
