"""``python -m loadtests chaos``: starts a gateway, breaks things, and writes what callers saw."""

from __future__ import annotations

import asyncio
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer


def chaos(
    bundles: Annotated[Path, typer.Option(help="Folder of exported bundles; a tiny model will do.")] = Path(
        "artifacts"
    ),
    repository: Annotated[Path, typer.Option(help="Triton's folder of models, beside them.")] = Path(
        "model_repository"
    ),
    model: Annotated[str | None, typer.Option(help="Model to ask; the first one served by default.")] = None,
    engine: Annotated[str, typer.Option(help="triton or onnx; onnx leaves out what is about Triton.")] = "triton",
    texts: Annotated[
        Path | None, typer.Option(help="JSONL file of texts; the test split, or the golden rows, by default.")
    ] = None,
    max_chars: Annotated[int, typer.Option(help="Leave out longer texts.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same texts.")] = 13,
    out: Annotated[Path, typer.Option(help="Where chaos.json and chaos.md go.")] = Path("docs/bench"),
) -> None:
    """Kills, hangs and floods a gateway of its own, and compares every answer with the one from before.

    Examples:

      python -m loadtests chaos

      python -m loadtests chaos --bundles artifacts/news --engine onnx --out /tmp
    """
    from loadtests.chaos_report import markdown
    from loadtests.errors import LoadTestError
    from loadtests.run import write_json

    options = ["--engine", engine, "--bundles", str(bundles.resolve()), "--model-repository", str(repository.resolve())]
    try:
        with tempfile.TemporaryDirectory(prefix="slipway-chaos-") as folder:
            record = _run(options, Path(folder), bundles, model, texts, max_chars, seed)
    except LoadTestError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; nothing was written", err=True)
        raise typer.Exit(130) from error
    record["engine"] = engine
    write_json(out / "chaos.json", record)
    page = markdown(record)
    (out / ".chaos.md").write_text(page, encoding="utf-8")
    (out / ".chaos.md").replace(out / "chaos.md")
    typer.echo(f"\n{page}\nwrote   {out}/chaos.json and {out}/chaos.md")
    if record["failures"]:
        raise typer.Exit(1)


def _run(
    options: list[str], folder: Path, bundles: Path, model: str | None, texts: Path | None, max_chars: int, seed: int
) -> dict[str, Any]:
    from loadtests.callers import Callers, read_asks
    from loadtests.chaos import NEWCOMERS, SETTINGS, USERS, Chaos
    from loadtests.chaos_report import SCHEMA, failures, figures_of
    from loadtests.machine import commit, hardware, versions
    from loadtests.own_gateway import OwnGateway
    from loadtests.run import find_model

    load_before = round(os.getloadavg()[0], 2)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with OwnGateway(options, folder / "first", SETTINGS) as gateway:
        found = find_model(gateway.host, model)
        name, pairs = str(found["name"]), found.get("task") == "text-pair"
        asks = read_asks(bundles, name, texts, pairs=pairs, max_chars=max_chars, seed=seed)
        # Longer than the gateway's own bound, so that it is the one who ends a request.
        callers = Callers(gateway.host, name, asks, timeout=60.0, seed=seed)
        chaos = Chaos(gateway, callers, typer.echo)
        asyncio.run(chaos.run())
    # A disk without a free byte, for Triton's log and for what the gateway says.
    full = folder / "full"
    full.mkdir()
    (full / "triton.log").symlink_to("/dev/full")
    with OwnGateway(options, full, SETTINGS, say=Path("/dev/full")) as gateway:
        second = Chaos(gateway, callers.at(gateway.host), typer.echo)
        asyncio.run(second.full_disk())
    rows = [figures_of(blow) for blow in (*chaos.blows, *second.blows)]
    return {
        "schema": SCHEMA,
        "created": created,
        "command": "make chaos",
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions("aiohttp"),
        "load_before": load_before,
        "model": found,
        "seed": seed,
        "users": USERS,
        "newcomers_per_second": NEWCOMERS,
        "texts": len(asks),
        "settings": SETTINGS,
        "capacity_texts_per_second": round(chaos.capacity, 1),
        "blows": rows,
        "failures": failures(rows),
    }
