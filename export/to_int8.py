"""Fused float32 → INT8: integer matrix products with float32 around them.

What becomes integer: the packed QKV product of every Attention (three products where `export.passes` took one apart),
its output projection and both feed-forward products.
What stays float32: attention scores and Softmax, norms, Gelu, embeddings and the heads, which are cheap and sensitive.

Weights are signed, one scale per output column, and use 7 of their 8 bits: two products of an unsigned and a signed
8-bit number may overflow the 16-bit sum that plain AVX2 has for them, at 7 bits they cannot. So the same file gives
the same integers on every CPU, at the speed of the fastest kernels (unsigned weights do not saturate either, but
measured no faster than float32). What rounding shifts on average is computed on the calibration rows and added back.

Activations are where the error is: one scale per tensor, and a few channels of a norm's output are ten times as large
as the rest. Per tensor the calibration rows decide how far channels are evened out before quantization (the factors go
into the weights, as in SmoothQuant, Xiao et al. 2022) and which range is represented, by the error of the products
that read it.

Candidates are tried in this order:

    static    scales fixed by the calibration rows; a window's logits do not depend on what it is batched with.
    partial   static with its most sensitive products left in float32: 1, 2, 4 … up to half of them.
    dynamic   scales per call, from what the call holds; ``batch_invariant`` is false, and it is measured one window
              per call, as it must be served. Tried once a quarter of the products would have to stay float32, and
              first of all where it is clearly faster.

Of other schemes, which are tried only where they are asked for, `export.weight_only` makes weights of 8 or 4 bits. How
the range of an activation is chosen, and whether a weight has one scale per column or one in all, can be asked for too.

The first that passes the gate's tolerances becomes ``onnx_int8``. If none passes, the best is recorded and the gate
refuses to publish it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from bundle.decode import FloatArray
from bundle.encode import Encoded, WindowRow, pad
from bundle.errors import ConversionFailed
from bundle.folder import Bundle
from bundle.machine import has_vnni
from bundle.manifest import Calibration, Embeddings, Signature, Task, WeightScales
from bundle.manifest import Scheme as AnyScheme
from bundle.predict import Predicted, Progress, agreement, answers_of, batches, encode_rows, predict
from bundle.rows import Row, read_rows
from export.artifact import adopt, is_current, source_of, workplace
from export.embeddings import shrink
from export.fuse import architecture_of
from export.gate import DevSplit, Measured, Tolerance, headlines
from export.graph import CONTRIB, Array, Graph, attribute
from export.journal import Journal
from export.parity import GoldenRows, check_session
from export.passes import KEY, QUERY, VALUE
from export.products import product_errors, product_names, wrong_products
from export.ranges import grid, ranges
from export.session import open_session, run_of, run_outputs
from export.spread import spread
from export.weight_only import BLOCK, count_small, weight_only

if TYPE_CHECKING:
    import onnx
    import onnxruntime

NAME, SOURCE = "onnx_int8", "onnx_fused"
FILE = "onnx/model_int8.onnx"
# Windows of the calibration rows that are run; more change the scales little.
CALIBRATION_WINDOWS = 256
# Windows on which the sensitivity of single products is compared.
SENSITIVITY_WINDOWS = 64
# Tokens of one tensor on which the ways to quantize it are compared. With 768 the error depended on which were drawn:
# 0.030 to 0.039 a logit on one classifier, 0.031 with all of these.
SEARCH_TOKENS = 3072
# Values of them that the search for the range looks at.
RANGE_VALUES = 60_000
# How far channels are evened out: 0 not at all, 1 completely. Trials on m3e-small found 0.7 to 0.85 best for norms.
SMOOTHING = (0.0, 0.5, 0.7, 0.85, 1.0)
# Evening out costs a multiplication per value, so it must take away at least this share of the error.
WORTH_SMOOTHING = 0.15
# Largest weight: 255 * 64 * 2 fits into 16 bits, 255 * 127 * 2 does not.
WEIGHT_LIMIT = 64
# A dynamic graph must be this much faster than a passing static one to be preferred over a batch-invariant answer.
CLEARLY_FASTER = 0.8
PER_LAYER = 4
BITS: Mapping[str, Literal[4, 8]] = {"weights-8": 8, "weights-4": 4}


@dataclass(frozen=True)
class How:
    """What a recipe or a person asks for.

    Attributes:
        scheme: ``auto`` tries the candidates in their order; any other is made alone.
        calibration: how the range of an activation is chosen; see `export.ranges`.
        weight_scales: ``column``: one scale per output column of a weight; ``tensor``: one for all of it.
        embeddings: how the word table is kept; see `export.embeddings`.
    """

    scheme: AnyScheme = "auto"
    calibration: Calibration = "error"
    weight_scales: WeightScales = "column"
    embeddings: Embeddings = "fp32"


@dataclass(frozen=True)
class Scheme:
    """One way to quantize.

    Attributes:
        kind: ``static`` or ``dynamic``, ``weights-8`` or ``weights-4``.
        keep: outputs of products that stay float32.
    """

    kind: str
    keep: tuple[str, ...] = ()

    def weights(self, how: How) -> str:
        """What the weights are, in words."""
        if bits := BITS.get(self.kind):
            return f"{bits} bits, one scale per {BLOCK} values"
        return f"int8 of 7 bits, one scale per {'output column' if how.weight_scales == 'column' else 'weight'}"

    @property
    def name(self) -> str:
        return self.kind + (f", {len(self.keep)} products kept" if self.keep else "")


@dataclass(frozen=True)
class Site:
    """A product that can become integer: its node's output, what it multiplies, by which constant."""

    output: str
    op: str
    source: str
    weight: str

    @property
    def apart(self) -> bool:
        """Whether it belongs to the attention of the first token alone (`export.passes`)."""
        return self.weight.startswith((QUERY, KEY, VALUE))


