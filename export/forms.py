"""Every form of a bundle's model, each in a process of its own that answers and times batches.

`export.bench` decides what is sent. Processes keep the runtimes apart: their threads, their memory, their
environment variables, and a crash of one is not the end of the others. What is not Slipway's is in
`export.references`; to the bench it is a `Candidate` like these.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from bundle.errors import ExportError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from bundle.decode import FloatArray
    from bundle.encode import IntArray
    from bundle.folder import Bundle

# Forms that are not simply an ONNX graph: name → artifact.
PADDLE = {
    "paddle_dygraph": "paddle",
    "paddle_inference": "paddle_static",
    "paddle_inference_onednn": "paddle_static",
}
# Paddle Inference with nothing set: one thread, the kernels that it takes by itself. Only `export.plan` asks for it.
DEFAULT = "paddle_inference_default"
# Importing Paddle and PaddleNLP takes a quarter of a minute, more on a busy machine.
OPEN_SECONDS = 300.0


class Channel(Protocol):
    """A process that has a model open."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def call(self, ids: IntArray, types: IntArray) -> tuple[float, list[FloatArray]]:
        """Seconds and outputs of one call; raises `ExportError` if the process died or the runtime failed."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...


@dataclass
class Candidate:
    """A form of the model in a process of its own.

    Attributes:
        precision: of most of its arithmetic: fp32, fp16, bf16, int8.
        artifact: of the bundle; empty for an outside reference.
        batch_invariant: whether a window's logits do not depend on what it is batched with.
        tolerance: largest allowed difference of a logit on the golden rows; None where labels are compared instead.
        bytes: its files on disk, weights included.
        load_seconds: opening the model, alone on the machine, files in the page cache, libraries imported.
        max_abs, label_agreement: on the golden rows.
        pace: seconds per padded token of the last cell, from which the next one's cost is guessed.
    """

    name: str
    channel: Channel
    precision: str
    artifact: str = ""
    batch_invariant: bool = True
    tolerance: float | None = None
    bytes: int = 0
    load_seconds: float = 0.0
    max_abs: float = 0.0
    label_agreement: float = 0.0
    pace: float = 0.0

    def time(self, ids: IntArray, types: IntArray) -> tuple[float, list[FloatArray]]:
        """Seconds and outputs of one call.

        Raises:
            ExportError: the process died or the runtime failed.
        """
        return self.channel.call(ids, types)

    def run(self, ids: IntArray, types: IntArray) -> list[FloatArray]:
        """Outputs of one call, in the signature's order."""
        return self.time(ids, types)[1]

    def memory(self) -> dict[str, float | None]:
        """Resident memory of its process in MiB, now and at its highest; None where the system does not tell."""
        found: dict[str, float | None] = {"resident_mib": None, "peak_mib": None}
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{self.channel.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                key = {"VmRSS": "resident_mib", "VmHWM": "peak_mib"}.get(name)
                if key:
                    found[key] = round(int(value.split()[0]) / 1024, 1)
        return found


@dataclass
class Piped:
    """A process of this interpreter with a pipe to it."""

    name: str
    process: BaseProcess
    pipe: Connection
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def call(self, ids: IntArray, types: IntArray) -> tuple[float, list[FloatArray]]:
        seconds, outputs = self.ask((ids, types))
        return seconds, outputs

    def ask(self, question: object) -> Any:
        """Sends one message and waits for the answer.

        Raises:
            ExportError: the process died, or the answer is a reason for which it could not.
        """
        try:
            self.pipe.send(question)
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise ExportError(f"{self.name}: its process died: {last_line(self.log)}") from error
        if isinstance(answer, str):
            raise ExportError(f"{self.name}: {answer}")
        return answer

    def wait(self, seconds: float) -> str:
        """Waits for the process to have its libraries; empty, or the reason for which it has not."""
        try:
            answer = self.pipe.recv() if self.pipe.poll(max(seconds, 0)) else f"no answer in {OPEN_SECONDS:g} s"
        except (EOFError, OSError):
            answer = f"its process died: {last_line(self.log)}"
        return "" if answer is True else str(answer)

    def close(self) -> None:
        with suppress(OSError):  # it may be dead already
            self.pipe.send(None)
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def open_paddle(job: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """The trained model as PaddleNLP runs it."""
    import paddle
    from paddlenlp import transformers

    from export.architectures import arrays_of, class_of

    model = class_of(transformers, job["architecture"]).from_pretrained(str(Path(job["file"]).parent))
    model.eval()

    def run(ids: Any, types: Any) -> Any:
        with paddle.no_grad():
            return arrays_of(model(paddle.to_tensor(ids), paddle.to_tensor(types)), len(job["outputs"]))

    return run


def open_paddle_inference(job: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """The static graph in Paddle Inference, with oneDNN kernels or without."""
    from paddle import inference

    config = inference.Config(job["file"], job["weights"])
    config.disable_gpu()
    if job["defaults"]:
        return _predict(inference.create_predictor(config), job)
    config.set_cpu_math_library_num_threads(job["threads"])
    # The order matters: memory optimisation of a PIR graph needs the new executor.
    config.enable_new_ir(True)
    config.enable_new_executor(True)
    config.enable_memory_optim()
    if job["onednn"]:
        config.enable_mkldnn()
        # One set of kernels per input shape; fewer places than shapes would build them anew at each call.
        config.set_mkldnn_cache_capacity(64)
    else:
        config.disable_mkldnn()
    return _predict(inference.create_predictor(config), job)


def _predict(predictor: Any, job: dict[str, Any]) -> Callable[[Any, Any], Any]:
    handles = [predictor.get_input_handle(name) for name in job["inputs"]]
    outputs = [predictor.get_output_handle(name) for name in predictor.get_output_names()[: len(job["outputs"])]]

    def run(*arrays: Any) -> Any:
        for handle, array in zip(handles, arrays, strict=True):
            handle.copy_from_cpu(array)
        predictor.run()
        return [output.copy_to_cpu() for output in outputs]

    return run


def open_onnx(job: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """A graph in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Otherwise its threads spin for some 20 ms after a call, on the cores that the next candidate is timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])

    def run(*arrays: Any) -> Any:
        return session.run(job["outputs"], dict(zip(job["inputs"], arrays, strict=True)))

    return run


def open_openvino(job: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """A graph that was written for OpenVINO, opened as serving does."""
    from export.on_openvino import open_streams

    (run,) = open_streams(Path(job["file"]), job["manifest"], job["artifact"], 1, job["threads"])
    return run


OPENERS = {
    "paddle": open_paddle,
    "paddle-static": open_paddle_inference,
    "onnx": open_onnx,
    "openvino": open_openvino,
}
# What an opener imports: done by all processes at once, so that opening a model can be timed alone.
LIBRARIES = {
    "paddle": ("paddle", "paddlenlp.transformers"),
    "paddle-static": ("paddle.inference",),
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
}


def stand(pipe: Connection, job: dict[str, Any]) -> None:
    """The life of a candidate's process: import, open the model when asked to, then time each batch that comes."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        for library in LIBRARIES[job["format"]]:
            importlib.import_module(library)
        pipe.send(True)
        if pipe.recv() is None:
            return
        start = time.perf_counter()
        run = OPENERS[job["format"]](job)
        pipe.send(time.perf_counter() - start)
    except Exception as error:  # whatever a runtime raises is the reason to tell
        pipe.send(one_line(error))
        return
    while (batch := pipe.recv()) is not None:
        try:
            start = time.perf_counter()
            outputs = run(*batch)
            answer: object = (time.perf_counter() - start, outputs)
        except Exception as error:
            answer = one_line(error)
        pipe.send(answer)


def one_line(error: BaseException) -> str:
    """The last line of an error, with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def last_line(log: Path) -> str:
    """The last thing that a process wrote."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    return next((line[:300] for line in reversed(lines) if line), "it said nothing")


def environment_of(threads: int) -> dict[str, str]:
    """Environment variables that give Paddle as many threads as ONNX Runtime, and its fast path on AMD.

    They are read when Paddle is loaded, so they must be set before its process starts. Paddle's own default is one
    thread. ``KMP_BLOCKTIME`` (milliseconds) ends the spinning of its idle threads, which would otherwise burn a core
    for 0.2 s after a call, while the next candidate is timed; Paddle's own calls take as long as before.
    """
    from bundle.machine import is_amd

    count = str(threads)
    wanted = {
        "OMP_NUM_THREADS": count,
        "FLAGS_paddle_num_threads": count,
        "KMP_BLOCKTIME": "1",
        "GLOG_minloglevel": "2",
    }
    return wanted | ({"MKL_DEBUG_CPU_TYPE": "5"} if is_amd() else {})


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class Stand:
    """Starts candidates and ends them all, whatever happens."""

    def __init__(self, bundle: Bundle, threads: int, folder: Path) -> None:
        self.bundle, self.threads, self.folder = bundle, threads, folder
        self.candidates: list[Candidate] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for candidate in self.candidates:
            candidate.channel.close()

    def start(self, names: Sequence[str]) -> dict[str, str]:
        """Starts candidates in processes of their own, all at once, then opens their models one after the other.

        Returns:
            those that could not be started, with the reason.
        """
        from multiprocessing import get_context

        spawn = get_context("spawn")
        manifest, lost = self.bundle.manifest, {}
        known = PADDLE | {DEFAULT: PADDLE["paddle_inference"]}
        begun = time.perf_counter()
        started: list[tuple[Candidate, Piped]] = []
        with _environment(environment_of(self.threads)):
            for name in names:
                artifact = manifest.artifacts.get(known.get(name, name))
                if artifact is None:
                    lost[name] = f"the bundle has no artifact {known.get(name, name)!r}"
                    continue
                weights = [ref.file for ref in artifact.files if ref.file.endswith(".pdiparams")]
                log = self.folder / f"{name}.log"
                job = {
                    "format": "openvino" if artifact.runtime == "openvino" else artifact.format,
                    "file": str(self.bundle.path(artifact.file)),
                    "weights": str(self.bundle.path(weights[0])) if weights else "",
                    "architecture": manifest.made.architecture,
                    "manifest": manifest,
                    "artifact": artifact,
                    "inputs": [tensor.name for tensor in manifest.signature.inputs],
                    "outputs": [tensor.name for tensor in manifest.signature.outputs],
                    "threads": self.threads,
                    "onednn": name.endswith("_onednn"),
                    "defaults": name == DEFAULT,
                    "log": str(log),
                }
                here, there = spawn.Pipe()
                process = spawn.Process(target=stand, args=(there, job), name=f"bench-{name}", daemon=True)
                process.start()
                there.close()
                channel = Piped(name, process, here, log)
                candidate = Candidate(
                    name,
                    channel,
                    artifact.precision,
                    PADDLE.get(name, name),
                    artifact.batch_invariant,
                    artifact.parity.tolerance if artifact.parity else None,
                    artifact.bytes + sum(ref.bytes for ref in artifact.files if ref.file in weights),
                )
                self.candidates.append(candidate)
                started.append((candidate, channel))
        for candidate, channel in started:
            if reason := channel.wait(OPEN_SECONDS - (time.perf_counter() - begun)):
                lost[candidate.name] = reason
                self.drop(candidate)
        for candidate, channel in started:
            if candidate.name not in lost:
                try:
                    candidate.load_seconds = channel.ask("open")
                except ExportError as error:
                    lost[candidate.name] = str(error).removeprefix(f"{candidate.name}: ")
                    self.drop(candidate)
        return lost

    def drop(self, candidate: Candidate) -> None:
        """Ends one candidate."""
        self.candidates.remove(candidate)
        candidate.channel.close()
