"""ONNX as converted → ONNX with the operators that ONNX Runtime has fast kernels for.

ONNX Runtime's own transformer fusion finds no Attention and no EmbedLayerNormalization in Paddle's graphs: Paddle
scales Q before QKᵀ, counts positions with CumSum, and ERNIE adds a fourth (task type) table. So the patterns are
written here, over the graph that onnxslim has cleaned, and the counts are asserted: a graph that does not fuse as its
architecture demands is an error and not a slower model.

    Gather + Gather + Gather [+ Gather] → LayerNormalization      EmbedLayerNormalization
    Q, K, V products, scale, mask, Softmax, product                Attention (packed QKV, mask = ids differ from pad)
    Add (bias) + Add (residual) → LayerNormalization              SkipLayerNormalization
    Add (bias) → Div, Erf, Add, Mul, Mul                          BiasGelu

The exact savings of `export.passes` are applied to what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from bundle.encode import IntArray
from bundle.errors import ConversionFailed, ExportError, FusionMissing
from bundle.folder import Bundle, sha256_of
from bundle.manifest import TaskKind, Vocabulary
from export.artifact import adopt, is_current, source_of, workplace
from export.embeddings import kept_tokens, vocabulary_pass
from export.graph import CONTRIB, Array, Graph, NoMatch, attribute
from export.journal import Journal
from export.parity import FP32_TOLERANCE, GoldenRows, check_onnx, read_probes
from export.passes import MASK_VALUE, PASSES, Facts, apply_passes
from export.to_onnx import sample_quality

if TYPE_CHECKING:
    import onnx

NAME, SOURCE = "onnx_fused", "onnx_fp32"
FILE = "onnx/model_fused.onnx"


def fuse(
    bundle: Bundle,
    journal: Journal,
    *,
    vocabulary: Vocabulary = "all",
    corpus: Path | None = None,
    force: bool = False,
) -> Bundle:
    """Adds the artifact ``onnx_fused``.

    Args:
        vocabulary: ``corpus`` leaves out the embeddings of tokens that no text of the bundle's dev and calibration rows
            or of ``corpus`` has; see `export.embeddings`.
        corpus: a text a line.

    Raises:
        FusionMissing: the counts are not those of the architecture, or a pass that the task demands does not apply.
        ParityFailed: the fused graph, or a pass over it, computes something else.
        ExportError: the corpus cannot be read.
    """
    import onnx

    source = source_of(bundle, SOURCE)
    settings: dict[str, JsonValue] = {"pass": 2, "tolerance": FP32_TOLERANCE}
    if vocabulary == "corpus":
        settings["vocabulary"] = sha256_of(corpus) if corpus and corpus.is_file() else vocabulary
    if not force and is_current(bundle, NAME, SOURCE, settings):
        journal.say("  up to date")
        return bundle
    manifest = bundle.manifest
    architecture = architecture_of(bundle)
    golden = GoldenRows(bundle)
    model = slim(onnx.load(str(bundle.path(source.file))), journal)
    ids, types = (tensor.name for tensor in manifest.signature.inputs)
    fused = fuse_graph(model, ids, types, manifest.text.pad_id)
    expected = expected_counts(architecture, manifest.task.kind, manifest.made.architecture)
    counts = assert_fused(fused, expected)
    journal.say("    " + ", ".join(f"{count} {op}" for op, count in counts.items()))
    facts = Facts(ids, types, manifest.text.pad_id, manifest.task.kind)
    trimmed: dict[str, JsonValue] = {}
    steps = PASSES
    if vocabulary == "corpus":
        # The probes' tokens are kept too, so that whole windows stay proved.
        probed = read_probes(bundle)
        asked = [np.array(window) for row in golden.rows for window in row.ids] + (
            [probed[0].ravel()] if probed else []
        )
        kept = kept_tokens(bundle, golden.encoder, asked, corpus)
        journal.say(f"    {kept.told}")
        trimmed, steps = {"vocabulary": kept.facts()}, (*PASSES, vocabulary_pass(kept))
    fused, passes = apply_passes(fused, facts, golden, journal, steps)
    with workplace(bundle, "onnx") as folder:
        path = folder / "model_fused.onnx"
        onnx.save(fused, str(path))
        parity = check_onnx(NAME, path, golden)
        return adopt(
            bundle,
            NAME,
            {path: FILE},
            source=SOURCE,
            settings=settings,
            artifact_format="onnx",
            parity=parity,
            quality=sample_quality(bundle, path, golden.encoder),
            details={
                "architecture": dict(architecture),
                # Of the graph before the passes, one of which takes an Attention apart.
                "fused": dict(counts),
                "passes": list(passes),
                **trimmed,
                "nodes": len(fused.graph.node),
                "nodes_before": len(onnx.load(str(bundle.path(source.file)), load_external_data=False).graph.node),
            },
        )


def architecture_of(bundle: Bundle) -> dict[str, JsonValue]:
    """Layers, heads and activation of the model, as PaddleNLP's configuration said when it was loaded."""
    value = source_of(bundle, "paddle_static").details.get("architecture")
    if not isinstance(value, dict):
        raise ExportError(f"{bundle.root}: paddle_static does not record its architecture; run that step again")
    return value