@dataclass(frozen=True)
class Activation:
    """How one activation tensor is quantized.

    Attributes:
        low, high: the range that is represented, after evening out.
        factors: float32 (channels,); each channel is divided by its factor. None where nothing is evened out.
        mean: float32 (channels,); the mean over real tokens, before evening out.
    """

    low: float
    high: float
    factors: FloatArray | None
    mean: FloatArray


Plan = Mapping[str, Activation]


@dataclass
class Candidate:
    """A quantized graph and what was measured with it."""

    scheme: Scheme
    model: onnx.ModelProto
    products: int
    error: float = 0.0
    agreement: dict[str, float] = field(default_factory=dict)
    milliseconds: float = 0.0
    measured: Measured | None = None
    reasons: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """What was measured on the calibration rows, in a line."""
        return (
            f"{self.scheme.name}: {self.products} integer products, calibration rows answered as fp32 "
            f"{_shares(self.agreement)}, mean difference of a logit {self.error:.4f}, "
            f"{self.milliseconds:.2f} ms a window"
        )

    def facts(self) -> dict[str, JsonValue]:
        """What the manifest tells about it."""
        facts: dict[str, JsonValue] = {
            "scheme": self.scheme.name,
            "integer_products": self.products,
            "calibration_mean_abs": self.error,
            "calibration_agreement": dict(self.agreement),
            "ms_per_window": self.milliseconds,
        }
        if self.measured:
            quality = self.measured.quality
            facts["dev"] = {**quality.metrics, "agreement": quality.agreement}
            facts["refused"] = list(self.reasons)
        return facts


