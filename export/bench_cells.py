"""What the bench asks of every candidate, and how its rounds are timed.

A cell is one column of the results: a fixed shape (windows × tokens), or the dev split's texts as they are, one text
per call and many texts in length-sorted batches. Rounds are interleaved: each runs every candidate once, in a seeded
random order, so that a slow minute of the machine hits all of them alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.encode import pad
from bundle.errors import ExportError, ParityFailed
from bundle.predict import batches as by_length
from bundle.predict import encode_rows
from bundle.rows import Row, read_rows

if TYPE_CHECKING:
    from bundle.decode import FloatArray
    from bundle.encode import Encoded, IntArray
    from export.forms import Candidate
    from export.parity import GoldenRows
    from export.peak import Shape

# Between two candidates, so that the threads of the one before have stopped spinning.
PAUSE_SECONDS = 0.005
# Padded tokens in one batch of real texts: 32 windows of 128.
BATCH_TOKENS = 4096
# A call costs something whatever it holds, so a small shape's share of the time is not as small as its tokens.
LEAST_WEIGHT = 512
# A guess from another shape may be wrong by so much; beyond it a candidate is left out without being tried.
DOUBT = 4
# What the two cells of real texts may take, together, of the time that the shapes take.
TEXTS_WEIGHT = 0.8
ONE_TEXT, MANY_TEXTS = "one text", "many texts"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a bench may take.

    Attributes:
        rounds: most timed runs of each candidate per shape.
        least_rounds: a cell that cannot have so many within its share of the budget is left out.
        warmups: runs before, not counted; at least 2, since runtimes plan their memory at the first of a shape. Real
            texts run once before they count.
        budget: seconds for all cells together; loading comes on top.
        slowest_call: a candidate that needs more seconds for one call is left out of that cell.
        texts: most texts of the dev split that are timed.
        passes: how often each of them is timed.
        quality_rows: rows of the dev split that are answered for accuracy; None for all.
        peak_seconds: for each of the nine products by which the machine's peak is measured, twice.
    """

    rounds: int
    least_rounds: int
    warmups: int
    budget: float
    slowest_call: float
    texts: int = 40
    passes: int = 3
    quality_rows: int | None = 100
    peak_seconds: float = 0.2


QUICK = Effort(rounds=30, least_rounds=5, warmups=2, budget=150.0, slowest_call=2.0)
FULL = Effort(
    rounds=200, least_rounds=20, warmups=3, budget=1800.0, slowest_call=30.0, texts=300, passes=5, quality_rows=None
)


