"""Puts measured figures into README.md and docs: ``python docs/tables.py`` after a bench, a load test, a training.

Rewrites what stands between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->`` from results files, so that no figure
is typed by hand. NAME is ``bench`` or ``bench-shapes`` (docs/bench/latency-*.json: one line per form, or every shape
and the pictures), ``results`` (docs/results/*.json), ``long`` (docs/results/long/*.json), ``loadtest``
(docs/bench/loadtest-*.json), ``settings`` (the gateway's settings as it prints them) or ``claims`` (docs/results/
claims.jsonl, judged by the finetune room). ``--check`` writes nothing and exits with 1 when a document is stale. Only
``settings`` and ``claims`` need more than Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

NOTHING = "—"
_REGION = re.compile(r"<!-- table:([\w-]+) -->\n.*?<!-- /table:\1 -->", re.DOTALL)
_MARK = re.compile(r"<!-- (/?)table:([\w-]+) -->")


class TablesError(Exception):
    """A document's markers or a results file are wrong; the sentence names the file."""


# --- cells -----------------------------------------------------------------------------------------------------------


def dig(record: Any, *keys: str) -> Any:
    """A value inside nested objects, None where a key is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def number(value: Any, digits: int = 1, unit: str = "") -> str:
    """A figure with so many decimals and its unit, a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NOTHING
    return f"{value:,.{digits}f}{unit}"


def share(value: Any, digits: int = 1) -> str:
    """0.991 → 99.1%."""
    return number(value * 100, digits, "%") if isinstance(value, (int, float)) else NOTHING


def text(value: Any) -> str:
    """Any value as one cell's text."""
    return NOTHING if value is None or value == "" else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(content: str) -> str:
    return " ".join(content.replace("|", "\\|").split())


def machine(record: dict[str, Any]) -> str:
    """The machine of a record, as one phrase; older files have plain text there."""
    hardware = record.get("hardware")
    if not isinstance(hardware, dict):
        return text(hardware)
    isa = ", ".join(hardware.get("isa") or [])
    load = record.get("load_before")
    busy = isinstance(load, (int, float)) and load > (hardware.get("cores") or 1) / 4
    return (
        f"{text(hardware.get('cpu'))}, {text(hardware.get('cores'))} cores"
        + (f" ({isa})" if isa else "")
        + (f", busy with other work before (load {load})" if busy else "")
    )


def origin(record: dict[str, Any], command: str) -> str:
    """Which command printed the figures, when, where and from which commit."""
    made = record.get("command") or command
    day = f"{record['created'][:10]}, " if isinstance(record.get("created"), str) else ""
    return f"`{made}`, {day}commit {text(record.get('commit'))}, {machine(record)}"


# --- tables ----------------------------------------------------------------------------------------------------------


# The labels of the bench's two cells of real texts.
ONE_TEXT, MANY_TEXTS = "one text", "many texts"


