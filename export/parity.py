"""Is a converted graph still the trained model? Names, dtypes, axes, shapes, values and labels, on the golden rows.

Every conversion is compared with what the training framework said, not with the step before it, so that small
errors cannot add up unseen. The tolerance that was applied is recorded; serving applies it again at start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import Encoder, IntArray, pad
from bundle.errors import BundleError, ParityFailed
from bundle.folder import Bundle
from bundle.golden import Golden, check_ids, compare, read_golden
from bundle.manifest import Parity, Signature, signature_of
from bundle.predict import Predicted, Run, encode_rows, predict
from bundle.rows import Row

if TYPE_CHECKING:
    import onnxruntime

REFERENCE = "paddle"
# The graph as converted, which the later ones are made from.
CONVERTED = "onnx_fp32"
# What stands before the names of the probes in the file of the framework's answers.
PROBE = "probe."
# Softmax and its like mean what Paddle means from this operator set on.
LEAST_OPSET = 13
# Float32 sums in another order; measured differences on these models are below 1e-5.
FP32_TOLERANCE = 1e-4

ONNX_TYPES = {
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
}


class GoldenRows:
    """The golden rows of a bundle, encoded once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.encoder = Encoder.of(bundle)
        self.rows: list[Golden] = read_golden(bundle.path(bundle.manifest.golden.file))
        check_ids(self.rows, self.encoder)
        self.encoded = encode_rows([Row(row.text, pair=row.pair) for row in self.rows], self.encoder)

    def predict(self, run: Run, batch_tokens: int = 4096) -> list[Predicted]:
        """The rows through a model, padded batches unless ``batch_tokens`` is 1."""
        return predict(self.encoded, self.encoder, run, batch_tokens=batch_tokens)

    def measure(self, name: str, found: Sequence[Predicted], tolerance: float | None = FP32_TOLERANCE) -> Parity:
        """How far answers are from the golden rows.

        Args:
            tolerance: the bound on the largest difference of a logit; None derives it from what is measured
                (see `rounding_tolerance`) and leaves the judgement to the quality gate.

        Raises:
            ParityFailed: a shape or a value is wrong.
        """
        manifest = self.bundle.manifest
        try:
            parity = compare(
                self.rows,
                found,
                manifest.task,
                manifest.text.joining,
                reference=REFERENCE,
                tolerance=tolerance or 0.0,
            )
        except (BundleError, ValueError) as error:
            raise ParityFailed(name, REFERENCE, str(error)) from error
        if tolerance is None:
            return parity.model_copy(update={"tolerance": rounding_tolerance(parity.max_abs)})
        if not parity.max_abs <= tolerance:
            raise ParityFailed(
                name,
                REFERENCE,
                f"a logit differs by {parity.max_abs:.3g}, the tolerance is {tolerance:g} "
                f"(mean difference {parity.mean_abs:.3g} over {parity.windows} windows)",
            )
        # Labels are recorded and not judged: within this tolerance only an exact tie can change one.
        return parity


def rounding_tolerance(max_abs: float) -> float:
    """The bound that serving applies to a quantized graph.

    An 8-bit graph differs from the trained model by design, so the bound cannot be 1e-4. Another CPU's kernels may
    round a value to the neighbouring step, which moves the logits again by about as much: hence twice what was
    measured here, and at least 0.1. Whether that is good enough is the gate's question, answered in labels.
    """
    return max(2 * max_abs, 0.1)


def check_session(name: str, session: onnxruntime.InferenceSession, signature: Signature) -> None:
    """Compares a graph's inputs and outputs with the manifest: names, dtypes, number of axes, free axes.

    Raises:
        ParityFailed: naming the first tensor that differs and both sides.
    """
    for kind, found, wanted in (
        ("inputs", session.get_inputs(), signature.inputs),
        ("outputs", session.get_outputs(), signature.outputs),
    ):
        names, expected = [item.name for item in found], [tensor.name for tensor in wanted]
        if names != expected:
            raise ParityFailed(name, "the manifest", f"{kind} are {names}, the manifest says {expected}")
        for item, tensor in zip(found, wanted, strict=True):
            if item.type != ONNX_TYPES[tensor.dtype]:
                raise ParityFailed(name, "the manifest", f"{item.name} is {item.type}, not {tensor.dtype}")
            shape: list[Any] = list(item.shape)
            if len(shape) != len(tensor.shape):
                raise ParityFailed(name, "the manifest", f"{item.name} has axes {shape}, not {list(tensor.shape)}")
            for axis, (here, free) in enumerate(zip(shape, tensor.shape, strict=True)):
                if free in ("windows", "tokens") and isinstance(here, int):
                    raise ParityFailed(
                        name, "the manifest", f"{item.name}: axis {axis} ({free}) is fixed at {here}, it must be free"
                    )
                if isinstance(free, int) and here != free:
                    raise ParityFailed(name, "the manifest", f"{item.name}: axis {axis} is {here}, not {free}")