def slim(model: onnx.ModelProto, journal: Journal) -> onnx.ModelProto:
    """Folds constants and drops no-ops; Paddle's weights are Constant nodes until this has run."""
    with journal.quiet():
        import onnxslim

        result = onnxslim.slim(model)
    if result is None:
        raise ConversionFailed("fuse", f"onnxslim returned no graph (what it said: {journal.log})")
    slimmed: onnx.ModelProto = result
    return slimmed


def expected_counts(architecture: dict[str, JsonValue], kind: TaskKind, name: str = "") -> dict[str, int]:
    """How many nodes of each operator a completely fused graph has.

    Args:
        architecture: ``layers`` and ``activation`` of the model.
        name: its PaddleNLP class; ELECTRA's sequence head has an activation of its own.

    Raises:
        FusionMissing: an activation for which there is no fused form here.
    """
    layers, activation = int(str(architecture["layers"])), str(architecture["activation"])
    if activation not in ("gelu", "relu"):
        raise FusionMissing({f"an activation {activation!r}": layers}, {})
    gelus = layers if activation == "gelu" else 0
    if name.startswith("Electra") and kind != "token-classification" and activation == "gelu":
        gelus += 1
    return {
        "EmbedLayerNormalization": 1,
        "Attention": layers,
        "SkipLayerNormalization": 2 * layers,
        "BiasGelu": gelus,
        # None of the unfused forms may be left over.
        "LayerNormalization": 0,
        "Softmax": 0,
        "Erf": 0,
    }


def assert_fused(model: onnx.ModelProto, expected: dict[str, int]) -> dict[str, JsonValue]:
    """Compares operator counts with what the architecture demands.

    Returns:
        the counts of the fused operators.

    Raises:
        FusionMissing: with both sides of every count that differs.
    """
    found = dict.fromkeys(expected, 0)
    for node in model.graph.node:
        if node.op_type in found:
            found[node.op_type] += 1
    if found != expected:
        raise FusionMissing(expected, found)
    return {op: count for op, count in found.items() if expected[op]}


def fuse_graph(model: onnx.ModelProto, ids: str, types: str, pad_id: int) -> onnx.ModelProto:
    """Applies all patterns wherever they match.

    Args:
        model: a graph that onnxslim has cleaned.
        ids, types: names of the two inputs, int64 (windows, tokens).
        pad_id: the id whose positions no token attends to.
    """
    graph = Graph(model)
    # int32 (windows, tokens): 1 where a key may be attended to.
    pad = graph.add_constant("pad_id", np.array(pad_id, dtype=np.int64))
    differs = graph.add("Not", [graph.add("Equal", [ids, pad])])
    mask = graph.add("Cast", [differs], to=6)
    patterns: tuple[tuple[str, Callable[[Graph, onnx.NodeProto], None]], ...] = (
        ("Softmax", lambda g, node: _attention(g, node, ids, mask, pad_id)),
        ("Erf", _bias_gelu),
        ("LayerNormalization", lambda g, node: _embedding(g, node, ids, types, pad_id)),
        ("LayerNormalization", _skip),
    )
    for op, pattern in patterns:
        for node in [item for item in graph.nodes if item.op_type == op]:
            try:
                pattern(graph, node)
            except (NoMatch, ValueError):
                # Left as it is; the counts tell.
                continue
    return graph.finish()


