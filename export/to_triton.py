"""Bundle → Triton model repository: ``config.pbtxt`` from the manifest and its plan, the graph, and the model script.

Two flavours. ``python``: Triton's python backend runs ONNX Runtime, or OpenVINO where the plan chose it, through
`export.triton_model`; this is what the Triton server from pip can run. ``onnxruntime``: the native backend that
NVIDIA's container has and pip has not; where the plan chose OpenVINO it gets what was best on ONNX Runtime. It merges
calls of equal shape only, so it gets a model for each of a few window lengths (`bundle.buckets`); the script of the
other merges all lengths in one model, and has buckets only where they are asked for.
What is served, and whether it still computes what the bundle promises, is for `serving` to check.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bundle.buckets import OWNER, PARAMETER, bucket_names, buckets_in, owner_in, written
from bundle.encode import Encoder, WindowRow
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.golden import read_golden
from bundle.manifest import Aim, Artifact, Manifest, Setup, Task, Tensor
from bundle.plan import openvino_settings, planned
from bundle.rounding import STEP
from bundle.versions import triton_name
from export.artifact import place

Flavour = Literal["python", "onnxruntime"]

# Without a plan: most windows in one execution, up to which Triton sends the gateway's calls together, and how long it
# may hold a call back for that, in microseconds. A plan says how many, and was measured without holding back.
MAX_BATCH = 64
QUEUE_DELAY = 500
# Calls that may wait; beyond it Triton answers UNAVAILABLE, which the gateway turns into 503.
QUEUE_SIZE = 256
# Padded tokens of the execution that a bucket's batcher would rather not wait beyond: an engine call of the gateway's.
PREFERRED_TOKENS = 2048
# Of windows of max_tokens, half and a quarter as long: at most as much padding as text. Shorter buckets than this would
# cost another copy of the weights in memory to save computations that take no time.
SHORTEST_BUCKET = 16

GRAPH = "model.onnx"
# The folder in which Triton looks for the tensors of a warm-up.
WARMUP = "warmup"
# Files of label names, a line each, that Triton reads with the outputs of the signature, in its order.
LABELS = ("labels.txt", "token_labels.txt")
# What a GPU has kernels for.
FOR_GPU = ("fp16", "fp32")
_SCRIPT = Path(__file__).with_name("triton_model.py")
_TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}


@dataclass(frozen=True)
class Chosen:
    """How a model's files were written, so that they can be written again in the same way.

    Attributes:
        buckets: lengths of windows; empty for one model of all lengths, None for the flavour's usual ones.
    """

    backend: Flavour = "python"
    response_cache: bool = False
    gpu: bool = False
    buckets: tuple[int, ...] | None = None


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
    gpu: bool = False,
    tokens: int = 0,
    buckets: Sequence[int] = (),
) -> str:
    """The text of ``config.pbtxt`` for the artifact that is served.

    Args:
        name: what Triton calls the model, without the length of a bucket; by default the manifest's name.
        backend: ``python`` for the server from pip, ``onnxruntime`` for NVIDIA's container.
        instances: copies of the model that compute at the same time, of each bucket; by default the plan's sessions,
            or 1.
        threads: intra-op threads of each copy; by default the plan's. Without one, the python flavour shares the cores
            of the machine that serves among its copies, and the native one takes the cores of this machine.
        aim: what the manifest's plan is followed for; None leaves it aside. Given instances or threads take both out
            of the plan, and leave it the form and the batching.
        warmup: tokens of the golden windows whose tensors lie in the model's folder; without any, Triton warms up with
            one window of zeros.
        response_cache: whether Triton may answer from its cache, if it was started with one (``--cache-config``).
        gpu: whether the copies compute on the GPUs of the server, so many on each; no plan is then followed, as plans
            are measured on the cores of a processor.
        tokens: of every window of this bucket; 0 where the model reads every length.
        buckets: tokens of all the buckets of the model, this one among them.

    Raises:
        ExportError: the manifest publishes no artifact, or one that a GPU has no kernels for.
    """
    form, setup = _served(manifest, aim, gpu, backend)
    artifact = manifest.artifacts[form]
    pinned = setup is not None and instances is None and threads is None
    if setup and pinned:
        instances, threads = setup.sessions, setup.threads
    instances = instances or 1
    base = name or manifest.name
    most = setup.windows if setup else MAX_BATCH
    lines = [
        f"# Written by `make export` from the bundle {manifest.name!r}; changes are lost at the next export.",
        f'name: "{bucket_names(base, buckets)[tokens]}"',
        *(['backend: "python"'] if backend == "python" else ['platform: "onnxruntime_onnx"', 'backend: "onnxruntime"']),
        f"max_batch_size: {most}",
        *(_tensor("input", tensor, tokens, ragged=backend == "python") for tensor in manifest.signature.inputs),
        *(
            _tensor("output", tensor, tokens, labels=file)
            for tensor, file in zip(manifest.signature.outputs, _label_files(manifest.task), strict=True)
        ),
        f"instance_group [ {{ kind: {'KIND_GPU' if gpu else 'KIND_CPU'} count: {instances} }} ]",
        f"version_policy {{ specific {{ versions: [ {manifest.version} ] }} }}",
    ]
    # The python flavour runs a window alone where that matters; the native backend can only not be given a batch.
    if backend == "python" or artifact.batch_invariant:
        preferred = most if setup else max(1, min(most, PREFERRED_TOKENS // tokens)) if tokens else 0
        lines += [
            "dynamic_batching {",
            *([f"  preferred_batch_size: [ {preferred} ]"] if tokens else []),
            f"  max_queue_delay_microseconds: {0 if setup else QUEUE_DELAY}",
            f"  default_queue_policy {{ max_queue_size: {QUEUE_SIZE} }}",
            "}",
        ]
    parameters = {
        "format": form,
        "graph_sha256": artifact.sha256,
        "batch_invariant": "true" if artifact.batch_invariant else "false",
    }
    if tokens:
        parameters |= {PARAMETER: written(buckets)} if tokens == max(buckets) else {OWNER: base}
    if backend == "python":
        parameters |= {"pad_id": str(manifest.text.pad_id), "intra_op_threads": str(threads or 0)}
        if setup:
            parameters |= {"by_length": "true" if setup.by_length else "false"}
        if setup and setup.runtime == "openvino":
            # Of one instance; the script puts in the threads that it settles on.
            parameters |= {"openvino": _quoted(json.dumps(openvino_settings(1, threads or 1, artifact)))}
            # See `bundle.rounding`.
            parameters |= {"round_to": str(STEP), "max_tokens": str(manifest.text.max_tokens)}
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
    for length in warmup or (tokens or manifest.text.max_tokens,):
        lines += [
            "model_warmup [ {",
            f'  name: "{f"a golden window of {length} tokens" if warmup else "one window"}"',
            "  batch_size: 1",
            *(
                f'  inputs {{ key: "{tensor.name}" value {{ data_type: {_TYPES[tensor.dtype]} '
                f"dims: [ {tokens or length} ] "
                + (f'input_data_file: "{_warmup_file(length, tensor)}"' if warmup else "zero_data: true")
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
    gpu: bool = False,
    buckets: Sequence[int] | None = None,
) -> Path:
    """Writes or replaces the model's folder in a Triton repository, and those of its buckets, each whole or not at all.

    Args:
        bundle: publishes the artifact to serve, unless its plan chose another.
        repository: folder of models; other models in it are left as they are, buckets that this one had before go.
        backend, instances, threads, aim, response_cache, gpu: see `config_pbtxt`.
        buckets: lengths of windows, in tokens, that have a model each, beside the longest window; none for one model of
            all lengths. By default those of `usual_buckets` in the native flavour, and none in the other.

    Returns:
        the model's folder: ``<repository>/<name>``, of a kept version ``<repository>/<name>@<version>``.

    Raises:
        ExportError: nothing is published, the form cannot be served so, or another model has the name of a bucket.
        BundleError: a file of the artifact is missing or differs from its checksum.
    """
    manifest = bundle.manifest
    form, _ = _served(manifest, aim, gpu, backend)
    artifact = manifest.artifacts[form]
    name = triton_name(bundle.root, manifest)
    lengths = _lengths(manifest, artifact, backend, buckets)
    # The one that names the others comes last.
    models = bucket_names(name, lengths)
    bundle.verify([form])
    repository.mkdir(parents=True, exist_ok=True)
    gone = _other_buckets(repository, name, set(models.values()))
    golden = _golden_windows(bundle)
    with tempfile.TemporaryDirectory(dir=repository, prefix=f".{name}.") as scratch:
        shorter = 0
        for tokens, model in models.items():
            windows = _warmup_windows(golden, shorter, tokens or manifest.text.max_tokens)
            shorter = tokens
            config = config_pbtxt(
                manifest,
                name=name,
                backend=backend,
                instances=instances,
                threads=threads,
                aim=aim,
                warmup=list(windows),
                response_cache=response_cache,
                gpu=gpu,
                tokens=tokens,
                buckets=lengths,
            )
            _write_model(bundle, artifact, Path(scratch) / model, config, windows, tokens, script=backend == "python")
        for model in models.values():
            target = repository / model
            if target.exists():
                target.rename(Path(scratch) / f"{model}.old")
            (Path(scratch) / model).rename(target)
        for model in gone:
            (repository / model).rename(Path(scratch) / f"{model}.old")
    return repository / name


def write_again(bundle: Bundle, repository: Path, before: Chosen, aim: Aim | None) -> Path:
    """As `write_repository`, in the way that a model was written before, as far as what is served now allows it."""
    manifest, buckets = bundle.manifest, before.buckets
    gpu = before.gpu and bool(manifest.published) and manifest.artifacts[manifest.published].precision in FOR_GPU
    form, _ = _served(manifest, aim, gpu, before.backend)
    if buckets:
        known = manifest.artifacts[form].batch_invariant
        buckets = tuple(tokens for tokens in buckets if known and tokens <= manifest.text.max_tokens)
    return write_repository(
        bundle,
        repository,
        backend=before.backend,
        aim=aim,
        response_cache=before.response_cache,
        gpu=gpu,
        buckets=buckets,
    )


def usual_buckets(manifest: Manifest) -> tuple[int, ...]:
    """The window lengths of a repository for the native backend: the longest window, half and a quarter of it."""
    most = manifest.text.max_tokens
    return (*(tokens for tokens in (most // 4, most // 2) if tokens >= SHORTEST_BUCKET), most)


def chosen_before(repository: Path, name: str) -> Chosen:
    """How a model that stands in the repository was written; the defaults where it does not."""
    config = repository / name / "config.pbtxt"
    if not config.is_file():
        return Chosen()
    text = config.read_text(encoding="utf-8")
    return Chosen(
        "onnxruntime" if 'backend: "onnxruntime"' in text else "python",
        "response_cache { enable: true }" in text,
        "kind: KIND_GPU" in text,
        buckets_in(text),
    )


def _lengths(manifest: Manifest, artifact: Artifact, backend: Flavour, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The buckets of a model, ascending up to the longest window; empty where one model reads all lengths."""
    most = manifest.text.max_tokens
    if asked is None:
        # What must be computed at its true length can have no padding.
        asked = usual_buckets(manifest) if backend == "onnxruntime" and artifact.batch_invariant else ()
    if not asked:
        return ()
    if not artifact.batch_invariant:
        raise ExportError(
            f"a window's answer would depend on its padding in the form that {manifest.name!r} serves (dynamic "
            "quantization), so it can have no length buckets"
        )
    if wrong := [tokens for tokens in asked if not 0 < tokens <= most]:
        raise ExportError(f"a bucket of {wrong[0]} tokens is none: windows of {manifest.name!r} have 1 to {most}")
    return tuple(sorted({*asked, most}))


