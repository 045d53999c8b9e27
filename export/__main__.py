"""`python -m export`: a bundle from the trained checkpoint to a Triton model repository, or what it holds by now.

This file only orders the steps and tells about them; each step is a function in a module of its own name.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bundle.device import Device as DeviceHere
    from bundle.folder import Bundle
    from bundle.manifest import Aim, Artifact, Vocabulary
    from export.gate import DevSplit, Tolerance
    from export.journal import Journal
    from export.to_int8 import How
    from export.to_triton import Flavour

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help=__doc__)


class Step(StrEnum):
    """The steps in their order; each can be run alone."""

    TO_STATIC = "to_static"
    TO_ONNX = "to_onnx"
    FUSE = "fuse"
    POOLING = "pooling"
    TO_INT8 = "to_int8"
    TO_FP16 = "to_fp16"
    GATE = "gate"
    PLAN = "plan"
    TO_TRITON = "to_triton"


class Aims(StrEnum):
    """What the repository is written for; the plan knows both, and none leaves it aside."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    NONE = "none"


class Backend(StrEnum):
    """Who runs the model inside Triton."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"


class Scheme(StrEnum):
    """What becomes integer."""

    AUTO = "auto"
    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHTS_8 = "weights-8"
    WEIGHTS_4 = "weights-4"


class Calibration(StrEnum):
    """How the range of an activation is chosen."""

    ERROR = "error"
    MIN_MAX = "min-max"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class WeightScales(StrEnum):
    """What has a scale of its own."""

    COLUMN = "column"
    TENSOR = "tensor"


class Vocabularies(StrEnum):
    """Which tokens keep their embedding."""

    ALL = "all"
    CORPUS = "corpus"


class WordTable(StrEnum):
    """How the INT8 graph keeps its word table."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Device(StrEnum):
    """Where the model will run: here, or on a GPU that this machine has not."""

    CPU = "cpu"
    GPU = "gpu"
    GPU_ELSEWHERE = "gpu-elsewhere"


@dataclass(frozen=True)
class Triton:
    """What the step `to_triton` is told; see `export.to_triton.write_repository`."""

    repository: Path
    backend: Flavour
    instances: int | None
    threads: int | None
    aim: Aim | None
    response_cache: bool
    gpu: bool
    buckets: tuple[int, ...] | None


# What each step reads and adds; those that are not in `WRITES` write no artifact.
READS = {
    Step.TO_STATIC: "paddle",
    Step.TO_ONNX: "paddle_static",
    Step.FUSE: "onnx_fp32",
    Step.POOLING: "onnx_fused and the dev rows",
    Step.TO_INT8: "onnx_fused and the calibration rows",
    Step.TO_FP16: "onnx_fused and the dev rows",
    Step.GATE: "onnx_fused, onnx_int8 (for a GPU: onnx_fp16) and the dev rows",
    Step.PLAN: "what may be served and the dev rows",
    Step.TO_TRITON: "the published artifact and the plan",
}
WRITES = {
    Step.TO_STATIC: "paddle_static",
    Step.TO_ONNX: "onnx_fp32",
    Step.FUSE: "onnx_fused",
    Step.TO_INT8: "onnx_int8",
    Step.TO_FP16: "onnx_fp16",
}
# What only one of the two devices has use for: integer kernels and plans of its cores are the processor's.
ONLY_CPU, ONLY_GPU = (Step.TO_INT8, Step.PLAN), (Step.TO_FP16,)
# What to do after a whole run.
NEXT = {
    Device.CPU: "make serve",
    Device.GPU: "SLIPWAY_DEVICE=gpu make serve ENGINE=onnx, or Triton with this repository",
    Device.GPU_ELSEWHERE: "give bundle and repository to the machine with the GPU",
}
EXAMPLES = """[bold]Examples[/bold]

  python -m export run artifacts/news
  python -m export run artifacts/news --only fuse --force
  python -m export run artifacts/news --only pooling --force
  python -m export run artifacts/ner --max-drop 0.005 --dev-rows 300
  python -m export gate artifacts/news
  python -m export run artifacts/news --only to_int8 --scheme static --calibration percentile
  python -m export run artifacts/news --backend onnxruntime --repository /srv/models
  python -m export run artifacts/news --device gpu-elsewhere --backend onnxruntime --repository /srv/models
"""


