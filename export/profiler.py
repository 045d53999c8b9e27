"""Where a graph's time goes: each operator of one call against what this machine could do at best.

ONNX Runtime's own profiler times every node of the graph as it really runs (after the runtime's own optimizations).
From the shapes that it records follow the operations and the bytes of each node, and from three measured peaks how long
the node would take at best:

    fp32, int8    the fastest of many square matrix products in ONNX Runtime, with the same number of threads;
    bytes         the fastest of many copies, once within the caches and once over arrays far beyond them.

The share of the roof is that best time over the measured one (the roofline of Williams, Waterman and Patterson 2009,
per node). Operators other than products are held against the bytes alone.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.machine import commit, cores, hardware, load, versions
from export.artifact import source_of
from export.graph import NORMS
from export.parity import GoldenRows
from export.passes import real_batches, real_windows
from export.peak import product

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "slipway.profile/1"
WARMUPS = 5
# Side of the square products whose best rate is the roof. A try must be over within milliseconds, or on a machine with
# other work none is ever left alone; hence many short ones.
GEMM_SIDE, TRIES = 512, 200
# Copies within the caches, and pieces of arrays far larger than them; bytes of one side.
NEAR_BYTES, PIECE_BYTES, FAR_BYTES = 1 << 18, 1 << 21, 1 << 28
# Seconds that one peak may take.
PEAK_SECONDS = 3.0
# Nodes that move less than this are held against the copy within the caches.
NEAR_LIMIT = 1 << 20
SIZES = {"float": 4, "int64": 8, "int32": 4, "uint8": 1, "int8": 1, "bool": 1, "float16": 2, "double": 8}
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul")
ATTENTION = ("Attention", "QAttention")


@dataclass(frozen=True, slots=True)
class Roof:
    """The best that this machine did, with so many threads.

    Attributes:
        fp32, int8: 10⁹ operations a second of a square product; a multiplication and an addition are two.
        near, far: 10⁹ bytes a second that a copy reads and writes, within the caches and far beyond them.
    """

    fp32: float
    int8: float
    near: float
    far: float

    def seconds(self, fp32: float, int8: float, moved: float) -> float:
        """The least time for so many operations and bytes."""
        bandwidth = self.near if moved < NEAR_LIMIT else self.far
        return max(fp32 / (self.fp32 * 1e9) + int8 / (self.int8 * 1e9), moved / (bandwidth * 1e9))


@dataclass
class Node:
    """One node of the graph as the runtime runs it.

    Attributes:
        part: ``embedding``, ``layer 1`` … or ``head``.
        fp32, int8: operations in one call.
        moved: bytes of its inputs (weights too) and outputs.
        microseconds: of each timed call.
    """

    name: str
    op: str
    part: str
    shapes: str
    fp32: float
    int8: float
    moved: float
    microseconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median microseconds."""
        return float(np.median(self.microseconds))


def measure_roof(threads: int) -> Roof:
    """Measures the peaks; takes some seconds."""
    return Roof(
        fp32=_gemm_rate(threads, integer=False),
        int8=_gemm_rate(threads, integer=True),
        near=_copy_rate(threads, NEAR_BYTES, NEAR_BYTES),
        far=_copy_rate(threads, PIECE_BYTES, FAR_BYTES),
    )


def _gemm_rate(threads: int, *, integer: bool) -> float:
    """10⁹ operations a second of the fastest of several square products in ONNX Runtime."""
    rng = np.random.default_rng(0)
    square = (GEMM_SIDE, GEMM_SIDE)
    if integer:
        # Weights of 7 bits, as `export.to_int8` makes them.
        left, right = rng.integers(0, 256, square).astype(np.uint8), rng.integers(-64, 65, square).astype(np.int8)
    else:
        left, right = rng.normal(size=square).astype(np.float32), rng.normal(size=square).astype(np.float32)
    run = product(threads, left, right)
    return 2 * GEMM_SIDE**3 / _best(lambda turn: run()) / 1e9


