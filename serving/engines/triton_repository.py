"""Whether the folder that a supervised Triton loads from holds what the bundles publish."""

from __future__ import annotations

from pathlib import Path

from bundle.errors import BundleError
from bundle.folder import sha256_of
from bundle.versions import is_kept
from serving.catalogue import ServedModel


def check_repository(model: ServedModel, repository: Path) -> None:
    """The folder that the supervised Triton will load must hold the graph that the bundle publishes.

    Raises:
        BundleError: it does not; says what to run.
    """
    mend = "`python -m export version`" if is_kept(model.bundle.root) else "`make export`"
    folder = repository / model.triton_name
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