def _attention(graph: Graph, softmax: onnx.NodeProto, ids: str, mask: str, pad_id: int) -> None:
    """Q, K, V products around a Softmax → one Attention node."""
    if attribute(softmax, "axis", -1) not in (-1, 3):
        raise NoMatch
    masked = graph.made_by(softmax.input[0], "Add")
    left, right = masked.input
    product = graph.producer.get(left)
    if product is None or product.op_type != "MatMul":
        left, right = right, left
        product = graph.made_by(left, "MatMul")
    _check_mask(graph, right, ids, pad_id)
    # Q: MatMul+Add → Reshape (0, 0, heads, head) → Transpose → Mul scale → Reshape to its own shape
    query, scale = product.input[0], 1.0
    while (node := graph.made_by(query, "Reshape", "Mul", "Transpose")).op_type != "Transpose":
        if node.op_type == "Mul":
            query, factor = graph.sides(node)
            if factor.size != 1:
                raise NoMatch
            scale *= float(factor.reshape(-1)[0])
        else:
            shape = graph.made_by(node.input[1], "Shape")
            if graph.made_by(shape.input[0], "Transpose").output[0] != _transposed(graph, node.input[0]):
                raise NoMatch
            query = node.input[0]
    q_source, q_weight, q_bias, heads, head = _projection(graph, query, [0, 2, 1, 3])
    k_source, k_weight, k_bias, k_heads, k_head = _projection(graph, product.input[1], [0, 2, 3, 1])
    context = graph.only_reader(softmax.output[0], "MatMul")
    v_source, v_weight, v_bias, v_heads, v_head = _projection(graph, context.input[1], [0, 2, 1, 3])
    if not (q_source == k_source == v_source and (heads, head) == (k_heads, k_head) == (v_heads, v_head)):
        raise NoMatch
    back = graph.only_reader(context.output[0], "Transpose")
    if list(attribute(back, "perm")) != [0, 2, 1, 3]:
        raise NoMatch
    joined = graph.only_reader(back.output[0], "Reshape")
    if graph.constant(joined.input[1]).tolist()[-1] != heads * head:
        raise NoMatch
    # The operator divides by sqrt(head) itself; what Paddle scales beyond that belongs into Q's weights.
    rest = np.float32(scale * math.sqrt(head))
    if abs(float(rest) - 1) > 1e-6:
        q_weight, q_bias = q_weight * rest, q_bias * rest
    graph.replace(
        joined,
        "Attention",
        [
            q_source,
            graph.add_constant("qkv_weight", np.concatenate([q_weight, k_weight, v_weight], axis=1)),  # (h, 3h)
            graph.add_constant("qkv_bias", np.concatenate([q_bias, k_bias, v_bias])),  # (3h,)
            mask,
        ],
        num_heads=heads,
        mask_filter_value=MASK_VALUE,
    )


def _transposed(graph: Graph, name: str) -> str:
    """The Transpose under a chain of scalings."""
    node = graph.made_by(name, "Mul", "Transpose")
    while node.op_type == "Mul":
        node = graph.made_by(graph.sides(node)[0], "Mul", "Transpose")
    output: str = node.output[0]
    return output


def _projection(graph: Graph, name: str, perm: list[int]) -> tuple[str, Array, Array, int, int]:
    """One of Q, K, V: its source, W (h, h), b (h,), heads, size of a head."""
    turned = graph.made_by(name, "Transpose")
    if list(attribute(turned, "perm")) != perm:
        raise NoMatch
    split = graph.made_by(turned.input[0], "Reshape")
    shape = graph.constant(split.input[1]).tolist()
    if len(shape) != 4 or min(shape[2:]) < 1:
        raise NoMatch
    source, weight, bias = graph.dense(split.input[0])
    if weight.shape[1] != shape[2] * shape[3]:
        raise NoMatch
    return source, weight, bias, int(shape[2]), int(shape[3])


def _check_mask(graph: Graph, name: str, ids: str, pad_id: int) -> None:
    """Evaluates the additive mask: (windows, 1, 1, tokens), MASK_VALUE at padded keys and 0 elsewhere."""
    for probe in _probes(pad_id):
        value = evaluate(graph, name, {ids: probe})
        wanted = np.where(probe == pad_id, np.float32(MASK_VALUE), np.float32(0))[:, None, None, :]
        if value.shape != wanted.shape or not np.array_equal(value, wanted):
            raise NoMatch


def _probes(pad_id: int) -> list[IntArray]:
    """Ids of two shapes, with padding inside and at the end."""
    first = np.array([[7, 8, 9, 10, pad_id], [7, pad_id, 11, pad_id, pad_id]], dtype=np.int64)
    return [first, np.array([[8, 7, 6], [9, 9, pad_id], [5, pad_id, pad_id]], dtype=np.int64)]


def evaluate(graph: Graph, name: str, feeds: dict[str, IntArray]) -> Array:
    """What a small part of the graph computes, run rather than guessed from its nodes' names."""
    from export.session import open_session

    if graph.depends_on(name, [item for item in graph.inputs if item not in feeds]):
        raise NoMatch
    part = graph.finish([name])
    kept = [item for item in part.graph.input if item.name in feeds]
    del part.graph.input[:]
    part.graph.input.extend(kept)
    try:
        session = open_session(part.SerializeToString(), threads=1)
        used = {item.name for item in session.get_inputs()}
        value: Any = session.run(None, {key: array for key, array in feeds.items() if key in used})[0]
    except Exception as error:  # ONNX Runtime has no error class of its own; a part that does not run is no match
        raise NoMatch from error
    return np.asarray(value)