def bench_table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One table per bundle, one line per form or outside reference: speed on real texts, files, memory, accuracy."""
    parts = []
    for _, record in records:
        cells = {cell.get("label"): cell.get("results") or {} for cell in record.get("cells") or []}
        single = f"1×{text(_longest(record))}"
        reference = record.get("reference", "onnx_fp32")
        head = [
            f"`{text(record.get('bundle'))}`", f"{single}, ms", "a text, ms", "texts/s", "tokens/s", "speed",
            "of peak", "MB", "load, s", "memory, MiB", "accuracy", "answers as fp32",
        ]  # fmt: skip
        rows = []
        for name, facts in (record.get("candidates") or {}).items():
            many = dig(cells, MANY_TEXTS, name) or {}
            rows.append(
                [
                    _form(name, facts, record),
                    _timing(dig(cells, single, name)),
                    _timing(dig(cells, ONE_TEXT, name)),
                    number(many.get("texts_per_second")),
                    number(many.get("tokens_per_second"), 0),
                    number(many.get("speedup"), 2, "×"),
                    share(many.get("share_of_peak"), 0),
                    number(_scaled(dig(facts, "bytes"), 1e-6)),
                    number(dig(facts, "load_seconds"), 2),
                    number(dig(facts, "resident_mib"), 0),
                    _first_metric(dig(facts, "quality", "metrics")),
                    share(dig(facts, "quality", "agreement"), 1),
                ]
            )
        parts.append("\n".join([table(head, rows), "", _bench_note(record, single, reference), *_bench_end(record)]))
    return "\n\n".join(parts)


def _form(name: str, facts: Any, record: dict[str, Any]) -> str:
    outside = dig(facts, "environment") is not None
    served = name in (record.get("served") or [record.get("published")])
    return f"**`{name}`**" if served else f"{'↗ ' if outside else ''}`{name}`"


def _bench_note(record: dict[str, Any], single: str, reference: str) -> str:
    texts, rows, cells = record.get("texts") or {}, _quality_rows(record), record.get("cells") or []
    peak = record.get("peak_gops") or {}
    outside = any(dig(facts, "environment") for facts in (record.get("candidates") or {}).values())
    marks = "Bold is served. " + ("↗ is an outside reference with the same weights. " if outside else "")
    return (
        f"{marks}`{single}` and `a text` (one text of the dev split, all its windows) are the median, in brackets p99. "
        f"Texts/s, tokens/s (without padding) and speed (relative to `{reference}`) are of many dev texts in "
        f"length-sorted batches. Timed were {_timed(cells, ONE_TEXT)} and {_timed(cells, MANY_TEXTS)} of "
        f"{number(texts.get('texts'), 0)} dev texts with {number(texts.get('windows'), 0)} windows. The peak is "
        f"{number(peak.get('fp32'), 0)} GFLOP/s in float32, for INT8 forms "
        f"{number(peak.get('int8'), 0)} GOP/s, measured in the same run. Accuracy and agreement: {number(rows, 0)} dev "
        f"rows in the same run; float32 forms are proved equal, so one speaks for all. Memory is the process's, with "
        f"its libraries. {_rounds(record)}"
    )


def _timed(cells: Sequence[dict[str, Any]], label: str) -> str:
    found = next((cell for cell in cells if cell.get("label") == label), {})
    return f"{number(found.get('texts'), 0)} ({label})"


def _quality_rows(record: dict[str, Any]) -> Any:
    found = [dig(facts, "quality", "rows") for facts in (record.get("candidates") or {}).values()]
    return next((rows for rows in found if rows is not None), None)


def _rounds(record: dict[str, Any]) -> str:
    names = list(record.get("candidates") or {})
    counts = [dig(cell, "results", name, "n") for cell in record.get("cells") or [] for name in names]
    known = [count for count in counts if isinstance(count, int)]
    rounds = f"{min(known)} to {max(known)} rounds" if known else "no rounds"
    warm = text(dig(record, "settings", "warmups"))
    return (
        f"{text(record.get('threads'))} threads for every form, {rounds} after {warm} that do not count, interleaved; "
        f"with fewer than 100 rounds p99 is the slowest."
    )


def _bench_end(record: dict[str, Any]) -> list[str]:
    lines = []
    if skipped := record.get("skipped"):
        lines += ["", f"Left out as too slow: {_skipped(skipped)}."]
    if missing := record.get("left_out"):
        lines += ["", "Not timed: " + "; ".join(f"`{name}` ({reason})" for name, reason in missing.items()) + "."]
    return [*lines, "", f"Printed by {origin(record, 'make bench')}."]


def plan_table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Per bundle: what was chosen for either aim, and the throughput of the choice against others."""
    parts = []
    for _, record in records:
        duels = record.get("vs_defaults") or []
        head = [f"`{text(record.get('bundle'))}`: texts/s of the choice, over those of", "ratio", "of one round", "n"]
        rows = [
            [
                text(duel.get("told")),
                number(duel.get("ratio"), 2, "×"),
                f"{number(duel.get('lowest'), 2)}–{number(duel.get('highest'), 2)}",
                f"{number(duel.get('rounds'), 0)} rounds, {number(duel.get('requests'), 0)} requests",
            ]
            for duel in duels
        ]
        chosen = (
            f"Chosen for throughput: {text(dig(record, 'throughput', 'told'))}; for latency: "
            f"{text(dig(record, 'latency', 'told'))} ({number(record.get('latency_speedup'), 2)} times as fast as the "
            f"defaults, one request at a time). {number(record.get('clients'), 0)} clients, requests of "
            f"{number(record.get('windows_per_text'))} windows and {number(record.get('tokens_per_text'), 0)} tokens; "
            f"medians of interleaved rounds; {number(record.get('warmup'), 0)} requests of warm-up. `2×1`: two "
            f"sessions of one thread."
        )
        versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
        printed = f"Printed by {origin(record, 'make plan')}; {versions}."
        parts.append("\n".join([table(head, rows), "", chosen, "", printed]))
    return "\n\n".join(parts)


