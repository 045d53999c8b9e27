"""``python -m loadtests run``: the command line of the load test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from loadtests.chaos_command import chaos
from loadtests.options import AllowRemote, Host, MaxChars, Model, Seed, TestTexts, told
from loadtests.soak_command import soak

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


app.command()(chaos)
app.command()(soak)


@app.callback()
def loadtests() -> None:
    """Puts real load on a running gateway and measures what its callers see."""


@app.command()
def run(
    host: Host = "http://127.0.0.1:8000",
    model: Model = None,
    users: Annotated[
        int | None,
        typer.Option(help="Callers of a closed loop (default 8), or most connections of an open loop (default 64)."),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Open loop: requests per second, sent whether or not the gateway keeps up.")
    ] = 0.0,
    arrivals: Annotated[str, typer.Option(help="Gaps between the starts of an open loop: steady or poisson.")] = (
        "steady"
    ),
    seconds: Annotated[float, typer.Option(help="Measured seconds, after the warm-up.")] = 30.0,
    warmup: Annotated[float, typer.Option(help="Seconds of load before, not counted.")] = 3.0,
    max_requests: Annotated[int, typer.Option(help="Stop after so many requests.")] = 200_000,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request counts as failed.")] = 30.0,
    seed: Seed = 13,
    short_share: Annotated[float, typer.Option(help="Share of requests that are one sentence, 0 to 1.")] = 0.7,
    texts: TestTexts = None,
    max_chars: MaxChars = 5000,
    max_error_share: Annotated[float, typer.Option(help="Exit with 1 when more requests fail, 0 to 1.")] = 0.01,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("artifacts/loadtest"),
    publish: Annotated[
        Path | None, typer.Option(help="Write the summary there too, such as docs/bench/loadtest-news.json.")
    ] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Loads the gateway with a seeded mix of short and long real texts.

    [bold]Closed loop[/bold] (default): each user sends its next request when the last one is answered.

    [bold]Open loop[/bold] (--rate): requests start on a fixed schedule, and latency counts from the intended start.

    Examples:

      python -m loadtests run

      python -m loadtests run --users 32 --seconds 60

      python -m loadtests run --rate 40 --arrivals poisson --model news
    """
    from pydantic import ValidationError
    from rich.console import Console

    from loadtests.plan import CLOSED_USERS, OPEN_USERS, Plan, check_host
    from loadtests.run import REPORT, ROWS, SUMMARY, default_texts, find_model, write_json
    from loadtests.run import run as load

    console = Console(highlight=False)
    begun = time.monotonic()
    with told():
        try:
            host = check_host(host, allow_remote=allow_remote)
            found = find_model(host, model)
            name = str(found["name"])
            plan = Plan.model_validate(
                {
                    "host": host,
                    "model": name,
                    "texts": (texts or default_texts(name)).resolve(),
                    "users": users if users is not None else OPEN_USERS if rate else CLOSED_USERS,
                    "rate": rate,
                    "arrivals": arrivals,
                    "seconds": seconds,
                    "warmup": warmup,
                    "max_requests": max_requests,
                    "timeout": timeout,
                    "seed": seed,
                    "short_share": short_share,
                    "max_chars": max_chars,
                }
            )
            loop = (
                f"{rate:g} requests/s, {arrivals}, at most {plan.users} connections" if rate else f"{plan.users} users"
            )
            console.print(f"reads   {texts or default_texts(name)}", soft_wrap=True, markup=False)
            timing = f"{warmup:g} s warm-up + {seconds:g} s, seed {seed}"
            console.print(f"loads   {host}{plan.url}, {loop}, {timing}", soft_wrap=True, markup=False)
            with _Bar(console, plan.span) as bar:
                summary = load(plan, found, out, bar.show)
            if publish:
                write_json(publish, summary)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            typer.echo(f"error: {option} {first.get('input')}: {first['msg']}", err=True)
            raise typer.Exit(2) from error
    console.print(latency_table(summary))
    for line in sentences(summary):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"took    {time.monotonic() - begun:.1f} s")
    share = summary["errors"]["share"]
    failed = share > max_error_share or not summary["requests"]
    if failed:
        reason = (
            f"{share:.2%} of the requests failed"
            if summary["requests"]
            else "no request was measured, the warm-up took all"
        )
        typer.echo(f"error: {reason}; allowed are {max_error_share:.2%}", err=True)
    wrote = f"{out}/{{{SUMMARY},{ROWS},{REPORT}}}" + (f" and {publish}" if publish else "")
    console.print(f"results are in {wrote}; open {out / REPORT} in a browser", soft_wrap=True, markup=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def bulk(
    host: Host = "http://127.0.0.1:8000",
    model: Model = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines to send.")] = 10_000,
    characters: Annotated[
        int, typer.Option(min=0, help="Instead: one text of so many characters, joined from real ones.")
    ] = 0,
    short_share: Annotated[float, typer.Option(help="Share of lines that are one sentence, 0 to 1.")] = 0.7,
    seed: Annotated[int, typer.Option(help="The same seed sends the same lines.")] = 13,
    timeout: Annotated[float, typer.Option(help="Seconds for all of it.")] = 3600.0,
    texts: TestTexts = None,
    publish: Annotated[
        Path | None, typer.Option(help="Write the figures there, such as docs/bench/bulk-news.json.")
    ] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Sends many lines through the NDJSON route, or one very long text, and watches the gateway's memory.

    Examples:

      python -m loadtests bulk --lines 10000 --short-share 1

      python -m loadtests bulk --characters 1000000     (the server: SLIPWAY_MAX_WINDOWS=20000)
    """
    from rich.console import Console
    from rich.progress import Progress

    from loadtests.bulk import bulk as send
    from loadtests.bulk import make_lines, record
    from loadtests.plan import check_host
    from loadtests.run import default_texts, find_model, write_json

    console = Console(highlight=False, soft_wrap=True)
    with told():
        host = check_host(host, allow_remote=allow_remote)
        found = find_model(host, model)
        name = str(found["name"])
        file = texts or default_texts(name)
        console.print(f"reads   {file}", markup=False)
        chosen = make_lines(file, count=lines, characters=characters, seed=seed, short_share=short_share)
        size = f"{len(chosen):,} lines, {sum(map(len, chosen)):,} characters"
        console.print(f"sends   {host}/v1/models/{name}/predict/stream, {size}", markup=False)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("answers", total=len(chosen))
            figures = send(
                host, name, chosen, timeout=timeout, progress=lambda done, total: bar.update(task, completed=done)
            )
        if publish:
            plan = {"lines": lines, "characters": characters, "short_share": short_share, "seed": seed}
            write_json(publish, record(figures, plan, found))
    memory = figures["gateway_mib"]
    console.print(
        f"answers {figures['answered']:,} of {figures['lines']:,} lines in {figures['seconds']} s, the first after "
        f"{figures['seconds_to_first_answer']} s; {figures['covered_whole']:,} texts read whole"
    )
    console.print(
        f"through {figures['lines_per_second']} lines/s, {figures['windows_per_second']} windows/s, "
        f"{figures['characters_per_second']:,} characters/s"
    )
    console.print(f"errors  {figures['errors'] or 'none'}", markup=False)
    console.print(
        f"memory  of the gateway: {memory['before']} MiB before, {memory['highest']} at most, {memory['after']} after"
    )
    if publish:
        console.print(f"wrote   {publish}", markup=False)
    if figures["answered"] != figures["lines"]:
        typer.echo("error: the stream ended before every line was answered", err=True)
        raise typer.Exit(1)


@app.command()
def overload(
    host: Host = "http://127.0.0.1:8000",
    model: Model = None,
    factor: Annotated[float, typer.Option(min=1, help="So many times the peak is offered.")] = 10.0,
    users: Annotated[str, typer.Option(help="Numbers of users to try for the peak, with commas.")] = "4,8,16,32",
    rounds: Annotated[int, typer.Option(min=1, help="Of peak and overload, one after the other.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Measured seconds of each.")] = 15.0,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Seconds of each before, not counted; by default the deadline.")
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.01, help="Seconds within which an answer is in time.")] = 10.0,
    connections: Annotated[int, typer.Option(min=1, help="Most connections of the open loop.")] = 480,
    short_share: Annotated[float, typer.Option(min=0, max=1, help="Share of requests that are one sentence.")] = 0.7,
    seed: Seed = 13,
    texts: TestTexts = None,
    max_chars: MaxChars = 5000,
    obedient: Annotated[
        bool, typer.Option(help="Also so many times the users, who come back when they are told to.")
    ] = False,
    min_ratio: Annotated[
        float, typer.Option(help="Exit with 1 when less of the peak is kept, in requests or in tokens, 0 to 1.")
    ] = 0.9,
    publish: Annotated[
        Path | None, typer.Option(help="Write the figures there, such as docs/bench/overload-news-onnx.json.")
    ] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Offers ten times what the gateway can do, and measures what it still does right and in time.

    Examples:

      python -m loadtests overload

      python -m loadtests overload --users 16 --rounds 5 --publish docs/bench/overload-news-onnx.json
    """

    from rich.console import Console

    from loadtests.errors import LoadTestError
    from loadtests.machine import beginning
    from loadtests.overload import SCHEMA, Load, engine_of
    from loadtests.overload import overload as measure
    from loadtests.plan import check_host
    from loadtests.run import default_texts, find_model, write_json
    from loadtests.texts import read_mix

    console = Console(highlight=False, soft_wrap=True)
    with told():
        host = check_host(host, allow_remote=allow_remote)
        found = find_model(host, model)
        name = str(found["name"])
        file = texts or default_texts(name)
        pairs = found.get("task") == "text-pair"
        mix = read_mix(file, short_share=short_share, seed=seed, max_chars=max_chars, pairs=pairs)
        levels = [int(part) for part in users.split(",") if part.strip().isdecimal() and int(part)]
        if not levels:
            raise LoadTestError(f"--users {users}: name numbers of users, such as 8,16")
        console.print(f"loads   {host}, {name}, texts of {file}, answers in time within {deadline:g} s", markup=False)
        head = beginning(SCHEMA, "python -m loadtests overload", "httptools")
        engine = engine_of(host, name)
        warmup = deadline if warmup is None else warmup
        load = Load(host, name, mix, deadline, seconds, warmup, connections)
        figures = measure(
            load,
            users=levels,
            factor=factor,
            rounds=rounds,
            seed=seed,
            obedient=obedient,
            say=lambda sentence: console.print(sentence, markup=False),
        )
        if publish:
            plan = {
                "factor": factor,
                "rounds": rounds,
                "seconds": seconds,
                "warmup": warmup,
                "deadline": deadline,
                "connections": connections,
                "short_share": short_share,
                "seed": seed,
                "texts": file.name,
                "max_chars": max_chars,
            }
            write_json(publish, {**head, "engine": engine, "model": found, "plan": plan, **figures})
            console.print(f"wrote   {publish}", markup=False)
    ratio, last = figures["goodput_ratio"], figures["rounds"][-1]["overload"]
    console.print(f"keeps   {ratio['tokens']:.0%} of the peak in tokens, {ratio['requests']:.0%} in requests (medians)")
    left = figures["goodput_ratio_per_core_left"]
    console.print(
        f"machine the generator took {last['generator_cpu_cores']} cores; for each core that it left, "
        f"{left['tokens']:.0%} in tokens, {left['requests']:.0%} in requests"
    )
    for length, row in last["by_length"].items():
        console.print(f"length  {length}: {row['in_time']} of {row['offered']} in time ({row['share']:.1%})")
    console.print(f"came    {last['outcomes']} in the last round; answers {last['in_time_ms']} ms", markup=False)
    console.print(f"refused within {last['refusal_ms']} ms; told to wait {last['retry_after_seconds']} s", markup=False)
    if figures["refusals_without_retry_after"]:
        typer.echo(f"error: {figures['refusals_without_retry_after']} refusals did not say when to come back", err=True)
        raise typer.Exit(1)
    if min(ratio.values()) < min_ratio:
        typer.echo(f"error: {min(ratio.values()):.0%} of the peak is kept; asked for are {min_ratio:.0%}", err=True)
        raise typer.Exit(1)


def latency_table(summary: dict[str, Any]) -> Table:
    """The latencies of a summary as a table for the terminal."""
    from rich.table import Table

    open_loop = summary["mode"] == "open"
    table = Table(title=f"Latency in ms{', from the intended start' if open_loop else ''}", title_justify="left")
    table.add_column("requests")
    for column in ("n", "p50", "p95", "p99", "max", "tokens (median)", "windows (median)"):
        table.add_column(column, justify="right")
    for kind, row in summary["latency"].items():
        values = [row["p50_ms"], row["p95_ms"], row["p99_ms"], row["max_ms"]]
        cells = ["—" if value is None else f"{value:.1f}" for value in values]
        rest = ["—" if row[key] is None else str(row[key]) for key in ("median_tokens", "median_windows")]
        table.add_row(kind, str(row["n"]), *cells, *rest)
    return table


def sentences(summary: dict[str, Any]) -> list[str]:
    """The other figures of a summary, a line each."""
    throughput, errors, hardware = summary["throughput"], summary["errors"], summary["hardware"]
    kinds = ", ".join(f"{kind}: {count}" for kind, count in errors["by_kind"].items())
    speed = f"{throughput['requests_per_second']} requests/s, {throughput['tokens_per_second']} tokens/s"
    lines = [
        f"through {speed} over {summary['measured_seconds']} s",
        f"errors  {errors['count']} of {summary['requests']} ({errors['share']:.2%}){f': {kinds}' if kinds else ''}",
    ]
    if summary["stages"]:
        named = ((stage.replace("_", " "), max(share, 0)) for stage, share in summary["stages"].items())
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in named)
        lines.append(f"stages  {shares} of the callers' time")
    if summary["waited_for_connection_ms"]:
        waits = summary["waited_for_connection_ms"]
        lines.append(f"waits   for a free connection: p50 {waits['p50_ms']} ms, p99 {waits['p99_ms']} ms")
    left_out = summary["texts"]["left_out"]
    lines.append(
        f"texts   {summary['texts']['short']} short, {summary['texts']['long']} long; {left_out} longer than "
        f"{summary['plan']['max_chars']} characters left out"
    )
    lines.append(
        f"on      {hardware['cpu']}, {hardware['cores']} cores, of which the load generator used "
        f"{summary['generator_cpu_cores']}; commit {summary['commit']}"
    )
    return lines


class _Bar:
    """The progress bar, fed with what the Locust process reports."""

    def __init__(self, console: Any, span: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task("load", total=span, state="starting Locust")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, state: dict[str, Any]) -> None:
        failed = sum(state["errors"].values())
        text = f"{state['requests']} requests, {failed} errors"
        self._progress.update(self._task, completed=state["elapsed"], state=text)


if __name__ == "__main__":
    app()
