"""Every form of a model on the whole test split: the figures that README quotes. ``python -m export.evaluate``.

Training measures a sample of the test rows, because Paddle's dynamic graph is slow; here the exported graphs answer all
of them, with the same windows and the same pooling, and INT8 is compared with float32 row by row.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bundle.encode import Encoder
from bundle.errors import BundleError, ExportError, SlipwayError
from bundle.folder import Bundle, open_bundle, write_atomic
from bundle.machine import commit, cores, hardware, versions
from bundle.predict import Run, agreement, answers_of, encode_rows, judged, metrics_of, predict
from bundle.rows import read_rows
from export.artifact import identity
from export.forms import Stand
from export.journal import Journal
from export.long_report import report
from export.session import open_session, run_of
from export.telling import read_neutral

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
FORMS = ("onnx_fused", "onnx_int8")


@app.command(epilog="Example: python -m export.evaluate artifacts/news")
def main(
    folder: Annotated[Path, typer.Argument(help="The folder that holds bundle/, or a bundle.")] = Path(
        "artifacts/news"
    ),
    out: Annotated[Path, typer.Option(help="Where the results file goes.")] = Path("docs/results"),
    paddle: Annotated[
        bool, typer.Option(help="Also the trained checkpoint itself, in Paddle: several times slower.")
    ] = False,
    compare_long: Annotated[
        bool, typer.Option(help="Also long texts: head, head and tail, every pooling by length; joined documents.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="TF-IDF's answers to the test rows; docs/results/baseline/<name>.json.")
    ] = None,
    neutral: Annotated[
        Path | None,
        typer.Option(help="Neutral text to hide short texts behind: a file of lines, or another bundle's folder."),
    ] = None,
) -> None:
    """Answers the whole test split with each exported form and writes docs/results/<name>.json."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    bundle = open_bundle(folder if (folder / "bundle.json").is_file() else folder / "bundle")
    manifest = bundle.manifest
    forms = [name for name in FORMS if name in manifest.artifacts]
    if not forms:
        raise BundleError(f"{bundle.root}: holds no exported graph; run `make export`")
    rows = list(read_rows(bundle.path(manifest.splits["test"].file)))
    encoder = Encoder.of(bundle)
    encoded = encode_rows(rows, encoder)
    windows = sum(len(item.windows) for item in encoded)
    console.print(
        f"[bold]evaluate {manifest.name}[/bold]: {len(rows):,} test rows, {windows:,} windows, pooling "
        f"{manifest.text.pooling}"
    )
    # Read before anything is measured: a wrong path is told now and not in minutes.
    texts = read_neutral(neutral) if compare_long and neutral else None
    journal = Journal(folder / "export.log", console)
    # What long texts are read with: the form that is served, or the last where nothing is published yet.
    lead = manifest.published if manifest.published in forms else forms[-1]
    answers: dict[str, list[object]] = {}
    metrics: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    long_texts: dict[str, Any] = {}
    for name in ["paddle", *forms] if paddle else forms:
        batch_tokens = 4096 if manifest.artifacts[name].batch_invariant else 1
        with _runner(bundle, name) as run:
            begin = time.monotonic()
            with journal.progress(name) as progress:
                found = predict(encoded, encoder, run, batch_tokens=batch_tokens, progress=progress)
            seconds[name] = round(time.monotonic() - begin, 1)
            answers[name] = answers_of(found, manifest.task, manifest.text.joining)
            metrics[name] = metrics_of(rows, found, manifest.task, manifest.text.joining)
            if compare_long and name == lead:
                begin = time.monotonic()
                beside = baseline or out / "baseline" / f"{manifest.name}.json"
                long_texts = report(
                    bundle,
                    rows,
                    found,
                    encoder,
                    run,
                    journal,
                    batch_tokens=batch_tokens,
                    baseline=beside,
                    neutral=texts,
                )
                long_texts["seconds"] = round(time.monotonic() - begin, 1)
    reference = "paddle" if paddle else forms[0]
    told = {name: judged(rows, found, manifest.task) for name, found in answers.items()}
    agreements = {name: agreement(told[reference], told[name]) for name in told}
    _show(console, metrics, agreements, seconds, reference)
    if compare_long:
        recipe = manifest.name.removesuffix("-full")
        command = (
            f"python -m finetune evaluate {recipe} --compare-long"
            + (" --form full" if manifest.made.form == "full" else "")
            + (f" --neutral {neutral}" if neutral else "")
        )
        path = out / "long" / f"{manifest.name}.json"
        record = {**_long_record(bundle, lead, command), **long_texts}
        write_atomic(path, json.dumps(record, ensure_ascii=False, indent=2) + "\n")
        console.print(f"  wrote {path}")
    path = out / f"{manifest.name}.json"
    write_atomic(
        path, json.dumps(_record(bundle, rows, windows, metrics, agreements, seconds, reference), indent=2) + "\n"
    )
    console.print(f"  wrote {path}; took {time.monotonic() - started:.0f} s")
    console.print("next: make tables")


