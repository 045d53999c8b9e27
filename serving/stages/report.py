"""Rounds → medians, ratios and a page to read."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What is asked of the gateway with the embedded engine (the aims of the project).
LEAST_SHARE, MOST_ADDED_MS = 0.85, 1.5
_STAGES = ("tokenize", "queue", "infer", "decode", "total")
_PARTS = ("queue", "input", "compute", "output")


@dataclass(frozen=True, slots=True)
class Round:
    """What one candidate did in one round.

    Attributes:
        rate: texts a second on the mix, all clients asking.
        ms: of each request of the mix.
        short_ms: median of the short text, one client asking.
        server_cpu, client_cpu: CPU milliseconds for a text of the mix.
        client_share: of the machine's processor time in the round, what the load generator took, in cores.
        counters: what the gateway counted over the mix.
    """

    rate: float
    ms: list[float]
    short_ms: float
    server_cpu: float
    client_cpu: float
    client_share: float
    wrong: int
    counters: Mapping[str, float]

    @classmethod
    def of(cls, mix: Mapping[str, Any], one: Mapping[str, Any], counters: Mapping[str, float]) -> Round:
        count = mix["texts"]
        return cls(
            count / mix["seconds"],
            mix["ms"],
            statistics.median(one["ms"]),
            mix["cpu_seconds"] / count * 1000,
            mix["client_cpu_seconds"] / count * 1000,
            mix["client_cpu_seconds"] / mix["seconds"],
            mix["wrong"] + one["wrong"],
            counters,
        )


def summary(rounds: Sequence[Mapping[str, Round]]) -> dict[str, Any]:
    """Medians over rounds of each candidate, and its ratios to the bare engine within the rounds."""
    found: dict[str, Any] = {}
    for name in rounds[0]:
        own = [item[name] for item in rounds]
        ms = sorted(value for item in own for value in item.ms)
        found[name] = {
            "texts_per_second": _spread([item.rate for item in own]),
            "of_bare": _spread([item[name].rate / item["bare"].rate for item in rounds]),
            "added_ms_at_p50_of_a_short_text": _spread(
                [item[name].short_ms - item["bare"].short_ms for item in rounds]
            ),
            "short_text_ms": _spread([item.short_ms for item in own]),
            "cpu_of_bare": _spread([item["bare"].server_cpu / (item[name].server_cpu or math.inf) for item in rounds]),
            "server_cpu_ms_per_text": _spread([item.server_cpu for item in own]),
            "client_cpu_ms_per_text": _spread([item.client_cpu for item in own]),
            "client_cores": _spread([item.client_share for item in own]),
            "wrong": sum(item.wrong for item in own),
        }
        if name != "bare":  # its texts do not wait for each other
            found[name]["ms"] = {f"p{share}": round(_at(ms, share / 100), 2) for share in (50, 90, 99)}
        if own[0].counters:
            found[name]["stages_ms"] = _stages(own)
    return {"candidates": found}


def _stages(own: Sequence[Round]) -> dict[str, float]:
    """Mean milliseconds of each stage of a request over all rounds, as the gateway and Triton counted them."""

    def total(pattern: str) -> float:
        known = re.compile(pattern)
        return sum(value for item in own for name, value in item.counters.items() if known.fullmatch(name))

    def mean(sums: str, counts: str) -> float:
        count = total(counts)
        return round(total(sums) / count * 1000, 3) if count else 0.0

    route = r'\{route="/v1/models/\{model\}/predict"\}'
    found = {"whole request": mean(f"slipway_request_seconds_sum{route}", f"slipway_request_seconds_count{route}")}
    for stage in _STAGES:
        labels = rf'\{{model="[^"]*",stage="{stage}"\}}'
        found[stage] = mean(f"slipway_stage_seconds_sum{labels}", f"slipway_stage_seconds_count{labels}")
    found["HTTP, JSON, routing"] = round(found["whole request"] - found["total"], 3)
    if total(r"slipway_triton_calls_total\{.*"):
        for part in _PARTS:
            sums = rf'slipway_triton_seconds_total\{{model="[^"]*",part="{part}"\}}'
            found[f"Triton {part}"] = mean(sums, r"slipway_texts_total\{.*")
        found["windows in a computation"] = round(
            total(r"slipway_triton_windows_total\{.*") / max(1.0, total(r"slipway_triton_computations_total\{.*")), 2
        )
    elif count := total(r"slipway_batch_windows_count\{.*"):
        found["windows in a computation"] = round(total(r"slipway_batch_windows_sum\{.*") / count, 2)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    hardware, candidates = found["hardware"], found["candidates"]
    lines = [
        f"# Stages of `{found['model']}`",
        "",
        f"`make stages`: the whole HTTP path beside the bare engine, {found['rounds']} interleaved rounds after one "
        f"that does not count. {found['texts']} texts of the dev split a round, one a request, {found['clients']} "
        f"clients in a closed loop (median {found['tokens']['median']} tokens, longest {found['tokens']['longest']}; "
        f"up to {found['windows']['most']} windows); then a text of {found['short_tokens']} tokens "
        f"{found['shorts']} times, one client. Form `{found['form']}`, {found['sessions']} session(s) × "
        f"{found['threads']} thread(s) everywhere.",
        "",
        "| | texts/s | of bare | … without the client's CPU | p50, p90, p99 ms | short text ms | added ms | "
        "server CPU ms | bare's share of it | client CPU ms | not 200 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, item in candidates.items():
        ms = item.get("ms")
        free = 1 - item["client_cores"]["median"] / hardware["cores"]
        lines.append(
            f"| {name} | {_told(item['texts_per_second'], 1)} | {_told(item['of_bare'], 3)} | "
            f"{item['of_bare']['median'] / free:.3f} | "
            f"{', '.join(f'{value:.0f}' for value in ms.values()) if ms else '–'} | "
            f"{_told(item['short_text_ms'], 2)} | {_told(item['added_ms_at_p50_of_a_short_text'], 2)} | "
            f"{item['server_cpu_ms_per_text']['median']:.2f} | {item['cpu_of_bare']['median']:.3f} | "
            f"{item['client_cpu_ms_per_text']['median']:.2f} | "
            f"{item['wrong']} |"
        )
    lines += [
        "",
        "Medians of the rounds, in brackets their extremes; ratios are taken within a round. The load generator runs "
        "on the same cores: its CPU time is shown, and the third column is the second divided by the share of cores "
        "that it left. CPU times tell more than clock times where other work shares the machine.",
        "",
        "Mean ms of a request on the mix, as the gateway counted (waiting for the processor included; `infer` includes "
        "`queue`; Triton's parts are summed over the calls of a request):",
        "",
    ]
    staged = {name: item["stages_ms"] for name, item in candidates.items() if "stages_ms" in item}
    rows = list(dict.fromkeys(stage for item in staged.values() for stage in item))
    lines += [f"| | {' | '.join(staged)} |", f"| --- |{' ---: |' * len(staged)}"]
    lines += [f"| {row} | {' | '.join(str(item.get(row, '–')) for item in staged.values())} |" for row in rows]
    lines += [
        "",
        "What the gateway does itself for the short text, each step alone, µs: "
        + ", ".join(f"{name} {value:g}" for name, value in found["steps_us"].items())
        + f"; together {sum(found['steps_us'].values()):.0f}.",
        "",
        *_verdicts(candidates),
        "",
        f"Commit {found['commit']}, {hardware['cpu']}, {hardware['cores']} cores ({', '.join(hardware['isa'])}), "
        f"{hardware['memory_gib']} GiB, {hardware['system']}, load before {found['load_before']}. "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + f". Seed {found['seed']}.",
        "",
    ]
    return "\n".join(lines)


def _verdicts(candidates: Mapping[str, Any]) -> list[str]:
    if (item := candidates.get("gateway, onnx")) is None:
        return []
    share, added = item["of_bare"]["median"], item["added_ms_at_p50_of_a_short_text"]["median"]
    shared, short = ("reached" if item else "missed" for item in (share >= LEAST_SHARE, added <= MOST_ADDED_MS))
    return [
        f"Aims for the embedded engine: at least {LEAST_SHARE:.0%} of the bare engine's throughput: {share:.1%}, "
        f"{shared}; at most {MOST_ADDED_MS} ms more at p50 for a short text: {added:.2f} ms, "
        f"{short}."
    ]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def _told(spread: Mapping[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['least']:.{digits}f}–{spread['most']:.{digits}f})"


def _at(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
