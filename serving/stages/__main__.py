"""`make stages`: measures the whole HTTP path on both engines beside the bare engine and a plain FastAPI loop.

    python -m serving.stages artifacts/news/bundle --repository model_repository

Rounds are interleaved: each runs every candidate once, in a seeded random order, on the same texts, so that a slow
minute of the machine hits all of them alike. Ratios are taken within a round.
"""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bundle.errors import BundleError, SlipwayError
from bundle.folder import open_bundle
from bundle.machine import commit, hardware, load, versions
from serving.stages.bare import served, texts_of
from serving.stages.processes import Candidate, Served, candidates
from serving.stages.report import Round, summary, table
from serving.stages.steps import steps

# Tokens of the text that stands for a short one.
SHORT_TOKENS = 24
PACKAGES = (
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "pydantic",
    "tokenizers",
    "tritonclient",
    "grpcio",
)


def main(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle, such as artifacts/news/bundle.")],
    repository: Annotated[Path, typer.Option(help="Triton's folder of models.")] = Path("model_repository"),
    engines: Annotated[str, typer.Option(help="Engines of the gateway, with commas.")] = "onnx,triton",
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; one more before them is not.")] = 7,
    texts: Annotated[int, typer.Option(min=1, help="Texts of the dev split in a round, at most.")] = 200,
    shorts: Annotated[int, typer.Option(min=1, help="Times that the short text is asked in a round.")] = 100,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at the same time.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the choice and the order.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for stages-<model>.json and .md.")] = Path("docs/bench"),
) -> None:
    """Measure the HTTP path beside the bare engine and write the report."""
    # However it is ended, the candidates end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found = measure(bundle, repository, engines.split(","), rounds, texts, shorts, clients, seed)
    except SlipwayError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    out.mkdir(parents=True, exist_ok=True)
    page = table(found)
    for suffix, text in (("json", json.dumps(found, ensure_ascii=False, indent=1) + "\n"), ("md", page)):
        place = out / f"stages-{found['model']}.{suffix}"
        half = place.with_suffix(f".{suffix}.part")
        half.write_text(text, encoding="utf-8")
        half.replace(place)
    typer.echo(page)


def measure(
    bundle: Path,
    repository: Path,
    engines: list[str],
    rounds: int,
    texts: int,
    shorts: int,
    clients: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that the report tells.

    Raises:
        SlipwayError: the bundle cannot be measured, or a candidate does not start.
    """
    dice = random.Random(seed)
    name = open_bundle(bundle, verify=False).name
    model = served(bundle, name)
    task = model.manifest.task
    if task.kind == "text-pair" or not task.classifies:
        raise BundleError(f"{bundle}: the stages are measured on a model that classifies single texts")
    rows = texts_of(model)
    bodies = [json.dumps({"inputs": text, "truncate": True}, ensure_ascii=False) for text in rows]
    mix = sorted(dice.sample(range(len(rows)), min(texts, len(rows))))
    encoded = {place: model.encoder.encode(rows[place], truncate=True) for place in mix}
    short = min(mix, key=lambda place: (len(encoded[place].windows), abs(encoded[place].tokens - SHORT_TOKENS)))
    busy = load()
    counted: list[dict[str, Round]] = []
    with candidates(bundle, name, repository, engines, bodies, clients) as all_of_them:
        for number in range(rounds + 1):
            order = dice.sample(mix, len(mix))
            this: dict[str, Round] = {}
            for candidate in dice.sample(all_of_them, len(all_of_them)):
                this[candidate.name] = _round(candidate, order, short, shorts, clients)
            typer.echo(
                f"round {number} of {rounds}{'' if number else ' (not counted)'}: "
                + "; ".join(f"{key} {item.rate:.1f}/s, {item.short_ms:.2f} ms" for key, item in sorted(this.items())),
                err=True,
            )
            if number:
                counted.append(this)
    windows = sorted(len(item.windows) for item in encoded.values())
    tokens = sorted(item.tokens for item in encoded.values())
    how = model.running
    return {
        "model": name,
        "form": model.format,
        "architecture": model.manifest.made.architecture,
        "sessions": how.sessions,
        "threads": how.threads,
        "windows_together": how.windows,
        "clients": clients,
        "texts": len(mix),
        "tokens": {"median": tokens[len(tokens) // 2], "longest": tokens[-1]},
        "windows": {"median": windows[len(windows) // 2], "most": windows[-1]},
        "short_tokens": encoded[short].tokens,
        "shorts": shorts,
        "rounds": rounds,
        "seed": seed,
        "commit": commit(),
        "hardware": hardware(),
        "load_before": busy,
        "versions": versions(PACKAGES),
        "steps_us": steps(model, bodies[short]),
        **summary(counted),
    }


def _round(candidate: Candidate, order: list[int], short: int, shorts: int, clients: int) -> Round:
    """One candidate's share of a round: the mix with all clients, then the short text with one."""
    gateway = candidate if isinstance(candidate, Served) and candidate.name.startswith("gateway") else None
    before = gateway.metrics() if gateway else {}
    mix = candidate.run(order, clients)
    after = gateway.metrics() if gateway else {}
    one = candidate.run([short] * shorts, 1)
    return Round.of({**mix, "texts": len(order)}, one, {name: after[name] - before.get(name, 0.0) for name in after})


if __name__ == "__main__":
    typer.run(main)