def bench_shapes_table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Per bundle: forms × shapes with median, p99 and speed; throughput and share of the peak; the pictures."""
    parts = []
    for stem, record in records:
        cells = record.get("cells") or []
        reference = record.get("reference", "onnx_fp32")
        names = list(record.get("candidates") or {})
        title = f"`{text(record.get('bundle'))}`"
        labels = [text(cell.get("label")) for cell in cells]
        times = [
            [_form(name, dig(record, "candidates", name), record)]
            + [_timing(dig(cell, "results", name), name != reference) for cell in cells]
            for name in names
        ]
        rates = [
            [_form(name, dig(record, "candidates", name), record)]
            + [_rate(dig(cell, "results", name)) for cell in cells]
            for name in names
        ]
        about = [
            f"- `{name}`: {dig(facts, 'about')}"
            for name, facts in (record.get("candidates") or {}).items()
            if dig(facts, "about")
        ]
        versions = {**(record.get("versions") or {})}
        for found in (record.get("reference_versions") or {}).values():
            versions |= found
        lines = [
            table([f"{title}, ms", *labels], times),
            "",
            f"Median, in brackets p99, then speed relative to `{reference}`. Columns: windows × tokens per call; "
            f"`{ONE_TEXT}`: one text of the dev split, all its windows; `{MANY_TEXTS}`: one length-sorted batch of "
            f"many. {_rounds(record)}",
            "",
            table([f"{title}, texts/s (of peak)", *labels], rates),
            *_bench_end(record),
            "",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        ]
        if about:
            lines += ["", "Outside references:", "", *about]
        for name, words in PICTURES.items():
            if (file := f"{stem}-{name}.png") in (record.get("pictures") or ()):
                lines += ["", f"![{words} of {title}]({file})"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


PICTURES = {
    "by-length": "Latency against length",
    "by-batch": "Throughput against batch",
    "by-accuracy": "Accuracy against speed",
}


def _longest(record: dict[str, Any]) -> Any:
    found = [cell.get("tokens") for cell in record.get("cells") or [] if cell.get("batch") == 1]
    return max((count for count in found if isinstance(count, int)), default=None)


def _timing(figures: Any, speed: bool = False) -> str:
    if not isinstance(figures, dict):
        return NOTHING
    ratio = f" {number(figures.get('speedup'), 2, '×')}".replace(f" {NOTHING}", "") if speed else ""
    return f"{number(figures.get('median_ms'))} ({number(figures.get('p99_ms'))}){ratio}"


def _rate(figures: Any) -> str:
    if not isinstance(figures, dict):
        return NOTHING
    part = figures.get("share_of_peak")
    return number(figures.get("texts_per_second")) + ("" if part is None else f" ({share(part, 0)})")


def _scaled(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, (int, float)) else None


def _first_metric(metrics: Any) -> str:
    """The headline figure: the accuracy of a classifier, the F1 of a tagger."""
    if not isinstance(metrics, dict):
        return NOTHING
    name = next((key for key in ("accuracy", "micro_f1", "f1") if key in metrics), None)
    return NOTHING if name is None else number(metrics[name], 3) + ("" if name == "accuracy" else f" {name}")


def _skipped(skipped: Sequence[dict[str, Any]]) -> str:
    places: dict[str, list[str]] = {}
    for item in skipped:
        places.setdefault(text(item.get("label")), []).append(f"`{text(item.get('candidate'))}`")
    return "; ".join(f"{label}: {', '.join(names)}" for label, names in places.items())


def results_table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Quality per recipe: the trained model beside its baseline, and what INT8 keeps of it."""
    head = [
        "recipe",
        "test rows",
        "trained model",
        "TF-IDF",
        "TF-IDF, balanced",
        "INT8",
        "INT8 answers as trained",
        "training",
    ]
    rows = [
        [
            f"`{text(record.get('recipe'))}`" + (f" ({record['form']})" if record.get("form") else ""),
            number(record.get("rows"), 0),
            _quality(record.get("model")),
            _quality(dig(record, "baseline", "tfidf")),
            _quality(dig(record, "baseline", "tfidf_balanced")),
            _int8(record),
            share(record.get("agreement"), 2),
            _duration(record.get("train_seconds")),
        ]
        for _, record in records
    ]
    notes = [f"- {origin(record, 'make evaluate')}" for _, record in records]
    return table(head, rows) + "\n\nPrinted by:\n\n" + "\n".join(dict.fromkeys(notes))


