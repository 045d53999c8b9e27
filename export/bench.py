"""Every form of a model side by side: ``python -m export.bench news``, and ``--references`` for other people's.

The trained model in Paddle, its static graph in Paddle Inference, each ONNX graph of the bundle and, if asked for,
outside references with the same weights (`export.references`) answer the same batches. Each stands in a process of its
own with the same number of threads. Before anything is timed, each must reproduce the golden rows: a bench of a wrong
graph is void. What is asked and how rounds are interleaved is in `export.bench_cells`.

A latency is numpy arrays in, numpy arrays out, without tokenizing; what callers see is the load test's question.
Accuracy is measured in the same run, on rows of the dev split.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bundle.errors import BundleError, ExportError, ParityFailed, SlipwayError
from bundle.machine import commit, cores, hardware, load, versions
from export.bench_cells import (
    BATCH_TOKENS,
    FULL,
    ONE_TEXT,
    QUICK,
    Cell,
    Effort,
    Timed,
    cells_of,
    dev_rows,
    figures,
    time_cell,
)
from export.forms import PADDLE, Candidate, Stand, environment_of
from export.references.known import ENVIRONMENTS, LEAST_AGREEMENT, REFERENCES, Reference

if TYPE_CHECKING:
    from rich.table import Table

    from bundle.folder import Bundle
    from bundle.manifest import Manifest
    from export.parity import GoldenRows
    from export.references.process import Outside

SCHEMA = "slipway.bench/2"
REFERENCE = "onnx_fp32"


@dataclass
class Report:
    """What the person sees while it runs; the tests leave it silent."""

    say: Callable[[str], None] = lambda text: None
    advance: Callable[[float, str], None] = lambda share, text: None


# --- what is run -----------------------------------------------------------------------------------------------------


def prove(candidate: Candidate, golden: GoldenRows) -> None:
    """Compares a candidate with the golden rows before it is timed.

    Raises:
        ParityFailed: its logits differ by more than the tolerance that `export` recorded for the artifact. An outside
            reference that is not float32 has no such record: it must name the same labels, mostly.
    """
    from export.parity import FP32_TOLERANCE

    outside = not candidate.artifact
    if not candidate.tolerance and not outside:
        if candidate.precision != "fp32":
            raise ParityFailed(candidate.name, "paddle", "no parity was recorded for it; run `make export` again")
        candidate.tolerance = FP32_TOLERANCE
    parity = golden.measure(candidate.name, golden.predict(candidate.run, _batch(candidate)), candidate.tolerance)
    candidate.max_abs, candidate.label_agreement = parity.max_abs, parity.label_agreement
    if outside and parity.label_agreement < LEAST_AGREEMENT:
        reason = f"{parity.label_agreement:.0%} of the golden rows have the same answer, {LEAST_AGREEMENT:.0%} must"
        raise ParityFailed(candidate.name, "paddle", reason)


def _batch(candidate: Candidate) -> int:
    """Padded tokens of a batch when answers count: a window alone where neighbours would change its logits."""
    return BATCH_TOKENS if candidate.batch_invariant else 1


def qualities(
    candidates: Sequence[Candidate], golden: GoldenRows, count: int | None, seed: int, report: Report
) -> dict[str, dict[str, Any]]:
    """Accuracy on the same dev rows, and the share of rows answered as the float32 reference answers them.

    Float32 candidates were proved equal, so one of them speaks for all; the others are run.

    Returns:
        by candidate: ``rows``, ``metrics``, ``agreement``, and ``of``, the candidate that was run.
    """
    from bundle.predict import agreement, answers_of, encode_rows, predict, scores_of

    task, joining = golden.bundle.manifest.task, golden.bundle.manifest.text.joining
    rows = dev_rows(golden, count, seed)
    encoded = encode_rows(rows, golden.encoder)
    exact = [item for item in candidates if item.precision == "fp32"]
    # The quickest of those that were timed.
    first = min(exact, key=lambda item: item.pace or float("inf")) if exact else None
    labelled = golden.bundle.manifest.splits.get("dev") is not None
    found: dict[str, dict[str, Any]] = {}
    wanted: list[Any] | None = None
    for candidate in [*([first] if first else []), *(item for item in candidates if item.precision != "fp32")]:
        report.advance(1.0, f"{len(rows)} dev rows: {candidate.name}")
        predicted = predict(encoded, golden.encoder, candidate.run, batch_tokens=_batch(candidate))
        answers = answers_of(predicted, task, joining)
        if candidate is first:
            wanted = answers
        found[candidate.name] = {
            "of": candidate.name,
            "rows": len(rows),
            "metrics": {key: round(value, 4) for key, value in scores_of(rows, answers, task).items()}
            if labelled
            else {},
            "agreement": None if wanted is None else round(agreement(wanted, answers), 4),
        }
    for candidate in exact:
        if first is not None:
            found.setdefault(candidate.name, found[first.name])
    return found


def bench(
    bundle: Bundle,
    *,
    batches: Sequence[int] = (1, 8, 32),
    tokens: Sequence[int] = (32, 128, 512),
    effort: Effort = QUICK,
    threads: int | None = None,
    seed: int = 13,
    only: Sequence[str] = (),
    references: Mapping[str, Reference] | None = None,
    environments: Path = ENVIRONMENTS,
    report: Report | None = None,
) -> dict[str, Any]:
    """Times every form of a bundle's model and returns what goes into the results file.

    Args:
        batches, tokens: the shapes; tokens are capped by the bundle's ``max_tokens``.
        threads: for every candidate; by default all cores that this process may use.
        only: names of candidates; by default all.
        references: outside references that run too, those whose environment is in ``environments``.

    Raises:
        ParityFailed: a form of the bundle does not compute what the trained model does; nothing was timed. An outside
            reference that does not is left out instead.
        ExportError: no candidate could be started, or one died.
    """
    from export.parity import GoldenRows
    from export.peak import measure_peaks, shape_of
    from export.references.process import Outside

    report, references = report or Report(), references or {}
    threads = threads or cores()
    golden = GoldenRows(bundle)
    graphs = [name for name, item in bundle.manifest.artifacts.items() if item.format == "onnx"]
    own = [*PADDLE, *sorted(graphs, key=lambda name: (name != REFERENCE, graphs.index(name)))]
    known = [*own, *references]
    if unknown := [name for name in only if name not in known]:
        raise ExportError(f"{bundle.root}: no candidate {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = [name for name in known if not only or name in only]
    busy, begun = load(), time.perf_counter()
    if busy > cores() / 4:
        report.say(f"warning the machine is busy (load {busy} on {cores()} cores), so the figures will be too high")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-bench-")))
        report.advance(0.0, "the machine's peak")
        peaks = measure_peaks(threads, effort.peak_seconds)
        # Outside references first: while they quantize, nothing else should run, and nothing is timed yet.
        outside = stack.enter_context(
            Outside(
                bundle,
                golden,
                threads,
                folder,
                references=references,
                environments=environments,
                say=lambda words: report.advance(0.0, words),
            )
        )
        outside.start([name for name in wanted if name in references])
        stand = stack.enter_context(Stand(bundle, threads, folder))
        report.advance(0.0, "opening the models")
        left_out = stand.start([name for name in wanted if name in own])
        candidates = [*stand.candidates, *outside.candidates]
        if not candidates:
            lost = left_out | outside.lost
            raise ExportError(f"{bundle.root}: nothing to time: " + "; ".join(f"{k}: {v}" for k, v in lost.items()))
        report.say(f"opened  {', '.join(item.name for item in candidates)} ({time.perf_counter() - begun:.1f} s)")
        for candidate in candidates:
            report.advance(0.0, f"golden rows: {candidate.name}")
            try:
                prove(candidate, golden)
            except (ParityFailed, ExportError) as error:
                if candidate.artifact:
                    raise
                outside.drop(candidate, f"void: {error}")
        candidates = [*stand.candidates, *outside.candidates]
        off = ", ".join(f"{item.name} {item.max_abs:.1e}" for item in candidates)
        report.say(f"parity  {len(golden.rows)} golden rows reproduced; largest differences: {off}")
        shape = shape_of(bundle)
        cells = cells_of(golden, batches, tokens, seed, texts=effort.texts, shape=shape)
        timings = _race(cells, candidates, outside, effort, seed, report)
        candidates = [*stand.candidates, *outside.candidates]
        memory = {item.name: item.memory() for item in candidates}
        quality = qualities(candidates, golden, effort.quality_rows, seed, report)
        report.advance(1.0, "the machine's peak, again")
        peaks = {name: max(rate, peaks[name]) for name, rate in measure_peaks(threads, effort.peak_seconds).items()}
        left_out |= outside.lost
        for name, reason in left_out.items():
            report.say(f"without {name}: {reason}")
        precisions = {item.name: item.precision for item in candidates}
        return {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench" + (" ARGS=--references" if references else ""),
            "bundle": bundle.name,
            "version": bundle.manifest.version,
            "architecture": bundle.manifest.made.architecture,
            "base": bundle.manifest.made.base.name,
            "published": bundle.manifest.published,
            "served": served(bundle.manifest),
            "max_tokens": bundle.manifest.text.max_tokens,
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions(("paddlepaddle", "paddlenlp", "onnxruntime", "numpy")),
            "reference_versions": outside.versions,
            "load_before": busy,
            "threads": threads,
            "environment": environment_of(threads),
            "settings": {**asdict(effort), "seed": seed, "batches": list(batches), "tokens": list(tokens)},
            "model": asdict(shape) if shape else None,
            "peak_gops": peaks,
            "texts": _texts(cells),
            "reference": REFERENCE,
            "candidates": {
                item.name: _facts(item, references.get(item.name), bundle, memory, quality) for item in candidates
            },
            "left_out": left_out,
            "cells": [
                {
                    "label": timed.cell.label,
                    "batch": timed.cell.batch,
                    "tokens": timed.cell.tokens,
                    "texts": round(sum(call.texts for call in timed.distinct), 1),
                    "results": figures(timed, REFERENCE, precisions, peaks),
                }
                for timed in timings
                if timed.seconds
            ],
            "skipped": [
                {
                    "label": timed.cell.label,
                    "batch": timed.cell.batch,
                    "tokens": timed.cell.tokens,
                    "candidate": name,
                    "reason": reason,
                }
                for timed in timings
                for name, reason in timed.dropped.items()
            ],
            "seconds": round(time.perf_counter() - begun, 1),
        }


def served(manifest: Manifest) -> list[str]:
    """The forms that a server runs: those that the plan chose for its aims, or the published one."""
    from bundle.plan import planned

    chosen = (planned(manifest, "latency"), planned(manifest, "throughput"))
    return sorted({setup.artifact for setup in chosen if setup}) or [manifest.published]


def _facts(
    candidate: Candidate,
    outside: Reference | None,
    bundle: Bundle,
    memory: dict[str, dict[str, float | None]],
    quality: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What is known of a candidate besides its timings."""
    artifact = bundle.manifest.artifacts.get(candidate.artifact)
    recorded = artifact.quality if artifact else None
    return {
        "artifact": candidate.artifact or None,
        "environment": outside.environment if outside else None,
        "about": outside.about if outside else None,
        "precision": candidate.precision,
        "parity_max_abs": candidate.max_abs,
        "tolerance": candidate.tolerance,
        "golden_agreement": candidate.label_agreement,
        "batch_invariant": candidate.batch_invariant,
        "bytes": candidate.bytes,
        "load_seconds": round(candidate.load_seconds, 3),
        **memory[candidate.name],
        "quality": quality.get(candidate.name),
        "recorded_quality": recorded.model_dump(mode="json") if recorded else None,
    }


