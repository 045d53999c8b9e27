"""Keeps a Triton server alive: starts it, restarts it when it dies, stops it.

The server is the real one, from the `nvidia-pytriton` wheel, whose own Python layer is not used. Knows processes and
one HTTP probe; speaks no gRPC and knows no model beyond its name. Whether a live server hangs, and whether one that was
restarted computes what it should, is for the engine to find out, which sees its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from bundle.errors import EngineUnavailable

log = logging.getLogger("slipway.triton")

# Seconds that the probe of a server that starts may take.
PROBE_TIMEOUT = 5.0
# Seconds before a restart: the first, doubled each time up to the last; forgotten after a quiet while.
BACKOFF_FIRST, BACKOFF_LAST, BACKOFF_FORGET = 0.2, 30.0, 60.0
# Seconds that Triton may take to finish its work after SIGTERM.
EXIT_SECONDS = 10
# Bytes of an old log beyond which it is put aside at the next start.
LOG_BYTES = 20 << 20
# Bytes of the log that are looked through for the reason of an end.
TAIL_BYTES = 1 << 20


class Supervisor:
    """One Triton server on loopback addresses and free ports.

    Args:
        repository: the model repository.
        log_folder: where ``triton.log`` is kept.
        threads: intra-op threads of each model, shared by its instances, in place of what its configuration says; 0
            leaves it at that.
        start_seconds: how long a start may take.
        cache_mib: MiB of Triton's response cache, for the models that were exported with one; 0 starts without it.
        otlp_endpoint: base URL of an OTLP receiver that gets Triton's spans; empty sends none.

    Attributes:
        state: what the server is doing, as the end of a sentence that begins with its name.
        lost: called with such a sentence when the server's process ends unasked.
    """

    def __init__(
        self,
        repository: Path,
        log_folder: Path,
        threads: int,
        start_seconds: float,
        cache_mib: int = 0,
        otlp_endpoint: str = "",
    ) -> None:
        self._cache_mib, self._otlp = cache_mib, otlp_endpoint.rstrip("/")
        self.repository, self._threads, self._start_seconds = repository.resolve(), threads, start_seconds
        self.log_file = log_folder.resolve() / "triton.log"
        # What a restart loads.
        self.models: Sequence[str] = ()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._backends: Path | None = None
        self._ports = (0, 0, 0)
        self._stopping = False
        # Starts after the first.
        self.restarts = 0
        self._next_try = 0.0
        self.state = "not started"
        self.lost: Callable[[str], None] = lambda why: None

    @property
    def url(self) -> str:
        """host:port of the gRPC endpoint; may change with a restart."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def retry_after(self) -> float:
        """Seconds after which the server may be back: what is left of the pause, and about two to start."""
        return max(0.0, self._next_try - time.monotonic()) + 2.0

    async def start(self, models: Sequence[str]) -> None:
        """Starts the server with these models and watches it from then on.

        Raises:
            EngineUnavailable: the wheel is not installed, or the server does not become ready; with its last words.
        """
        self.models = models
        self._backends = _backend_folder()
        await self._launch()
        try:
            await self._until_ready()
        except EngineUnavailable:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._keep_alive(), name="triton-supervisor")

    async def stop(self) -> None:
        """Lets the server finish its work and ends it; can be called twice."""
        self._stopping = True
        self.state = "stopped"
        if self._watch:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        process = self._process
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), EXIT_SECONDS + 5)
            except TimeoutError:
                log.warning("Triton did not stop within %d s and is killed", EXIT_SECONDS + 5)
        await self._bury()
        if self._backends:
            shutil.rmtree(self._backends, ignore_errors=True)
            self._backends = None

    def _cache(self, wheel: Path) -> list[str]:
        if not self._cache_mib:
            return []
        return [f"--cache-directory={wheel / 'caches'}", f"--cache-config=local,size={self._cache_mib << 20}"]

    def kill(self) -> None:
        """Ends the server at once, work and all; it is started anew."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """Ends the server at once, for good."""
        self._stopping = True
        self.kill()

    async def _launch(self) -> None:
        self._ports = _free_ports(self._ports)
        grpc, http, metrics = self._ports
        wheel = _wheel()
        assert self._backends is not None
        command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            f"--backend-directory={self._backends}",
            # A prefix of its own, so that what a killed server leaves in shared memory can be told and removed.
            f"--backend-config=python,shm-region-prefix-name={self._memory_prefix}",
            *self._cache(wheel),
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--allow-gpu-metrics=false",
            *self._tracing(),
            *(f"--{kind}-address=127.0.0.1" for kind in ("grpc", "http", "metrics")),
            f"--grpc-port={grpc}",
            f"--http-port={http}",
            f"--metrics-port={metrics}",
        ]
        self.state = "starting"
        with self._log() as stream:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-S",
                str(Path(__file__).with_name("leash.py")),
                str(os.getpid()),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=self._environment(),
                # A group of its own: Ctrl-C in the terminal reaches the gateway, which stops Triton last.
                start_new_session=True,
            )
        log.info("Triton started, process %d, gRPC on %s", self._process.pid, self.url)

    def _log(self) -> BinaryIO:
        """The log, open for more. A disk that is full or read-only costs the log and never the server."""
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
            stream = self.log_file.open("ab", buffering=0)
        except OSError as error:
            log.error("Triton's log is lost: %s", error)
            return Path(os.devnull).open("ab", buffering=0)
        with contextlib.suppress(OSError):
            stream.write(f"\n# {time.strftime('%Y-%m-%d %H:%M:%S')} starting Triton\n".encode())
        return stream

    @property
    def _memory_prefix(self) -> str:
        return f"slipway-{os.getpid()}-{id(self):x}"

    def _tracing(self) -> list[str]:
        """Options that have Triton record the calls of recorded traces, and (with such a rate) no others."""
        if not self._otlp:
            return []
        url = f"opentelemetry,url={self._otlp}/v1/traces"
        return [f"--trace-config={item}" for item in ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1000000000", url)]

    def _environment(self) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONPATH")}
        libraries = [str(_wheel().parents[1] / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
        # The stub finds its Python packages through the first python on the path.
        environment["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), environment.get("PATH", os.defpath)])
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(
            [*filter(None, libraries), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        )
        if self._threads:
            environment["SLIPWAY_INTRA_OP_THREADS"] = str(self._threads)
        return environment

    async def _until_ready(self) -> None:
        """Returns when the server answers that it and its models are ready."""
        deadline = time.monotonic() + self._start_seconds
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.returncode is not None:
                raise EngineUnavailable(f"Triton ended while starting (exit {self._process.returncode}): {self._why()}")
            if await self._probe("/v2/health/ready"):
                self.state = "ready"
                return
            await asyncio.sleep(0.1)
        raise EngineUnavailable(f"Triton was not ready after {self._start_seconds:g} s: {self._why()}")

    async def _keep_alive(self) -> None:
        backoff = BACKOFF_FIRST
        while not self._stopping:
            born = time.monotonic()
            assert self._process is not None
            # One whose start failed may still live; `_bury` ends it.
            code = await self._process.wait() if self.state == "ready" else None
            if self._stopping:
                return
            self.state = "restarting"
            self.lost("Triton is restarting")
            await self._bury()
            if time.monotonic() - born > BACKOFF_FORGET:
                backoff = BACKOFF_FIRST
            log.error("Triton ended (exit %s); restarting in %.1f s; its log is %s", code, backoff, self.log_file)
            self._next_try = time.monotonic() + backoff
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_LAST)
            try:
                self.restarts += 1
                await self._launch()
                await self._until_ready()
                log.info("Triton is ready again")
            except (EngineUnavailable, OSError) as error:
                log.error("the restart failed: %s", error)

    async def _bury(self) -> None:
        """Ends whatever is left of the process group, and what it left in shared memory."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        for left in Path("/dev/shm").glob(f"{self._memory_prefix}*"):
            with contextlib.suppress(OSError):
                left.unlink()

    async def _probe(self, path: str) -> bool:
        """Whether the server answers 200 to a GET."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[1])
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                    status = await reader.readline()
                finally:
                    writer.close()
                return b" 200 " in status
        except (OSError, TimeoutError, ValueError):
            return False

    def _why(self) -> str:
        """The last lines of the log that tell of an error."""
        # What stands in for a log where a disk is full need not be a file, nor have an end.
        if not self.log_file.is_file():
            return f"there is no log {self.log_file}"
        with self.log_file.open("rb") as stream:
            stream.seek(max(0, self.log_file.stat().st_size - TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace").rpartition("starting Triton\n")[2]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # Triton's own format: E for an error, then the date.
        told = [line for line in lines if line.startswith("E") or "error" in line.lower()]
        return " | ".join((told or lines)[-3:]) + f" (all of it in {self.log_file})"


def _wheel() -> Path:
    """The folder ``tritonserver`` of the wheel, found without importing it."""
    spec = find_spec("pytriton")
    folder = Path(spec.origin or "").parent / "tritonserver" if spec else Path()
    if not (folder / "bin" / "tritonserver").is_file():
        raise EngineUnavailable(
            "the Triton server is not installed here; `pip install --no-deps -r requirements/triton-server.txt` "
            "brings it, ENGINE=onnx does without, TRITON_URL=host:port uses one elsewhere"
        )
    return folder


def _backend_folder() -> Path:
    """A backend folder in which the python backend finds the stub for this Python beside it."""
    wheel = _wheel()
    stub = wheel / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.is_dir():
        raise EngineUnavailable(f"the Triton wheel has no python backend for Python {stub.name}; use Python 3.11")
    folder = Path(tempfile.mkdtemp(prefix="slipway-backends-"))
    python = folder / "python"
    python.mkdir()
    for source in (*(wheel / "backends" / "python").glob("*.*"), stub / "triton_python_backend_stub"):
        (python / source.name).symlink_to(source)
    return folder


def _free_ports(wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Three free loopback ports: the wanted ones if they are still free (a restart), else others."""
    if all(wanted) and all(_is_free(port) for port in wanted):
        return wanted
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        grpc, http, metrics = (one.getsockname()[1] for one in sockets)
        return grpc, http, metrics


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