def _copy_rate(threads: int, piece: int, size: int) -> float:
    """10⁹ bytes a second, read and written together, of the fastest copy of a piece by every thread at once."""
    share = size // threads // 4
    sides = [(np.ones(share, np.float32), np.ones(share, np.float32)) for _ in range(threads)]
    length = min(piece // 4, share)
    places = share // length

    def copy(which: int, turn: int) -> None:
        source, target = sides[which]
        start = turn % places * length
        np.copyto(target[start : start + length], source[start : start + length])

    with ThreadPoolExecutor(threads) as pool:

        def together(turn: int) -> None:
            others = [pool.submit(copy, which, turn) for which in range(1, threads)]
            copy(0, turn)
            for other in others:
                other.result()

        return 2 * 4 * length * threads / _best(together) / 1e9


def _best(call: Callable[[int], object]) -> float:
    """Seconds of the fastest of `TRIES` calls, or of those that fit into `PEAK_SECONDS`."""
    best, begun = math.inf, time.perf_counter()
    for turn in range(TRIES):
        start = time.perf_counter()
        call(turn)
        best = min(best, time.perf_counter() - start)
        if turn >= 5 and time.perf_counter() - begun > PEAK_SECONDS:
            break
    return best


def profile(
    bundle: Bundle,
    name: str,
    *,
    batch: int = 1,
    tokens: int = 128,
    runs: int = 100,
    threads: int | None = None,
    budget: float = 60.0,
) -> dict[str, Any]:
    """Profiles one ONNX artifact on real windows of the dev split.

    Args:
        name: of the artifact.
        batch, tokens: shape of a call; tokens are capped by the bundle's windows.
        runs: timed calls, fewer if ``budget`` seconds are over before.
        threads: of the session and of the peaks; by default all cores that this process may use.

    Returns:
        what goes into the results file: peaks, totals, operators and nodes.

    Raises:
        ExportError: no such artifact, or one that ONNX Runtime does not run.
    """
    artifact = bundle.manifest.artifacts.get(name)
    if artifact is None or artifact.format != "onnx":
        known = [key for key, item in bundle.manifest.artifacts.items() if item.format == "onnx"]
        raise ExportError(f"{bundle.root}: no ONNX artifact {name!r}; there are {', '.join(known) or 'none'}")
    source_of(bundle, name)
    threads = threads or cores()
    busy = load()
    roof = measure_roof(threads)
    golden = GoldenRows(bundle)
    batches = real_batches(real_windows(golden), batch, tokens, bundle.manifest.text.pad_id)
    inputs = [tensor.name for tensor in bundle.manifest.signature.inputs]
    feeds = [dict(zip(inputs, pair, strict=True)) for pair in batches]
    events, calls, walls = _events(bundle.path(artifact.file), feeds, runs, threads, budget)
    nodes = nodes_of(events, calls)
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m export profile --artifact {name} --batch {batch} --tokens {tokens}",
        "bundle": bundle.name,
        "artifact": name,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(("onnxruntime", "numpy")),
        "load_before": busy,
        "threads": threads,
        "batch": batch,
        "tokens": int(batches[0][0].shape[1]),
        "calls": calls,
        "warmups": WARMUPS,
        "roof": {key: round(value, 2) for key, value in asdict(roof).items()},
        **summary(nodes, roof, walls),
    }


def _events(
    path: Path, feeds: Sequence[dict[str, Any]], runs: int, threads: int, budget: float
) -> tuple[list[dict[str, Any]], int, list[float]]:
    """What ONNX Runtime's profiler recorded of the nodes, the number of timed calls, and each one's seconds."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="slipway-profile-") as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        walls: list[float] = []
        begun = time.perf_counter()
        for turn in range(-WARMUPS, runs):
            if turn >= 5 and time.perf_counter() - begun > budget:
                break
            fed = feeds[turn % len(feeds)]
            start = time.perf_counter()
            session.run(None, fed)
            if turn >= 0:
                walls.append(time.perf_counter() - start)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found = [item for item in events if item.get("cat") == "Node" and item["name"].endswith("_kernel_time")]
    return found, len(walls), walls


def nodes_of(events: Sequence[dict[str, Any]], calls: int) -> list[Node]:
    """The profiler's events → nodes in the order in which they run; only the last ``calls`` calls are kept."""
    found: dict[str, Node] = {}
    ops = _ops(events)
    fused = "EmbedLayerNormalization" in ops
    # Two norms end a layer; where the embedding is not fused, one more ends it.
    layers = (sum(op in NORMS for op in ops) - (not fused)) // 2
    norms = -1
    for event in events:
        name, op = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
        if name not in found:
            part = "embedding" if norms < 0 else f"layer {norms // 2 + 1}" if norms // 2 < layers else "head"
            found[name] = _node(name, op, part, event["args"])
            if op == "EmbedLayerNormalization" or (op in NORMS and (norms >= 0 or not fused)):
                norms += 1
        found[name].microseconds.append(float(event["dur"]))
    for node in found.values():
        node.microseconds = node.microseconds[-calls:]
    return list(found.values())