def to_int8(
    bundle: Bundle,
    journal: Journal,
    dev: DevSplit,
    tolerance: Tolerance | None = None,
    how: How | None = None,
    *,
    force: bool = False,
) -> Bundle:
    """Adds the artifact ``onnx_int8``: the first candidate that passes the gate, or the best of those that do not.

    Args:
        how: by default as `How` says.

    Raises:
        ConversionFailed: the number of integer products is not what the architecture demands.
        ParityFailed: the graph has other tensors, shapes or non-finite values.
    """
    import onnx

    tolerance, how = tolerance or Tolerance(), how or How()
    source = source_of(bundle, SOURCE)
    calibration = bundle.manifest.splits.get("calibration") or bundle.manifest.splits.get("dev")
    settings: dict[str, JsonValue] = {
        "pass": 3,
        "calibration_sha256": calibration.sha256 if calibration else "",
        **asdict(tolerance),
        **asdict(how),
        **dev.fingerprint,
    }
    if not force and is_current(bundle, NAME, SOURCE, settings):
        journal.say("  up to date")
        return bundle
    golden = GoldenRows(bundle)
    fused = onnx.load(str(bundle.path(source.file)))
    bench = Bench(bundle, fused, golden, journal, how)
    chosen, tried = _choose(bench, dev, tolerance, journal)
    with workplace(bundle, "onnx") as folder:
        path = folder / "model_int8.onnx"
        path.write_bytes(serialized(chosen.model))
        session = open_session(path)
        check_session(NAME, session, bundle.manifest.signature)
        invariant = chosen.scheme.kind != "dynamic"
        found = golden.predict(run_of(session, bundle.manifest.signature), 4096 if invariant else 1)
        parity = golden.measure(NAME, found, tolerance=None)
        return adopt(
            bundle,
            NAME,
            {path: FILE},
            source=SOURCE,
            settings=settings,
            artifact_format="onnx",
            precision="int4" if chosen.scheme.kind == "weights-4" else "int8",
            batch_invariant=invariant,
            parity=parity,
            quality=chosen.measured.quality if chosen.measured else None,
            details={
                "scheme": chosen.scheme.name,
                "integer_products": chosen.products,
                "kept_float32": list(chosen.scheme.keep),
                "weights": chosen.scheme.weights(how),
                "calibration": how.calibration,
                "embeddings": how.embeddings,
                "evened_out": sum(item.factors is not None for item in bench.plan.values()),
                "calibration_windows": len(bench.windows),
                "ms_per_window": {SOURCE: bench.fp32_milliseconds, NAME: chosen.milliseconds},
                "cpu_has_vnni": has_vnni(),
                "candidates": [item.facts() for item in tried],
                "sensitivity": list(bench.sensitivity),
            },
        )


