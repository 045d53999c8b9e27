"""Latency of every form of a model side by side: ``python -m export.bench news``.

The trained model in Paddle, its static graph in Paddle Inference, and each ONNX graph of the bundle answer the same
batches. Each stands in a process of its own with the same number of threads. Rounds are interleaved: every round runs
each candidate once, in a seeded random order, so that a slow minute of the machine hits all of them alike. Before
anything is timed, each must reproduce the golden rows: a bench of a wrong graph is void.

A latency is numpy arrays in, numpy arrays out, without tokenizing; what callers see is the load test's question.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bundle.errors import BundleError, ExportError, ParityFailed, SlipwayError
from bundle.machine import commit, cores, hardware, versions
from export.forms import PADDLE, Candidate, Stand, environment_of

if TYPE_CHECKING:
    from rich.table import Table

    from bundle.encode import IntArray
    from bundle.folder import Bundle
    from export.parity import GoldenRows

SCHEMA = "slipway.bench/1"
REFERENCE = "onnx_fp32"
# Between two candidates, so that the threads of the one before have stopped spinning.
PAUSE_SECONDS = 0.005
REAL_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a bench may take.

    Attributes:
        rounds: most timed runs of each candidate per cell.
        least_rounds: a cell that cannot have so many within its share of the budget is left out.
        warmups: runs before, not counted; at least 2, since runtimes plan their memory at the first of a shape.
        budget: seconds for all cells together; loading comes on top.
        slowest_call: a candidate that needs more seconds for one call is left out of that cell.
    """

    rounds: int
    least_rounds: int
    warmups: int
    budget: float
    slowest_call: float