def _other_buckets(repository: Path, name: str, wanted: set[str]) -> list[str]:
    """Buckets that the model had before and has no more.

    Raises:
        ExportError: a name that is wanted is another model's.
    """
    owners = {
        config.parent.name: owner_in(config.read_text(encoding="utf-8"))
        for config in [repository / name / "config.pbtxt", *repository.glob(f"{name}_*/config.pbtxt")]
        if config.is_file()
    }
    if owner := owners.get(name):
        raise ExportError(f"{repository / name} is a length bucket of {owner!r}; one of the two needs another name")
    for model in sorted(wanted & owners.keys() - {name}):
        if owners[model] != name:
            raise ExportError(
                f"{repository / model} is a model of its own, and a length bucket of {name!r} has its name"
            )
    return sorted(model for model, owner in owners.items() if owner == name and model not in wanted)


def _write_model(
    bundle: Bundle,
    artifact: Artifact,
    new: Path,
    config: str,
    windows: Mapping[int, WindowRow],
    tokens: int,
    *,
    script: bool,
) -> None:
    """Writes one model's folder.

    Args:
        windows: of the warm-up, by their lengths; they are padded to ``tokens``.
    """
    manifest = bundle.manifest
    folder = new / str(manifest.version)
    folder.mkdir(parents=True)
    graph = bundle.path(artifact.file)
    place(graph, folder / GRAPH)
    for companion in artifact.files:
        # A graph names its weights relative to its own folder.
        source = bundle.path(companion.file)
        place(source, folder / source.relative_to(graph.parent))
    if script:
        shutil.copyfile(_SCRIPT, folder / "model.py")
    for file, labels in _label_files(manifest.task).items():
        (new / file).write_text("\n".join(labels) + "\n", encoding="utf-8")
    (new / WARMUP).mkdir()
    for length, row in windows.items():
        sides = zip(manifest.signature.inputs, (row.ids, row.types), (manifest.text.pad_id, 0), strict=False)
        for tensor, values, filler in sides:
            content = np.full(tokens or length, filler, dtype=np.dtype(tensor.dtype).newbyteorder("<"))
            content[:length] = values
            (new / WARMUP / _warmup_file(length, tensor)).write_bytes(content.tobytes())
    (new / "config.pbtxt").write_text(config, encoding="utf-8")