def _int8(record: dict[str, Any]) -> str:
    refused = isinstance(record.get("int8"), dict) and record.get("published") not in (None, "onnx_int8", "onnx_fp16")
    return _quality(record.get("int8")) + (" (refused by the gate: fp32 is served)" if refused else "")


def _quality(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return NOTHING
    names = {
        "accuracy": "accuracy",
        "exact_match": "exact",
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "precision": "P",
        "recall": "R",
        "f1": "F1",
    }
    shown = [f"{name} {number(metrics[key], 3)}" for key, name in names.items() if key in metrics]
    return ", ".join(shown) or NOTHING


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return NOTHING
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


def loadtest_table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One line per run of the load test."""
    head = ["run", "load", "requests/s", "tokens/s", "p50 ms", "p95 ms", "p99 ms", "short p99", "long p99", "errors"]
    rows = [
        [
            name.removeprefix("loadtest-"),
            _load(record),
            number(dig(record, "throughput", "requests_per_second")),
            number(dig(record, "throughput", "tokens_per_second"), 0),
            *(number(dig(record, "latency", "all", key)) for key in ("p50_ms", "p95_ms", "p99_ms")),
            *(number(dig(record, "latency", kind, "p99_ms")) for kind in ("short", "long")),
            f"{number(dig(record, 'errors', 'count'), 0)} of {number(record.get('requests'), 0)}",
        ]
        for name, record in records
    ]
    notes = []
    for name, record in records:
        served = text(dig(record, "model", "format"))
        mix = f"seed {text(dig(record, 'plan', 'seed'))}, {share(dig(record, 'plan', 'short_share'), 0)} short"
        notes.append(f"- {name.removeprefix('loadtest-')}: {served}, {mix}; {origin(record, 'make loadtest')}")
    return table(head, rows) + "\n\nThe load generator ran on the same machine. Printed by:\n\n" + "\n".join(notes)


def _load(record: dict[str, Any]) -> str:
    seconds = number(dig(record, "plan", "seconds"), 0, " s")
    if record.get("mode") == "open":
        return f"open, {number(dig(record, 'plan', 'rate'), 0)}/s, {seconds}"
    return f"closed, {number(dig(record, 'plan', 'users'), 0)} users, {seconds}"


def long_table(records: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Long texts, per recipe: every way of reading by length; one late telling sentence; documents of a tagger."""
    parts = []
    for _, record in records:
        name = f"`{text(record.get('recipe'))}` ({text(record.get('form'))})"
        tables = [make(name, record) for make in (_by_windows, _late, _joined)]
        note = f"Windows of {text(record.get('max_tokens'))} tokens, `{text(record.get('artifact'))}`; bold is served."
        if shown := [part for part in tables if part]:
            parts += [*shown, f"{note} {origin(record, 'make evaluate')}."]
    return "\n\n".join(parts)


def _by_windows(name: str, record: dict[str, Any]) -> str:
    buckets = record.get("buckets") or []
    if len(buckets) < 3:  # texts of one window, and all texts: there is nothing to compare
        return ""
    served = record.get("served") or ("head" if record.get("pooling") == "first" else record.get("pooling"))
    figure = next(iter(dig(buckets[-1], "scores", "head") or {"accuracy": 0}))
    head = ["read", *(f"{text(bucket.get('name'))} ({number(bucket.get('rows'), 0)})" for bucket in buckets)]
    rows = [
        [_bold(way, served), *(number(dig(bucket, "scores", way, figure), 3) for bucket in buckets)]
        for way in dig(buckets[-1], "scores") or {}
    ]
    for title, key, digits in (("right only as served", "only_served", 0), ("right only by head", "only_head", 0)):
        if key in buckets[-1]:
            rows.append([title, *(number(bucket.get(key), digits) for bucket in buckets)])
    if "p_value" in buckets[-1]:
        rows.append(["p (exact McNemar)", *(number(bucket.get("p_value"), 3) for bucket in buckets)])
    return f"{name}, {figure.replace('_', ' ')} by windows of a text (in brackets: texts):\n\n{table(head, rows)}"


def _late(name: str, record: dict[str, Any]) -> str:
    late = record.get("late")
    if not isinstance(late, dict):
        return ""
    served = record.get("served")
    ways = {("the short text alone" if way == "short" else way): value for way, value in late["accuracy"].items()}
    fitted = late.get("fitted") or {}
    ways[f"chosen on such documents of dev: {text(fitted.get('pooling'))}"] = fitted.get("accuracy")
    rows = [[_bold(way, served), number(value, 3)] for way, value in ways.items()]
    return (
        f"{name}, {number(late.get('documents'), 0)} short test texts, each at the end of a neutral text of "
        f"{number(late.get('mean_windows'))} windows:\n\n{table(['read', 'accuracy'], rows)}"
    )


def _joined(name: str, record: dict[str, Any]) -> str:
    found = record.get("documents")
    if not isinstance(found, dict):
        return ""
    names = {"sentences": "sentence by sentence", "naive": "split without overlap"}
    rows = [
        [
            _bold(names.get(way, f"windows, {way}"), f"windows, {record.get('stitching')}"),
            *(number(scores.get(figure), 4) for figure in ("precision", "recall", "f1")),
        ]
        for way, scores in (found.get("scores") or {}).items()
    ]
    return (
        f"{name}, {number(found.get('documents'), 0)} documents of about {number(found.get('mean_characters'), 0)} "
        f"characters, joined from {number(found.get('sentences'), 0)} test sentences:\n\n"
        f"{table(['read', 'precision', 'recall', 'F1'], rows)}\n\n"
        f"As a document against sentence by sentence: {number(found.get('served_minus_sentences'), 2)} points of F1. "
        f"Of {number(found.get('entities'), 0)} entities {number(found.get('naive_cut'), 0)} "
        f"({share(found.get('naive_cut_rate'), 2)}) are cut by splitting without overlap; "
        f"{number(found.get('no_window_holds'), 0)} stand whole in no window with it."
    )


def _bold(way: str, served: Any) -> str:
    return f"**{way}**" if way == served else way


# name → results files, the table, the command that fills it
TABLES: dict[str, tuple[str, Callable[[Sequence[tuple[str, dict[str, Any]]]], str], str]] = {
    "bench": ("docs/bench/latency-*.json", bench_table, "make bench"),
    "bench-shapes": ("docs/bench/latency-*.json", bench_shapes_table, "make bench"),
    "plan": ("docs/bench/plan-*.json", plan_table, "make plan"),
    "results": ("docs/results/*.json", results_table, "make evaluate"),
    "long": ("docs/results/long/*.json", long_table, "make evaluate ARGS=--compare-long"),
    "loadtest": ("docs/bench/loadtest-*.json", loadtest_table, "make loadtest"),
}

# What a room prints itself: the gateway's settings, which are not figures but are not typed twice either, and what
# came of each claim.
PRINTED = {
    "settings": ("-m", "serving", "settings", "--markdown"),
    "claims": ("-m", "finetune", "claims", "--markdown"),
}


def _printed(name: str, root: Path) -> str:
    """The table that a room's own command prints.

    Raises:
        TablesError: the room is not installed.
    """
    command = [sys.executable, *PRINTED[name]]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        raise TablesError(f"`{' '.join(command[1:])}` failed: {result.stderr.strip()[-200:]}")
    return result.stdout.strip()


# --- documents -------------------------------------------------------------------------------------------------------


def render(name: str, root: Path) -> str:
    """The text of one region.

    Raises:
        TablesError: a results file is not a JSON object.
    """
    if name in PRINTED:
        return _printed(name, root)
    pattern, make, command = TABLES[name]
    records = [(file.stem, _read(file) | _baseline(file)) for file in sorted(root.glob(pattern))]
    return make(records) if records else f"No figures yet: `{command}` writes them."


def _baseline(results: Path) -> dict[str, Any]:
    """The baseline's scores that `python -m finetune baseline` left beside a results file."""
    file = results.parent / "baseline" / results.name
    return {"baseline": _read(file)} if file.is_file() else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TablesError(f"{file}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TablesError(f"{file}: not a JSON object")
    return record


def rewrite(content: str, file: Path, root: Path) -> str:
    """A document with every region filled anew.

    Raises:
        TablesError: an unknown name, or a marker without its partner, with file and line.
    """
    _check_markers(content, file)
    return _REGION.sub(
        lambda match: f"<!-- table:{match[1]} -->\n{render(match[1], root)}\n<!-- /table:{match[1]} -->", content
    )


def _check_markers(content: str, file: Path) -> None:
    opened: str | None = None
    for line, words in enumerate(content.splitlines(), 1):
        for closing, name in _MARK.findall(words):
            if name not in TABLES and name not in PRINTED:
                known = ", ".join([*TABLES, *PRINTED])
                raise TablesError(f"{file}:{line}: no table {name!r}; there are {known}")
            if (opened != name) if closing else (opened is not None):
                raise TablesError(f"{file}:{line}: marker of table {name!r} without its partner")
            opened = None if closing else name
    if opened is not None:
        raise TablesError(f"{file}: table {opened!r} is never closed")


def documents(root: Path) -> list[Path]:
    """README.md and every Markdown file under docs/."""
    return [file for file in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if file.is_file()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description="Rewrites the measured tables in README.md and docs/**/*.md from results files.",
        epilog="examples: python docs/tables.py; python docs/tables.py --check",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a document is stale")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the project's folder")
    options = parser.parse_args(arguments)
    stale = []
    try:
        for file in documents(options.root):
            before = file.read_text(encoding="utf-8")
            after = rewrite(before, file, options.root)
            if before == after:
                continue
            stale.append(file.relative_to(options.root))
            if not options.check:
                temporary = file.with_name(f".{file.name}.{os.getpid()}")
                temporary.write_text(after, encoding="utf-8")
                temporary.replace(file)
    except TablesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check and stale:
        print("stale: " + ", ".join(map(str, stale)) + "; run `python docs/tables.py`", file=sys.stderr)
        return 1
    print("rewrote " + ", ".join(map(str, stale)) if stale else "every table is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
