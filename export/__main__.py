"""`python -m export`: a bundle from the trained checkpoint to a Triton model repository, or what it holds by now.

This file only orders the steps and tells about them; each step is a function in a module of its own name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bundle.folder import Bundle
    from bundle.manifest import Artifact
    from export.gate import DevSplit, Tolerance
    from export.journal import Journal

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help=__doc__)


class Step(StrEnum):
    """The steps in their order; each can be run alone."""

    TO_STATIC = "to_static"
    TO_ONNX = "to_onnx"
    FUSE = "fuse"
    POOLING = "pooling"
    TO_INT8 = "to_int8"
    GATE = "gate"
    TO_TRITON = "to_triton"


class Backend(StrEnum):
    """Who runs the model inside Triton."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"


# What each step reads and adds; those that are not in `WRITES` write no artifact.
READS = {
    Step.TO_STATIC: "paddle",
    Step.TO_ONNX: "paddle_static",
    Step.FUSE: "onnx_fp32",
    Step.POOLING: "onnx_fused and the dev rows",
    Step.TO_INT8: "onnx_fused and the calibration rows",
    Step.GATE: "onnx_fused, onnx_int8 and the dev rows",
    Step.TO_TRITON: "the published artifact",
}
WRITES = {
    Step.TO_STATIC: "paddle_static",
    Step.TO_ONNX: "onnx_fp32",
    Step.FUSE: "onnx_fused",
    Step.TO_INT8: "onnx_int8",
}
EXAMPLES = """[bold]Examples[/bold]

  python -m export run artifacts/news
  python -m export run artifacts/news --only fuse --force
  python -m export run artifacts/news --only pooling --force
  python -m export run artifacts/ner --max-drop 0.005 --dev-rows 300
  python -m export run artifacts/news --backend onnxruntime --repository /srv/models
"""


