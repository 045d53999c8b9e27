"""How each model is run: as its plan says, as the user says, or with the safe defaults. Decided once, at the start.

What the user sets wins over the plan: threads or sessions take both out of it, batch_tokens the batching, aim=none all
of it. A plan that was measured on another machine is foreign: the form that it chose is served, since every form was
proved, but its sessions, threads and batching fall back to the defaults, and the start says so. With Triton the number
of instances stands in the model repository, so that is what `export` wrote it with; the script there also looks whether
it is at home before it takes the plan's threads.

On a GPU no plan is followed, as plans are of a processor's cores, and integer forms give way to float32.

Where the plan chose OpenVINO and it is not installed, the embedded engine runs what was best on ONNX Runtime, and
Triton's script the same form on ONNX Runtime; the start says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle.device import Device
from bundle.machine import cores
from bundle.manifest import Manifest, Runtime, Setup
from bundle.plan import GET_OPENVINO, openvino_missing, planned, this_machine, why_foreign
from serving.settings import Settings

# Padded tokens of an engine call where neither a plan nor the user says more.
BATCH_TOKENS = 2048
# No bound: of tokens, or of windows in an engine call.
UNBOUND = 1 << 30


@dataclass(frozen=True, slots=True)
class Running:
    """How one model is run.

    Attributes:
        form: name of the artifact.
        sessions: computations at the same time (engine onnx).
        threads: intra-op threads of each session (engine onnx).
        windows: most windows in one computation, those of several requests together; 0 computes each engine call alone.
        by_length: whether windows of like length go together, or stay in their order.
        batch_tokens: padded tokens in one engine call.
        told: where this comes from, as a sentence; empty where there is nothing to tell.
        foreign: whether there is a plan, for another machine.
        device: what it is computed on (engine onnx).
        engines: folder for what a GPU's runtime builds for this graph alone; None keeps nothing.
        runtime: what computes; with engine triton what its script was told to take.
        lacking: whether the plan chose another runtime, which is not installed.
    """

    form: str
    sessions: int
    threads: int
    windows: int = 0
    by_length: bool = True
    batch_tokens: int = BATCH_TOKENS
    told: str = ""
    foreign: bool = False
    device: Device = "cpu"
    engines: Path | None = None
    runtime: Runtime = "onnxruntime"
    lacking: bool = False


def at_engine(how: Running, parallel: int, max_tokens: int) -> int:
    """Tokens that an engine has use for at a time: what it computes, and as much again to go on with at once.

    Args:
        parallel: computations that it does at the same time.
        max_tokens: of one window.
    """
    once = how.windows * max_tokens if how.windows else how.batch_tokens
    return 2 * parallel * max(max_tokens, min(once, UNBOUND))


def as_published(manifest: Manifest) -> Running:
    """The published form with the safe defaults."""
    return Running(manifest.published, 1, cores())


def running(manifest: Manifest, settings: Settings) -> Running:
    """How a model is run here, under these settings."""
    if settings.device == "gpu":
        return on_gpu(manifest, settings)
    here = this_machine()
    # A Triton elsewhere computes on a machine that cannot be seen from here; its script looks itself.
    elsewhere = settings.engine == "triton" and bool(settings.triton_url)
    choice, lacks = _choice(manifest, settings, elsewhere)
    form = choice.artifact if choice else manifest.published
    sessions = settings.sessions or 1
    threads = max(1, (settings.threads or here.cores) // sessions)
    tokens = settings.batch_tokens or BATCH_TOKENS
    if manifest.plan is None or choice is None:
        return Running(form, sessions, threads, batch_tokens=tokens)
    if not elsewhere and (reason := why_foreign(manifest.plan, here)):
        told = (
            f"the plan is foreign: {reason}; it is run with {sessions} session(s) of {threads} thread(s). "
            "`python -m export plan` measures here"
        )
        return Running(
            form,
            sessions,
            threads,
            batch_tokens=tokens,
            told=told + lacks,
            foreign=True,
            runtime=choice.runtime,
            lacking=bool(lacks),
        )
    left_aside = []
    if settings.threads or settings.sessions:
        left_aside.append("sessions and threads")
    else:
        sessions, threads = choice.sessions, choice.threads
    windows, by_length = choice.windows, choice.by_length
    if settings.batch_tokens:
        windows, by_length = 0, True
        left_aside.append("batching")
    else:
        tokens = UNBOUND
    told = f"planned for {settings.aim} on this kind of machine: {choice}"
    if left_aside:
        told += f"; {' and '.join(left_aside)} as set by the user"
    told += lacks
    return Running(
        form, sessions, threads, windows, by_length, tokens, told, runtime=choice.runtime, lacking=bool(lacks)
    )


def _choice(manifest: Manifest, settings: Settings, elsewhere: bool) -> tuple[Setup | None, str]:
    """What of the plan is followed, and what is to be told where its runtime is missing: empty, or a clause."""
    aim = None if settings.aim == "none" else settings.aim
    choice = planned(manifest, aim)
    if aim is None or manifest.plan is None or choice is None or choice.runtime != "openvino" or elsewhere:
        return choice, ""
    if not openvino_missing():
        return choice, ""
    lacks = f"; the plan chose {choice}, but OpenVINO is not installed, so ONNX Runtime computes; {GET_OPENVINO}"
    if settings.engine == "triton":
        return choice, lacks
    return manifest.plan.on_onnxruntime(aim), lacks


def on_gpu(manifest: Manifest, settings: Settings) -> Running:
    """How a model is run on a GPU: the published form, or the best float32 one in the place of an integer one."""
    form, told = manifest.published, ""
    if manifest.artifacts[form].precision not in ("fp16", "fp32"):
        exact = [name for name in manifest.servable if manifest.artifacts[name].precision == "fp32"]
        if exact:
            # The last that export made is the one with the fewest operators.
            form = exact[-1]
            told = (
                f"{manifest.published} has integer products, which are a processor's; {form} is run on the GPU. "
                "`python -m export run --device gpu` makes half precision"
            )
    sessions = settings.sessions or 1
    threads = max(1, (settings.threads or cores()) // sessions)
    engines = settings.tensorrt_cache / manifest.artifacts[form].sha256[:16]
    tokens = settings.batch_tokens or BATCH_TOKENS
    return Running(form, sessions, threads, batch_tokens=tokens, told=told, device="gpu", engines=engines)