QUICK = Effort(rounds=30, least_rounds=5, warmups=2, budget=240.0, slowest_call=2.0)
FULL = Effort(rounds=200, least_rounds=20, warmups=3, budget=1800.0, slowest_call=30.0)


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of the table.

    Attributes:
        inputs: batches of (ids, types), int64 (batch, tokens) each, used in turn.
    """

    label: str
    batch: int
    tokens: int
    inputs: tuple[tuple[IntArray, IntArray], ...]

    @property
    def size(self) -> int:
        """Tokens in one call."""
        return self.batch * self.tokens


@dataclass
class Report:
    """What the person sees while it runs; the tests leave it silent."""

    say: Callable[[str], None] = lambda text: None
    advance: Callable[[float, str], None] = lambda share, text: None


# --- what is run -----------------------------------------------------------------------------------------------------


def cells_of(golden: GoldenRows, batches: Sequence[int], tokens: Sequence[int], seed: int) -> list[Cell]:
    """Batches of real tokens in every wanted shape, smallest first, after the golden rows' windows as they are.

    Args:
        tokens: window lengths, special tokens included; longer ones become the bundle's ``max_tokens``.
    """
    import numpy as np

    spec = golden.bundle.manifest.text
    windows = [row for encoded in golden.encoded for row in golden.encoder.rows(encoded)]
    real = tuple((row.ids[None], row.types[None]) for row in windows[:REAL_WINDOWS])
    middle = int(np.median([ids.shape[1] for ids, _ in real]))
    cells = [Cell("real text", 1, middle, real)]
    # One long stream of the tokens that the golden rows have; quantized kernels may be faster on repeated padding.
    stream = np.concatenate([row.ids[row.content] for row in windows])
    dice = np.random.default_rng(seed)
    for batch in sorted(set(batches)):
        for length in sorted({min(count, spec.max_tokens) for count in tokens}):
            starts = dice.integers(0, len(stream), batch)
            places = (starts[:, None] + np.arange(length - 2)[None]) % len(stream)
            ids = np.empty((batch, length), dtype=np.int64)
            ids[:, 0], ids[:, -1], ids[:, 1:-1] = spec.cls_id, spec.sep_id, stream[places]
            cells.append(Cell(f"{batch}×{length}", batch, length, ((ids, np.zeros_like(ids)),)))
    return sorted(cells, key=lambda cell: (cell.size, cell.batch))


def prove(candidate: Candidate, golden: GoldenRows) -> None:
    """Compares a candidate with the golden rows before it is timed.

    Raises:
        ParityFailed: its logits differ by more than the tolerance that `export` recorded for the artifact.
    """
    from export.parity import FP32_TOLERANCE

    artifact = candidate.artifact
    if artifact.parity is not None and artifact.parity.tolerance > 0:
        tolerance = artifact.parity.tolerance
    elif artifact.precision == "fp32":
        tolerance = FP32_TOLERANCE
    else:
        raise ParityFailed(candidate.name, "paddle", "no parity was recorded for it; run `make export` again")
    found = golden.predict(candidate.run, 4096 if artifact.batch_invariant else 1)
    candidate.max_abs = golden.measure(candidate.name, found, tolerance).max_abs
    candidate.tolerance = tolerance


@dataclass
class Timed:
    """A cell with its timings: candidate → seconds of each round."""

    cell: Cell
    seconds: dict[str, list[float]] = field(default_factory=dict)


def time_cell(
    cell: Cell, candidates: Sequence[Candidate], effort: Effort, allowance: float, dice: random.Random
) -> tuple[Timed, dict[str, str]]:
    """Times one cell within ``allowance`` seconds.

    Returns:
        the timings, and the candidates that were left out with the reason.

    Raises:
        ParityFailed: two float32 candidates disagree on this batch.
    """
    left_out: dict[str, str] = {}
    racing: list[Candidate] = []
    cost: dict[str, float] = {}
    for candidate in candidates:
        guess = candidate.pace * cell.size
        if guess > effort.slowest_call:
            left_out[candidate.name] = f"about {guess:.1f} s a call, the limit is {effort.slowest_call:g} s"
        else:
            racing.append(candidate)
            cost[candidate.name] = guess
    rounds = _rounds(sum(cost.values()), effort, allowance)
    if not racing or rounds < effort.least_rounds:
        reason = f"{effort.least_rounds} rounds of all would take longer than the {allowance:.0f} s left for it"
        return Timed(cell), left_out | {candidate.name: reason for candidate in racing}
    begun = time.perf_counter()
    reference: list[Any] = []
    for candidate in list(racing):
        spent = 0.0
        outputs: list[Any] = []
        for number in range(max(effort.warmups, len(cell.inputs))):
            spent, found = candidate.time(*cell.inputs[number % len(cell.inputs)])
            outputs += found
        candidate.pace, cost[candidate.name] = spent / cell.size, spent
        reference = reference or (outputs if candidate.artifact.precision == "fp32" else [])
        _agree(candidate, cell, outputs, reference)
        if spent > effort.slowest_call:
            left_out[candidate.name] = f"{spent:.1f} s a call, the limit is {effort.slowest_call:g} s"
            racing.remove(candidate)
    rounds = _rounds(
        sum(cost[item.name] for item in racing), effort, allowance - (time.perf_counter() - begun), warm=True
    )
    if not racing or rounds < effort.least_rounds:
        reason = f"{effort.least_rounds} rounds of all would take longer than the {allowance:.0f} s left for it"
        return Timed(cell), left_out | {candidate.name: reason for candidate in racing}
    timed = Timed(cell, {candidate.name: [] for candidate in racing})
    for number in range(rounds):
        batch = cell.inputs[number % len(cell.inputs)]
        for candidate in dice.sample(racing, len(racing)):
            time.sleep(PAUSE_SECONDS)
            timed.seconds[candidate.name].append(candidate.time(*batch)[0])
    return timed, left_out


def _rounds(round_cost: float, effort: Effort, allowance: float, *, warm: bool = False) -> int:
    """How many rounds fit."""
    if round_cost <= 0:
        return effort.rounds
    return min(effort.rounds, int(allowance / round_cost) - (0 if warm else effort.warmups))


def _agree(candidate: Candidate, cell: Cell, outputs: list[Any], reference: list[Any]) -> None:
    """Compares the outputs of a cell's calls, one after the other, with those of the first float32 candidate."""
    import numpy as np

    for found, wanted in zip(outputs, reference, strict=False):
        if not np.isfinite(found).all():
            raise ParityFailed(candidate.name, "the other forms", f"at {cell.label} a logit is not finite")
        if found.shape != wanted.shape:
            raise ParityFailed(candidate.name, "the other forms", f"at {cell.label}: {found.shape}, not {wanted.shape}")
        worst = float(np.abs(found - wanted).max())
        # Each side may differ from the trained model by its tolerance, so two sides by the sum.
        if candidate.artifact.precision == "fp32" and worst > 2 * candidate.tolerance:
            reason = f"at {cell.label} a logit differs by {worst:.3g}, allowed are {2 * candidate.tolerance:g}"
            raise ParityFailed(candidate.name, "the other forms", reason)