@app.command(epilog=EXAMPLES)
def run(
    folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")],
    only: Annotated[Step | None, typer.Option(help="Run one step alone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Repeat steps whose result is up to date.")] = False,
    backend: Annotated[Backend, typer.Option(help="onnxruntime is for NVIDIA's container.")] = Backend.PYTHON,
    buckets: Annotated[
        str,
        typer.Option(
            help="Lengths of windows that have a Triton model each, in tokens with commas, or none; default: with "
            "--backend onnxruntime the longest window, half and a quarter of it, and none without."
        ),
    ] = "",
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("model_repository"),
    instances: Annotated[
        int | None, typer.Option(min=1, help="Model instances in Triton; default: the plan's, or 1.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=0, help="Threads of one instance; 0: all cores shared evenly; default: the plan's, or 0."),
    ] = None,
    aim: Annotated[Aims, typer.Option(help="What the plan is followed for in Triton's files.")] = Aims.THROUGHPUT,
    response_cache: Annotated[
        bool,
        typer.Option(
            "--response-cache", help="Let Triton answer equal calls from its cache (SLIPWAY_TRITON_CACHE_MIB)."
        ),
    ] = False,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Leave out the step plan (under a minute).")] = False,
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
    scheme: Annotated[
        Scheme | None, typer.Option(help="What becomes integer; default: the recipe's, or auto: the first that passes.")
    ] = None,
    calibration: Annotated[
        Calibration | None, typer.Option(help="How an activation's range is chosen; default: the recipe's, or error.")
    ] = None,
    weight_scales: Annotated[
        WeightScales | None,
        typer.Option(help="One scale per output column or per weight; default: the recipe's, or column."),
    ] = None,
    vocabulary: Annotated[
        Vocabularies | None,
        typer.Option(
            help="corpus: leave out embeddings of tokens that the dev and calibration rows and --corpus never have "
            "(they are read as unknown); default: the recipe's, or all."
        ),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Texts whose tokens are kept with --vocabulary corpus: UTF-8, a text a line.")
    ] = None,
    embeddings: Annotated[
        WordTable | None, typer.Option(help="How the INT8 graph keeps its word table; default: the recipe's, or fp32.")
    ] = None,
    device: Annotated[
        Device,
        typer.Option(
            help="gpu: half precision, proved on a GPU of this machine and refused where there is none; gpu-elsewhere: "
            "the same, proved on this processor, for a server that has one."
        ),
    ] = Device.CPU,
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
    platform: Flavour = "python" if backend is Backend.PYTHON else "onnxruntime"
    start = time.perf_counter()
    try:
        if device is Device.GPU:
            from export.gpu import require_gpu

            require_gpu()
        asked = {"scheme": scheme, "calibration": calibration, "weight_scales": weight_scales, "embeddings": embeddings}
        bundle, dev, tolerance, how = _open(root, dev_rows, max_drop, min_agreement, asked)
        words = _words(bundle, vocabulary, corpus)
        journal.say(f"{bundle.name}: {root} ({bundle.manifest.made.architecture}); the libraries' words go to {log}")
        for_gpu, lengths = device is not Device.CPU, _buckets(buckets)
        triton = Triton(repository, platform, instances, threads, _aim(aim), response_cache, for_gpu, lengths)
        left_out = {*(ONLY_GPU if device is Device.CPU else ONLY_CPU), *([Step.PLAN] if no_plan else [])}
        for step in [only] if only else [step for step in Step if step not in left_out]:
            bundle = _step(step, bundle, journal, dev, tolerance, how, words, force, triton, device)
    except SlipwayError as error:
        _complain(console, error)
        if log.is_file():
            console.print(f"What the libraries said: {log}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    following = NEXT[device] if bundle.manifest.published else f"python -m export run {folder}"
    journal.say(f"Done in {time.perf_counter() - start:.1f} s. Next: {following}")


def _open(
    root: Path,
    dev_rows: int,
    max_drop: float | None,
    min_agreement: float | None,
    asked: Mapping[str, StrEnum | None],
) -> tuple[Bundle, DevSplit, Tolerance, How]:
    """Opens the bundle and checks what this room reads; what it writes itself is checked by each step.

    The gate's tolerances and how INT8 is made are the recipe's, which travel with the trained checkpoint, unless
    options say otherwise.
    """
    from dataclasses import asdict

    from pydantic import TypeAdapter

    from bundle.folder import open_bundle
    from export.gate import DevSplit, Tolerance
    from export.to_int8 import How

    bundle = open_bundle(root, verify=False)
    bundle.verify(["paddle"])
    given = bundle.manifest.artifacts["paddle"].details
    options = {"max_drop": max_drop, "min_agreement": min_agreement}
    usual = asdict(Tolerance())
    tolerance = Tolerance(
        **{
            name: float(str(given.get(name, value))) if (option := options.get(name)) is None else option
            for name, value in usual.items()
        }
    )
    usual_how = asdict(How()).items()
    chosen = {name: given.get(name, value) if asked[name] is None else asked[name] for name, value in usual_how}
    how = TypeAdapter(How).validate_python({name: str(value) for name, value in chosen.items()})
    return bundle, DevSplit(bundle, dev_rows), tolerance, how


def _words(bundle: Bundle, asked: Vocabularies | None, corpus: Path | None) -> tuple[Vocabulary, Path | None]:
    """Which tokens keep their embedding: as asked, as the recipe says, or where a corpus is given, those of it.

    Raises:
        ExportError: a corpus is given and all tokens are kept, or it is not a file.
    """
    from bundle.errors import ExportError

    said = "corpus" if bundle.manifest.artifacts["paddle"].details.get("vocabulary") == "corpus" else "all"
    wanted = asked.value if asked else "corpus" if corpus else said
    if corpus and wanted == "all":
        raise ExportError("--corpus is for --vocabulary corpus; all tokens are kept without it")
    if corpus and not corpus.is_file():
        raise ExportError(f"{corpus}: is not a file; --corpus takes a text a line")
    return ("corpus" if wanted == "corpus" else "all"), corpus


def _buckets(asked: str) -> tuple[int, ...] | None:
    """The lengths that were asked for; None where none were said.

    Raises:
        ExportError: they are no numbers.
    """
    from bundle.errors import ExportError

    if asked in ("", "none"):
        return () if asked else None
    if not all(part.strip().isdecimal() for part in asked.split(",")):
        raise ExportError(f"--buckets {asked}: lengths are whole numbers with commas, such as 32,64, or it is none")
    return tuple(int(part) for part in asked.split(","))


def _step(
    step: Step,
    bundle: Bundle,
    journal: Journal,
    dev: DevSplit,
    tolerance: Tolerance,
    how: How,
    words: tuple[Vocabulary, Path | None],
    force: bool,
    triton: Triton,
    device: Device,
) -> Bundle:
    """Runs one step and tells what it read, wrote, measured and how long it took."""
    from export.fuse import fuse
    from export.gate import FP16, INT8, gate
    from export.pooling import pooling
    from export.to_fp16 import to_fp16
    from export.to_int8 import to_int8
    from export.to_onnx import to_onnx
    from export.to_static import to_static

    journal.console.print(f"[bold cyan]{step.value}[/bold cyan] reads {READS[step]}", highlight=False)
    start = time.perf_counter()
    proved_on: DeviceHere = "gpu" if device is Device.GPU else "cpu"
    before = bundle.manifest.artifacts.get(WRITES.get(step, ""))
    plain: dict[Step, Callable[..., Bundle]] = {
        Step.TO_STATIC: to_static,
        Step.TO_ONNX: to_onnx,
    }
    if step in plain:
        bundle = plain[step](bundle, journal, force=force)
    elif step is Step.FUSE:
        bundle = fuse(bundle, journal, vocabulary=words[0], corpus=words[1], force=force)
    elif step is Step.POOLING:
        bundle = pooling(bundle, journal, dev, force=force)
    elif step is Step.TO_INT8:
        bundle = to_int8(bundle, journal, dev, tolerance, how, force=force)
    elif step is Step.TO_FP16:
        bundle = to_fp16(bundle, journal, dev, tolerance, proved_on, force=force)
    elif step is Step.GATE:
        form = INT8 if device is Device.CPU else FP16
        bundle = gate(bundle, journal, dev, tolerance, form=form, device=proved_on, force=force)
    elif step is Step.PLAN:
        bundle = _brief_plan(bundle, journal, force)
    else:
        from export.to_triton import write_repository

        written = write_repository(
            bundle,
            triton.repository,
            backend=triton.backend,
            instances=triton.instances,
            threads=triton.threads,
            aim=triton.aim,
            response_cache=triton.response_cache,
            gpu=triton.gpu,
            buckets=triton.buckets,
        )
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


PLAN_EXAMPLES = """[bold]Examples[/bold]

  python -m export plan artifacts/news
  python -m export plan artifacts/news --p99-ms 400 --clients 16
  python -m export plan artifacts/news --exhaustive
"""


@app.command(name="plan", epilog=PLAN_EXAMPLES)
def make_plan(
    folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")],
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Every candidate at full count; tells how good the quick search is.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Measure anew what is known of this machine.")] = False,
    clients: Annotated[int, typer.Option(min=1, help="Clients at a time where throughput is measured.")] = 8,
    p99_ms: Annotated[
        float, typer.Option(min=0, help="Bound on a request's p99 under them; 0: twice that of the defaults.")
    ] = 0.0,
    paddle: Annotated[bool, typer.Option("--paddle/--no-paddle", help="Compare with Paddle Inference as well.")] = True,
    openvino: Annotated[
        bool, typer.Option("--openvino/--no-openvino", help="Let OpenVINO be chosen, where it is installed.")
    ] = True,
    repository: Annotated[
        Path, typer.Option(help="Triton's model repository, written anew where it holds this model.")
    ] = Path("model_repository"),
    aim: Annotated[Aims, typer.Option(help="What the repository is written for.")] = Aims.THROUGHPUT,
    out: Annotated[
        Path | None, typer.Option(help="Results file with the choice and what it was set against, for docs/tables.py.")
    ] = None,
) -> None:
    """Measures how the model is best run on this machine and writes it to the manifest, which both engines follow."""
    from rich.console import Console

    from bundle.errors import SlipwayError
    from bundle.folder import check_writable, open_bundle, write_atomic
    from export.journal import Journal
    from export.plan import Wish, plan
    from export.plan_report import results

    console = Console()
    root = bundle_folder(folder)
    journal = Journal((root.parent if root.name == "bundle" else root) / "export.log", console)
    try:
        bundle = open_bundle(root, verify=False)
        journal.say(f"{bundle.name}: {root}")
        wish = Wish("exhaustive" if exhaustive else "quick", clients, p99_ms, paddle, openvino)
        if out is not None:
            check_writable(out)
        bundle = plan(bundle, journal, wish, force=force)
        if out is not None:
            write_atomic(out, results(bundle))
            journal.say(f"    wrote {out}; `make tables` puts it into README.md")
        if (repository / bundle.name / "config.pbtxt").is_file():
            from export.to_triton import chosen_before, write_again

            written = write_again(bundle, repository, chosen_before(repository, bundle.name), _aim(aim))
            journal.say(f"    {written} follows it ({aim.value})")
    except SlipwayError as error:
        _complain(console, error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        journal.say("stopped; the same command goes on from the last whole round")
        raise typer.Exit(130) from error
    journal.say("Next: make serve")


def _brief_plan(bundle: Bundle, journal: Journal, force: bool) -> Bundle:
    """The step of `run`: under a minute, so that a server started from a fresh export follows a measurement.

    Without dev rows there is nothing to measure with; the engines then run with their defaults.
    """
    from export.plan import Wish, plan

    if not bundle.manifest.published or "dev" not in bundle.manifest.splits:
        journal.say("    there is nothing to plan without a published form and dev rows")
        return bundle
    return plan(bundle, journal, Wish("brief", paddle=False), force=force)


def _aim(aim: Aims) -> Aim | None:
    if aim is Aims.NONE:
        return None
    return "latency" if aim is Aims.LATENCY else "throughput"


@app.command(epilog="Example: python -m export version artifacts/news")
def version(
    folder: Annotated[Path, typer.Argument(help="An exported bundle, or the folder that holds it as bundle/.")],
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("model_repository"),
    aim: Annotated[Aims, typer.Option(help="What the plan is followed for in Triton's files.")] = Aims.THROUGHPUT,
) -> None:
    """Keeps an exported bundle as a version, which later trainings leave alone, with a model of its own in Triton."""
    from rich.console import Console

    from bundle.errors import SlipwayError
    from bundle.folder import open_bundle
    from export.to_triton import chosen_before, write_again
    from export.versions import keep

    console = Console()
    try:
        version = keep(open_bundle(bundle_folder(folder), verify=False))
        written = write_again(version, repository, chosen_before(repository, version.name), _aim(aim))
    except SlipwayError as error:
        _complain(console, error)
        raise typer.Exit(1) from error
    number = version.manifest.version
    for line in (
        f"{version.name}: version {number} is {version.root}; in Triton it is {written}",
        f"Next: make serve; a running server takes it with POST /v1/admin/models/{version.name}/versions/{number}:load",
    ):
        console.print(line, highlight=False, soft_wrap=True)


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
    if made := bundle.manifest.plan:
        console.print(
            f"plan ({made.search}, {made.created[:10]}, {made.machine.cpu}, {made.machine.cores} cores): "
            f"latency {made.latency}; throughput {made.throughput}",
            highlight=False,
        )
    served = f"* is served: {published}" if published else "Nothing is published yet. Next: make export"
    console.print(served, highlight=False)


@app.command()
def gate(folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")]) -> None:
    """Prints what the gate found when it last judged the smaller form: classes, lengths, changed rows, layers."""
    from rich.console import Console

    from bundle.errors import SlipwayError
    from bundle.folder import open_bundle
    from export.gate import REPORT, read_report
    from export.gate_report import show_report

    console = Console()
    try:
        bundle = open_bundle(bundle_folder(folder), verify=False)
    except SlipwayError as error:
        _complain(console, error)
        raise typer.Exit(1) from error
    report = read_report(bundle)
    if not report:
        _complain(console, f"{bundle.path(REPORT)}: no report yet; python -m export run {folder} --only gate writes it")
        raise typer.Exit(1)
    show_report(console, report)
    console.print(f"published: {report.get('published', '')}", highlight=False)


@app.command(epilog="Example: python -m export validate artifacts/news --repository model_repository")
def validate(
    folder: Annotated[Path, typer.Argument(help="A bundle, or the folder that holds it as bundle/.")],
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("model_repository"),
    triton_url: Annotated[
        str, typer.Option(help="host:port (gRPC) of a Triton that runs elsewhere, such as NVIDIA's container.")
    ] = "",
) -> None:
    """Starts a real Triton on the repository, sends it the bundle's golden rows and compares."""
    from importlib.util import find_spec

    from rich.console import Console

    from bundle.errors import SlipwayError
    from bundle.folder import open_bundle

    console = Console()
    try:
        bundle = open_bundle(bundle_folder(folder), verify=False)
    except SlipwayError as error:
        _complain(console, error)
        raise typer.Exit(1) from error
    if find_spec("tritonclient") is None or find_spec("pydantic_settings") is None:
        _complain(console, "validate needs the serving room's packages: pip install -r requirements/serving.txt")
        raise typer.Exit(1)
    # The rooms do not import each other; what serves the repository is what proves it, in a process of its own.
    command = [sys.executable, "-m", "serving", "check", "--engine", "triton", "--bundles", str(bundle.root)]
    command += ["--model-repository", str(repository), *(["--triton-url", triton_url] if triton_url else [])]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


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


def _complain(console: Console, error: Exception | str) -> None:
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
