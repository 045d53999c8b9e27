"""One outside reference in its own Python: ``python worker.py JOB.json``.

The interpreter that runs this file belongs to the reference's environment and has none of Slipway's packages, so the
file imports nothing of the project, and NumPy and the reference's own libraries only when they are needed.

A message, in both directions, is one line of JSON and then the bytes of the arrays that it names, C order:

    {"do": "prepare" | "open" | "run", "arrays": [{"dtype": "<i8", "shape": [8, 128]}, …]}
    {"seconds": 0.012, "arrays": […]}    the answer; the first one, {"versions": {…}}, comes without being asked for
    {"error": "ValueError: …"}           the answer that is none

The end of the input ends the process. What libraries print goes to the job's log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

# int64 (windows, tokens) ids and types → the outputs in the signature's order
Run = Callable[[Any, Any], Sequence[Any]]


def send(stream: IO[bytes], message: dict[str, Any], arrays: Sequence[Any] = ()) -> None:
    """Writes one message.

    Args:
        arrays: NumPy arrays of any shape; they become contiguous.
    """
    import numpy as np

    whole = [np.ascontiguousarray(array) for array in arrays]
    described = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in whole]
    stream.write(json.dumps(message | {"arrays": described}).encode() + b"\n")
    for array in whole:
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Any]]:
    """Reads one message and its arrays.

    Raises:
        EOFError: the other side is gone.
    """
    import numpy as np

    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the other side is gone")
    message = json.loads(line)
    arrays = []
    for item in message.pop("arrays", ()):
        dtype, shape = np.dtype(item["dtype"]), tuple(item["shape"])
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        data = stream.read(size)
        if len(data) != size:
            raise EOFError("the other side is gone")
        arrays.append(np.frombuffer(data, dtype=dtype).reshape(shape))
    return message, arrays


# --- ONNX Runtime, and Hugging Face optimum's graphs for it ----------------------------------------------------------


def open_onnx(job: dict[str, Any]) -> Run:
    """A graph in ONNX Runtime with the options that Slipway's own graphs have in the bench."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As for our own graphs: threads that spin after a call would take time from the candidate after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    inputs = [item.name for item in session.get_inputs()]
    outputs = [item.name for item in session.get_outputs()][: job["outputs"]]

    def run(ids: Any, types: Any) -> Sequence[Any]:
        given = {"input_ids": ids, "token_type_ids": types}
        if "attention_mask" in inputs:
            given["attention_mask"] = (ids != job["pad_id"]).astype("int64")
        answer: Sequence[Any] = session.run(outputs, {name: given[name] for name in inputs})
        return answer

    return run


