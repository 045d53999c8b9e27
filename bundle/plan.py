"""Whether a plan was made for this machine, and how a model is run: what export and serving must agree on.

A plan is foreign where the processor, its instruction sets or the number of usable cores differ. What it chose to run
stays valid there, since every form in it was proved; how many sessions and threads run it does not, so those fall back
to the safe defaults: one session with all cores.

OpenVINO is optional. Where it is not installed a plan is made without it, and a plan that names it is served on ONNX
Runtime (`bundle.manifest.Plan.on_onnxruntime`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from bundle.machine import hardware, has_bfloat16, versions
from bundle.manifest import Aim, Artifact, Machine, Manifest, Plan, Setup

RUNTIMES = ("onnxruntime", "openvino", "paddlepaddle", "numpy")
# How OpenVINO is had, for those who are told that it is missing.
GET_OPENVINO = "`make openvino` installs it (requirements/openvino.txt)"


def this_machine(packages: Sequence[str] = RUNTIMES) -> Machine:
    """The fingerprint of the machine that this process runs on."""
    found = hardware()
    return Machine.model_validate({key: found[key] for key in ("cpu", "cores", "isa", "memory_gib")} | {
        "versions": versions(packages)
    })  # fmt: skip


def why_foreign(plan: Plan, here: Machine) -> str:
    """Both sides where a plan was measured on another machine than this; empty where it was not."""
    there = plan.machine
    if (there.cpu, there.cores, there.isa) == (here.cpu, here.cores, here.isa):
        return ""
    return f"measured on {described(there)}, this is {described(here)}"


def described(machine: Machine) -> str:
    """A machine in a few words: ``AMD EPYC 7763, 2 cores (avx2, fma)``."""
    return f"{machine.cpu}, {machine.cores} core(s) ({', '.join(machine.isa) or 'no vector extensions known'})"


def planned(manifest: Manifest, aim: Aim | None) -> Setup | None:
    """What the manifest's plan chose for an aim; None without a plan, or where it is of other files than these.

    Args:
        aim: None leaves the plan aside.
    """
    plan = manifest.without_stale_plan().plan
    return plan.choice(aim) if plan and aim else None


def usual(artifact: str, cores: int) -> Setup:
    """What a runtime does when it is told nothing: one session with all threads, one window at a time."""
    return Setup(artifact=artifact, threads=cores, sessions=1, windows=1)


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def openvino_missing() -> bool:
    """Whether OpenVINO is not installed here."""
    return find_spec("openvino") is None


def openvino_settings(sessions: int, threads: int, artifact: Artifact) -> dict[str, str | int | bool]:
    """What OpenVINO's CPU plugin is told, wherever a graph is opened.

    Args:
        sessions: computations at the same time, OpenVINO's streams; they share one set of weights.
        threads: of each.
        artifact: that is opened. What stands between the integer products of one that was written for OpenVINO is
            computed in bfloat16 where the processor can: that rounds less than the products do, and saves time.
    """
    between = "bf16" if artifact.runtime == "openvino" and has_bfloat16() else "f32"
    return {
        "NUM_STREAMS": sessions,
        "INFERENCE_NUM_THREADS": sessions * threads,
        # By itself the plugin takes bfloat16 for everything where the processor can: no float32 tolerance passes that.
        "INFERENCE_PRECISION_HINT": between,
        # Processes beside each other, as Triton's instances are, would all be pinned to the same first cores.
        "ENABLE_CPU_PINNING": False,
        # Otherwise it leaves out the second thread of a core, and with it some of the threads that were asked for.
        "ENABLE_HYPER_THREADING": True,
    }
