"""A gateway that a test of endurance starts itself, so that it may do to it what nobody does to a running one.

Starts ``python -m serving run`` as a process, and finds its Triton and that one's stubs in /proc: Linux only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.errors import GatewayUnreachable

ROOT = Path(__file__).resolve().parent.parent
# Seconds that a start and a stop may take.
START_SECONDS, STOP_SECONDS = 180.0, 90.0
# What the kernel keeps of the names `tritonserver` and `triton_python_backend_stub`.
TRITON, STUB = "tritonserver", "triton_python_b"


class OwnGateway:
    """One gateway on a free loopback port; a context manager that ends it.

    Args:
        options: of ``python -m serving run``.
        log_folder: for Triton's log, and the gateway's own where ``say`` is None.
        say: a file that takes what the gateway says.
        settings: SLIPWAY_… variables; those of this process's environment do not reach the gateway.
    """

    def __init__(
        self, options: Sequence[str], log_folder: Path, settings: dict[str, str] | None = None, say: Path | None = None
    ) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        self.host = f"http://127.0.0.1:{port}"
        self._before: Any = None
        self.log = say or log_folder / "gateway.log"
        log_folder.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLIPWAY_", "TRITON_"))}
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving", "run", "--port", str(port), *options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=kept | {"SLIPWAY_LOG_FOLDER": str(log_folder)} | (settings or {}),
                # A Ctrl-C in the terminal is for the test, which then stops the gateway.
                start_new_session=True,
            )

    def __enter__(self) -> OwnGateway:
        if threading.current_thread() is threading.main_thread():
            # Who ends the test by a signal must not leave its gateway behind.
            self._before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            self._until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Asks it to stop."""
        self._process.send_signal(signal.SIGTERM)

    def triton(self) -> int | None:
        """The process id of its Triton."""
        found = [pid for pid, name in children(self.pid) if name == TRITON]
        return found[0] if found else None

    def stubs(self) -> list[int]:
        """The process ids of the models in its Triton."""
        triton = self.triton()
        return [pid for pid, name in children(triton) if name == STUB] if triton else []

    def _until_ready(self) -> None:
        import httpx

        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.status is not None:
                said = self.log.read_text(encoding="utf-8", errors="replace")[-600:] if self.log.is_file() else ""
                raise GatewayUnreachable(self.host, f"it ended with {self.status} while starting: {said.strip()}")
            try:
                if httpx.get(f"{self.host}/health/ready", timeout=10, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise GatewayUnreachable(self.host, f"it was not ready after {START_SECONDS:g} s; its log is {self.log}")


def children(parent: int) -> list[tuple[int, str]]:
    """Process id and name of a process's children."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = place.read_text(encoding="utf-8", errors="replace").rpartition(") ")
        except OSError:
            continue  # it ended meanwhile
        state, above = after.split()[:2]
        if int(above) == parent and state != "Z":
            found.append((int(place.parent.name), before.partition("(")[2]))
    return sorted(found)


def resident_mib(pid: int) -> float:
    """Resident memory of a process in MiB; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    kib = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return round(int(kib[0]) / 1024, 1) if kib else 0.0