def _choose(bench: Bench, dev: DevSplit, tolerance: Tolerance, journal: Journal) -> tuple[Candidate, list[Candidate]]:
    """Tries the candidates; see the module's docstring for the order."""
    if bench.how.scheme != "auto":
        only = bench.candidate(Scheme(bench.how.scheme))
        bench.time([only])
        journal.say(f"    {only.told}")
        journal.say(f"    fp32: {bench.fp32_milliseconds:.2f} ms a window")
        if dev.rows:
            bench.judge(only, dev, dev.measure_artifact(SOURCE, journal, bench.bundle), tolerance)
        return only, [only]
    static, dynamic = bench.candidate(Scheme("static")), bench.candidate(Scheme("dynamic"))
    tried = [static, dynamic]
    bench.time(tried)
    for item in tried:
        journal.say(f"    {item.told}")
    journal.say(f"    fp32: {bench.fp32_milliseconds:.2f} ms a window")
    if not dev.rows:
        return static, tried
    reference = dev.measure_artifact(SOURCE, journal, bench.bundle)

    def passes(item: Candidate) -> bool:
        bench.judge(item, dev, reference, tolerance)
        return not item.reasons

    hurry = dynamic.milliseconds < CLEARLY_FASTER * static.milliseconds
    if hurry and passes(dynamic):
        return dynamic, tried
    if passes(static):
        return static, tried
    few = max(1, len(bench.sites) // 4)
    sets = bench.sensitive(static)
    for keep in sets:
        if len(keep) > few and not dynamic.measured and passes(dynamic):
            return dynamic, tried
        partial = bench.candidate(replace(static.scheme, keep=keep))
        tried.append(partial)
        bench.time([partial])
        journal.say(f"    {partial.scheme.name} in float32: {partial.milliseconds:.2f} ms a window")
        if passes(partial):
            return partial, tried
    if not dynamic.measured and passes(dynamic):
        return dynamic, tried
    figures = headlines(reference.quality.metrics)

    def rank(item: Candidate) -> tuple[float, float]:
        quality = item.measured.quality if item.measured else None
        return (quality.agreement or 0.0, sum(quality.metrics[name] for name in figures)) if quality else (-1.0, 0.0)

    return max(tried, key=rank), tried


class Bench:
    """The calibration windows of a bundle, and what candidates do with them."""

    def __init__(
        self, bundle: Bundle, fused: onnx.ModelProto, golden: GoldenRows, journal: Journal, how: How | None = None
    ) -> None:
        self.bundle, self.fused, self.journal, self.how = bundle, fused, journal, how or How()
        # What each product costs; filled by `sensitive`.
        self.sensitivity: list[dict[str, JsonValue]] = []
        self.encoder = golden.encoder
        self.signature = bundle.manifest.signature
        self.sites = sites_of(fused)
        # An attention that was taken apart has three products in the place of a packed one.
        apart = sum(site.apart for site in self.sites) // 3
        wanted = PER_LAYER * int(str(architecture_of(bundle)["layers"])) + 2 * apart
        if len(self.sites) != wanted:
            raise ConversionFailed("to_int8", f"{len(self.sites)} products can become integer, {wanted} were expected")
        self.rows, self.encoded = self._calibration_rows(golden)
        # A text's windows differ little from each other; all of them are kept together, so that rows can be compared.
        self.windows = [self.encoder.row(item, index) for item in self.encoded for index in range(len(item.windows))]
        self._fp32_session = open_session(fused.SerializeToString())
        self.reference = self._predict(self._fp32_session, alone=False)
        self.fp32_milliseconds = 0.0
        with journal.progress("calibration") as progress:
            self.plan = calibrate(
                fused,
                self.sites,
                self.windows,
                self.signature,
                bundle.manifest.text.pad_id,
                progress,
                self.how,
            )

    def _calibration_rows(self, golden: GoldenRows) -> tuple[list[Row], list[Encoded]]:
        splits = self.bundle.manifest.splits
        ref = splits.get("calibration") or splits.get("dev")
        if ref is None:
            return [Row(row.text, pair=row.pair) for row in golden.rows], golden.encoded
        rows: list[Row] = []
        encoded: list[Encoded] = []
        windows = 0
        for row in read_rows(self.bundle.path(ref.file)):
            if windows >= CALIBRATION_WINDOWS:
                break
            rows.append(row)
            encoded += encode_rows([row], self.encoder)
            windows += len(encoded[-1].windows)
        return rows, encoded

    def _predict(
        self, session: onnxruntime.InferenceSession, *, alone: bool, rows: int | None = None
    ) -> list[Predicted]:
        run = run_of(session, self.signature)
        return predict(self.encoded[:rows], self.encoder, run, batch_tokens=1 if alone else 2048)

    def _first_rows(self, windows: int) -> int:
        """How many rows have about so many windows."""
        total = np.cumsum([len(item.windows) for item in self.encoded])
        return max(1, int(np.searchsorted(total, windows, side="right")))

    def candidate(self, scheme: Scheme, windows: int | None = None) -> Candidate:
        """Quantizes, and compares with fp32 on the calibration rows, or on about so many windows of them."""
        sites = [site for site in self.sites if site.output not in scheme.keep]
        if bits := BITS.get(scheme.kind):
            model = weight_only(self.fused, [site.output for site in sites], bits, self.journal)
            products = count_small(model)
        else:
            dynamic, by_column = scheme.kind == "dynamic", self.how.weight_scales == "column"
            model = quantize(self.fused, sites, self.plan, dynamic=dynamic, by_column=by_column)
            products = count_products(model)
        if products != len(sites):
            raise ConversionFailed("to_int8", f"{products} integer products in the graph, {len(sites)} were asked for")
        model = shrink(model, self.how.embeddings)
        candidate = Candidate(scheme, model, products)
        rows = None if windows is None else self._first_rows(windows)
        session = open_session(model.SerializeToString())
        found = self._predict(session, alone=scheme.kind == "dynamic", rows=rows)
        task, joining = self.bundle.manifest.task, self.bundle.manifest.text.joining
        reference = self.reference[:rows]
        before, after = (answers_of(some, task, joining) for some in (reference, found))
        candidate.agreement = head_agreement(self.rows[:rows], before, after, task)
        candidate.error = difference(reference, found)
        return candidate

    def judge(self, item: Candidate, dev: DevSplit, reference: Measured, tolerance: Tolerance) -> None:
        """Measures a candidate on the dev split."""
        content = serialized(item.model)
        found = dev.predictions(
            hashlib.sha256(content).hexdigest(),
            f"{item.scheme.name} on {len(dev.rows)} dev rows",
            run_of(open_session(content), self.signature),
            self.journal,
            alone=item.scheme.kind == "dynamic",
        )
        item.measured = dev.measure(found, self.bundle.manifest, reference.answers)
        errors = product_errors(self.fused, item.model, self.windows, self.signature, self.bundle.manifest.text.pad_id)
        comparison = dev.compare(reference, item.measured, tolerance, self.bundle.manifest)
        item.reasons = (*comparison.reasons, *wrong_products(errors))
        for reason in item.reasons:
            self.journal.say(f"    {item.scheme.name} does not pass: {reason}")

    def time(self, candidates: Sequence[Candidate], rounds: int = 5, count: int = 16) -> None:
        """Median milliseconds of a window, one window per call, in turns with fp32 so that noise hits all alike."""
        picked = spread(range(len(self.windows)), count)
        batches = [pad([self.windows[index]], self.bundle.manifest.text.pad_id) for index in picked]
        sessions = [self._fp32_session, *(open_session(item.model.SerializeToString()) for item in candidates)]
        runs = [run_of(session, self.signature) for session in sessions]
        clocks: list[list[float]] = [[] for _ in runs]
        for turn in range(rounds + 1):
            for run, clock in zip(runs, clocks, strict=True):
                start = time.perf_counter()
                for ids, types in batches:
                    run(ids, types)
                if turn:  # the first round warms up
                    clock.append(1000 * (time.perf_counter() - start) / len(batches))
        medians = [round(float(np.median(clock)), 3) for clock in clocks]
        self.fp32_milliseconds = medians[0]
        for item, value in zip(candidates, medians[1:], strict=True):
            item.milliseconds = value

    def sensitive(self, static: Candidate) -> list[tuple[str, ...]]:
        """Sets of products to leave in float32, each twice as large as the last, the most sensitive first.

        What each product costs is kept in `sensitivity` and printed: how far the mean difference of a logit falls
        where this one product stays float32.
        """
        whole = self.candidate(static.scheme, SENSITIVITY_WINDOWS).error
        gains: list[tuple[float, str]] = []
        for number, site in enumerate(self.sites):
            trial = self.candidate(replace(static.scheme, keep=(site.output,)), SENSITIVITY_WINDOWS)
            gains.append((trial.error, site.output))
            self.journal.write(f"without {site.output} ({number + 1} of {len(self.sites)}): {trial.error:.6f}")
        gains.sort()
        names = product_names(self.fused)
        self.sensitivity = [
            {"product": names.get(output, output), "tensor": output, "error_without": error, "gain": whole - error}
            for error, output in gains
        ]
        self._show_sensitivity(whole)
        ranked = [output for _, output in gains]
        sizes = [1]
        while sizes[-1] * 2 <= len(ranked) // 2:
            sizes.append(sizes[-1] * 2)
        return [tuple(ranked[:size]) for size in sizes]

    def _show_sensitivity(self, whole: float, count: int = 8) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=f"a logit differs by {whole:.4f} in the mean", title_justify="left")
        for column in ("product left in float32", "difference then", "gain"):
            table.add_column(column, justify="left" if column.startswith("product") else "right")
        for item in self.sensitivity[:count]:
            error, gain = float(str(item["error_without"])), float(str(item["gain"]))
            table.add_row(str(item["product"]), f"{error:.4f}", f"{gain / max(whole, 1e-12):.1%}")
        self.journal.console.print(table)