def bench(
    bundle: Bundle,
    *,
    batches: Sequence[int] = (1, 8, 32),
    tokens: Sequence[int] = (32, 128, 512),
    effort: Effort = QUICK,
    threads: int | None = None,
    seed: int = 13,
    only: Sequence[str] = (),
    report: Report | None = None,
) -> dict[str, Any]:
    """Times every form of a bundle's model and returns what goes into the results file.

    Args:
        batches, tokens: the shapes; tokens are capped by the bundle's ``max_tokens``.
        threads: for every candidate; by default all cores that this process may use.
        only: names of candidates; by default all.

    Raises:
        ParityFailed: a candidate does not compute what the trained model does; nothing was timed.
        ExportError: no candidate could be started, or one died.
    """
    from export.parity import GoldenRows

    report = report or Report()
    threads = threads or cores()
    golden = GoldenRows(bundle)
    graphs = [name for name, item in bundle.manifest.artifacts.items() if item.format == "onnx"]
    known = [*PADDLE, *sorted(graphs, key=lambda name: (name != REFERENCE, graphs.index(name)))]
    if unknown := [name for name in only if name not in known]:
        raise ExportError(f"{bundle.root}: no candidate {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = [name for name in known if not only or name in only]
    load, begun = round(os.getloadavg()[0], 2), time.perf_counter()
    if load > cores() / 4:
        report.say(f"warning the machine is busy (load {load} on {cores()} cores), so the figures will be too high")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-bench-")))
        stand = stack.enter_context(Stand(bundle, threads, folder))
        report.advance(0.0, "opening the models")
        left_out = stand.start(wanted)
        if not stand.candidates:
            raise ExportError(f"{bundle.root}: nothing to time: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
        report.say(f"opened  {', '.join(item.name for item in stand.candidates)} ({time.perf_counter() - begun:.1f} s)")
        for name, reason in left_out.items():
            report.say(f"without {name}: {reason}")
        for candidate in list(stand.candidates):
            report.advance(0.0, f"golden rows: {candidate.name}")
            prove(candidate, golden)
        off = ", ".join(f"{item.name} {item.max_abs:.1e}" for item in stand.candidates)
        report.say(f"parity  {len(golden.rows)} golden rows reproduced; largest differences: {off}")
        cells = cells_of(golden, batches, tokens, seed)
        results, skipped = _race(cells, stand.candidates, effort, seed, report)
        return {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench",
            "bundle": bundle.name,
            "version": bundle.manifest.version,
            "architecture": bundle.manifest.made.architecture,
            "base": bundle.manifest.made.base.name,
            "max_tokens": bundle.manifest.text.max_tokens,
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions(("paddlepaddle", "paddlenlp", "onnxruntime", "numpy")),
            "load_before": load,
            "threads": threads,
            "environment": environment_of(threads),
            "settings": {**asdict(effort), "seed": seed, "batches": list(batches), "tokens": list(tokens)},
            "reference": REFERENCE,
            "candidates": {
                item.name: {
                    "artifact": PADDLE.get(item.name, item.name),
                    "precision": item.artifact.precision,
                    "parity_max_abs": item.max_abs,
                    "tolerance": item.tolerance,
                }
                for item in stand.candidates
            },
            "left_out": left_out,
            "cells": results,
            "skipped": skipped,
            "seconds": round(time.perf_counter() - begun, 1),
        }


def _race(
    cells: Sequence[Cell], candidates: Sequence[Candidate], effort: Effort, seed: int, report: Report
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    dice = random.Random(seed)
    begun = time.perf_counter()
    results: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    whole = sum(cell.size for cell in cells)
    for number, cell in enumerate(cells):
        report.advance(sum(item.size for item in cells[:number]) / whole, cell.label)
        left = effort.budget - (time.perf_counter() - begun)
        # A cell's share of what is left follows its size: large cells cost more per round.
        allowance = left * cell.size / sum(item.size for item in cells[number:])
        timed, dropped = time_cell(cell, candidates, effort, max(allowance, 0.0), dice)
        place = {"label": cell.label, "batch": cell.batch, "tokens": cell.tokens}
        for name, reason in dropped.items():
            skipped.append({**place, "candidate": name, "reason": reason})
        for reason in sorted(set(dropped.values())):
            names = ", ".join(name for name, why in dropped.items() if why == reason)
            report.say(f"skipped {cell.label} for {names}: {reason}")
        if timed.seconds:
            results.append({**place, "results": _figures(timed.seconds)})
    report.advance(1.0, "done")
    return results, skipped


def _figures(seconds: dict[str, list[float]]) -> dict[str, dict[str, float | int | None]]:
    """Median and p99 in milliseconds; ``speedup`` is the reference's median over this one's."""
    import numpy as np

    medians = {name: float(np.median(values)) * 1000 for name, values in seconds.items()}
    reference = medians.get(REFERENCE)
    return {
        name: {
            "median_ms": round(medians[name], 3),
            # An observed value, not one between two; with fewer than 100 rounds it is the slowest.
            "p99_ms": round(float(np.percentile(values, 99, method="inverted_cdf")) * 1000, 3),
            "n": len(values),
            "speedup": round(reference / medians[name], 3) if reference else None,
        }
        for name, values in seconds.items()
    }


# --- the command line ------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def find_bundle(name: str) -> Path:
    """A bundle folder as given, or ``artifacts/<name>/bundle``.

    Raises:
        BundleError: neither is there.
    """
    for folder in (Path(name), Path("artifacts") / name / "bundle"):
        if (folder / "bundle.json").is_file():
            return folder
    raise BundleError(f"no bundle at {name} or artifacts/{name}/bundle; `make finetune export RECIPE={name}` makes one")


def _numbers(option: str, text: str, lowest: int) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < lowest:
        raise typer.BadParameter(f"write whole numbers of at least {lowest}, such as 1,8,32", param_hint=f"--{option}")
    return values


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder, or a recipe's name.")] = "news",
    full: Annotated[bool, typer.Option("--full/--quick", help="Many rounds (half an hour), or few (minutes).")] = False,
    batches: Annotated[str, typer.Option(help="Windows per call, separated by commas.")] = "1,8,32",
    tokens: Annotated[str, typer.Option(help="Tokens per window; capped by the bundle's max_tokens.")] = "32,128,512",
    rounds: Annotated[int | None, typer.Option(min=1, help="Most timed runs per cell and candidate.")] = None,
    budget: Annotated[float | None, typer.Option(min=1, help="Seconds for all cells, loading not counted.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every candidate; all cores by default.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Candidate to time; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Order of the candidates and choice of the tokens.")] = 13,
    out: Annotated[Path | None, typer.Option(help="Results file; docs/bench/latency-BUNDLE.json by default.")] = None,
) -> None:
    """Times every form of a model: Paddle, Paddle Inference, ONNX as converted, fused, INT8.

    Examples:

      python -m export.bench

      python -m export.bench reviews --full

      python -m export.bench news --only onnx_fp32 --only onnx_int8 --batches 1 --tokens 64,128
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from bundle.folder import open_bundle, write_atomic

    console = Console(highlight=False)
    effort = FULL if full else QUICK
    if rounds is not None:
        effort = replace(effort, rounds=rounds, least_rounds=min(rounds, effort.least_rounds))
    if budget is not None:
        effort = replace(effort, budget=budget)
    sizes, lengths = _numbers("batches", batches, 1), _numbers("tokens", tokens, 8)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    try:
        folder = find_bundle(name)
        bundle = open_bundle(folder)
        console.print(f"reads   {folder}/bundle.json and its artifacts", soft_wrap=True, markup=False)
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("bench", total=1.0, state="")
            result = bench(
                bundle,
                batches=sizes,
                tokens=lengths,
                effort=effort,
                threads=threads,
                seed=seed,
                only=only or (),
                report=Report(
                    lambda text: bar.console.print(text, soft_wrap=True, markup=False),
                    lambda share, state: bar.update(task, completed=share, state=state),
                ),
            )
        target = out or Path("docs/bench") / f"latency-{bundle.name}.json"
        write_atomic(target, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    except SlipwayError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; nothing was written", err=True)
        raise typer.Exit(130) from error
    console.print(latency_table(result))
    machine = result["hardware"]
    isa = ", ".join(machine["isa"]) or "no vector extensions known"
    line = f"on      {machine['cpu']}, {machine['cores']} cores ({isa}), {result['threads']} threads each"
    console.print(f"{line}; commit {result['commit']}", soft_wrap=True, markup=False)
    console.print(f"took    {result['seconds']} s; wrote {target}", soft_wrap=True, markup=False)
    console.print("next: `make tables` puts the table into README.md", markup=False)


def latency_table(result: dict[str, Any]) -> Table:
    """The results as a table for the terminal: median (p99) and the ratio to the reference."""
    from rich.table import Table

    table = Table(title="Median (p99) ms, × speed of onnx_fp32", title_justify="left")
    table.add_column("form", no_wrap=True)
    for cell in result["cells"]:
        rounds = max(figures["n"] for figures in cell["results"].values())
        table.add_column(f"{cell['label']}\nn={rounds}", justify="right")
    for name in result["candidates"]:
        cells = []
        for cell in result["cells"]:
            figures = cell["results"].get(name)
            if figures is None:
                cells.append("—")
                continue
            ratio = f"\n{figures['speedup']:.2f}×" if figures["speedup"] is not None else ""
            cells.append(f"{figures['median_ms']:.1f} ({figures['p99_ms']:.1f}){ratio}")
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    app()
