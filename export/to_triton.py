"""Bundle → Triton model repository: ``config.pbtxt`` from the manifest and its plan, the graph, and the model script.

Two flavours. ``python``: Triton's python backend runs ONNX Runtime through `export.triton_model`; this is what the
Triton server from pip can run. ``onnxruntime``: the native backend that NVIDIA's container has and pip has not.
What is served, and whether it still computes what the bundle promises, is for `serving` to check.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from bundle.encode import Encoder, WindowRow
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.golden import read_golden
from bundle.manifest import Aim, Manifest, Setup, Task, Tensor
from bundle.plan import planned
from bundle.versions import triton_name
from export.artifact import place

Flavour = Literal["python", "onnxruntime"]

# Without a plan: most windows in one execution, up to which Triton sends the gateway's calls together, and how long it
# may hold a call back for that, in microseconds. A plan says how many, and was measured without holding back.
MAX_BATCH = 64
QUEUE_DELAY = 500
# Calls that may wait; beyond it Triton answers UNAVAILABLE, which the gateway turns into 503.
QUEUE_SIZE = 256

GRAPH = "model.onnx"
# The folder in which Triton looks for the tensors of a warm-up.
WARMUP = "warmup"
# Files of label names, a line each, that Triton reads with the outputs of the signature, in its order.
LABELS = ("labels.txt", "token_labels.txt")
_SCRIPT = Path(__file__).with_name("triton_model.py")
_TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}


def config_pbtxt(
    manifest: Manifest,
    *,
    name: str = "",
    backend: Flavour = "python",
    instances: int | None = None,
    threads: int | None = None,
    aim: Aim | None = "throughput",
    warmup: Sequence[int] = (),
    response_cache: bool = False,
) -> str:
    """The text of ``config.pbtxt`` for the artifact that is served.

    Args:
        name: what Triton calls the model; by default the manifest's name.
        backend: ``python`` for the server from pip, ``onnxruntime`` for NVIDIA's container.
        instances: copies of the model that compute at the same time; by default the plan's sessions, or 1.
        threads: intra-op threads of each copy; by default the plan's. Without one, the python flavour shares the cores
            of the machine that serves among its copies, and the native one takes the cores of this machine.
        aim: what the manifest's plan is followed for; None leaves it aside. Given instances or threads take both out
            of the plan, and leave it the form and the batching.
        warmup: tokens of the golden windows whose tensors lie in the model's folder (`warmup_windows`); without any,
            Triton warms up with one window of zeros.
        response_cache: whether Triton may answer from its cache, if it was started with one (``--cache-config``).

    Raises:
        ExportError: the manifest publishes no artifact.
    """
    form, setup = _served(manifest, aim)
    artifact = manifest.artifacts[form]
    pinned = setup is not None and instances is None and threads is None
    if setup and pinned:
        instances, threads = setup.sessions, setup.threads
    instances = instances or 1
    lines = [
        f"# Written by `make export` from the bundle {manifest.name!r}; changes are lost at the next export.",
        f'name: "{name or manifest.name}"',
        *(['backend: "python"'] if backend == "python" else ['platform: "onnxruntime_onnx"', 'backend: "onnxruntime"']),
        f"max_batch_size: {setup.windows if setup else MAX_BATCH}",
        *(_tensor("input", tensor, backend == "python") for tensor in manifest.signature.inputs),
        *(
            _tensor("output", tensor, False, labels=file)
            for tensor, file in zip(manifest.signature.outputs, _label_files(manifest.task), strict=True)
        ),
        f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]",
        f"version_policy {{ specific {{ versions: [ {manifest.version} ] }} }}",
    ]
    # The python flavour runs a window alone where that matters; the native backend can only not be given a batch.
    if backend == "python" or artifact.batch_invariant:
        lines += [
            "dynamic_batching {",
            f"  max_queue_delay_microseconds: {0 if setup else QUEUE_DELAY}",
            f"  default_queue_policy {{ max_queue_size: {QUEUE_SIZE} }}",
            "}",
        ]
    parameters = {
        "format": form,
        "graph_sha256": artifact.sha256,
        "batch_invariant": "true" if artifact.batch_invariant else "false",
    }
    if backend == "python":
        parameters |= {"pad_id": str(manifest.text.pad_id), "intra_op_threads": str(threads or 0)}
        if setup:
            parameters |= {"by_length": "true" if setup.by_length else "false"}
        if pinned and manifest.plan:
            # The script looks whether it runs where this was measured.
            machine = manifest.plan.machine
            parameters |= {"plan_cpu": _quoted(machine.cpu), "plan_cores": str(machine.cores)}
    else:
        parameters |= {
            "intra_op_thread_count": str(threads or os.cpu_count() or 1),
            "inter_op_thread_count": "1",
            "execution_mode": "0",
        }
    lines += [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    if response_cache:
        lines.append("response_cache { enable: true }")
    for tokens in warmup or (manifest.text.max_tokens,):
        lines += [
            "model_warmup [ {",
            f'  name: "{f"a golden window of {tokens} tokens" if warmup else "one window"}"',
            "  batch_size: 1",
            *(
                f'  inputs {{ key: "{tensor.name}" value {{ data_type: {_TYPES[tensor.dtype]} dims: [ {tokens} ] '
                + (f'input_data_file: "{_warmup_file(tokens, tensor)}"' if warmup else "zero_data: true")
                + " } }"
                for tensor in manifest.signature.inputs
            ),
            "} ]",
        ]
    return "\n".join(lines) + "\n"


def write_repository(
    bundle: Bundle,
    repository: Path,
    *,
    backend: Flavour = "python",
    instances: int | None = None,
    threads: int | None = None,
    aim: Aim | None = "throughput",
    response_cache: bool = False,
) -> Path:
    """Writes or replaces the model's folder in a Triton repository, whole or not at all.

    Args:
        bundle: publishes the artifact to serve, unless its plan chose another.
        repository: folder of models; other models in it are left as they are.
        backend, instances, threads, aim, response_cache: see `config_pbtxt`.

    Returns:
        the model's folder: ``<repository>/<name>``, of a kept version ``<repository>/<name>@<version>``.

    Raises:
        ExportError: nothing is published.
        BundleError: a file of the artifact is missing or differs from its checksum.
    """
    manifest = bundle.manifest
    form, _ = _served(manifest, aim)
    artifact = manifest.artifacts[form]
    name = triton_name(bundle.root, manifest)
    windows = warmup_windows(bundle)
    config = config_pbtxt(
        manifest,
        name=name,
        backend=backend,
        instances=instances,
        threads=threads,
        aim=aim,
        warmup=list(windows),
        response_cache=response_cache,
    )
    bundle.verify([form])
    repository.mkdir(parents=True, exist_ok=True)
    target = repository / name
    with tempfile.TemporaryDirectory(dir=repository, prefix=f".{name}.") as scratch:
        new = Path(scratch) / "new"
        folder = new / str(manifest.version)
        folder.mkdir(parents=True)
        graph = bundle.path(artifact.file)
        place(graph, folder / GRAPH)
        for companion in artifact.files:
            # A graph names its weights relative to its own folder.
            source = bundle.path(companion.file)
            place(source, folder / source.relative_to(graph.parent))
        if backend == "python":
            shutil.copyfile(_SCRIPT, folder / "model.py")
        for file, labels in _label_files(manifest.task).items():
            (new / file).write_text("\n".join(labels) + "\n", encoding="utf-8")
        (new / WARMUP).mkdir()
        for tokens, row in windows.items():
            for tensor, values in zip(manifest.signature.inputs, (row.ids, row.types), strict=False):
                content = np.asarray(values, dtype=np.dtype(tensor.dtype).newbyteorder("<"))
                (new / WARMUP / _warmup_file(tokens, tensor)).write_bytes(content.tobytes())
        (new / "config.pbtxt").write_text(config, encoding="utf-8")
        if target.exists():
            target.rename(Path(scratch) / "old")
        new.rename(target)
    return target


def chosen_before(repository: Path, name: str) -> tuple[Flavour, bool]:
    """The backend and the response cache of a model as it stands in the repository; the defaults where it does not."""
    config = repository / name / "config.pbtxt"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return ("onnxruntime" if 'backend: "onnxruntime"' in text else "python", "response_cache { enable: true }" in text)


def warmup_windows(bundle: Bundle) -> dict[int, WindowRow]:
    """Golden windows that a model is warmed up with: the shortest, one of middling length and the longest.

    Returns:
        tokens → the window, with int64 (tokens,) ids and token types.
    """
    encoder = Encoder.of(bundle)
    rows = read_golden(bundle.path(bundle.manifest.golden.file))
    windows = [window for row in rows for window in encoder.rows(encoder.encode(row.text, row.pair, truncate=True))]
    by_length = {len(window.ids): window for window in windows}
    lengths = sorted(by_length)
    return {tokens: by_length[tokens] for tokens in sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})}


def _warmup_file(tokens: int, tensor: Tensor) -> str:
    return f"{tokens}.{tensor.name}"


def _served(manifest: Manifest, aim: Aim | None) -> tuple[str, Setup | None]:
    """Name of the artifact to serve, and what the plan says about running it."""
    if not manifest.published:
        raise ExportError(f"the bundle {manifest.name!r} publishes no artifact; run `make export`")
    setup = planned(manifest, aim)
    return (setup.artifact if setup else manifest.published), setup


def _quoted(text: str) -> str:
    """Text as it stands between the quotes of a configuration."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _label_files(task: Task) -> dict[str, tuple[str, ...]]:
    """The label file of each output, in the signature's order, and what stands in it."""
    return dict(zip(LABELS, filter(None, (task.labels, task.token_labels)), strict=False))


def _tensor(kind: str, tensor: Tensor, ragged: bool, *, labels: str = "") -> str:
    """One input or output block; the first axis is Triton's own batch axis and is not written."""
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in tensor.shape[1:])
    extra = (" allow_ragged_batch: true" if ragged else "") + (f' label_filename: "{labels}"' if labels else "")
    return f'{kind} [ {{ name: "{tensor.name}" data_type: {_TYPES[tensor.dtype]} dims: [ {dims} ]{extra} }} ]'