@dataclass(frozen=True, slots=True)
class Call:
    """What a candidate is asked to do in one go.

    Attributes:
        batches: (ids, types), int64 (windows, tokens) each, one after the other.
        texts: how many texts that answers; of a batch that holds part of a text's windows, that part.
        tokens: without padding.
        flops: of the model as trained, without padding; 0 where its shape is not known.
    """

    batches: tuple[tuple[IntArray, IntArray], ...]
    texts: float
    tokens: int
    flops: float

    @property
    def size(self) -> int:
        """Tokens with padding."""
        return sum(ids.size for ids, _ in self.batches)


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of the results.

    Attributes:
        batch, tokens: of a fixed shape; 0 of real texts, whose calls differ.
        calls: used in turn.
        weight: its share of the time, relative to the other cells.
    """

    label: str
    batch: int
    tokens: int
    calls: tuple[Call, ...]
    weight: float

    @property
    def fixed(self) -> bool:
        """Whether every call has the same shape."""
        return self.batch > 0

    @property
    def size(self) -> float:
        """Padded tokens of a call on average."""
        return sum(call.size for call in self.calls) / len(self.calls)


def cells_of(
    golden: GoldenRows,
    batches: Sequence[int],
    tokens: Sequence[int],
    seed: int,
    *,
    texts: int = 40,
    shape: Shape | None = None,
) -> list[Cell]:
    """Batches of real tokens in every wanted shape, smallest first, then the dev split's texts as they are.

    Args:
        tokens: window lengths, special tokens included; longer ones become the bundle's ``max_tokens``.
        texts: how many texts, drawn with the seed; a bundle without a dev split gives its golden rows.
        shape: of the model, from which the operations of a call are counted.
    """
    spec = golden.bundle.manifest.text
    windows = [row for encoded in golden.encoded for row in golden.encoder.rows(encoded)]
    # One long stream of the tokens that the golden rows have; quantized kernels may be faster on repeated padding.
    stream = np.concatenate([row.ids[row.content] for row in windows])
    dice = np.random.default_rng(seed)
    cells: list[Cell] = []
    for batch in sorted(set(batches)):
        for length in sorted({min(count, spec.max_tokens) for count in tokens}):
            starts = dice.integers(0, len(stream), batch)
            places = (starts[:, None] + np.arange(length - 2)[None]) % len(stream)
            ids = np.empty((batch, length), dtype=np.int64)
            ids[:, 0], ids[:, -1], ids[:, 1:-1] = spec.cls_id, spec.sep_id, stream[places]
            flops = batch * shape.flops(length) if shape else 0.0
            call = Call(((ids, np.zeros_like(ids)),), batch, batch * length, flops)
            cells.append(Cell(f"{batch}×{length}", batch, length, (call,), call.size + LEAST_WEIGHT))
    cells.sort(key=lambda cell: (cell.size, cell.batch))
    return cells + text_cells(golden, texts, seed, shape, TEXTS_WEIGHT * sum(cell.weight for cell in cells))


def text_cells(golden: GoldenRows, texts: int, seed: int, shape: Shape | None, weight: float) -> list[Cell]:
    """The two cells of real texts: one text per call, and windows of many texts in length-sorted batches."""
    encoder = golden.encoder
    encoded = encode_rows(dev_rows(golden, texts, seed), encoder)
    alone = [list(_calls([item], golden, shape)) for item in encoded]
    one = tuple(
        Call(
            tuple(batch for call in calls for batch in call.batches),
            1,
            sum(call.tokens for call in calls),
            sum(call.flops for call in calls),
        )
        for calls in alone
    )
    many = list(_calls(encoded, golden, shape))
    # Shuffled, so that the part that there is time for is a sample of short and long batches.
    random.Random(seed).shuffle(many)
    return [
        Cell(ONE_TEXT, 0, 0, one, weight / 2),
        Cell(MANY_TEXTS, 0, 0, tuple(many), weight / 2),
    ]


def dev_rows(golden: GoldenRows, count: int | None, seed: int) -> list[Row]:
    """So many rows of the dev split, drawn with the seed; the golden rows where there is no dev split."""
    split = golden.bundle.manifest.splits.get("dev")
    if split is None:
        rows = [Row(row.text, pair=row.pair) for row in golden.rows]
    else:
        rows = list(read_rows(golden.bundle.path(split.file)))
    random.Random(seed).shuffle(rows)
    return rows[:count]


def _calls(encoded: Sequence[Encoded], golden: GoldenRows, shape: Shape | None) -> Iterator[Call]:
    """The windows of texts, like lengths together, each batch a call."""
    rows = [(row, 1 / len(item.windows)) for item in encoded for row in golden.encoder.rows(item)]
    lengths = [len(row.ids) for row, _ in rows]
    for batch in by_length(lengths, BATCH_TOKENS):
        yield Call(
            (pad([rows[number][0] for number in batch], golden.bundle.manifest.text.pad_id),),
            sum(rows[number][1] for number in batch),
            sum(lengths[number] for number in batch),
            sum(shape.flops(lengths[number]) for number in batch) if shape else 0.0,
        )


# --- timing ----------------------------------------------------------------------------------------------------------


@dataclass
class Timed:
    """A cell with its timings.

    Attributes:
        calls: the call of each round.
        seconds: candidate → seconds of each round.
        dropped: candidates that were left out, with the reason.
        void: outside references that fail, or do not compute what the others do, with the reason.
    """

    cell: Cell
    calls: list[Call] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    void: dict[str, str] = field(default_factory=dict)

    @property
    def distinct(self) -> list[Call]:
        """The calls without repetitions."""
        return list({id(call): call for call in self.calls}.values())


def time_cell(
    cell: Cell, candidates: Sequence[Candidate], effort: Effort, allowance: float, dice: random.Random
) -> Timed:
    """Times one cell within ``allowance`` seconds.

    Raises:
        ParityFailed: two float32 forms of the bundle disagree on a batch.
    """
    timed = Timed(cell)
    begun = time.perf_counter()
    racing: list[Candidate] = []
    for candidate in candidates:
        guess = candidate.pace * cell.size
        if guess > DOUBT * effort.slowest_call:
            timed.dropped[candidate.name] = f"about {guess:.1f} s a call, the limit is {effort.slowest_call:g} s"
        else:
            racing.append(candidate)
    # A cell that is too long for all is one for the quicker of them.
    while racing and not (calls := _affordable(cell, sum(item.pace for item in racing), effort, allowance)):
        _leave_slowest(timed, racing, effort, allowance)
    if not racing:
        return timed
    warm = calls if not cell.fixed else [calls[0]] * effort.warmups
    reference: list[FloatArray] = []
    for candidate in list(racing):
        try:
            pace, outputs = _warm(candidate, cell, warm, effort)
            reference = reference or (outputs if candidate.precision == "fp32" else [])
            _agree(candidate, cell, outputs, reference)
        except ExportError as error:
            if candidate.artifact:
                raise
            timed.void[candidate.name] = str(error)
            racing.remove(candidate)
            continue
        if pace > effort.slowest_call:
            timed.dropped[candidate.name] = f"{pace:.1f} s a call, the limit is {effort.slowest_call:g} s"
            racing.remove(candidate)
    left = allowance - (time.perf_counter() - begun)
    size = sum(call.size for call in calls)
    while racing:
        fitting = int(left / (size * sum(item.pace for item in racing)))
        rounds = min(effort.rounds, fitting) if cell.fixed else max(1, min(effort.passes, fitting))
        if not cell.fixed or rounds >= effort.least_rounds:
            break
        _leave_slowest(timed, racing, effort, allowance)
    else:
        return timed
    timed.seconds = {candidate.name: [] for candidate in racing}
    for call in [call for _ in range(rounds) for call in calls]:
        timed.calls.append(call)
        for candidate in dice.sample(racing, len(racing)):
            time.sleep(PAUSE_SECONDS)
            timed.seconds[candidate.name].append(_run(candidate, call)[0])
    return timed


def _affordable(cell: Cell, pace: float, effort: Effort, allowance: float) -> list[Call]:
    """The calls that there is time for: of real texts as many as can be run twice; none if too few or no time is left.

    Args:
        pace: seconds per padded token of all candidates together.
    """
    if allowance <= 0:
        return []
    if cell.fixed:
        rounds = effort.least_rounds + effort.warmups
        return list(cell.calls) if pace * cell.size * rounds <= allowance else []
    calls: list[Call] = []
    spent = 0.0
    for call in cell.calls:
        spent += 2 * pace * call.size
        if spent > allowance:
            break
        calls.append(call)
    return calls if len(calls) >= min(effort.least_rounds, len(cell.calls)) else []


def _leave_slowest(timed: Timed, racing: list[Candidate], effort: Effort, allowance: float) -> None:
    """Takes the slowest candidate out of a cell that has too little time for all."""
    slowest = max(racing, key=lambda item: item.pace)
    racing.remove(slowest)
    timed.dropped[slowest.name] = (
        f"with it, {effort.least_rounds} rounds would take longer than the {max(allowance, 0):.0f} s left for it"
    )


def _warm(candidate: Candidate, cell: Cell, calls: Sequence[Call], effort: Effort) -> tuple[float, list[FloatArray]]:
    """Runs calls that do not count; one that is as slow as feared is the last.

    Returns:
        seconds of a call, of a shape the best, of real texts the mean; and all outputs one after the other.
    """
    feared = candidate.pace * cell.size > effort.slowest_call
    spent: list[float] = []
    outputs: list[FloatArray] = []
    for call in calls:
        seconds, found = _run(candidate, call)
        spent.append(seconds)
        outputs += found
        if feared and seconds / call.size * cell.size > effort.slowest_call:
            break
    ran = sum(call.size for call in calls[: len(spent)])
    candidate.pace = min(spent) / cell.size if cell.fixed else sum(spent) / ran
    return candidate.pace * cell.size, outputs


def _run(candidate: Candidate, call: Call) -> tuple[float, list[FloatArray]]:
    """Seconds of all batches of a call, and their outputs one after the other."""
    total, outputs = 0.0, []
    for batch in call.batches:
        seconds, found = candidate.time(*batch)
        total += seconds
        outputs += found
    return total, outputs


def _agree(candidate: Candidate, cell: Cell, outputs: Sequence[Any], reference: Sequence[Any]) -> None:
    """Compares the outputs of a cell's calls, one after the other, with those of the first float32 candidate."""
    for found, wanted in zip(outputs, reference, strict=False):
        if not np.isfinite(found).all():
            raise ParityFailed(candidate.name, "the other forms", f"at {cell.label} a logit is not finite")
        if found.shape != wanted.shape:
            raise ParityFailed(candidate.name, "the other forms", f"at {cell.label}: {found.shape}, not {wanted.shape}")
        worst = float(np.abs(found - wanted).max())
        # Each side may differ from the trained model by its tolerance, so two sides by the sum.
        limit = 2 * (candidate.tolerance or 0.0)
        if candidate.precision == "fp32" and worst > limit:
            reason = f"at {cell.label} a logit differs by {worst:.3g}, allowed are {limit:g}"
            raise ParityFailed(candidate.name, "the other forms", reason)


