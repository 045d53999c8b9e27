"""`python -m serving doctor`: looks a deployment over before it serves, and says of each thing what to mend.

Reads the settings as `run` does and starts nothing that stays: the engine is started for the golden rows and stopped.
What is running already is looked over from outside by `serving.doctor_running`.
"""

from __future__ import annotations

import datetime
import os
import resource
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from bundle.device import missing_for_gpu
from bundle.errors import SlipwayError
from bundle.folder import MANIFEST
from serving import catalogue
from serving.catalogue import ServedModel
from serving.gateway import Gateway
from serving.keys import read_keys
from serving.running import running
from serving.settings import Settings

# Open files below which a busy gateway runs out of connections: each takes one, Triton and the models some dozens.
FILES_BESIDE_CONNECTIONS = 256
# Bytes that must be free where logs are written: below the first it is worth a word, below the second it is wrong.
DISK_LOW, DISK_OUT = 1 << 30, 100 << 20
# Bytes of shared memory through which Triton's stub and server pass tensors.
SHARED_MEMORY = 64 << 20
# tokenizers that lose text between windows (docs/decisions/0002); numpy 2 breaks the stub of Triton's python backend.
BROKEN = {"tokenizers": ("0.23.1", "0.23.2")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: good; note (works, and is worth a look); bad (does not work, or will not).
        mend: what to do about it; empty where nothing is to be done.
    """

    level: Literal["good", "note", "bad"]
    about: str
    said: str
    mend: str = ""


def look_over(settings: Settings) -> Iterator[Finding]:
    """Looks at everything that can be seen without starting anything, one finding each."""
    yield from _packages()
    yield from _device(settings)
    models: dict[str, ServedModel] = {}
    try:
        models = catalogue.load(
            settings.bundles,
            max_windows=settings.max_windows,
            rules=settings.rules,
            run_as=lambda manifest: running(manifest, settings),
        )
    except SlipwayError as error:
        yield Finding("bad", "bundles", str(error), "see above; `make export` writes what is missing")
    for model in models.values():
        yield Finding("good", f"bundle {model.name}", f"version {model.version}, {model.format}, checksums agree")
        if model.running.foreign:
            yield Finding("note", f"plan of {model.name}", model.running.told, "run `make plan` on this machine")
        elif model.running.lacking:
            mend = "`make openvino`, or `make plan` without it"
            yield Finding("note", f"plan of {model.name}", model.running.told, mend)
    yield from _clock(settings.bundles, models)
    yield _files(settings)
    yield from _disk(settings.log_folder)
    yield from _memory(settings, models)
    yield from _keys(settings)
    yield from _ports(settings)
    yield from _receivers(settings)


async def prove(settings: Settings) -> list[Finding]:
    """Starts the engine, passes every model's golden rows through it, and stops it."""
    try:
        gateway = Gateway(settings)
        await gateway.start()
    except SlipwayError as error:
        mend = "look into its log under " + str(settings.log_folder) if settings.engine == "triton" else "see above"
        if settings.triton_url:
            mend = f"see that Triton answers at {settings.triton_url} and has loaded what `make export` wrote"
        return [Finding("bad", f"engine {settings.engine}", str(error), mend)]
    try:
        return [
            Finding(
                "good",
                f"engine {settings.engine}",
                f"{name}: {parity.rows} golden rows agree, largest difference {parity.max_abs:.1e} "
                f"(allowed {parity.tolerance:.1e})",
            )
            for name, parity in gateway.measured.items()
        ]
    finally:
        await gateway.stop()


def report(findings: Iterator[Finding] | list[Finding], say: Callable[[str], None]) -> bool:
    """Tells every finding as it comes; whether none of them is bad."""
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    healthy = True
    for item in findings:
        say(f"{marks[item.level]} {item.about}: {item.said}" + (f"\n       → {item.mend}" if item.mend else ""))
        healthy &= item.level != "bad"
    return healthy


def _packages() -> Iterator[Finding]:
    found = {}
    for name in ("onnxruntime", "tokenizers", "numpy", "fastapi", "tritonclient"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name not in ("onnxruntime", "tritonclient"):  # the GPU's twin, and what the embedded engine does without
                yield Finding("bad", "packages", f"{name} is not installed", "install requirements/serving.txt")
    for name, versions in BROKEN.items():
        if found.get(name) in versions:
            mend = "install requirements/serving.txt"
            yield Finding("bad", "packages", f"{name} {found[name]} loses text between windows", mend)
    if found.get("numpy", "1").split(".")[0] != "1":
        yield Finding(
            "bad", "packages", f"numpy {found['numpy']} breaks Triton's python backend", "install numpy below 2"
        )
    yield Finding("good", "packages", ", ".join(f"{name} {version}" for name, version in found.items()))


def _device(settings: Settings) -> Iterator[Finding]:
    if settings.device == "gpu" and settings.engine == "onnx":
        import onnxruntime as ort

        missing = missing_for_gpu(ort.__version__, ort.get_available_providers())
        if missing:
            mend = "serve with SLIPWAY_DEVICE=cpu, or where there is a GPU"
            yield Finding("bad", "device", f"no GPU can be used here: {'; '.join(missing)}", mend)
        else:
            yield Finding("good", "device", "a GPU can be used")


def _clock(folder: Path, models: dict[str, ServedModel]) -> Iterator[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    for model in models.values():
        made = datetime.datetime.fromisoformat(model.manifest.made.created)
        made = made if made.tzinfo else made.replace(tzinfo=datetime.UTC)
        if made > now + datetime.timedelta(minutes=5):
            said = f"it is {now:%Y-%m-%d %H:%M} UTC here, and {model.name} was made at {made:%Y-%m-%d %H:%M}"
            yield Finding("bad", "clock", said, f"set this machine's clock, or that which wrote {folder}/…/{MANIFEST}")
            return
    yield Finding("good", "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _files(settings: Settings) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + FILES_BESIDE_CONNECTIONS
    said = f"{soft} may be open"
    if soft < wanted:
        mend = f"`ulimit -n {wanted}` before the start (the hard limit is {hard}), or a smaller max_connections"
        return Finding("bad", "open files", f"{said}, and {settings.max_connections} connections may come", mend)
    return Finding("good", "open files", said)


def _disk(folder: Path) -> Iterator[Finding]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Finding("bad", "log folder", f"{place} cannot be written to", "choose another with SLIPWAY_LOG_FOLDER")
        return
    free = shutil.disk_usage(place).free
    level: Literal["good", "note", "bad"] = "bad" if free < DISK_OUT else "note" if free < DISK_LOW else "good"
    mend = "" if level == "good" else "make room, or choose another with SLIPWAY_LOG_FOLDER"
    yield Finding(level, "log folder", f"{free / 2**30:.1f} GiB free at {place}", mend)


def _memory(settings: Settings, models: dict[str, ServedModel]) -> Iterator[Finding]:
    sizes = sum(model.artifact.bytes * max(1, model.running.sessions) for model in models.values())
    free = _available_memory()
    if models and free is not None:
        # The graph itself, and about as much again for what is computed.
        short = free < 2 * sizes
        said = f"{free / 2**30:.1f} GiB free, the models' files have {sizes / 2**30:.2f} GiB with their sessions"
        mend = "serve fewer models or sessions" if short else ""
        yield Finding("note" if short else "good", "memory", said, mend)
    if settings.engine == "triton" and not settings.triton_url and Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").free
        if shared < SHARED_MEMORY:
            mend = "give the container more (docker: --shm-size=256m)"
            yield Finding("bad", "shared memory", f"{shared >> 20} MiB free in /dev/shm", mend)


def _available_memory() -> int | None:
    for line in (
        Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if Path("/proc/meminfo").is_file() else []
    ):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _keys(settings: Settings) -> Iterator[Finding]:
    opened = settings.host not in ("127.0.0.1", "::1", "localhost")
    guarded = bool(settings.keys_file or settings.user_key_sha256)
    if settings.keys_file:
        file = Path(settings.keys_file)
        try:
            keys = read_keys(file)
        except SlipwayError as error:
            yield Finding("bad", "keys", str(error), "mend the file; `python -m serving new-key NAME` prints an entry")
            return
        others = file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP)
        if others:
            yield Finding("bad", "keys", f"{file} may be read or written by others", f"chmod 640 {file}")
        else:
            yield Finding("good", "keys", f"{len(keys)} in {file}")
    if opened and not guarded:
        mend = "set SLIPWAY_KEYS_FILE, or see that only those reach it who may"
        yield Finding("note", "keys", f"it listens on {settings.host} and anyone who reaches it may ask", mend)


def _ports(settings: Settings) -> Iterator[Finding]:
    for name, port in (("port", settings.port), ("grpc_port", settings.grpc_port)):
        if not port:
            continue
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((settings.host, port))
            except OSError as error:
                mend = f"choose another with SLIPWAY_{name.upper()}; if it is the gateway, ask it: doctor --url"
                yield Finding("note", name, f"{settings.host}:{port} cannot be taken: {error.strerror}", mend)
            else:
                yield Finding("good", name, f"{settings.host}:{port} is free")


def _receivers(settings: Settings) -> Iterator[Finding]:
    if not settings.otlp_endpoint:
        return
    found = urlsplit(settings.otlp_endpoint)
    port = found.port or (443 if found.scheme == "https" else 80)
    try:
        socket.create_connection((found.hostname or "", port), timeout=3).close()
    except OSError as error:
        said = f"nothing takes traces at {settings.otlp_endpoint}: {error}"
        yield Finding(
            "note", "traces", said, "start the receiver, or empty SLIPWAY_OTLP_ENDPOINT; serving goes on without"
        )
    else:
        yield Finding("good", "traces", f"{settings.otlp_endpoint} answers")
