"""``python -m loadtests chaos``: starts a gateway, breaks things, and writes what callers saw."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtests.options import AnyTexts, MaxChars, Model, Repository, told

# The room is imported when the command runs: `--help` and the other commands do without.


def chaos(
    bundles: Annotated[Path, typer.Option(help="Folder of exported bundles; a tiny model will do.")] = Path(
        "artifacts"
    ),
    repository: Repository = Path("model_repository"),
    model: Model = None,
    engine: Annotated[str, typer.Option(help="triton or onnx; onnx leaves out what is about Triton.")] = "triton",
    texts: AnyTexts = None,
    max_chars: MaxChars = 2000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same texts.")] = 13,
    out: Annotated[Path, typer.Option(help="Where chaos.json and chaos.md go.")] = Path("docs/bench"),
) -> None:
    """Kills, hangs and floods a gateway of its own, and compares every answer with the one from before.

    Examples:

      python -m loadtests chaos

      python -m loadtests chaos --bundles artifacts/news --engine onnx --out /tmp
    """
    from loadtests.chaos_report import markdown
    from loadtests.run import write_json

    with told(), tempfile.TemporaryDirectory(prefix="slipway-chaos-") as folder:
        copy = _two_versions(bundles, repository, model, Path(folder))
        options = ["--engine", engine, "--bundles", str(copy / "artifacts"), "--model-repository",
                   str(copy / "model_repository")]  # fmt: skip
        record = _run(options, copy, texts, max_chars, seed)
    record["engine"] = engine
    write_json(out / "chaos.json", record)
    page = markdown(record)
    (out / ".chaos.md").write_text(page, encoding="utf-8")
    (out / ".chaos.md").replace(out / "chaos.md")
    typer.echo(f"\n{page}\nwrote   {out}/chaos.json and {out}/chaos.md")
    if record["failures"]:
        raise typer.Exit(1)


def _two_versions(bundles: Path, repository: Path, model: str | None, folder: Path) -> Path:
    """A folder with one model of two versions that have the same weights; nothing is written where it came from.

    Raises:
        LoadTestError: there is no such model, or it cannot be kept.
    """
    from loadtests.chaos import KEPT, SERVED
    from loadtests.errors import LoadTestError
    from loadtests.own_gateway import ROOT

    places = [bundles, *sorted(bundles.glob("*")), *sorted(bundles.glob("*/bundle"))]
    names = {str(json.loads((place / "bundle.json").read_text(encoding="utf-8"))["name"]): place for place in places
             if (place / "bundle.json").is_file()}  # fmt: skip
    if not names or (model is not None and model not in names):
        raise LoadTestError(f"{bundles}: there is no exported bundle{f' named {model!r}' if model else ''} there")
    name = model or next(iter(names))
    home = folder / "artifacts" / name
    shutil.copytree(names[name], home / "bundle", copy_function=_link)
    shutil.copytree(repository / name, folder / "model_repository" / name, copy_function=_link)
    manifest = home / "bundle" / "bundle.json"
    # The last one is no new version: the bundle itself stays what the Triton repository was written for.
    for version in (KEPT, SERVED, KEPT):
        told = json.loads(manifest.read_text(encoding="utf-8")) | {"version": version}
        manifest.unlink()  # it may be a second name of the file that was copied
        manifest.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        command = [sys.executable, "-m", "export", "version", str(home)]
        command += ["--repository", str(folder / "model_repository")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise LoadTestError(f"`python -m export version` failed: {done.stderr.strip()[-500:]}")
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _run(options: list[str], folder: Path, texts: Path | None, max_chars: int, seed: int) -> dict[str, Any]:
    from loadtests.callers import Callers, read_asks
    from loadtests.chaos import NEWCOMERS, SETTINGS, USERS, Chaos
    from loadtests.chaos_report import SCHEMA, failures, figures_of
    from loadtests.machine import beginning
    from loadtests.own_gateway import OwnGateway
    from loadtests.run import find_model

    head = beginning(SCHEMA, "make chaos", "aiohttp")
    key = secrets.token_urlsafe(32)
    settings = SETTINGS | {"SLIPWAY_ADMIN_KEY_SHA256": hashlib.sha256(key.encode()).hexdigest()}
    with OwnGateway(options, folder / "first", settings) as gateway:
        found = find_model(gateway.host, None)
        name, pairs = str(found["name"]), found.get("task") == "text-pair"
        asks = read_asks(folder / "artifacts", name, texts, pairs=pairs, max_chars=max_chars, seed=seed)
        # Longer than the gateway's own bound, so that it is the one who ends a request.
        callers = Callers(gateway.host, name, asks, timeout=60.0, seed=seed)
        chaos = Chaos(gateway, callers, typer.echo, admin_key=key)
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
        **head,
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