def serialized(model: onnx.ModelProto) -> bytes:
    """The model as the bytes of its file; always the same for the same model."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def head_agreement(rows: Sequence[Row], left: Sequence[Any], right: Sequence[Any], task: Task) -> dict[str, float]:
    """Share of rows with the same answer, 0 to 1, by head: ``rows``, or ``labels`` and ``entities`` of two heads.

    Args:
        left, right: in the form of `bundle.predict.answers_of`. A row counts for the head that it tells about, and
            where no row tells anything, for both.
    """
    if task.kind != "multi-task":
        return {"rows": agreement(left, right)}
    shares = {}
    for head, name in enumerate(("labels", "entities")):
        places = [n for n, row in enumerate(rows) if (row.entities if head else row.label) is not None]
        places = places or list(range(len(rows)))
        shares[name] = agreement([left[n][head] for n in places], [right[n][head] for n in places])
    return shares


def _shares(agreements: Mapping[str, float]) -> str:
    return ", ".join(f"{share:.2%}" + (f" of {name}" if name != "rows" else "") for name, share in agreements.items())


def difference(left: Sequence[Predicted], right: Sequence[Predicted]) -> float:
    """Mean absolute difference of the logits over windows; every output counts alike."""
    return float(
        np.mean(
            [
                np.abs(one - other).mean()
                for a, b in zip(left, right, strict=True)
                for mine, yours in zip(a.outputs, b.outputs, strict=True)
                for one, other in zip(mine, yours, strict=True)
            ]
        )
    )


def sites_of(model: onnx.ModelProto) -> list[Site]:
    """The products of the encoder's layers, in the order of the graph; head and embedding projection are not."""
    graph = Graph(model)
    found: list[Site] = []
    for node in graph.nodes:
        if node.op_type == "Attention":
            found.append(Site(node.output[0], "Attention", node.input[0], node.input[1]))
        elif node.op_type == "MatMul" and node.input[1] in graph.constants and _is_encoder_product(graph, node):
            found.append(Site(node.output[0], "MatMul", node.input[0], node.input[1]))
    return found


