"""What a plan tells the person: the choices, the table with its sample counts, and the machine it was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bundle.manifest import Aim, Duel, Plan, Runtime, Setup, Trial
from bundle.plan import described
from export.journal import Journal

if TYPE_CHECKING:
    from rich.table import Table

    from bundle.folder import Bundle

SCHEMA = "slipway.plan/1"

RUNTIMES: dict[Runtime, str] = {"onnxruntime": "ONNX RT", "openvino": "OpenVINO", "paddle-inference": "Paddle"}
# Lines of the table that is printed; the manifest has them all.
PRINTED = 12
AIM_TOLD: dict[Aim, str] = {
    "latency": "lowest p50 of one request",
    "throughput": "most texts/s under the p99 limit",
}


def tell(
    plan: Plan, quick: Mapping[Aim, Setup], regret: Mapping[Aim, float], journal: Journal, driven: int | None = None
) -> None:
    """Prints a plan.

    Args:
        quick, regret: the quick search's choices and how far they are from an exhaustive search's best; empty
            where only one of them was made.
        driven: rounds that were measured now, the others being kept ones.
    """
    journal.console.print(table(plan))
    journal.say(
        f"    {plan.sample} dev texts, {plan.windows_per_text:.1f} windows and {plan.tokens_per_text:.0f} tokens each; "
        f"medians of interleaved rounds, relative to the defaults in the same rounds; {plan.warmup} requests of "
        "warm-up; of fewer than 100 requests p99 is the slowest; tokenizing and HTTP are not in it"
    )
    if driven is not None:
        journal.say(f"    {driven} rounds were measured now, others are kept ones")
    for aim, told in AIM_TOLD.items():
        journal.say(f"    {aim} ({told}): {plan.choice(aim)}")
        if aim in plan.instead:
            journal.say(f"        where OpenVINO is not installed: {plan.instead[aim]}")
        if aim in regret:
            share = 100 * max(0.0, regret[aim])
            journal.say(f"        the quick search chose {quick[aim]}: {share:.1f}% behind the exhaustive best")
    journal.say(f"    p99 limit under {plan.clients} clients: {plan.p99_limit_ms:.0f} ms")
    for duel in plan.vs_defaults:
        journal.say(f"    {duelled(duel, plan.clients)}")
    runtimes = ", ".join(f"{name} {version}" for name, version in plan.machine.versions.items())
    journal.say(
        f"    on {described(plan.machine)}, {plan.machine.memory_gib:.0f} GiB, load {plan.load_before:.1f} before; "
        f"{runtimes}; commit {plan.commit}; {plan.seconds:.0f} s"
    )


def duelled(duel: Duel, clients: int) -> str:
    """One comparison as a sentence."""
    return (
        f"{clients} clients: {duel.ratio:.2f}× the throughput of {duel.against} "
        f"({duel.lowest:.2f}–{duel.highest:.2f} in {duel.rounds} interleaved rounds, {duel.requests} requests each)"
    )


def table(plan: Plan) -> Table:
    """The best setups for either aim and the defaults."""
    from rich.table import Table

    title = f"{len(plan.table)} setups, the best of either aim"
    made = Table(title=title, title_justify="left", caption_justify="left", padding=0)
    made.add_column("", no_wrap=True)
    made.add_column("form", no_wrap=True)
    made.add_column("runtime", no_wrap=True)
    for column in ("s×t", "win", "p50", "p99", "×", "n", "text/s", "p99", "×", "n"):
        made.add_column(column, justify="right", no_wrap=True)
    for trial in printed(plan):
        marks = [mark for mark, setup in (("L", plan.latency), ("T", plan.throughput)) if trial.setup == setup]
        marks += ["="] if trial.setup == plan.defaults else []
        setup = trial.setup
        size = f"{setup.windows}{'' if setup.by_length else 'p'}"
        made.add_row(
            *("".join(marks), setup.artifact.removeprefix("onnx_"), RUNTIMES[setup.runtime]),
            *(f"{setup.sessions}×{setup.threads or '-'}", size),
            *(_figure(trial.p50_ms, 1), _figure(trial.p99_ms, 1), _figure(trial.speedup, 2), str(trial.requests)),
            *(_figure(trial.texts_per_second, 1), _figure(trial.loaded_p99_ms, 0)),
            *(_figure(trial.throughput_ratio, 2), str(trial.loaded_requests)),
        )
    made.caption = (
        "s×t: sessions × threads; win: windows of a computation at most, p: padded as they come; then one request at a "
        f"time, and {plan.clients} clients (ms); ×: relative to the defaults (=); L, T: chosen for latency, throughput"
    )
    return made


def printed(plan: Plan) -> list[Trial]:
    """The lines to print, in the order of the table."""
    fast = sorted(plan.table, key=lambda trial: -(trial.speedup or 0))[: PRINTED // 2]
    much = plan.table[: PRINTED // 2]
    # Of each other runtime the best at least, so that it is seen how far it is behind.
    others = [
        next((trial for trial in order if trial.setup.runtime == runtime), None)
        for order in (sorted(plan.table, key=lambda trial: -(trial.speedup or 0)), plan.table)
        for runtime in RUNTIMES
    ]
    shown = (*fast, *much, *filter(None, others))
    kept = {plan.latency, plan.throughput, plan.defaults, *(trial.setup for trial in shown)}
    return [trial for trial in plan.table if trial.setup in kept]


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def results(bundle: Bundle) -> str:
    """The plan as a results file: what was chosen, against what, where and with what. The table is in the manifest."""
    made = bundle.manifest.plan
    assert made is not None
    record = {
        "schema": SCHEMA,
        "command": f"make plan RECIPE={bundle.name}" + (" ARGS=--exhaustive" if made.search == "exhaustive" else ""),
        "bundle": bundle.name,
        "published": bundle.manifest.published,
        "hardware": made.machine.model_dump(mode="json", exclude={"versions"}),
        "versions": made.machine.versions,
        **made.model_dump(mode="json", exclude={"table", "machine", "artifacts", "dev_sha256"}),
    }
    described = [(name, getattr(made, name)) for name in ("latency", "throughput", "defaults")]
    record |= {name: {**setup.model_dump(mode="json"), "told": str(setup)} for name, setup in described}
    for duel, each in zip(made.vs_defaults, record["vs_defaults"], strict=True):
        each["told"] = str(duel.against)
    alone = next((trial.speedup for trial in made.table if trial.setup == made.latency), None)
    return json.dumps(record | {"latency_speedup": alone}, ensure_ascii=False, indent=1) + "\n"
