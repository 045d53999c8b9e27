"""Exact savings on a fused graph: each a pass with a name, checked and measured on its own.

    first-token   What a sequence classifier's last layer does after its attention, for the first token alone: its head
                  reads no other.
    first-query   That layer's attention, for the first token's query alone. One query needs no key and no value of
                  every token: q·(x W) = (q Wᵀ)·x and Σ a (x W) = (Σ a x) W, so the two large products shrink from one
                  row per token to one row per head. (The reordering is that of multi-head latent attention's decoding,
                  DeepSeek-V2 2024.) A bias of the keys adds the same to every score and is dropped; one of the values
                  passes through the weights' sum of one, into the next bias.
    token-types   Token types that are always 0 are a row of the position table. The input stays, and is not read.
    int32-mask    Which keys are padding, from the 32-bit ids that the embedding has anyway, in one step.
    leftovers     Slices of what is one token long by now.
    plain-norms   The runtime's SkipLayerNormalization takes three to four times as long on a CPU as a sum and its plain
                  LayerNormalization (ONNX Runtime 1.32). It stays the form in which patterns are recognised, and is
                  taken apart last; with Sum, since the runtime would put Add and LayerNormalization together again.

"Exact" means exact in real numbers: float32 adds up in another order, so after every pass the golden rows' logits are
compared with those of the graph before it. A pass that moves one by more than `PASS_TOLERANCE` fails the export, and
nothing of it is kept. Its gain is measured and recorded, and judged by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from bundle.encode import IntArray, WindowRow, pad
from bundle.errors import FusionMissing, ParityFailed
from bundle.manifest import Signature, TaskKind
from bundle.predict import Predicted, encode_rows
from bundle.rows import read_rows
from export.graph import CONTRIB, Graph, NoMatch, attribute
from export.journal import Journal
from export.parity import GoldenRows
from export.session import open_session, run_of

if TYPE_CHECKING:
    import onnx

# What a pass may move a logit by; float32 sums in another order move these models' by less than 1e-6.
PASS_TOLERANCE = 1e-5
# What Paddle adds to the score of a padded key.
MASK_VALUE = -10000.0
# How `export.to_int8` knows the products of an attention that was taken apart.
QUERY, KEY, VALUE = "first_query_weight", "first_key_weight", "first_value_weight"
# Batch and tokens on which a gain is measured, as far as the dev rows' windows reach.
SHAPES = ((1, 32), (1, 128), (8, 128))
ROUNDS, LEAST_ROUNDS, SECONDS = 40, 7, 1.5
# Dev rows whose windows are timed; more would only be encoded.
TIMED_ROWS = 48


@dataclass(frozen=True, slots=True)
class Facts:
    """What passes may rely on.

    Attributes:
        ids, types: names of the two inputs, int64 (windows, tokens).
        pad_id: the id of padding.
        kind: of the task; only a text pair has token types other than 0.
    """

    ids: str
    types: str
    pad_id: int
    kind: TaskKind

    @property
    def first_only(self) -> bool:
        """Whether only the first token is read behind the last layer."""
        return self.kind in ("single-label", "multi-label", "text-pair")


@dataclass(frozen=True, slots=True)
class Pass:
    """One saving.

    Attributes:
        name: as in the table and in errors.
        needs: what a graph must have for it to apply, as a part of a sentence.
        apply: changes the graph, or raises `NoMatch` where it does not apply.
        required: whether a graph must have it; one that has not would be slower than its architecture allows.
    """

    name: str
    needs: str
    apply: Callable[[Graph, Facts], None]
    required: Callable[[Facts], bool] = lambda facts: False


@dataclass
class Applied:
    """What a pass did.

    Attributes:
        nodes: before and after it.
        max_abs: largest difference of a golden logit from the graph before.
        gains: see `measure_gains`.
    """

    name: str
    nodes: tuple[int, int]
    max_abs: float
    gains: list[dict[str, JsonValue]] = field(default_factory=list)

    def facts(self) -> dict[str, JsonValue]:
        """What the manifest tells about it."""
        return {
            "name": self.name,
            "applied": True,
            "max_abs": self.max_abs,
            "tolerance": PASS_TOLERANCE,
            "nodes": list(self.nodes),
            "gains": list(self.gains),
        }


def apply_passes(
    model: onnx.ModelProto,
    facts: Facts,
    golden: GoldenRows,
    journal: Journal,
    passes: Sequence[Pass] | None = None,
) -> tuple[onnx.ModelProto, list[dict[str, JsonValue]]]:
    """Applies the passes one after the other; each is compared with the graph before it.

    Args:
        passes: by default `PASSES`.

    Returns:
        the graph after the last pass, and a record per pass for the manifest.

    Raises:
        ParityFailed: a pass changes an answer; it is named.
        FusionMissing: a pass that the task demands does not apply.
    """
    signature = golden.bundle.manifest.signature
    inputs = timed_inputs(golden)
    records: list[dict[str, JsonValue]] = []
    before = golden.predict(run_of(open_session(model.SerializeToString()), signature))
    for item in PASSES if passes is None else passes:
        graph = Graph(model)
        try:
            item.apply(graph, facts)
        except (NoMatch, ValueError):
            if item.required(facts):
                raise FusionMissing({f"{item.name} ({item.needs})": 1}, {}) from None
            records.append({"name": item.name, "applied": False, "needs": item.needs})
            continue
        changed = graph.finish()
        try:
            found = golden.predict(run_of(open_session(changed.SerializeToString()), signature))
        except Exception as error:  # ONNX Runtime has no error class of its own to catch
            reason = f"it does not run: {error}; it was undone"
            raise ParityFailed(f"pass {item.name}", "the graph before it", reason) from error
        worst = max(_distance(*pair) for pair in zip(before, found, strict=True))
        # Written so that a NaN fails too.
        if not worst <= PASS_TOLERANCE:
            reason = f"a logit of the golden rows differs by {worst:.3g}, allowed are {PASS_TOLERANCE:g}; it was undone"
            raise ParityFailed(f"pass {item.name}", "the graph before it", reason)
        gains = measure_gains(model, changed, signature, inputs)
        records.append(Applied(item.name, (len(model.graph.node), len(changed.graph.node)), worst, gains).facts())
        model, before = changed, found
    _tell(records, journal)
    return model, records


def _distance(left: Predicted, right: Predicted) -> float:
    return max(
        float(np.abs(one - other).max())
        for mine, yours in zip(left.outputs, right.outputs, strict=True)
        for one, other in zip(mine, yours, strict=True)
    )


def timed_inputs(golden: GoldenRows) -> dict[str, list[tuple[IntArray, IntArray]]]:
    """Real windows cut to the shapes that gains are measured at.

    Returns:
        ``batch×tokens`` → up to 8 batches of (ids, types), int64 (batch, tokens) each.
    """
    windows = real_windows(golden)
    found: dict[str, list[tuple[IntArray, IntArray]]] = {}
    for batch, tokens in SHAPES:
        cut = real_batches(windows, batch, tokens, golden.bundle.manifest.text.pad_id)
        found[f"{batch}×{cut[0][0].shape[1]}"] = cut
    return found


def real_windows(golden: GoldenRows) -> list[WindowRow]:
    """Windows of the first `TIMED_ROWS` dev rows (without a dev split: of the golden rows), the longest first."""
    bundle = golden.bundle
    encoded = golden.encoded
    if "dev" in bundle.manifest.splits:
        rows = read_rows(bundle.path(bundle.manifest.splits["dev"].file))
        encoded = encode_rows(islice(rows, TIMED_ROWS), golden.encoder)
    windows = [golden.encoder.row(item, index) for item in encoded for index in range(len(item.windows))]
    return sorted(windows, key=lambda window: -len(window.ids))


def real_batches(windows: Sequence[WindowRow], batch: int, tokens: int, pad_id: int) -> list[tuple[IntArray, IntArray]]:
    """Up to 8 batches of windows cut to so many tokens, or padded to the longest where none is so long.

    Args:
        windows: the longest first.

    Returns:
        (ids, types), int64 (batch, at most ``tokens``) each.
    """
    long = [window for window in windows if len(window.ids) >= tokens] or list(windows)
    groups = [long[start : start + batch] for start in range(0, len(long), batch)][:8]
    whole = [group for group in groups if len(group) == batch] or [(groups[0] * batch)[:batch]]
    cut = [pad([_cut(window, tokens) for window in group], pad_id) for group in whole]
    # Of one width, so that their times can be compared.
    return [(ids, types) for ids, types in cut if ids.shape == cut[0][0].shape]


def _cut(window: WindowRow, tokens: int) -> WindowRow:
    return WindowRow(window.ids[:tokens], window.types[:tokens], window.content)


def measure_gains(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    signature: Signature,
    inputs: dict[str, list[tuple[IntArray, IntArray]]],
) -> list[dict[str, JsonValue]]:
    """How much faster a graph is than another, in turns on the same real windows.

    What is measured is the processor time of one thread, so that other work on the machine counts for neither.

    Returns:
        per shape: medians in ms, the median of the rounds' ratios before/after with its quartiles, rounds.
    """
    runs = [run_of(open_session(model.SerializeToString(), threads=1), signature) for model in (before, after)]
    gains: list[dict[str, JsonValue]] = []
    for shape, batches in inputs.items():
        clocks: list[list[float]] = [[], []]
        begun = time.perf_counter()
        for turn in range(-2, ROUNDS):
            if turn >= LEAST_ROUNDS and time.perf_counter() - begun > SECONDS:
                break
            ids, types = batches[turn % len(batches)]
            # Whoever comes second finds the inputs in the cache, so they take turns at that too.
            for which in (0, 1) if turn % 2 else (1, 0):
                start = time.thread_time()
                runs[which](ids, types)
                if turn >= 0:  # the first two warm up
                    clocks[which].append(1000 * (time.thread_time() - start))
        left, right = (np.array(clock) for clock in clocks)
        low, middle, high = np.percentile(left / np.maximum(right, 1e-9), (25, 50, 75))
        gains.append(
            {
                "shape": shape,
                "before_ms": round(float(np.median(left)), 4),
                "after_ms": round(float(np.median(right)), 4),
                "ratio": round(float(middle), 4),
                "ratio_quartiles": [round(float(low), 4), round(float(high), 4)],
                "rounds": len(left),
            }
        )
    return gains


def _tell(records: Sequence[dict[str, JsonValue]], journal: Journal) -> None:
    """The passes as a table for the person."""
    from rich.table import Table

    table = Table(title="exact savings: × speed of the graph before (one thread's CPU time)", title_justify="left")
    table.add_column("pass", no_wrap=True)
    table.add_column("nodes", justify="right", no_wrap=True)
    table.add_column("diff", justify="right", no_wrap=True)
    shapes: list[str] = []
    for record in records:
        for gain in _gains(record):
            if gain["shape"] not in shapes:
                shapes.append(str(gain["shape"]))
                table.add_column(f"{gain['shape']}\nn={gain['rounds']}", justify="right", no_wrap=True)
    for record in records:
        if not record["applied"]:
            table.add_row(str(record["name"]), "-", "-", *("-" for _ in shapes))
            continue
        nodes = record["nodes"]
        assert isinstance(nodes, list)
        table.add_row(
            str(record["name"]),
            f"{nodes[0]} → {nodes[1]}",
            f"{record['max_abs']:.0e}",
            *(f"{gain['ratio']:.3f}" for gain in _gains(record)),
        )
    journal.console.print(table)
    for record in records:
        if not record["applied"]:
            journal.say(f"    without {record['name']}: it needs {record['needs']}")


def _gains(record: dict[str, JsonValue]) -> list[dict[str, JsonValue]]:
    gains = record.get("gains", [])
    return [item for item in gains if isinstance(item, dict)] if isinstance(gains, list) else []


# --- the passes ------------------------------------------------------------------------------------------------------


def _first_token(graph: Graph, facts: Facts) -> None:
    """Computes the last layer beyond its attention for the first token alone, where only that one is read."""
    norms = [node for node in graph.nodes if node.op_type == "SkipLayerNormalization"]
    ends_here = [
        node for node in norms if [item.op_type for item in graph.readers.get(node.output[0], [])] == ["Slice"]
    ]
    if len(ends_here) != 1:
        raise NoMatch
    final = ends_here[0]
    if not _takes_first(graph, graph.only_reader(final.output[0], "Slice")):
        raise NoMatch
    middle = graph.made_by(final.input[1], "SkipLayerNormalization")
    output = graph.made_by(middle.input[0], "MatMul")
    attention = graph.made_by(output.input[0], "Attention")
    one, zero = (graph.add_constant(stem, np.array([value], np.int64)) for stem, value in (("one", 1), ("zero", 0)))
    for node, position, name in ((output, 0, attention.output[0]), (middle, 1, middle.input[1])):
        node.input[position] = graph.add("Slice", [name, zero, one, one])


def _takes_first(graph: Graph, cut: onnx.NodeProto) -> bool:
    """Whether a Slice takes the first token: [0, 1) of axis 1."""
    return [graph.constant(name).tolist() for name in cut.input[1:4]] == [[0], [1], [1]]


def _first_query(graph: Graph, facts: Facts) -> None:
    """The attention of which only the first token is read → products with as many rows as it has heads."""
    found = [
        node
        for node in graph.nodes
        if node.op_type == "Attention" and [item.op_type for item in graph.readers.get(node.output[0], [])] == ["Slice"]
    ]
    if len(found) != 1:
        raise NoMatch
    attention = found[0]
    cut = graph.only_reader(attention.output[0], "Slice")
    if not _takes_first(graph, cut):
        raise NoMatch
    output = graph.only_reader(cut.output[0], "MatMul")
    norm = graph.only_reader(output.output[0], "SkipLayerNormalization")
    tokens, weight, bias, mask = attention.input[:4]
    heads = int(attribute(attention, "num_heads"))
    packed, packed_bias = graph.constant(weight), graph.constant(bias)
    hidden = packed.shape[0]
    head = hidden // heads
    query, key, value = (packed[:, start : start + hidden] for start in (0, hidden, 2 * hidden))
    scale = np.float32(1 / np.sqrt(head))
    # float32 (heads, hidden): 1 where a channel belongs to a head.
    own = graph.add_constant("own", np.repeat(np.eye(heads, dtype=np.float32), head, axis=1))
    first = graph.add("Slice", [tokens, *cut.input[1:4]])  # (windows, 1, hidden)
    asked = graph.add("MatMul", [first, graph.add_constant(QUERY, query * scale)])
    asked = graph.add("Add", [asked, graph.add_constant("first_query_bias", packed_bias[:hidden] * scale)])
    asked = graph.add("Mul", [asked, own])  # (windows, heads, hidden): each row has one head's channels
    asked = graph.add("MatMul", [asked, graph.add_constant(KEY, key.T)])  # (windows, heads, hidden)
    scores = graph.add("FusedMatMul", [asked, tokens], domain=CONTRIB, transB=1)  # (windows, heads, tokens)
    kept = graph.add("Unsqueeze", [graph.add("Cast", [mask], to=9), graph.add_constant("axis", np.array([1]))])
    numbers = [graph.add_constant("score", np.array(number, np.float32)) for number in (0, MASK_VALUE)]
    masked = graph.add("Add", [scores, graph.add("Where", [kept, *numbers])])
    seen = graph.add("MatMul", [graph.add("Softmax", [masked], axis=-1), tokens])  # (windows, heads, hidden)
    said = graph.add("MatMul", [seen, graph.add_constant(VALUE, value)])
    said = graph.add("Mul", [said, own])
    output.input[0] = graph.add("ReduceSum", [said, graph.add_constant("axis", np.array([1]))], keepdims=1)
    # Without the values' bias it is another tensor than the one of this name in the graph as converted.
    name = graph.fresh("first_output")
    norm.input[list(norm.input).index(output.output[0])] = output.output[0] = name
    shift = packed_bias[2 * hidden :] @ graph.constant(output.input[1])
    norm.input[4] = graph.add_constant("skip_bias", (graph.constant(norm.input[4]) + shift).astype(np.float32))


def _token_types(graph: Graph, facts: Facts) -> None:
    """Folds token type 0 into the position table, where the task has no other."""
    if facts.kind == "text-pair":
        raise NoMatch
    (embed,) = [node for node in graph.nodes if node.op_type == "EmbedLayerNormalization"]
    if not embed.input[1]:
        raise NoMatch
    positions, types = graph.constant(embed.input[3]), graph.constant(embed.input[4])
    embed.input[3] = graph.add_constant("position_table", positions + types[0])
    embed.input[1] = embed.input[4] = ""


def _int32_mask(graph: Graph, facts: Facts) -> None:
    """Equal, Not and Cast over 64-bit ids → the lesser of a 32-bit id and 1, which is 0 for padding alone."""
    (embed,) = [node for node in graph.nodes if node.op_type == "EmbedLayerNormalization"]
    masks = {node.input[3] for node in graph.nodes if node.op_type == "Attention"}
    if facts.pad_id != 0 or len(masks) != 1:
        raise NoMatch
    old = graph.made_by(masks.pop(), "Cast")
    equal = graph.made_by(graph.made_by(old.input[0], "Not").input[0], "Equal")
    if set(equal.input) - {facts.ids} - {name for name in equal.input if name in graph.constants}:
        raise NoMatch
    graph.remove([old])
    graph.add("Min", [embed.input[0], graph.add_constant("one", np.array(1, np.int32))], [old.output[0]])


def _leftovers(graph: Graph, facts: Facts) -> None:
    """Drops Slices of a tensor that is one token long."""
    dropped = False
    for cut in [node for node in graph.nodes if node.op_type == "Slice" and len(node.input) > 3]:
        if cut.input[0] not in graph.producer or not _takes_first(graph, cut):
            continue
        if _is_one_token(graph, cut.input[0]):
            dropped = True
            for reader in graph.readers.get(cut.output[0], []):
                for place, name in enumerate(reader.input):
                    if name == cut.output[0]:
                        reader.input[place] = cut.input[0]
    if not dropped:
        raise NoMatch


def _plain_norms(graph: Graph, facts: Facts) -> None:
    """SkipLayerNormalization → Sum of product, residual and bias, LayerNormalization."""
    norms = [node for node in graph.nodes if node.op_type == "SkipLayerNormalization"]
    if not norms:
        raise NoMatch
    graph.remove(norms)
    for node in norms:
        product, residual, scale, shift, *bias = node.input
        total = graph.add("Sum", [product, residual, *bias])
        epsilon = attribute(node, "epsilon", 1e-12)
        graph.add("LayerNormalization", [total, scale, shift], [node.output[0]], axis=-1, epsilon=epsilon)


def _is_one_token(graph: Graph, name: str) -> bool:
    """Whether a layer's output was computed for the first token alone: its residual comes from a Slice."""
    node = graph.producer.get(name)
    while node is not None and node.op_type == "SkipLayerNormalization":
        node = graph.producer.get(node.input[1])
    return node is not None and node.op_type == "Slice" and _takes_first(graph, node)


_FIRST = "a head that reads the first token of the last layer alone"
PASSES: tuple[Pass, ...] = (
    Pass("first-token", _FIRST, _first_token, lambda facts: facts.first_only),
    Pass("first-query", _FIRST, _first_query, lambda facts: facts.first_only),
    Pass("token-types", "a task whose token types are all 0", _token_types, lambda facts: facts.kind != "text-pair"),
    Pass("int32-mask", "padding with the id 0", _int32_mask),
    Pass("leftovers", "a tensor of one token that is cut to one token", _leftovers),
    Pass("plain-norms", "a SkipLayerNormalization", _plain_norms, lambda facts: True),
)
