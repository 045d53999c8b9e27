"""The script that Triton's python backend runs; `export.to_triton` copies it beside the graph as ``model.py``.

It stands alone: the stub process has numpy, onnxruntime and perhaps openvino, nothing of Slipway. What it needs to know
about the model comes from ``config.pbtxt``, which was written from the manifest.

Triton hands over the calls that its batcher put together. Calls are of different lengths (ragged), so windows of
like length are padded together, computed together, and cut apart again. Where the graph is not batch-invariant
(dynamic quantization), each window is computed alone and at its true length: its answer must not depend on traffic.
Where the configuration fixes the length of windows (`bundle.buckets`), the padding is taken off again before they are
computed. On a GPU, ONNX Runtime's CUDA provider computes (`bundle.device`).
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

# Padded tokens over real tokens of a group, at most: padding is computed for nothing.
PADDING_BOUND = 1.25
CUDA = "CUDAExecutionProvider"


def _cpu() -> str:
    """The processor's model name, as the plan recorded it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


class OpenVino:
    """OpenVINO's model with the one method of ONNX Runtime's session that is used here.

    Raises:
        ImportError: OpenVINO is not installed.
        RuntimeError: it cannot open the graph.
    """

    def __init__(self, graph: Path, settings: dict[str, Any]) -> None:
        # OpenVINO reports its use to its makers unless this package is missing.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino

        compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
        self.version = openvino.__version__.partition("-")[0]
        # An input that the graph does not read may be gone.
        self.inputs = [name for port in compiled.inputs for name in port.get_names()]
        self.request = compiled.create_infer_request()

    def run(self, outputs: list[str], tensors: dict[str, Any]) -> list[Any]:
        found = self.request.infer({name: tensors[name] for name in self.inputs})
        return [found[name] for name in outputs]


