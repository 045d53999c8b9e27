"""What a figure was measured on: CPU, cores, versions, commit. Every results file carries it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

# The instruction sets that decide how fast a matrix product can be.
ISA_FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu() -> tuple[str, str, frozenset[str]]:
    """Vendor, model name and flags of the processor, from /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return fields.get("vendor_id", ""), fields.get("model name", ""), frozenset(fields.get("flags", "").split())


def is_amd() -> bool:
    """Whether the processor is AMD's, on which Paddle's MKL needs to be told to be fast."""
    return cpu()[0] == "AuthenticAMD"


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit integers without intermediate saturation."""
    return bool(cpu()[2] & {"avx512_vnni", "avx_vnni", "amx_int8"})


def has_bfloat16() -> bool:
    """Whether the processor has products of bfloat16; elsewhere they would be emulated."""
    return bool(cpu()[2] & {"avx512_bf16", "amx_bf16"})


def hardware() -> dict[str, object]:
    """CPU model, cores that this process may use, instruction sets, memory in GiB, operating system."""
    _, model, flags = cpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model or platform.machine(),
        "cores": cores(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def load(seconds: float = 0.5) -> float:
    """How many cores were busy, on average, while this waited; of a system that does not tell, the load average.

    A load average still counts the command before, a minute after it has ended.
    """
    before = _core_times()
    if before is None:
        return round(os.getloadavg()[0], 2)
    time.sleep(seconds)
    after = _core_times()
    assert after is not None
    busy, whole = (later - earlier for later, earlier in zip(after, before, strict=True))
    return round((os.cpu_count() or 1) * busy / whole, 2) if whole else 0.0


def _core_times() -> tuple[int, int] | None:
    """Ticks that all cores together were busy, and ticks at all; None where /proc/stat does not say."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        # user, nice, system, idle, iowait, irq, softirq, steal; what guests use is within user.
        ticks = [int(part) for part in line.split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(ticks) - ticks[3] - ticks[4], sum(ticks)) if len(ticks) == 8 else None


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with ``+changes`` when files differ from it; ``unknown`` outside of git."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[1])]
    try:
        answers = [
            subprocess.run([*git, *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answers[0] + ("+changes" if answers[1] else "")
