"""OpenVINO as a second runtime of the plan: a graph opened as serving opens it, and proved before it may race.

The forms are the bundle's own ONNX graphs, which OpenVINO reads itself: float32 as converted or fused as far as it
knows the fused operators, and INT8 as `export.to_qdq` writes it, or as it is where OpenVINO knows that. What it cannot
open, or answers otherwise than was promised, is left out with the reason. How fast what remains is, is for
`export.plan` to measure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import ExportError, ParityFailed
from bundle.folder import Bundle
from bundle.machine import cores
from bundle.manifest import Artifact, Manifest
from bundle.plan import openvino_settings
from bundle.predict import Run
from bundle.rounding import Rounding
from export.artifact import identity
from export.gate import FP32, DevSplit, Tolerance, read_report
from export.journal import Journal
from export.kept import Kept, digest
from export.parity import GoldenRows, check_axes, check_probes
from export.references.worker import one_line


def open_streams(graph: Path, manifest: Manifest, artifact: Artifact, sessions: int, threads: int) -> list[Run]:
    """Opens a graph once, for so many computations at the same time.

    Args:
        graph: an ONNX file.
        artifact: of the manifest, whose graph it is.
        threads: of each computation.

    Returns:
        a function for each; one of them may only be called by one thread at a time.

    Raises:
        ExportError: OpenVINO cannot open the graph, or finds other tensors in it than the signature says.
    """
    # OpenVINO reports its use to its makers unless this package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino

        compiled = openvino.Core().compile_model(str(graph), "CPU", openvino_settings(sessions, threads, artifact))
    except Exception as error:  # RuntimeError for all that it does not know, ImportError for a broken installation
        raise ExportError(f"OpenVINO cannot open it: {one_line(error)}") from error
    # An input that the graph does not read may be gone.
    there = {name for port in compiled.inputs for name in port.get_names()}
    inputs = [tensor.name for tensor in manifest.signature.inputs]
    outputs = [tensor.name for tensor in manifest.signature.outputs]
    answered = {name for port in compiled.outputs for name in port.get_names()}
    if not there & set(inputs) or not set(outputs) <= answered:
        raise ExportError(
            f"OpenVINO finds the inputs {sorted(there)} and the outputs {sorted(answered)}, "
            f"the manifest says {inputs} and {outputs}"
        )
    rounding = Rounding(manifest, artifact)
    return [
        _run(compiled.create_infer_request(), [name if name in there else "" for name in inputs], outputs, rounding)
        for _ in range(sessions)
    ]


def _run(request: Any, inputs: list[str], outputs: list[str], rounding: Rounding) -> Run:
    """A request as the function that `bundle.predict` calls; an input without a name is not given."""

    def run(ids: IntArray, types: IntArray) -> list[FloatArray]:
        given = {name: values for name, values in zip(inputs, (ids, types), strict=True) if name}
        found = request.infer(rounding.widened(given))
        return [rounding.cut(name, np.asarray(found[name]), ids.shape[1]) for name in outputs]

    return run


def refusals(bundle: Bundle, names: Sequence[str], known: Kept, journal: Journal) -> dict[str, str]:
    """Those of some forms that may not be run on OpenVINO, and why; what was found before is taken from the file."""
    basis = read_report(bundle).get("basis", {})
    refused = {}
    for name in names:
        key = digest([name, bundle.manifest.artifacts[name].identity, bundle.manifest.golden.sha256, basis])
        reason = known.proof(key)
        if reason is None:
            known.settle_proof(key, reason := refusal(bundle, name, journal))
        if reason:
            refused[name] = reason
    return refused


def refusal(bundle: Bundle, name: str, journal: Journal) -> str:
    """Why a form may not be run on OpenVINO; empty where it is proved.

    Float32 must give the golden rows, the framework's answers on whole windows and the same at any batch within the
    tolerances of ONNX Runtime. Other precisions must keep the tolerance that serving will apply, and pass the gate on
    the dev rows: under the bounds of the gate that the form has passed, as OpenVINO's kernels may round otherwise.
    """
    artifact, told = bundle.manifest.artifacts[name], f"{name} on OpenVINO"
    assert artifact.parity is not None  # a form without is not servable
    try:
        (run,) = open_streams(bundle.path(artifact.file), bundle.manifest, artifact, 1, cores())
        golden = GoldenRows(bundle)
        found = golden.predict(_tried(run), 4096 if artifact.batch_invariant else 1)
        golden.measure(told, found, artifact.parity.tolerance)
        if artifact.precision == "fp32":
            check_probes(told, _tried(run), golden)
            check_axes(told, run, golden)
        else:
            _judge(bundle, name, _tried(run), journal)
    except ParityFailed as error:
        return f"{error.reason} (compared with {error.source})"
    except ExportError as error:
        return str(error)
    return ""


def _tried(run: Run) -> Run:
    """The function, whose failures are reasons to leave a form out."""

    def guarded(ids: IntArray, types: IntArray) -> Sequence[FloatArray]:
        try:
            return run(ids, types)
        except Exception as error:  # RuntimeError for all that may happen
            raise ExportError(f"OpenVINO cannot run it at {len(ids)} x {ids.shape[1]}: {one_line(error)}") from error

    return guarded


def _judge(bundle: Bundle, name: str, run: Run, journal: Journal) -> None:
    """The gate for a form that is not float32.

    Raises:
        ExportError: what speaks against it.
    """
    manifest, artifact = bundle.manifest, bundle.manifest.artifacts[name]
    basis = read_report(bundle).get("basis", {})
    if FP32 not in manifest.artifacts or not basis:
        raise ExportError(f"there is no {FP32} and no gate's report to judge it by; run `make export`")
    tolerance = Tolerance(**{item.name: basis[item.name] for item in fields(Tolerance) if item.name in basis})
    dev = DevSplit(bundle, int(basis.get("rows", 0)))
    before = dev.measure_artifact(FP32, journal, bundle)
    what = f"{name} on OpenVINO on {len(dev.rows)} dev rows"
    found = dev.predictions(f"openvino {identity(artifact)}", what, run, journal, alone=not artifact.batch_invariant)
    reasons = dev.compare(before, dev.measure(found, manifest, before.answers), tolerance, manifest).reasons
    if reasons:
        raise ExportError("the gate refuses it: " + "; ".join(reasons))
