"""The candidates as processes: started, asked for a round each, their CPU time read, ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from bundle.errors import SlipwayError

_TICK = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 180


class Candidate:
    """One of those that are compared; answers rows of the dev split by their places."""

    name: str
    process: subprocess.Popen[str]

    def run(self, places: Sequence[int], clients: int) -> dict[str, Any]:
        """Answers each place once; seconds, ms of each, and CPU seconds of the server (``cpu_seconds``) and of the
        load generator (``client_cpu_seconds``)."""
        raise NotImplementedError

    def cpu_seconds(self) -> float:
        """CPU time of the process and of what it started, so far."""
        return sum(map(_cpu_seconds, _family(self.process.pid)))


class BareEngine(Candidate):
    """`serving.stages.bare`."""

    name = "bare"

    def __init__(self, bundles: Path, model: str, clients: int, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "serving.stages.bare", str(bundles), model, str(clients)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if not self._answer():
            raise SlipwayError("the bare engine did not start; its reason stands above")

    def run(self, places: Sequence[int], clients: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(list(places)) + "\n")
        self.process.stdin.flush()
        return {**self._answer(), "client_cpu_seconds": 0.0, "wrong": 0}

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer


class Served(Candidate):
    """A server that is asked over HTTP, by a load generator in a process of its own."""

    def __init__(self, name: str, bodies: Sequence[str], path: str, environment: dict[str, str]) -> None:
        self.name, self._bodies, self._path, self._environment = name, bodies, path, environment
        self.url = ""

    def run(self, places: Sequence[int], clients: int) -> dict[str, Any]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        bodies = [self._bodies[place] for place in places]
        plan = {"address": [host, int(port)], "path": self._path, "bodies": bodies, "clients": clients}
        before = self.cpu_seconds()
        ended = subprocess.run(
            [sys.executable, "-m", "serving.stages.load"],
            input=json.dumps(plan),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=self._environment,
        )
        found = json.loads(ended.stdout)
        return {**found, "client_cpu_seconds": found["cpu_seconds"], "cpu_seconds": self.cpu_seconds() - before}

    def metrics(self) -> dict[str, float]:
        """The server's counters, by name with labels."""
        with urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}


@contextlib.contextmanager
def candidates(
    bundles: Path, model: str, repository: Path, engines: Sequence[str], bodies: Sequence[str], clients: int
) -> Iterator[list[Candidate]]:
    """All of them, started and ready; ended when the block is left.

    Raises:
        SlipwayError: one does not start; with its last words.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "SLIPWAY_PORT"}
    # The same texts come in every round: without this, the cache would answer them.
    environment = {**inherited, "PYTHONUNBUFFERED": "1", "SLIPWAY_CACHE_BYTES": "0"}
    found: list[Candidate] = []
    with tempfile.TemporaryDirectory(prefix="slipway-stages-") as folder, contextlib.ExitStack() as stack:
        bare = BareEngine(bundles, model, clients, environment)
        found.append(bare)
        stack.callback(_end, bare.process)
        for name in [*(f"gateway, {engine}" for engine in engines), "plain FastAPI"]:
            engine = name.rpartition(" ")[2]
            port_file = Path(folder) / "port"
            if name == "plain FastAPI":
                path, command = "/predict", [*("-m", "serving.stages.plain"), str(bundles), model, str(port_file)]
            else:
                path = f"/v1/models/{model}/predict"
                command = [*("-m", "serving", "run", "--port", "0", "--engine", engine, "--bundles", str(bundles))]
                command += ["--model-repository", str(repository)]
            served = Served(name, bodies, path, environment)
            log = Path(folder) / f"{engine}.log"
            with log.open("w", encoding="utf-8") as stream:
                served.process = subprocess.Popen(
                    [sys.executable, *command],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**environment, "SLIPWAY_LOG_FOLDER": folder},
                )
            stack.callback(_end, served.process)
            served.url = _address(served.process, log, port_file if engine == "FastAPI" else None)
            found.append(served)
        yield found


def _address(process: subprocess.Popen[str], log: Path, port_file: Path | None) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if port_file:
            if port_file.is_file() and (port := port_file.read_text(encoding="utf-8")):
                address = f"http://127.0.0.1:{port}"
                with contextlib.suppress(URLError), urlopen(f"{address}/openapi.json", timeout=5):
                    return address
        elif ready := re.search(r"^serving on (http://\S+);", log.read_text(encoding="utf-8"), re.MULTILINE):
            return ready[1]
        time.sleep(0.1)
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    raise SlipwayError(f"{log.stem} did not start: {' | '.join(words)}")


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    return 0.0
