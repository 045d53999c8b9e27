"""Whether the folder that a supervised Triton loads from holds what the bundles publish, and which models that are."""

from __future__ import annotations

from pathlib import Path

from bundle.buckets import bucket_names, buckets_in
from bundle.errors import BundleError
from bundle.folder import sha256_of
from bundle.versions import is_kept
from serving.catalogue import ServedModel


def models_in(model: ServedModel, repository: Path) -> list[str]:
    """What Triton calls the models that answer for one of ours: its own name, with length buckets also theirs."""
    config = repository / model.triton_name / "config.pbtxt"
    buckets = buckets_in(config.read_text(encoding="utf-8")) if config.is_file() else ()
    return list(bucket_names(model.triton_name, buckets).values())


def check_repository(model: ServedModel, repository: Path) -> None:
    """The folders that the supervised Triton will load must hold the graph that the bundle publishes.

    Raises:
        BundleError: they do not; says what to run.
    """
    mend = "`python -m export version`" if is_kept(model.bundle.root) else "`make export`"
    for name in models_in(model, repository):
        folder = repository / name
        config, graph = folder / "config.pbtxt", folder / str(model.manifest.version) / "model.onnx"
        if not config.is_file() or not graph.is_file():
            raise BundleError(f"{folder} does not hold version {model.manifest.version}; run {mend}")
        if 'backend: "python"' not in config.read_text(encoding="utf-8"):
            raise BundleError(
                f"{config} is for the native backend of NVIDIA's container, which the Triton from pip does not have; "
                "run `make export` without that flag, or set TRITON_URL"
            )
        if sha256_of(graph) != model.artifact.sha256:
            raise BundleError(
                f"{graph} is not the graph that {model.bundle.root} publishes ({model.format}): "
                f"the bundle is newer than the repository; run {mend}"
            )