def _golden_windows(bundle: Bundle) -> dict[int, WindowRow]:
    """Golden windows, one of each length: tokens → the window, with int64 (tokens,) ids and token types."""
    encoder = Encoder.of(bundle)
    rows = read_golden(bundle.path(bundle.manifest.golden.file))
    windows = [window for row in rows for window in encoder.rows(encoder.encode(row.text, row.pair, truncate=True))]
    return {len(window.ids): window for window in windows}


def _warmup_windows(golden: Mapping[int, WindowRow], above: int, most: int) -> dict[int, WindowRow]:
    """Golden windows that a model is warmed up with: the shortest, one of middling length and the longest.

    Args:
        above, most: tokens of the windows that come to this model; where no golden one is among them, the next shorter
            one is taken, which is padded further.
    """
    lengths = sorted(length for length in golden if above < length <= most)
    lengths = lengths or sorted(length for length in golden if length <= most)[-1:]
    if not lengths:
        return {}
    return {length: golden[length] for length in sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})}


def _warmup_file(tokens: int, tensor: Tensor) -> str:
    return f"{tokens}.{tensor.name}"


def _served(manifest: Manifest, aim: Aim | None, gpu: bool, backend: Flavour) -> tuple[str, Setup | None]:
    """Name of the artifact to serve, and what the plan says about running it; the native backend is ONNX Runtime."""
    if not manifest.published:
        raise ExportError(f"the bundle {manifest.name!r} publishes no artifact; run `make export`")
    if gpu:
        if manifest.artifacts[manifest.published].precision not in FOR_GPU:
            raise ExportError(
                f"the bundle {manifest.name!r} publishes {manifest.published!r}, whose integer products are a "
                "processor's; `python -m export run --device gpu` (or gpu-elsewhere) makes the form for a GPU"
            )
        return manifest.published, None
    setup = planned(manifest, aim)
    if setup and aim and backend == "onnxruntime" and manifest.plan:
        setup = manifest.plan.on_onnxruntime(aim)
    return (setup.artifact if setup else manifest.published), setup


def _quoted(text: str) -> str:
    """Text as it stands between the quotes of a configuration."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _label_files(task: Task) -> dict[str, tuple[str, ...]]:
    """The label file of each output, in the signature's order, and what stands in it."""
    return dict(zip(LABELS, filter(None, (task.labels, task.token_labels)), strict=False))


def _tensor(kind: str, tensor: Tensor, tokens: int, *, ragged: bool = False, labels: str = "") -> str:
    """One input or output block; the first axis is Triton's own batch axis and is not written.

    Args:
        tokens: of a window; 0 leaves that axis free, and lets calls of different lengths come together if ``ragged``.
    """
    dims = ", ".join(str(axis if isinstance(axis, int) else tokens or -1) for axis in tensor.shape[1:])
    extra = " allow_ragged_batch: true" if ragged and not tokens else ""
    extra += f' label_filename: "{labels}"' if labels else ""
    return f'{kind} [ {{ name: "{tensor.name}" data_type: {_TYPES[tensor.dtype]} dims: [ {dims} ]{extra} }} ]'