def _texts(cells: Sequence[Cell]) -> dict[str, Any]:
    """What the real texts look like."""
    calls = [call for cell in cells if cell.label == ONE_TEXT for call in cell.calls]
    lengths = sorted(call.tokens for call in calls)
    windows = [sum(len(ids) for ids, _ in call.batches) for call in calls]
    return {
        "texts": len(calls),
        "windows": sum(windows),
        "tokens": sum(lengths),
        "median_tokens": lengths[len(lengths) // 2],
        "most_tokens": lengths[-1],
    }


def _race(
    cells: Sequence[Cell],
    candidates: Sequence[Candidate],
    outside: Outside,
    effort: Effort,
    seed: int,
    report: Report,
) -> list[Timed]:
    """Times all cells, one after the other; what an outside reference computes wrongly anywhere is void everywhere."""
    dice = random.Random(seed)
    begun = time.perf_counter()
    timings: list[Timed] = []
    racing = list(candidates)
    whole = sum(cell.weight for cell in cells)
    for number, cell in enumerate(cells):
        report.advance(sum(item.weight for item in cells[:number]) / whole, cell.label)
        left = effort.budget - (time.perf_counter() - begun)
        # A cell's share of what is left follows its weight: large cells cost more per round.
        allowance = left * cell.weight / sum(item.weight for item in cells[number:])
        timed = time_cell(cell, racing, effort, max(allowance, 0.0), dice)
        timings.append(timed)
        for reason in sorted(set(timed.dropped.values())):
            names = ", ".join(name for name, why in timed.dropped.items() if why == reason)
            report.say(f"skipped {cell.label} for {names}: {reason}")
        for candidate in [item for item in racing if item.name in timed.void]:
            outside.drop(candidate, f"void: {timed.void[candidate.name]}")
            racing.remove(candidate)
            for earlier in timings:
                earlier.seconds.pop(candidate.name, None)
                earlier.dropped.pop(candidate.name, None)
    report.advance(1.0, "timed")
    return timings


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
    references: Annotated[
        bool, typer.Option("--references", help="Also the outside references that `make references` set up.")
    ] = False,
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

      python -m export.bench reviews --full --references

      python -m export.bench news --only onnx_fp32 --only onnx_int8 --batches 1 --tokens 64,128
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from bundle.folder import check_writable, open_bundle, write_atomic
    from export.bench_plots import draw

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
        target = out or Path("docs/bench") / f"latency-{bundle.name}.json"
        check_writable(target)
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
                references=REFERENCES if references else None,
                report=Report(
                    lambda text: bar.console.print(text, soft_wrap=True, markup=False),
                    lambda share, state: bar.update(task, completed=share, state=state),
                ),
            )
        plots = draw(result, target) if result["cells"] else []
        result["pictures"] = [plot.name for plot in plots]
        write_atomic(target, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    except SlipwayError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; nothing was written", err=True)
        raise typer.Exit(130) from error
    console.print(latency_table(result))
    console.print(forms_table(result))
    peaks = result["peak_gops"]
    machine = result["hardware"]
    isa = ", ".join(machine["isa"]) or "no vector extensions known"
    line = f"on      {machine['cpu']}, {machine['cores']} cores ({isa}), {result['threads']} threads each"
    console.print(f"{line}; commit {result['commit']}", soft_wrap=True, markup=False)
    line = f"peak    {peaks['fp32']:.0f} GFLOP/s in float32, {peaks['int8']:.0f} GOP/s in 8-bit integers"
    console.print(f"{line}; warm-up {result['settings']['warmups']} runs", soft_wrap=True, markup=False)
    written = ", ".join([str(target), *(plot.name for plot in plots)])
    console.print(f"took    {result['seconds']} s; wrote {written}", soft_wrap=True, markup=False)
    console.print("next: `make tables` puts the tables into README.md and docs/bench/README.md", markup=False)


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


def forms_table(result: dict[str, Any]) -> Table:
    """What else is known of each candidate: size, load time, memory, accuracy."""
    from rich.table import Table

    table = Table(title="Files, loading, memory, answers", title_justify="left")
    for name in ("form", "MB", "load s", "memory MiB", "parity", "dev rows", "answers as fp32", "scores"):
        table.add_column(name, justify="left" if name == "form" else "right", no_wrap=name == "form")
    for name, facts in result["candidates"].items():
        quality = facts["quality"] or {}
        agreed = quality.get("agreement")
        table.add_row(
            name,
            f"{facts['bytes'] / 1e6:.1f}",
            f"{facts['load_seconds']:.2f}",
            "—" if facts["resident_mib"] is None else f"{facts['resident_mib']:.0f}",
            f"{facts['parity_max_abs']:.1e}",
            str(quality.get("rows", "—")),
            "—" if agreed is None else f"{agreed:.2%}",
            ", ".join(f"{key} {value:.3f}" for key, value in quality.get("metrics", {}).items()) or "—",
        )
    return table


if __name__ == "__main__":
    app()