def _ops(events: Sequence[dict[str, Any]]) -> list[str]:
    """The operator of each node."""
    return list({item["name"]: str(item["args"]["op_name"]) for item in events}.values())


def _node(name: str, op: str, part: str, facts: dict[str, Any]) -> Node:
    inputs, outputs = _tensors(facts.get("input_type_shape")), _tensors(facts.get("output_type_shape"))
    fp32 = int8 = 0.0
    shapes = [shape for _, shape in inputs]
    if op in PRODUCTS + INTEGER and outputs:
        # The inner dimension is the left side's last, since none of these graphs turns that side.
        count = 2.0 * math.prod(outputs[0][1]) * shapes[0][-1]
        fp32, int8 = (0.0, count) if op in INTEGER else (count, 0.0)
    elif op in ATTENTION:
        windows, tokens, hidden = shapes[0]
        width = shapes[1][-1]
        product = 2.0 * windows * tokens * hidden * width
        # Scores and context: each query with each key, over a third of the packed width.
        fp32 = 4.0 * windows * tokens * tokens * width / 3
        fp32, int8 = (fp32, product) if op == "QAttention" else (fp32 + product, 0.0)
    moved = float(sum(SIZES.get(kind, 4) * math.prod(shape) for kind, shape in [*inputs, *outputs]))
    if op in ("EmbedLayerNormalization", "Gather"):
        # Of its tables it reads the rows that it needs: as much as it writes, from each.
        moved = 4.0 * sum(SIZES.get(kind, 4) * math.prod(shape) for kind, shape in outputs)
    text = " ".join("×".join(map(str, shape)) or "1" for shape in shapes[:2])
    return Node(name, op, part, text, fp32, int8, moved)


def _tensors(listed: Sequence[dict[str, list[int]]] | None) -> list[tuple[str, list[int]]]:
    return [(kind, shape) for item in listed or () for kind, shape in item.items()]


def summary(nodes: Sequence[Node], roof: Roof, walls: Sequence[float]) -> dict[str, Any]:
    """Totals, operators and nodes with their shares.

    Args:
        walls: seconds of each timed call, profiler included.
    """
    total = sum(node.median for node in nodes)
    grouped: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        grouped[node.op].append(node)
    operators = [{"op": op, "nodes": len(group), **_figures(group, roof, total)} for op, group in grouped.items()]
    return {
        "call_ms": {
            "median": round(1000 * float(np.median(walls)), 4),
            "p99": round(1000 * float(np.percentile(walls, 99, method="inverted_cdf")), 4),
        },
        "nodes_ms": round(total / 1000, 4),
        "whole": _figures(nodes, roof, total),
        "operators": sorted(operators, key=lambda item: -float(str(item["ms"]))),
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "part": node.part,
                "shapes": node.shapes,
                **_figures([node], roof, total),
            }
            for node in nodes
        ],
    }


def _figures(nodes: Sequence[Node], roof: Roof, total: float) -> dict[str, Any]:
    """ms, share of the time of all nodes, 10⁹ operations and bytes a second, share of the roof."""
    spent = sum(node.median for node in nodes)
    work, moved = sum(node.fp32 + node.int8 for node in nodes), sum(node.moved for node in nodes)
    best = sum(roof.seconds(node.fp32, node.int8, node.moved) for node in nodes) * 1e6
    return {
        "ms": round(spent / 1000, 4),
        "share": round(spent / total, 4) if total else 0.0,
        "gflops": round(work / spent / 1000, 2) if spent else 0.0,
        "gbytes": round(moved / spent / 1000, 2) if spent else 0.0,
        "of_roof": round(best / spent, 4) if spent else 0.0,
    }


# --- what a person sees ----------------------------------------------------------------------------------------------