def check_axes(name: str, run: Run, golden: GoldenRows) -> None:
    """Runs the graph at several batch sizes and lengths; each row's answer must not depend on them.

    Raises:
        ParityFailed: an axis is not free, a shape is wrong, or padding or neighbours leak into a row.
    """
    manifest = golden.bundle.manifest
    pad_id, outputs = manifest.text.pad_id, signature_of(manifest.task).outputs
    window = golden.encoder.row(golden.encoded[0], 0)
    alone = [values[0] for values in run(*pad([window], pad_id))]
    longest = manifest.text.max_tokens
    rng = np.random.default_rng(0)
    for windows, tokens in ((1, len(window.ids)), (1, longest), (2, longest - 1), (5, max(len(window.ids), 9))):
        ids = rng.integers(5, 5 + 20, (windows, tokens)).astype(np.int64)
        types = np.zeros_like(ids)
        ids[-1], types[-1] = pad_id, 0
        ids[-1, : len(window.ids)] = window.ids
        types[-1, : len(window.ids)] = window.types
        try:
            found = run(ids, types)
        except Exception as error:  # whatever the runtime raises, the axis is not free
            raise ParityFailed(name, "the manifest", f"does not run at {windows} x {tokens}: {error}") from error
        size = {"windows": windows, "tokens": tokens}
        for tensor, values, before in zip(outputs, found, alone, strict=True):
            wanted = tuple(size[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            if values.shape != wanted:
                reason = f"{windows} x {tokens} gives {tensor.name} the shape {values.shape}, not {wanted}"
                raise ParityFailed(name, "the manifest", reason)
            here = values[-1][: len(before)] if values.ndim == 3 else values[-1]
            worst = float(np.abs(here - before).max())
            if worst > FP32_TOLERANCE:
                raise ParityFailed(
                    name,
                    "itself alone",
                    f"padded to {tokens} tokens in a batch of {windows}, a logit moves by {worst:.3g}",
                )


Probes = tuple[IntArray, IntArray, list[FloatArray]]


def check_probes(name: str, run: Run, golden: GoldenRows, probes: Probes | None = None) -> None:
    """Compares with what the training framework said of whole windows of random tokens, one of them half padded.

    Golden rows are real texts: perhaps none of them fills a window, and few of the vocabulary's rows occur in them.

    Args:
        probes: ids, types and the framework's answers; by default those that the bundle keeps, if it has any.

    Raises:
        ParityFailed: a logit differs.
    """
    probes = probes or read_probes(golden.bundle)
    if probes is None:
        return
    ids, types, wanted = probes
    real = ids != golden.bundle.manifest.text.pad_id
    for tensor, want, got in zip(golden.bundle.manifest.signature.outputs, wanted, run(ids, types), strict=True):
        gap = np.abs(want - got)
        worst = float((gap[real] if gap.ndim == 3 else gap).max())
        if not worst <= FP32_TOLERANCE:
            raise ParityFailed(
                name,
                REFERENCE,
                f"{tensor.name}: on windows of {ids.shape[1]} random tokens a logit differs by {worst:.3g}, the "
                f"tolerance is {FP32_TOLERANCE:g}",
            )


def probe_windows(golden: GoldenRows) -> tuple[IntArray, IntArray]:
    """Three windows as long as the model reads: ids and token types, int64 (3, max_tokens); the last is half padding.

    Of a pair task the second half of the tokens is the second text.
    """
    text, task = golden.bundle.manifest.text, golden.bundle.manifest.task
    rng = np.random.default_rng(7)
    size = golden.encoder.tokenizer.get_vocab_size(with_added_tokens=True)
    ids = rng.integers(0, size, (3, text.max_tokens)).astype(np.int64)
    ids[ids == text.pad_id] = text.sep_id
    ids[:, 0] = text.cls_id
    types = np.zeros_like(ids)
    half = text.max_tokens // 2
    if task.kind == "text-pair":
        types[:, half:] = 1
        types[2, half // 2 :] = 1
    ids[2, half:], types[2, half:] = text.pad_id, 0
    return ids, types


def read_probes(bundle: Bundle) -> Probes | None:
    """The probes and the training framework's answers to them; None before `export.to_static` has asked for them."""
    static = bundle.manifest.artifacts.get("paddle_static")
    files = [ref.file for ref in static.files if ref.file.endswith(".npz")] if static else []
    if not files or not bundle.path(files[0]).is_file():
        return None
    with np.load(bundle.path(files[0]), allow_pickle=False) as arrays:
        if f"{PROBE}ids" not in arrays:
            return None
        wanted = [arrays[f"{PROBE}{number}"] for number in range(len(bundle.manifest.signature.outputs))]
        return arrays[f"{PROBE}ids"], arrays[f"{PROBE}types"], wanted


def check_opset(name: str, model: Path | bytes) -> None:
    """A graph that names an operator set in which an operator means something else is refused by its number.

    Raises:
        ParityFailed: older than `LEAST_OPSET`.
    """
    import onnx

    loaded = (
        onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model), load_external_data=False)
    )
    for item in loaded.opset_import:
        if item.domain in ("", "ai.onnx") and item.version < LEAST_OPSET:
            raise ParityFailed(
                name,
                REFERENCE,
                f"it says operator set {item.version}; before {LEAST_OPSET} Softmax flattens the axes behind its own",
            )


def check_onnx(name: str, path: Path | bytes, golden: GoldenRows, tolerance: float = FP32_TOLERANCE) -> Parity:
    """The whole comparison for a float32 ONNX graph.

    Raises:
        ParityFailed: saying what differs, and as far as it can be found out, why.
    """
    from export.session import open_session, run_of

    try:
        check_opset(name, path)
        session = open_session(path)
    except ParityFailed:
        raise
    except Exception as error:  # neither onnx nor ONNX Runtime has an error class of its own to catch
        raise ParityFailed(name, REFERENCE, f"the graph cannot be opened: {error}") from error
    signature = golden.bundle.manifest.signature
    check_session(name, session, signature)
    run = run_of(session, signature)
    try:
        found = golden.predict(run)
    except Exception as error:
        raise ParityFailed(name, REFERENCE, f"the graph does not run: {error}") from error
    try:
        parity = golden.measure(name, found, tolerance)
        check_probes(name, run, golden)
    except ParityFailed as error:
        if clues := "; ".join(_clues(name, path, golden, found, run, tolerance)):
            raise ParityFailed(name, error.source, f"{error.reason}; {clues}") from error
        raise
    check_axes(name, run, golden)
    return parity


def _clues(
    name: str, path: Path | bytes, golden: GoldenRows, found: list[Predicted], run: Run, tolerance: float
) -> Iterator[str]:
    """What may be wrong, in sentences; nothing where the graph itself is too broken to be asked."""
    from export.clues import first_difference, label_order, which_windows

    wanted = [row.predicted(encoded) for row, encoded in zip(golden.rows, golden.encoded, strict=True)]
    source = golden.bundle.manifest.artifacts.get(CONVERTED)
    ids, types = probe_windows(golden)
    inputs = [tensor.name for tensor in golden.bundle.manifest.signature.inputs]
    try:
        if clue := label_order(wanted, found, tolerance):
            yield clue
            return
        if clue := which_windows(wanted, found, golden.encoder, run, tolerance):
            yield clue
        if source is not None and name != CONVERTED:
            feeds = dict(zip(inputs, (ids, types), strict=True))
            if clue := first_difference(golden.bundle.path(source.file), path, feeds):
                yield clue
    except Exception as error:  # a clue must not hide the failure that it is about
        yield f"no more can be said: {error}"
