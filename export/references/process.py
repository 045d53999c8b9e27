"""Starts outside references and talks to them; to the bench each is a `Candidate` like our own forms.

One that cannot be had is left out with the reason and stops nothing: its environment is missing, its library refuses
the model, its process dies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bundle.errors import ExportError
from bundle.machine import has_vnni
from bundle.predict import encode_rows
from bundle.rows import read_rows
from export.forms import Candidate, environment_of, last_line
from export.references import worker
from export.references.known import ENVIRONMENTS, FP32_TOLERANCE, REFERENCES, Reference, python_of
from export.references.weights import transformers_class

if TYPE_CHECKING:
    from bundle.decode import FloatArray
    from bundle.encode import IntArray
    from bundle.folder import Bundle
    from export.parity import GoldenRows

# Windows of the calibration rows that a reference may quantize by; NNCF's own default is about as many.
CALIBRATION_WINDOWS = 256


@dataclass
class Worker:
    """A reference's process and the two pipes to it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, python: Path, job: Mapping[str, Any], folder: Path) -> Self:
        """Starts the process; what it has to say comes with `hello`.

        Args:
            python: the interpreter of the reference's environment.
            job: what `worker` needs to know, without the log.
            folder: where the job and the log are written.
        """
        log, file = folder / f"{name}.log", folder / f"{name}.json"
        file.write_text(json.dumps({**job, "log": str(log)}), encoding="utf-8")
        # -P: the folder of the script is no place to import from.
        command = [str(python), "-P", worker.__file__, str(file)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= environment_of(job["threads"]) | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        with log.open("ab") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def hello(self) -> None:
        """Waits until the libraries are imported.

        Raises:
            ExportError: with the reason for which they are not.
        """
        self.versions = self._answer()[0].get("versions", {})

    def ask(self, what: str, arrays: Sequence[Any] = ()) -> tuple[float, list[FloatArray]]:
        """Seconds that something took, and the arrays that came of it.

        Raises:
            ExportError: the process died, or the reason for which it could not.
        """
        assert self.process.stdin is not None
        try:
            worker.send(self.process.stdin, {"do": what}, arrays)
        except OSError as error:
            raise ExportError(f"{self.name}: its process died: {last_line(self.log)}") from error
        message, found = self._answer()
        return float(message["seconds"]), found

    def call(self, ids: IntArray, types: IntArray) -> tuple[float, list[FloatArray]]:
        return self.ask("run", (ids, types))

    def _answer(self) -> tuple[dict[str, Any], list[Any]]:
        assert self.process.stdout is not None
        try:
            message, arrays = worker.receive(self.process.stdout)
        except (EOFError, OSError, ValueError) as error:
            raise ExportError(f"{self.name}: its process died: {last_line(self.log)}") from error
        if "error" in message:
            raise ExportError(f"{self.name}: {message['error']}")
        return message, arrays

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Outside:
    """The outside references of one bench run: prepares and starts them, and ends them all, whatever happens.

    Attributes:
        candidates: those that have the model open.
        lost: the others, with the reason.
        versions: environment → package → version.
    """

    def __init__(
        self,
        bundle: Bundle,
        golden: GoldenRows,
        threads: int,
        folder: Path,
        *,
        references: Mapping[str, Reference] = REFERENCES,
        environments: Path = ENVIRONMENTS,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.bundle, self.golden, self.threads, self.folder = bundle, golden, threads, folder
        self.references, self.environments, self.say = references, environments, say
        self.candidates: list[Candidate] = []
        self.lost: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for candidate in self.candidates:
            candidate.channel.close()

    def start(self, names: Sequence[str]) -> None:
        """Prepares what the references need, kind by kind, then opens them one after the other."""
        there: dict[str, Reference] = {}
        for name in names:
            reference = self.references[name]
            if python_of(reference.environment, self.environments).is_file():
                there[name] = reference
            else:
                self.lost[name] = f"no {self.environments / reference.environment}; `make references` makes it"
        self._drop(there, self._convert(there))
        for kind in dict.fromkeys(reference.kind for reference in there.values()):
            self._drop(there, self._prepare(kind, there))
        for name, reference in there.items():
            try:
                self.candidates.append(self._open(name, reference))
            except ExportError as error:
                self.lost[name] = str(error).removeprefix(f"{name}: ")

    def drop(self, candidate: Candidate, reason: str) -> None:
        """Ends one reference."""
        self.candidates.remove(candidate)
        self.lost[candidate.name] = reason
        candidate.channel.close()

    def _drop(self, there: dict[str, Reference], failed: Mapping[str, str]) -> None:
        for name, reason in failed.items():
            self.lost[name] = reason
            del there[name]

    def _convert(self, there: Mapping[str, Reference]) -> dict[str, str]:
        """The checkpoint for transformers, in a process of its own, since it needs Paddle."""
        wanting = [name for name, item in there.items() if item.kind in ("transformers", "optimum")]
        if not wanting:
            return {}
        try:
            transformers_class(self.bundle.manifest.made.architecture)
        except ExportError as error:
            return dict.fromkeys(wanting, str(error))
        self.say("converting the checkpoint for transformers")
        module = "export.references.weights"
        command = [sys.executable, "-m", module, str(self.bundle.root.resolve()), str(self.folder / "checkpoint")]
        root = Path(__file__).resolve().parents[2]
        told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if told.returncode == 0:
            return {}
        lines = [line.strip() for line in told.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        return dict.fromkeys(wanting, f"the checkpoint was not converted: {reason}")

    def _prepare(self, kind: str, there: Mapping[str, Reference]) -> dict[str, str]:
        """The files of a kind, made by its own libraries."""
        names = [name for name, item in there.items() if item.kind == kind]
        if worker.KINDS[kind][1] is None:
            return {}
        self.say(f"{kind} converts and quantizes")
        first = there[names[0]]
        (self.folder / kind).mkdir(exist_ok=True)
        if kind == "openvino":
            self._write_calibration()
        made = Worker.start(f"prepare-{kind}", self._python(first), self._job(first), self.folder)
        try:
            made.hello()
            made.ask("prepare")
        except ExportError as error:
            return dict.fromkeys(names, str(error).removeprefix(f"prepare-{kind}: "))
        finally:
            made.close()
        return {}

    def _write_calibration(self) -> None:
        """Windows of the calibration rows, each int64 (2, tokens): ids and types; every n-th, so that texts differ."""
        bundle, encoder = self.bundle, self.golden.encoder
        rows = read_rows(bundle.path(bundle.manifest.splits["calibration"].file))
        windows = [row for encoded in encode_rows(rows, encoder) for row in encoder.rows(encoded)]
        chosen = windows[:: max(1, len(windows) // CALIBRATION_WINDOWS)][:CALIBRATION_WINDOWS]
        np.savez(
            self.folder / "calibration.npz",
            **{f"{number:05d}": np.stack([row.ids, row.types]) for number, row in enumerate(chosen)},
        )

    def _open(self, name: str, reference: Reference) -> Candidate:
        self.say(f"opening {name}")
        channel = Worker.start(name, self._python(reference), self._job(reference), self.folder)
        try:
            channel.hello()
            seconds, _ = channel.ask("open")
        except ExportError:
            channel.close()
            raise
        self.versions.setdefault(reference.environment, {}).update(channel.versions)
        return Candidate(
            name,
            channel,
            reference.precision,
            batch_invariant=reference.batch_invariant,
            tolerance=FP32_TOLERANCE if reference.precision == "fp32" else None,
            bytes=self._size(reference),
            load_seconds=seconds,
        )

    def _python(self, reference: Reference) -> Path:
        # Not resolved: the interpreter finds its environment by the path that it is called by.
        return python_of(reference.environment, self.environments).absolute()

    def _size(self, reference: Reference) -> int:
        if not reference.file:  # quantized when it is opened: what lies on the disk is the checkpoint
            return (self.folder / "checkpoint" / "model.safetensors").stat().st_size
        file = self.folder / reference.kind / reference.file
        return sum(item.stat().st_size for item in {file, file.with_suffix(".bin")} if item.is_file())

    def _job(self, reference: Reference) -> dict[str, Any]:
        manifest, folder = self.bundle.manifest, self.folder / reference.kind
        graph = manifest.artifacts.get("onnx_fp32")
        return {
            "kind": reference.kind,
            "threads": self.threads,
            "pad_id": manifest.text.pad_id,
            "outputs": len(manifest.signature.outputs),
            "int8": reference.precision == "int8",
            "float32": reference.precision == "fp32",
            "vnni": has_vnni(),
            "folder": str(folder),
            "file": str(folder / reference.file),
            "checkpoint": str(self.folder / "checkpoint"),
            "class": manifest.made.architecture,
            "head": manifest.made.architecture.partition("For")[2],
            "graph": str(self.bundle.path(graph.file).resolve()) if graph else "",
            "calibration": str(self.folder / "calibration.npz"),
        }