def _is_encoder_product(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.input[1].startswith((QUERY, KEY, VALUE)):
        return True
    readers = graph.readers.get(node.output[0], [])
    if len(readers) != 1:
        return False
    if readers[0].op_type == "Add":
        readers = [item for item in graph.readers.get(readers[0].output[0], []) if item.op_type == "Relu"]
    if not readers or readers[0].op_type not in ("Sum", "BiasGelu", "Relu"):
        return False
    # A head works on (windows, hidden), after a Squeeze; the encoder on (windows, tokens, hidden).
    source = graph.producer.get(node.input[0])
    return source is not None and source.op_type != "Squeeze"


def calibrate(
    model: onnx.ModelProto,
    sites: Sequence[Site],
    windows: Sequence[WindowRow],
    signature: Signature,
    pad_id: int,
    progress: Progress | None = None,
    how: How | None = None,
) -> dict[str, Activation]:
    """Decides how each activation tensor is quantized, from the real tokens of real windows."""
    names = sorted({site.source for site in sites})
    graph = Graph(model)
    weights = {name: [graph.constants[site.weight] for site in sites if site.source == name] for name in names}
    session = open_session(graph.finish(names).SerializeToString())
    seen = {name: Seen() for name in names}
    few = _first_token_alone(graph, names)
    rng = np.random.default_rng(0)
    inputs = [tensor.name for tensor in signature.inputs]
    done = 0
    for batch in batches([len(window.ids) for window in windows], 1024):
        ids, types = pad([windows[index] for index in batch], pad_id)
        real = ids != pad_id  # bool (windows, tokens)
        feeds = dict(zip(inputs, (ids, types), strict=True))
        share = -(-SEARCH_TOKENS * len(batch) // len(windows))
        # The same tokens of every tensor, so that what one layer looks like does not change another's plan.
        picked = rng.choice(int(real.sum()), min(int(real.sum()), share), replace=False)
        for name, value in zip(names, run_outputs(session, names, feeds), strict=True):
            # (windows, tokens, channels), or where only the first token goes on (windows, 1 or heads, channels).
            tokens = value.reshape(-1, value.shape[-1]) if name in few else value[real]
            seen[name].add(tokens, np.array(spread(range(len(tokens)), share)) if name in few else picked)
        done += len(batch)
        if progress:
            progress(done, len(windows))
    return {name: plan_activation(seen[name], weights[name], how or How()) for name in names}


def _first_token_alone(graph: Graph, names: Sequence[str]) -> set[str]:
    """The tensors that hold the first token alone: what a Slice of tokens, or such a tensor, is computed into."""
    alone: set[str] = set()
    for node in graph.nodes:  # in execution order
        if node.op_type == "Slice" or any(name in alone for name in node.input):
            alone.update(node.output)
    return alone.intersection(names)


class Seen:
    """What calibration saw of one tensor, channel by channel."""

    def __init__(self) -> None:
        self.low: FloatArray = np.zeros(1, np.float32)
        self.high: FloatArray = np.zeros(1, np.float32)
        self._sum: npt.NDArray[np.float64] = np.zeros(1)
        self._count = 0
        self._sample: list[FloatArray] = []

    def add(self, tokens: FloatArray, picked: npt.NDArray[np.int64]) -> None:
        """Takes in some tokens, float32 (tokens, channels), and keeps the picked ones."""
        self.low, self.high = np.minimum(self.low, tokens.min(axis=0)), np.maximum(self.high, tokens.max(axis=0))
        self._sum = self._sum + tokens.sum(axis=0, dtype=np.float64)
        self._count += len(tokens)
        self._sample.append(tokens[picked])

    @property
    def mean(self) -> FloatArray:
        return (self._sum / max(1, self._count)).astype(np.float32)

    @property
    def sample(self) -> FloatArray:
        """float32 (tokens, channels)."""
        return np.concatenate(self._sample)


def plan_activation(seen: Seen, weights: Sequence[Array], how: How | None = None) -> Activation:
    """The way to quantize a tensor that changes the products with ``weights`` least, on the tokens that were seen."""
    how = how or How()
    by_column = how.weight_scales == "column"
    sample = seen.sample
    exact = [sample @ weight for weight in weights]
    best: tuple[float, Activation] | None = None
    for strength in SMOOTHING:
        factors = smoothing_factors(seen, weights, strength) if strength else None
        scaled = sample if factors is None else sample / factors
        low = float((seen.low if factors is None else seen.low / factors).min())
        high = float((seen.high if factors is None else seen.high / factors).max())
        ready = [
            quantize_weight(weight if factors is None else weight * factors[:, None], by_column) for weight in weights
        ]
        few = scaled.reshape(-1)[:: 1 + scaled.size // RANGE_VALUES]
        for bottom, top in ranges(few, low, high, how.calibration):
            scale, zero = grid(bottom, top)
            back = ((np.clip(np.rint(scaled / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)
            error = 0.0
            for product, (weight, weight_scale) in zip(exact, ready, strict=True):
                lost = product - back @ (weight * weight_scale)
                # The mean is added back to the bias, so only what varies counts.
                error += float(np.square(lost - lost.mean(axis=0)).mean())
            if best is None or error < best[0] * (1 - WORTH_SMOOTHING if factors is not None else 1):
                best = (error, Activation(bottom, top, factors, seen.mean))
    assert best is not None
    return best[1]


def smoothing_factors(seen: Seen, weights: Sequence[Array], strength: float) -> FloatArray:
    """Per channel, what its values are divided by and its weights multiplied with: float32 (channels,)."""
    largest = np.maximum(np.maximum(-seen.low, seen.high), 1e-4)
    weight = np.maximum(np.max([np.abs(item).max(axis=1) for item in weights], axis=0), 1e-4)
    factors = largest**strength / weight ** (1 - strength)
    scaled: FloatArray = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return scaled


def quantize_weight(weight: Array, by_column: bool = True) -> tuple[Array, Array]:
    """Signed weights of 7 bits.

    Args:
        weight: float32 (in, out).
        by_column: one scale for each column, or one for all of them.

    Returns:
        int8 (in, out), and the scales: float32 (out,), or of no axis.
    """
    scale = np.abs(weight).max(axis=0 if by_column else None) / WEIGHT_LIMIT
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.clip(np.rint(weight / scale), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), scale


def quantize(
    model: onnx.ModelProto, sites: Sequence[Site], plan: Plan, *, dynamic: bool = False, by_column: bool = True
) -> onnx.ModelProto:
    """Makes the given products integer.

    Args:
        plan: how each activation tensor is quantized.
        dynamic: let each call find the scales for itself; the plan's ranges are then not used.
        by_column: one scale for each output column of a weight, or one for all of it.
    """
    graph = Graph(model)
    by_output = {node.output[0]: node for node in graph.nodes}
    sources: dict[str, tuple[str, str, str]] = {}
    for site in sites:
        activation = plan[site.source]
        if site.source not in sources:
            sources[site.source] = _quantized_source(graph, site.source, activation, dynamic)
        value, scale, point = sources[site.source]
        node = by_output[site.output]
        exact, mean = graph.constants[site.weight], activation.mean
        if activation.factors is not None:
            exact, mean = exact * activation.factors[:, None], mean / activation.factors
        weight, weight_scale = quantize_weight(exact, by_column)
        # What rounding the weights shifts for the mean token.
        shift = (mean @ (exact - weight * weight_scale)).astype(np.float32)
        w, ws = graph.add_constant("weight", weight), graph.add_constant("weight_scale", weight_scale)
        if site.op == "Attention":
            bias = graph.add_constant("qkv_bias", graph.constants[node.input[2]] + shift)
            graph.replace(
                node,
                "QAttention",
                [value, w, bias, scale, ws, node.input[3], point],
                num_heads=attribute(node, "num_heads"),
                mask_filter_value=attribute(node, "mask_filter_value"),
            )
        else:
            bias = graph.add_constant("shift", shift)
            graph.replace(node, "MatMulIntegerToFloat", [value, w, scale, ws, point, "", bias])
    return graph.finish()


def _quantized_source(graph: Graph, name: str, activation: Activation, dynamic: bool) -> tuple[str, str, str]:
    """The tensor as uint8, its scale and its zero point."""
    if activation.factors is not None:
        name = graph.add("Mul", [name, graph.add_constant("even", (1 / activation.factors).astype(np.float32))])
    if dynamic:
        made = [graph.fresh(stem) for stem in ("dynamic", "dynamic_scale", "dynamic_zero")]
        graph.add("DynamicQuantizeLinear", [name], made)
        return made[0], made[1], made[2]
    scale, zero = grid(activation.low, activation.high)
    constants = (
        graph.add_constant("scale", np.array(scale, dtype=np.float32)),
        graph.add_constant("zero", np.array(zero, dtype=np.uint8)),
    )
    return graph.add("QuantizeLinear", [name, *constants]), *constants


def count_products(model: onnx.ModelProto) -> int:
    """Integer matrix products in a graph."""
    return sum(
        node.op_type in ("QAttention", "MatMulIntegerToFloat") and node.domain == CONTRIB for node in model.graph.node
    )