class TritonPythonModel:
    """One instance: an ONNX Runtime session, or OpenVINO's model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        instances = sum(int(group.get("count", 1)) for group in config["instance_group"])
        cores = len(os.sched_getaffinity(0))
        threads = int(parameters["intra_op_threads"])
        openvino = json.loads(parameters.get("openvino", "{}"))
        if "plan_cores" in parameters and (parameters["plan_cpu"], int(parameters["plan_cores"])) != (_cpu(), cores):
            threads = 0
            if openvino:
                # Which other precisions its processor is good at was looked up there.
                openvino["INFERENCE_PRECISION_HINT"] = "f32"
            pb_utils.Logger.log_warn(
                f"{config['name']}: the plan is foreign: measured on {parameters['plan_cpu']}, "
                f"{parameters['plan_cores']} core(s), this is {_cpu()}, {cores} core(s); "
                f"{instances} instance(s) share all cores. `python -m export plan` measures here"
            )
        # What the user sets wins; it is meant for the model, so its instances share it.
        if wanted := int(os.environ.get("SLIPWAY_INTRA_OP_THREADS", "0")):
            threads = max(1, wanted // instances)
        self.by_length = parameters.get("by_length") != "false"
        self.pad_id = int(parameters["pad_id"])
        self.alone = parameters["batch_invariant"] == "false"
        # OpenVINO builds kernels for each length that it meets; a batch is padded to a multiple of so many tokens.
        self.round_to = int(parameters.get("round_to", "1"))
        self.max_tokens = int(parameters.get("max_tokens", "0"))
        self.inputs = [item["name"] for item in config["input"]]
        # A multi-task model has two outputs from one forward pass; what has a free axis is said of each token.
        self.outputs = [item["name"] for item in config["output"]]
        self.per_token = [len(item["dims"]) == 2 for item in config["output"]]
        self.dtypes = [pb_utils.triton_string_to_numpy(item["data_type"]) for item in config["output"]]
        self.session = self._open(args, config["name"], threads or max(1, cores // instances), openvino)

    def _open(self, args: dict[str, str], name: str, threads: int, openvino: dict[str, Any]) -> Any:
        """The runtime that the plan chose, or ONNX Runtime."""
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        if openvino:
            settings = {**openvino, "INFERENCE_NUM_THREADS": threads}
            try:
                opened = OpenVino(graph, settings)
            except ImportError as error:
                pb_utils.Logger.log_warn(
                    f"{name}: the plan chose OpenVINO, which is not installed ({error}); ONNX Runtime runs its graph"
                )
            else:
                pb_utils.Logger.log_info(f"{name}: OpenVINO {opened.version} computes, {threads} thread(s)")
                return opened
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        on_gpu = args["model_instance_kind"] == "GPU"
        providers: list[Any] = ["CPUExecutionProvider"]
        if on_gpu:
            # float32 is to stay float32, and memory is not to double for each new length.
            cuda = {"use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
            providers.insert(0, (CUDA, {"device_id": args["model_instance_device_id"], **cuda}))
        session = ort.InferenceSession(str(graph), options, providers=providers)
        if on_gpu and CUDA not in session.get_providers():
            raise pb_utils.TritonModelException(
                f"{name} is meant for a GPU, and onnxruntime {ort.__version__} of this stub opens it with "
                f"{', '.join(session.get_providers())} alone"
            )
        return session

    def execute(self, requests: list[Any]) -> list[Any]:
        # Per call and input: int64 (windows, tokens).
        calls = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        windows = [(call, row) for call, arrays in enumerate(calls) for row in range(len(arrays[0]))]
        lengths = [self._length(calls[call][0][row]) for call, row in windows]
        order = list(range(len(windows)))
        if self.by_length:
            order.sort(key=lambda index: lengths[index])
        answers: list[list[Any]] = [[None] * len(arrays[0]) for arrays in calls]
        for group in self._groups(order, lengths):
            longest = max(lengths[index] for index in group)
            found = self._run(calls, [windows[index] for index in group], longest)
            for number, index in enumerate(group):
                call, row = windows[index]
                answers[call][row] = [values[number] for values in found]
        return [self._response(arrays[0], rows) for arrays, rows in zip(calls, answers, strict=True)]

    def _length(self, ids: Any) -> int:
        """Tokens of a window up to the last one that is not padding."""
        real = np.flatnonzero(ids != self.pad_id)
        return int(real[-1]) + 1 if len(real) else len(ids)

    def _groups(self, order: list[int], lengths: list[int]) -> list[list[int]]:
        """Cuts a length-sorted order where padding would cost more than `PADDING_BOUND`; all in one if unsorted."""
        if not self.by_length and not self.alone:
            return [order]
        groups: list[list[int]] = []
        real = 0
        for index in order:
            length = lengths[index]
            if groups and not self.alone and (len(groups[-1]) + 1) * length <= PADDING_BOUND * (real + length):
                groups[-1].append(index)
                real += length
            else:
                groups.append([index])
                real = length
        return groups

    def _run(self, calls: list[list[Any]], windows: list[tuple[int, int]], longest: int) -> list[Any]:
        """Every output for some windows: float (windows, labels) or (windows, at least longest, labels) each."""
        if not self.alone:
            longest = max(longest, min(-(-longest // self.round_to) * self.round_to, self.max_tokens))
        tensors = {}
        for place, name in enumerate(self.inputs):
            # Only the ids are padded with the pad id; token types are 0 there, as everywhere else in Slipway.
            batch = np.full((len(windows), longest), 0 if place else self.pad_id, dtype=calls[0][place].dtype)
            for number, (call, row) in enumerate(windows):
                values = calls[call][place][row, :longest]
                batch[number, : len(values)] = values
            tensors[name] = batch
        found: list[Any] = self.session.run(self.outputs, tensors)
        return found

    def _response(self, ids: Any, rows: list[list[Any]]) -> Any:
        """One call's answer at the shape that the call came in; ``rows`` has the outputs of each of its windows."""
        tensors = []
        for place, (name, dtype) in enumerate(zip(self.outputs, self.dtypes, strict=True)):
            said = [row[place] for row in rows]
            if self.per_token[place]:
                logits = np.zeros((len(said), ids.shape[1], said[0].shape[-1]), dtype=dtype)
                for row, values in enumerate(said):
                    length = min(len(values), ids.shape[1])
                    logits[row, :length] = values[:length]
            else:
                logits = np.stack(said).astype(dtype, copy=False)
            tensors.append(pb_utils.Tensor(name, logits))
        return pb_utils.InferenceResponse(output_tensors=tensors)
