"""``python -m loadtests soak``: a long run at 80% of the capacity, and whether anything grows."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from loadtests.options import AnyTexts, MaxChars, Model, Repository, Seed, told


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long, after the capacity was measured.")] = 30.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two samples.")] = 10.0,
    rate: Annotated[float, typer.Option(help="Requests per second; 0 takes 80% of what is measured.")] = 0.0,
    bundles: Annotated[Path, typer.Option(help="Folder of exported bundles.")] = Path("artifacts"),
    repository: Repository = Path("model_repository"),
    model: Model = None,
    engine: Annotated[str, typer.Option(help="triton or onnx.")] = "triton",
    texts: AnyTexts = None,
    max_chars: MaxChars = 2000,
    seed: Seed = 13,
    out: Annotated[Path, typer.Option(help="Where soak.json and soak.png go.")] = Path("docs/bench"),
) -> None:
    """Loads a gateway of its own at a steady rate and says whether memory and latency are flat.

    Examples:

      python -m loadtests soak --minutes 30

      python -m loadtests soak --minutes 2 --every 2 --out /tmp
    """
    from loadtests.callers import Callers, read_asks
    from loadtests.machine import beginning
    from loadtests.own_gateway import OwnGateway
    from loadtests.run import find_model, write_json
    from loadtests.soak import SCHEMA, plot
    from loadtests.soak import soak as run

    options = ["--engine", engine, "--bundles", str(bundles.resolve()), "--model-repository", str(repository.resolve())]
    head = beginning(SCHEMA, "make soak", "aiohttp", "numpy")
    with (
        told(),
        tempfile.TemporaryDirectory(prefix="slipway-soak-") as folder,
        OwnGateway(options, Path(folder)) as gateway,
    ):
        found = find_model(gateway.host, model)
        name, pairs = str(found["name"]), found.get("task") == "text-pair"
        asks = read_asks(bundles, name, texts, pairs=pairs, max_chars=max_chars, seed=seed)
        callers = Callers(gateway.host, name, asks, timeout=60.0, seed=seed)
        figures = asyncio.run(run(gateway, callers, minutes=minutes, every=every, rate=rate, say=typer.echo))
    record = {
        **head,
        "load_after": round(os.getloadavg()[0], 2),
        "model": found,
        "engine": engine,
        "seed": seed,
        "texts": len(asks),
        **figures,
    }
    plot(record, out / "soak.png")
    write_json(out / "soak.json", record)
    for series, item in record["trends"].items():
        verdict = "flat" if item["flat"] else "NOT FLAT"
        line = f"{series}: {verdict}, median {item['median']}, {item['slope_per_hour']:+} per hour"
        allowed = f"+{item['allowed_share_per_hour']:.0%} per hour or +{item['allowed_in_all']:g} in all"
        share, chance = item["slope_share_per_hour"], item["chance"]
        typer.echo(f"{line} ({share:+.1%}; allowed {allowed}; by chance in {chance:.1%})")
    typer.echo(f"{record['requests']} requests, {record['refused']} refused, {record['faulty']} faulty")
    verdict = {True: "flat", False: "NOT FLAT", None: "too short to tell"}[record["flat"]]
    typer.echo(f"{verdict}; wrote {out}/soak.json and {out}/soak.png")
    if record["flat"] is False or record["faulty"]:
        raise typer.Exit(1)