@contextmanager
def _runner(bundle: Bundle, name: str) -> Iterator[Run]:
    """A form of the model as the function that `bundle.predict` calls; Paddle in a process of its own."""
    if name != "paddle":
        session = open_session(bundle.path(bundle.manifest.artifacts[name].file))
        yield run_of(session, bundle.manifest.signature)
        return
    with tempfile.TemporaryDirectory() as logs, Stand(bundle, cores(), Path(logs)) as stand:
        if lost := stand.start(["paddle"]):
            raise ExportError(f"paddle: {lost['paddle']}")
        yield stand.candidates[0].run


def _show(console: Console, metrics: Any, agreements: Any, seconds: Any, reference: str) -> None:
    table = Table()
    names = list(next(iter(metrics.values())))
    for column in ("form", *names, f"agrees with {reference}", "seconds"):
        table.add_column(column.replace("_", " "), justify="left" if column == "form" else "right")
    for form, scores in metrics.items():
        table.add_row(
            form, *(f"{scores[name]:.4f}" for name in names), f"{agreements[form]:.2%}", f"{seconds[form]:.0f}"
        )
    console.print(table)


def _long_record(bundle: Bundle, artifact: str, command: str) -> dict[str, Any]:
    """What a file of figures about long texts tells besides them."""
    manifest = bundle.manifest
    return {
        "recipe": manifest.name.removesuffix("-full"),
        "form": manifest.made.form,
        "command": command,
        "task": manifest.task.kind,
        "artifact": artifact,
        "max_tokens": manifest.text.max_tokens,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
    }


def _record(
    bundle: Any, rows: Any, windows: int, metrics: Any, agreements: Any, seconds: Any, reference: str
) -> dict[str, Any]:
    manifest = bundle.manifest
    scores = manifest.scores
    return {
        "recipe": manifest.name.removesuffix("-full"),
        "form": manifest.made.form,
        "command": f"make evaluate RECIPE={manifest.name.removesuffix('-full')}"
        + (" FORM=full" if manifest.made.form == "full" else ""),
        "split": "test",
        "rows": len(rows),
        "windows": windows,
        "pooling": manifest.text.pooling,
        "model": metrics["onnx_fused"] if "onnx_fused" in metrics else next(iter(metrics.values())),
        "paddle": metrics.get("paddle"),
        "int8": metrics.get("onnx_int8"),
        "published": manifest.published,
        "agreement": agreements.get("onnx_int8"),
        "agreement_with": reference,
        "seconds": seconds,
        "trained_sample": scores.get("test"),
        "train_rows": scores.get("train", {}).get("rows"),
        "train_seconds": scores.get("train", {}).get("seconds"),
        "parity": {name: a.parity.max_abs for name, a in manifest.artifacts.items() if a.parity is not None},
        "bundle_sha256": {name: identity(a) for name, a in manifest.artifacts.items()},
        "made_at_commit": manifest.made.commit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(("paddlepaddle", "paddlenlp", "onnxruntime", "tokenizers", "numpy")),
    }


if __name__ == "__main__":
    try:
        app()
    except SlipwayError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