def operators_table(result: dict[str, Any]) -> Table:
    """The operators, the costliest first."""
    from rich.table import Table

    roof = result["roof"]
    table = Table(
        title=f"{result['artifact']} of {result['bundle']}, {result['batch']}×{result['tokens']}, median of "
        f"{result['calls']} calls, {result['threads']} threads",
        caption=f"peaks: fp32 {roof['fp32']:.0f} and int8 {roof['int8']:.0f} GFLOP/s, copies {roof['near']:.0f} GB/s "
        f"in the caches and {roof['far']:.0f} GB/s beyond",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("operator", no_wrap=True)
    for column in ("nodes", "ms", "share", "GFLOP/s", "GB/s", "of roof"):
        table.add_column(column, justify="right", no_wrap=True)
    everything = {"op": "all", "nodes": len(result["nodes"]), **result["whole"]}
    for item in (*result["operators"], everything):
        table.add_row(
            item["op"],
            str(item["nodes"]),
            f"{item['ms']:.3f}",
            f"{item['share']:.1%}",
            f"{item['gflops']:.1f}" if item["gflops"] else "-",
            f"{item['gbytes']:.1f}",
            f"{item['of_roof']:.0%}",
            end_section=item is result["operators"][-1],
        )
    return table


WIDTH, ROW, MARGIN = 1400, 46, 20
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#bab0ac")


def picture(result: dict[str, Any]) -> str:
    """An SVG: the call, its parts, its nodes in the order in which they run; widths are time.

    The dark foot of a node is the share of its time that the roof would need. Hovering tells its figures.
    """
    colours = {item["op"]: COLOURS[min(place, len(COLOURS) - 1)] for place, item in enumerate(result["operators"])}
    total = sum(node["ms"] for node in result["nodes"]) or 1.0
    scale = (WIDTH - 2 * MARGIN) / total
    shapes = [
        f'<rect width="{WIDTH}" height="{3 * ROW + 130}" fill="white"/>',
        _text(
            MARGIN,
            22,
            f"{result['artifact']} of {result['bundle']}, {result['batch']}×{result['tokens']}: "
            f"{result['nodes_ms']:.2f} ms, {result['whole']['of_roof']:.0%} of the roof "
            f"(median of {result['calls']} calls, {result['threads']} threads, {result['hardware']['cpu']})",
        ),
    ]
    parts: dict[str, float] = {}
    for node in result["nodes"]:
        parts[node["part"]] = parts.get(node["part"], 0.0) + node["ms"]
    left = float(MARGIN)
    for part, spent in parts.items():
        shapes.append(
            _box(left, 36, spent * scale, ROW, "#d9d9d9", part, f"{part}: {spent:.3f} ms, {spent / total:.1%}")
        )
        left += spent * scale
    left = float(MARGIN)
    # Parts lie side by side, so their nodes are put together even where the runtime mixes two parts.
    for part in parts:
        for node in [item for item in result["nodes"] if item["part"] == part]:
            width = node["ms"] * scale
            told = (
                f"{node['op']} {node['shapes']}: {node['ms']:.4f} ms, {node['share']:.1%}, "
                f"{node['gflops']:.0f} GFLOP/s, {node['of_roof']:.0%} of the roof ({node['name']})"
            )
            shapes.append(_box(left, 36 + ROW, width, 2 * ROW, colours[node["op"]], node["op"], told))
            foot = 2 * ROW * min(1.0, node["of_roof"])
            shapes.append(
                f'<rect x="{left:.2f}" y="{36 + 3 * ROW - foot:.2f}" width="{max(width, 0.1):.2f}" height="{foot:.2f}" '
                'fill="black" fill-opacity="0.28" pointer-events="none"/>'
            )
            left += width
    for number, (op, colour) in enumerate(colours.items()):
        row, column = divmod(number, 6)
        place = MARGIN + column * 225
        shapes.append(f'<rect x="{place}" y="{50 + 3 * ROW + 22 * row}" width="12" height="12" fill="{colour}"/>')
        shapes.append(_text(place + 18, 61 + 3 * ROW + 22 * row, op))
    height = 70 + 3 * ROW + 22 * (1 + (len(colours) - 1) // 6)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12">\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _box(left: float, top: float, width: float, height: float, colour: str, label: str, told: str) -> str:
    """A rectangle with a label where there is room, and words for whoever hovers over it."""
    from html import escape

    words = _text(left + 4, top + 16, label) if width > 7.5 * len(label) + 6 else ""
    return (
        f'<g><title>{escape(told)}</title><rect x="{left:.2f}" y="{top:.2f}" width="{max(width, 0.1):.2f}" '
        f'height="{height:.2f}" fill="{colour}" stroke="white" stroke-width="0.6"/>{words}</g>'
    )


def _text(left: float, top: float, words: str) -> str:
    from html import escape

    return f'<text x="{left:.1f}" y="{top:.1f}">{escape(words)}</text>'