def prepare_optimum(job: dict[str, Any]) -> None:
    """Optimum's export of the model, its O2 graph, its dynamic INT8, and ONNX Runtime's own of the O2 graph."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.onnxruntime import ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

    folder = Path(job["folder"])
    model = load_transformers(job)
    task = "token-classification" if job["head"] == "TokenClassification" else "text-classification"
    # Its own validation is left out: the bench proves each graph with the golden rows.
    onnx_export_from_model(model, folder / "fp32", task=task, do_validation=False)
    if job["head"] == "TokenClassification":
        from optimum.onnxruntime import ORTModelForTokenClassification as Model
    else:
        from optimum.onnxruntime import ORTModelForSequenceClassification as Model
    optimizer = ORTOptimizer.from_pretrained(Model.from_pretrained(folder / "fp32"))
    optimizer.optimize(optimization_config=AutoOptimizationConfig.O2(), save_dir=folder / "o2")
    scheme = AutoQuantizationConfig.avx512_vnni if job["vnni"] else AutoQuantizationConfig.avx2
    quantizer = ORTQuantizer.from_pretrained(folder / "fp32", file_name="model.onnx")
    quantizer.quantize(save_dir=folder / "int8", quantization_config=scheme(is_static=False, per_channel=False))
    # Optimum cannot quantize its own O2 graph: it does not say what type the outputs of fused operators have.
    quantize_dynamic(
        folder / "o2" / "model_optimized.onnx",
        folder / "o2" / "model_int8.onnx",
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )


# --- transformers in PyTorch -----------------------------------------------------------------------------------------


def load_transformers(job: dict[str, Any]) -> Any:
    """The converted checkpoint as transformers reads it, in evaluation mode.

    Raises:
        ValueError: a weight is missing, left over, or of another shape.
    """
    import torch
    import transformers

    # Of the two thread pools only the first computes a matrix product.
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    model, told = getattr(transformers, job["class"]).from_pretrained(job["checkpoint"], output_loading_info=True)
    wrong = {key: sorted(value) for key, value in told.items() if value}
    if wrong:
        raise ValueError(f"the converted checkpoint does not fit transformers: {wrong}")
    model.eval()
    return model


def open_transformers(job: dict[str, Any]) -> Run:
    """The model in PyTorch: float32, or its linear layers in dynamic INT8."""
    import torch

    model = load_transformers(job)
    if job["int8"]:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def run(ids: Any, types: Any) -> Sequence[Any]:
        with torch.inference_mode():
            mask = torch.from_numpy(ids != job["pad_id"]).long()
            given = {"input_ids": torch.from_numpy(ids), "token_type_ids": torch.from_numpy(types)}
            return [model(**given, attention_mask=mask).logits.numpy()]

    return run


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def prepare_openvino(job: dict[str, Any]) -> None:
    """OpenVINO's reading of the converted graph, and NNCF's post-training INT8 of it, calibrated on real windows."""
    import nncf
    import numpy as np
    import openvino

    folder = Path(job["folder"])
    model = openvino.convert_model(job["graph"])
    openvino.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    with np.load(job["calibration"]) as archive:
        rows = [archive[name] for name in archive.files]  # each int64 (2, tokens): ids and types
    names = [item.get_any_name() for item in model.inputs]

    def feed(row: Any) -> dict[str, Any]:
        given = {"input_ids": row[:1], "token_type_ids": row[1:]}
        return {name: given[name] for name in names}

    quantized = nncf.quantize(
        model, nncf.Dataset(rows, feed), subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


def open_openvino(job: dict[str, Any]) -> Run:
    """A model in OpenVINO's CPU plugin: one stream with all threads."""
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if job["float32"]:  # by itself the plugin computes in bfloat16 where the CPU can
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(job["file"], "CPU", settings)
    names = [item.get_any_name() for item in compiled.inputs]
    request = compiled.create_infer_request()

    def run(ids: Any, types: Any) -> Sequence[Any]:
        given = {"input_ids": ids, "token_type_ids": types}
        found = request.infer({name: given[name] for name in names})
        return [found[item].copy() for item in compiled.outputs[: job["outputs"]]]

    return run


# --- the life of the process -----------------------------------------------------------------------------------------

# kind → libraries, what makes its files (if any), what opens them
KINDS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], None] | None, Callable[[dict[str, Any]], Run]]] = {
    "onnx": (("onnxruntime",), None, open_onnx),
    # Optimum itself is needed to make the graphs and would only weigh on the process that runs one.
    "optimum": (("onnxruntime",), prepare_optimum, open_onnx),
    "transformers": (("torch", "transformers"), None, open_transformers),
    "openvino": (("openvino",), prepare_openvino, open_openvino),
}
PACKAGES = ("onnxruntime", "torch", "transformers", "optimum", "optimum-onnx", "openvino", "nncf")


def one_line(error: BaseException) -> str:
    """The first and the last line of an error's text, with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' … '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:300]}"


def serve(job: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> None:
    """Imports what the kind needs, then answers until the other side is gone."""
    run: Run | None = None
    try:
        libraries, prepare, opener = KINDS[job["kind"]]
        for library in libraries:
            importlib.import_module(library)
    except Exception as error:  # whatever a library raises is the reason to tell
        send(target, {"error": one_line(error)})
        return
    send(target, {"versions": versions()})
    while True:
        try:
            message, arrays = receive(source)
        except EOFError:
            return
        outputs: Sequence[Any] = ()
        try:
            start = time.perf_counter()
            if message["do"] == "prepare" and prepare is not None:
                prepare(job)
            elif message["do"] == "open":
                run = opener(job)
            elif message["do"] == "run" and run is not None:
                # A buffer that was read is read-only, which PyTorch does not take.
                batch = [array.copy() for array in arrays]
                start = time.perf_counter()
                outputs = run(batch[0], batch[1])
            else:
                raise ValueError(f"cannot {message['do']} now")
            answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
        except Exception as error:
            answer, outputs = {"error": one_line(error)}, ()
        send(target, answer, outputs)


def versions() -> dict[str, str]:
    """The versions of what is installed here and matters."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Takes standard output for the messages alone; whatever prints goes to the log."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    target = os.fdopen(os.dup(1), "wb")
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # OpenVINO and NNCF report their use to their makers unless this package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    serve(job, sys.stdin.buffer, target)


if __name__ == "__main__":
    main()
