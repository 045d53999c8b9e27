"""Fused float32 → float16: the form for a GPU, where half precision is computed several times as fast.

ONNX Runtime's own converter makes it: weights and everything between them become float16, ids and logits stay what the
signature says. Half precision has 10 bits of mantissa and ends at 65,504, so two candidates are tried, in this order:

    all         everything in float16
    norms kept  norms and Softmax on their own read and give float32; Attention and the embeddings' norm are operators
                that sum in float32 inside anyway

The first that passes the gate's tolerances becomes ``onnx_fp16``; if none does, the last is recorded and the gate
refuses to publish it. It is proved where it will run (``device``), or on this machine's processor for a GPU that is
elsewhere. There every operator computes float32 and its result is rounded to half precision (`export.half`), so that
range and rounding of what is stored are proved, and not the kernels of a GPU: a server that has one passes the golden
rows through them before it serves.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from pydantic import JsonValue

from bundle.device import Device
from bundle.errors import ParityFailed
from bundle.folder import Bundle
from bundle.manifest import Parity
from bundle.predict import Run
from export.artifact import adopt, is_current, source_of, workplace
from export.gate import FP16, FP32, DevSplit, Measured, Tolerance, key_on
from export.graph import NORMS
from export.half import half, rehearsed
from export.journal import Journal
from export.parity import GoldenRows, check_session
from export.session import open_session, run_of
from export.to_int8 import serialized

NAME, SOURCE = FP16, FP32
FILE = "onnx/model_fp16.onnx"
# What is tried, and which operators stay float32 in it.
CANDIDATES: tuple[tuple[str, tuple[str, ...]], ...] = (("all", ()), ("norms kept", (*NORMS, "Softmax")))


def to_fp16(
    bundle: Bundle,
    journal: Journal,
    dev: DevSplit,
    tolerance: Tolerance | None = None,
    device: Device = "cpu",
    *,
    force: bool = False,
) -> Bundle:
    """Adds the artifact ``onnx_fp16``: the first candidate that passes the gate, or the last.

    Args:
        device: where the candidates are proved.

    Raises:
        GpuMissing: that is a GPU, and there is none.
        ParityFailed: every candidate has other tensors, shapes or non-finite values.
    """
    import onnx

    tolerance = tolerance or Tolerance()
    source = source_of(bundle, SOURCE)
    settings: dict[str, JsonValue] = {"pass": 1, "device": device, **asdict(tolerance), **dev.fingerprint}
    if not force and is_current(bundle, NAME, SOURCE, settings):
        journal.say("  up to date")
        return bundle
    golden = GoldenRows(bundle)
    fused = onnx.load(str(bundle.path(source.file)))
    reference = dev.measure_artifact(SOURCE, journal, bundle) if dev.rows else None
    tried: list[JsonValue] = []
    parity: Parity | None = None
    measured: Measured | None = None
    for number, (what, keep) in enumerate(CANDIDATES, 1):
        model, last = half(fused, keep), number == len(CANDIDATES)
        content = serialized(model)
        run_as = content if device == "gpu" else serialized(rehearsed(model))
        key = key_on(hashlib.sha256(content).hexdigest(), device)
        try:
            session = open_session(run_as, device=device, precision="fp16")
            check_session(NAME, session, bundle.manifest.signature)
            run = run_of(session, bundle.manifest.signature)
            parity = golden.measure(NAME, golden.predict(run), tolerance=None)
            measured, reasons = _judged(bundle, journal, dev, tolerance, key, run, reference)
        except ParityFailed as error:
            if last:
                raise
            parity, measured, reasons = None, None, [str(error)]
        facts: dict[str, JsonValue] = {"candidate": what, "refused": list(reasons)}
        if parity:
            facts |= {"golden_max_abs": parity.max_abs}
            journal.say(f"    {what}: a logit differs by at most {parity.max_abs:.2g} on the golden rows")
        for reason in reasons:
            journal.say(f"    {what} does not pass: {reason}")
        tried.append(facts)
        if not reasons or last:
            break
    with workplace(bundle, "onnx") as folder:
        path = folder / "model_fp16.onnx"
        path.write_bytes(content)
        return adopt(
            bundle,
            NAME,
            {path: FILE},
            source=SOURCE,
            settings=settings,
            artifact_format="onnx",
            precision="fp16",
            parity=parity,
            quality=measured.quality if measured else None,
            details={"kept_float32": list(keep), "proved_on": device, "candidates": tried},
        )


def _judged(
    bundle: Bundle,
    journal: Journal,
    dev: DevSplit,
    tolerance: Tolerance,
    key: str,
    run: Run,
    reference: Measured | None,
) -> tuple[Measured | None, list[str]]:
    """What a candidate says of the dev rows, and what speaks against it; nothing where there are no rows."""
    if reference is None:
        return None, []
    found = dev.predictions(key, f"{NAME} on {len(dev.rows)} dev rows", run, journal, alone=False)
    measured = dev.measure(found, bundle.manifest, reference.answers)
    return measured, dev.compare(reference, measured, tolerance, bundle.manifest).reasons
