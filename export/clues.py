"""Why a graph does not compute what its source does: what a failed comparison can tell beyond a number.

Each clue is a sentence that names a part: labels in another order, padding that is not masked, second texts, long
windows, or the first tensor of the graph that differs. None of them judges; they are asked for after a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bundle.encode import Encoder, pad
from bundle.predict import Predicted, Run
from export.graph import NORMS, Graph
from export.session import open_session

if TYPE_CHECKING:
    import onnx

# A tensor differs where its error, root mean square, is more than this share of its size: float32, 16 bits, and 8 bits.
DIFFERS, DIFFERS_16_BITS, DIFFERS_8_BITS = 1e-4, 0.05, 0.25


def label_order(wanted: Sequence[Predicted], found: Sequence[Predicted], tolerance: float) -> str:
    """Whether the logits are the wanted ones in another order of the labels.

    Args:
        tolerance: mean difference of a label's logits that still counts as the same.
    """
    left, right = (np.concatenate([np.atleast_2d(v) for item in said for v in item.logits]) for said in (wanted, found))
    if left.shape != right.shape:
        return ""
    # (wanted label, found label): mean difference over windows or tokens.
    apart = np.stack([np.abs(left[:, [label]] - right).mean(axis=0) for label in range(left.shape[1])])
    order = apart.argmin(axis=1)
    best = apart[np.arange(len(order)), order]
    if (best > tolerance).any() or sorted(order) != list(range(len(order))) or (order == np.arange(len(order))).all():
        return ""
    moved = ", ".join(f"{here} at {there}" for here, there in enumerate(order.tolist()) if here != there)
    return f"the labels stand in another order (label {moved})"


def which_windows(
    wanted: Sequence[Predicted], found: Sequence[Predicted], encoder: Encoder, run: Run, tolerance: float
) -> str:
    """Whether it is padding, second texts or long windows alone that are wrong."""
    wrong, types, lengths, rows = [], [], [], []
    for left, right in zip(wanted, found, strict=True):
        for number in range(len(left.logits)):
            gaps = [np.abs(a[number] - b[number]).max() for a, b in zip(left.outputs, right.outputs, strict=True)]
            row = encoder.row(left.encoded, number)
            wrong.append(max(gaps) > tolerance)
            types.append(bool(row.types.any()))
            lengths.append(len(row.ids))
            rows.append((left, number, row))
    bad = np.array(wrong)
    if not bad.any():
        return ""
    alone = []
    for place in np.flatnonzero(bad)[:4]:
        left, number, row = rows[place]
        outputs = run(*pad([row], encoder.spec.pad_id))
        for values, want in zip(outputs, left.outputs, strict=True):
            here = values[0] if values.ndim == 2 else values[0][row.content]
            alone.append(float(np.abs(here - want[number]).max()))
    if max(alone) <= tolerance:
        return "every window is right where it is alone: padding in a batch is not masked"
    second, size = np.array(types), np.array(lengths)
    if second.any() and not second.all() and bad[second].all() and not bad[~second].any():
        return "only windows with a second text are wrong: token types"
    if not bad.all() and size[bad].min() > size[~bad].max():
        return f"only windows of more than {size[~bad].max()} tokens are wrong: positions from there on"
    return ""


def first_difference(
    source: onnx.ModelProto | Path, model: onnx.ModelProto | Path | bytes, feeds: dict[str, Any], share: float = DIFFERS
) -> str:
    """Where two graphs part: the first tensor, of those that both have, whose values differ.

    Args:
        source: the graph that is right.
        feeds: inputs of one call.
        share: see `DIFFERS`.
    """
    good, bad = Graph(_loaded(source)), Graph(_loaded(model))
    order = [node.output[0] for node in good.finish().graph.node]
    common = [name for name in order if name in bad.producer]
    left, right = (_values(graph, common, feeds) for graph in (good, bad))
    agreed = ""
    for name in common:
        if name not in left or name not in right:
            continue
        if left[name].shape != right[name].shape:
            # One of them goes on with the first token alone.
            if left[name].ndim < 2 or left[name].shape[0] != right[name].shape[0] or right[name].shape[1] != 1:
                continue
            left[name] = left[name][:, :1]
            if left[name].shape != right[name].shape:
                continue
        size = float(np.sqrt(np.square(left[name]).mean()))
        error = float(np.sqrt(np.square(left[name] - right[name]).mean()))
        if not error <= share * max(size, 1e-6):
            where = layer_of(good, name)
            how = f"made by {bad.producer[name].op_type}"
            until = f"; {agreed} before it agrees" if agreed else ""
            return f"the first tensor that differs is {name!r} in {where}, {how}{until}"
        agreed = repr(name)
    return ""


def _loaded(model: onnx.ModelProto | Path | bytes) -> onnx.ModelProto:
    import onnx

    if isinstance(model, bytes):
        return onnx.load_from_string(model)
    return onnx.load(str(model)) if isinstance(model, Path) else model


def _values(graph: Graph, names: Sequence[str], feeds: dict[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    """The float tensors of these names, float64."""
    session = open_session(graph.finish(names).SerializeToString())
    known = {item.name for item in session.get_inputs()}
    found = session.run(list(names), {name: value for name, value in feeds.items() if name in known})
    return {
        name: np.asarray(value, np.float64)
        for name, value in zip(names, found, strict=True)
        if np.asarray(value).dtype in (np.float32, np.float16)
    }


def layer_of(graph: Graph, name: str) -> str:
    """The part of an encoder that a tensor belongs to, by the norms before it: embeddings, ``layer 2`` or the head."""
    passed: dict[str, int] = {}
    skips = any(node.op_type == "EmbedLayerNormalization" for node in graph.nodes)
    total = sum(node.op_type in NORMS for node in graph.nodes) + skips
    for node in graph.finish().graph.node:
        before = max([passed.get(item, 0) for item in node.input], default=0)
        if name in node.output:
            if before == 0:
                return "the embeddings"
            return "the head" if before >= total else f"layer {(before - 1) // 2 + 1}"
        counts = node.op_type in (*NORMS, "EmbedLayerNormalization")
        passed.update(dict.fromkeys(node.output, before + counts))
    return "the graph"