# --- figures ---------------------------------------------------------------------------------------------------------


def figures(timed: Timed, reference: str, precisions: dict[str, str], peaks: dict[str, float]) -> dict[str, Any]:
    """What a cell's timings say of each candidate.

    Of a fixed shape, rates and ``speedup`` follow from medians; of real texts, whose calls differ, from the sums over
    the same calls. ``share_of_peak`` is what the model's matrix products ask for, against the machine's float32 peak,
    or its 8-bit one for an INT8 candidate.

    Args:
        reference: the candidate whose speed is 1.
        precisions: of each candidate.
        peaks: 10⁹ operations per second, ``fp32`` and ``int8``.
    """
    fixed = timed.cell.fixed
    texts = sum(call.texts for call in timed.calls)
    tokens = sum(call.tokens for call in timed.calls)
    flops = sum(call.flops for call in timed.calls)
    count = len(timed.calls)
    totals = {
        name: float(np.median(values)) * count if fixed else sum(values) for name, values in timed.seconds.items()
    }
    found: dict[str, Any] = {}
    for name, values in timed.seconds.items():
        peak = peaks["int8" if precisions[name] == "int8" else "fp32"] * 1e9
        found[name] = {
            "median_ms": round(float(np.median(values)) * 1000, 3),
            # An observed value, not one between two; with fewer than 100 rounds it is the slowest.
            "p99_ms": round(float(np.percentile(values, 99, method="inverted_cdf")) * 1000, 3),
            "n": len(values),
            "speedup": round(totals[reference] / totals[name], 3) if reference in totals else None,
            "texts_per_second": round(texts / totals[name], 2),
            "tokens_per_second": round(tokens / totals[name], 1),
            "share_of_peak": round(flops / totals[name] / peak, 4) if flops else None,
        }
    return found