@app.command(epilog=EXAMPLES)
def run(
    folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")],
    only: Annotated[Step | None, typer.Option(help="Run one step alone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Repeat steps whose result is up to date.")] = False,
    backend: Annotated[Backend, typer.Option(help="onnxruntime is for NVIDIA's container.")] = Backend.PYTHON,
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("model_repository"),
    instances: Annotated[int, typer.Option(min=1, help="Model instances in Triton.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one instance; 0: all cores shared evenly.")] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Largest loss of macro-F1 or entity F1 of INT8; default: the recipe's, or 0.01."
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Smallest share of dev rows answered as fp32; default: the recipe's, or 0.99."),
    ] = None,
    dev_rows: Annotated[int, typer.Option(min=0, help="Measure on so many dev rows, evenly spread; 0: all.")] = 400,
) -> None:
    """Converts and quantizes a model, chooses how windows are joined, publishes one form, and writes Triton's files."""
    from rich.console import Console

    from bundle.errors import SlipwayError
    from export.journal import Journal

    console = Console()
    root = bundle_folder(folder)
    log = (root.parent if root.name == "bundle" else root) / "export.log"
    journal = Journal(log, console)
    platform: Literal["python", "onnxruntime"] = "python" if backend is Backend.PYTHON else "onnxruntime"
    start = time.perf_counter()
    try:
        bundle, dev, tolerance = _open(root, dev_rows, max_drop, min_agreement)
        journal.say(f"{bundle.name}: {root} ({bundle.manifest.made.architecture}); the libraries' words go to {log}")
        for step in [only] if only else list(Step):
            bundle = _step(step, bundle, journal, dev, tolerance, force, (repository, platform, instances, threads))
    except SlipwayError as error:
        _complain(console, error)
        console.print(f"What the libraries said: {log}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    following = "make serve" if bundle.manifest.published else f"python -m export run {folder}"
    journal.say(f"Done in {time.perf_counter() - start:.1f} s. Next: {following}")


def _open(
    root: Path, dev_rows: int, max_drop: float | None, min_agreement: float | None
) -> tuple[Bundle, DevSplit, Tolerance]:
    """Opens the bundle and checks what this room reads; what it writes itself is checked by each step.

    The gate's tolerances are the recipe's, which travel with the trained checkpoint, unless options say otherwise.
    """
    from bundle.folder import open_bundle
    from export.gate import DevSplit, Tolerance

    bundle = open_bundle(root, verify=False)
    bundle.verify(["paddle"])
    given = bundle.manifest.artifacts["paddle"].details
    usual = Tolerance()
    tolerance = Tolerance(
        float(str(given.get("max_drop", usual.max_drop))) if max_drop is None else max_drop,
        float(str(given.get("min_agreement", usual.min_agreement))) if min_agreement is None else min_agreement,
    )
    return bundle, DevSplit(bundle, dev_rows), tolerance


def _step(
    step: Step,
    bundle: Bundle,
    journal: Journal,
    dev: DevSplit,
    tolerance: Tolerance,
    force: bool,
    triton: tuple[Path, Literal["python", "onnxruntime"], int, int],
) -> Bundle:
    """Runs one step and tells what it read, wrote, measured and how long it took."""
    from export.fuse import fuse
    from export.gate import gate
    from export.pooling import pooling
    from export.to_int8 import to_int8
    from export.to_onnx import to_onnx
    from export.to_static import to_static

    journal.console.print(f"[bold cyan]{step.value}[/bold cyan] reads {READS[step]}", highlight=False)
    start = time.perf_counter()
    before = bundle.manifest.artifacts.get(WRITES.get(step, ""))
    plain: dict[Step, Callable[..., Bundle]] = {
        Step.TO_STATIC: to_static,
        Step.TO_ONNX: to_onnx,
        Step.FUSE: fuse,
    }
    judged: dict[Step, Callable[..., Bundle]] = {Step.TO_INT8: to_int8, Step.GATE: gate}
    if step in plain:
        bundle = plain[step](bundle, journal, force=force)
    elif step is Step.POOLING:
        bundle = pooling(bundle, journal, dev, force=force)
    elif step in judged:
        bundle = judged[step](bundle, journal, dev, tolerance, force=force)
    else:
        from export.to_triton import write_repository

        repository, backend, instances, threads = triton
        written = write_repository(bundle, repository, backend=backend, instances=instances, threads=threads or None)
        journal.say(f"    writes {written}")
    after = bundle.manifest.artifacts.get(WRITES.get(step, ""))
    if after is not None and after != before:
        journal.say(f"    writes {bundle.path(after.file)} ({_size(after)})")
        if after.parity:
            journal.say(
                f"    parity on {after.parity.rows} golden rows: largest difference {after.parity.max_abs:.2g} "
                f"(tolerance {after.parity.tolerance:.2g}), same answers {after.parity.label_agreement:.1%}"
            )
    journal.say(f"    {time.perf_counter() - start:.1f} s")
    return bundle


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")]) -> None:
    """Lists a bundle's artifacts: sizes, parity with the trained model, quality on the dev split."""
    from rich.console import Console
    from rich.table import Table

    from bundle.errors import SlipwayError
    from bundle.folder import open_bundle

    console = Console()
    try:
        bundle = open_bundle(bundle_folder(folder), verify=False)
    except SlipwayError as error:
        _complain(console, error)
        raise typer.Exit(1) from error
    table = Table(title=f"{bundle.name} ({bundle.root})", title_justify="left")
    table.add_column("artifact", no_wrap=True)
    for column in ("size", "diff", "golden", "dev", "rows", "agree", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, artifact in bundle.manifest.artifacts.items():
        parity, quality = artifact.parity, artifact.quality
        clock = _milliseconds(bundle, name)
        table.add_row(
            name + (" *" if name == bundle.manifest.published else ""),
            _size(artifact),
            f"{parity.max_abs:.1g}" if parity else "-",
            f"{parity.label_agreement:.0%}" if parity else "-",
            f"{list(quality.metrics.values())[-1]:.4f}" if quality else "-",
            str(quality.rows) if quality else "-",
            f"{quality.agreement:.1%}" if quality and quality.agreement is not None else "-",
            f"{clock:.1f}" if clock else "-",
        )
    console.print(table)
    published = bundle.manifest.published
    console.print(
        "diff: of a logit from the trained model on the golden rows, at most; golden: golden rows answered "
        "alike; dev: macro-F1 (tagger: F1; two heads: mean) on so many rows; agree: share "
        "answered as the reference; ms: a window",
        style="dim",
        highlight=False,
    )
    served = f"* is served: {published}" if published else "Nothing is published yet. Next: make export"
    console.print(served, highlight=False)


@app.command(
    epilog="""[bold]Examples[/bold]

  python -m export profile artifacts/news
  python -m export profile artifacts/news --artifact onnx_fused --batch 8 --tokens 128
"""
)
def profile(
    folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")],
    artifact: Annotated[str, typer.Option(help="ONNX artifact to profile.")] = "onnx_int8",
    batch: Annotated[int, typer.Option(min=1, help="Windows in a call.")] = 1,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of a window; capped by the bundle's windows.")] = 128,
    runs: Annotated[int, typer.Option(min=5, help="Timed calls; fewer if they take more than a minute.")] = 100,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the session; 0: all cores.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results file and the picture.")] = Path("docs/bench"),
) -> None:
    """Shows where a graph's time goes: each operator against the peaks of this machine."""
    import json

    from rich.console import Console

    from bundle.errors import SlipwayError
    from bundle.folder import open_bundle, write_atomic
    from export.profiler import operators_table, picture
    from export.profiler import profile as measure

    console = Console()
    try:
        bundle = open_bundle(bundle_folder(folder), verify=False)
        result = measure(bundle, artifact, batch=batch, tokens=tokens, runs=runs, threads=threads or None)
    except SlipwayError as error:
        _complain(console, error)
        raise typer.Exit(1) from error
    stem = f"profile-{bundle.name}-{artifact}-{batch}x{result['tokens']}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{stem}.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    write_atomic(out / f"{stem}.svg", picture(result))
    console.print(operators_table(result))
    machine, busy = result["hardware"], result["load_before"]
    console.print(
        f"on {machine['cpu']}, {machine['cores']} cores, load {busy} before; ONNX Runtime "
        f"{result['versions']['onnxruntime']}; commit {result['commit']}; a call {result['call_ms']['median']:.2f} ms "
        f"(p99 {result['call_ms']['p99']:.2f}), {result['warmups']} warm-ups; wrote {out / stem}.json and .svg",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def bundle_folder(folder: Path) -> Path:
    """The bundle itself: the folder given, or the ``bundle`` folder inside it."""
    return folder / "bundle" if not (folder / "bundle.json").is_file() else folder


def _complain(console: Console, error: Exception) -> None:
    # The sentence may hold brackets that are no markup, and paths that must stay in one piece.
    console.print("error:", style="red", end=" ")
    console.print(str(error), markup=False, highlight=False, soft_wrap=True)


def _milliseconds(bundle: Bundle, name: str) -> float | None:
    """What the INT8 step measured: milliseconds of one window, all cores."""
    int8 = bundle.manifest.artifacts.get("onnx_int8")
    clocks = int8.details.get("ms_per_window") if int8 else None
    value = clocks.get(name) if isinstance(clocks, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _size(artifact: Artifact) -> str:
    total = artifact.bytes + sum(ref.bytes for ref in artifact.files)
    return f"{total / 1e6:.1f} MB"


if __name__ == "__main__":
    app()