def _bias_gelu(graph: Graph, erf: onnx.NodeProto) -> None:
    """Add (bias) → Div sqrt 2 → Erf → Add 1 → Mul x → Mul 0.5 → BiasGelu."""
    scaled = graph.made_by(erf.input[0], "Div", "Mul")
    x, factor = graph.sides(scaled)
    ratio = float(factor.reshape(-1)[0])
    if abs((1 / ratio if scaled.op_type == "Div" else ratio) - math.sqrt(0.5)) > 1e-5:
        raise NoMatch
    plus = graph.only_reader(erf.output[0], "Add")
    if float(graph.sides(plus)[1].reshape(-1)[0]) != 1:
        raise NoMatch
    times = graph.only_reader(plus.output[0], "Mul")
    if x not in times.input:
        raise NoMatch
    half = graph.only_reader(times.output[0], "Mul")
    if float(graph.sides(half)[1].reshape(-1)[0]) != 0.5:
        raise NoMatch
    product, bias = graph.sides(graph.made_by(x, "Add"))
    if bias.ndim != 1:
        raise NoMatch
    graph.replace(half, "BiasGelu", [product, graph.add_constant("gelu_bias", bias)])


def _embedding(graph: Graph, norm: onnx.NodeProto, ids: str, types: str, pad_id: int) -> None:
    """The sum of embedding tables under a LayerNormalization → one EmbedLayerNormalization."""
    word: Array | None = None
    segment: Array | None = None
    position: Array | None = None
    counted = ""
    fixed: list[Array] = []
    todo, tables = [norm.input[0]], []
    while todo:
        node = graph.made_by(todo.pop(), "Add", "Gather")
        if node.op_type == "Add":
            todo += node.input
            continue
        table, index = graph.constant(node.input[0]), node.input[1]
        if attribute(node, "axis", 0) or table.ndim != 2:
            raise NoMatch
        if index == ids:
            word = table
        elif index == types:
            segment = table
        else:
            tables.append((table, index))
    for table, index in tables:
        probes = _probes(pad_id)
        values = [evaluate(graph, index, {ids: probe, types: np.zeros_like(probe)}) for probe in probes]
        counting = [np.broadcast_to(np.arange(probe.shape[1]), probe.shape) for probe in probes]
        if all(np.array_equal(value, wanted) for value, wanted in zip(values, counting, strict=True)):
            position = table
        elif len({int(item) for value in values for item in value.reshape(-1)}) == 1:
            # The same row for every token, such as ERNIE's task type: it can live in another table.
            fixed.append(table[int(values[0].reshape(-1)[0])])
        elif position is None and not counted:
            # RoBERTa counts only the tokens that are not padding.
            position, counted = table, index
        else:
            raise NoMatch
    if word is None or segment is None or position is None:
        raise NoMatch
    segment = segment + np.sum(fixed, axis=0, dtype=np.float32) if fixed else segment
    inputs = [
        graph.add("Cast", [ids], to=6),
        graph.add("Cast", [types], to=6),
        graph.add_constant("word_table", word),
        graph.add_constant("position_table", position),
        graph.add_constant("type_table", segment),
        norm.input[1],
        norm.input[2],
    ]
    if counted:
        inputs += ["", graph.add("Cast", [counted], to=6)]
    graph.remove([norm])
    graph.add(
        "EmbedLayerNormalization",
        inputs,
        [norm.output[0], graph.fresh("unused")],
        domain=CONTRIB,
        epsilon=attribute(norm, "epsilon", 1e-5),
    )
    graph._index()


def _skip(graph: Graph, norm: onnx.NodeProto) -> None:
    """Bias and residual under a LayerNormalization → one SkipLayerNormalization."""
    total = graph.made_by(norm.input[0], "Add")
    left, right = total.input
    try:
        product, bias, residual = *_biased_product(graph, left), right
    except NoMatch:
        product, bias, residual = *_biased_product(graph, right), left
    if bias.shape != graph.constant(norm.input[1]).shape:
        raise NoMatch
    graph.replace(
        norm,
        "SkipLayerNormalization",
        [product, residual, norm.input[1], norm.input[2], graph.add_constant("skip_bias", bias)],
        epsilon=attribute(norm, "epsilon", 1e-5),
    )


def _biased_product(graph: Graph, name: str) -> tuple[str, Array]:
    """``x @ W + b`` that only the residual sum reads (the residual itself has more readers): the product's name, b."""
    product, bias = graph.sides(graph.made_by(name, "Add"))
    graph.made_by(product, "MatMul")
    graph.only_reader(name, "Add")
    return product, bias
