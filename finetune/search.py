"""``python -m finetune search``: trains a recipe with other values of some keys and keeps what is best on dev.

Optuna (Akiba et al. 2019) proposes the values and remembers every trial in a database, SQLite by default: an
interrupted search goes on, and several processes that are started with the same command share the work. A trial whose
dev curve runs below the median of the earlier ones is cut short (median pruning, Golovin et al. 2017).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from bundle.errors import RecipeError
from bundle.folder import write_atomic
from finetune.recipe import Recipe
from finetune.report.markup import toml
from finetune.search_settings import Range, Search
from finetune.terminal import console, load, say

# Seconds without a sign of life after which a trial counts as dead; it is then tried again.
HEARTBEAT, GRACE = 30, 120


class Pruned(Exception):
    """Ends a training whose dev curve is below the others'."""


def with_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with other values of some keys, and without its ``[search]``.

    Args:
        values: by dotted key.

    Raises:
        RecipeError: a key that there is not, or a value that it cannot have; also between keys.
    """
    given = recipe.model_dump(exclude_unset=True)
    given.pop("search", None)
    for key, value in values.items():
        table, _, name = key.partition(".")
        given.setdefault(table, {})[name] = value
    try:
        return Recipe.model_validate(given)
    except ValueError as error:
        shown = ", ".join(f"{key} = {value!r}" for key, value in values.items())
        first = error.errors(include_url=False)[0]["msg"] if hasattr(error, "errors") else str(error)
        raise RecipeError(recipe.name, "search.space", f"{shown}: {first.removeprefix('Value error, ')}") from error


def check_space(recipe: Recipe) -> Search:
    """The recipe's search, with both ends of every range tried on the recipe before anything is trained.

    Raises:
        RecipeError: there is none, or a key or value is wrong.
    """
    if recipe.search is None:
        reason = 'this recipe has no table [search]; for example [search.space] "train.learning_rate" = '
        raise RecipeError(recipe.name, "search", reason + "{ low = 1e-5, high = 1e-3, log = true }")
    for key, allowed in recipe.search.space.items():
        for value in allowed.ends():
            with_values(recipe, {key: value})
    return recipe.search


def suggest(trial: Any, key: str, allowed: Range) -> Any:
    """A value of one key, from Optuna's trial."""
    if allowed.choices is not None:
        return trial.suggest_categorical(key, list(allowed.choices))
    if allowed.whole:
        return trial.suggest_int(key, int(allowed.low or 0), int(allowed.high or 0), step=int(allowed.step or 1))
    return trial.suggest_float(key, allowed.low, allowed.high, log=allowed.log, step=allowed.step)


def make_study(recipe: Recipe, settings: Search, storage: str) -> Any:
    """Optuna's study of this recipe in a database: a new one, or that of an earlier or parallel run.

    A recipe or space that was changed begins a study of its own.
    """
    optuna = _optuna()
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)
    database = optuna.storages.RDBStorage(
        storage, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=retry
    )
    # Several processes must not draw the same values: each goes on from its own place.
    name = f"{recipe.name}-{recipe.checksum()[:12]}-{_mark(settings)}"
    study = optuna.create_study(storage=database, study_name=name, direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=recipe.train.seed + len(study.trials), constant_liar=True)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=settings.unpruned)
    return study


def _optuna() -> Any:
    """Optuna, without its notes; of what is used here it calls heartbeats and constant liars experimental."""
    import warnings

    import optuna

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _mark(settings: Search) -> str:
    """Of the space: trials of another one do not compare. How many there are to be is no part of it."""
    from hashlib import sha256

    return sha256(settings.model_dump_json(include={"space"}).encode()).hexdigest()[:8]


def objective(recipe: Recipe, settings: Search, folder: Path, say: Any) -> Any:
    """What Optuna calls for each trial: trains, reports the dev curve, returns the best dev score."""
    optuna = _optuna()

    from finetune.prepare import prepare
    from finetune.train import train

    def run(trial: Any) -> float:
        values = {key: suggest(trial, key, allowed) for key, allowed in settings.space.items()}
        shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        say(f"trial {trial.number}: {shown}")
        prepared = prepare(with_values(recipe, values), lambda _: None)

        def watch(step: int, planned: int, scores: dict[str, float]) -> None:
            share = step / max(planned, 1)
            # Trials differ in steps: they are compared at the same hundredth of their run.
            trial.report(scores[recipe.metric], round(100 * share))
            if share >= settings.warmup and share < 1 and trial.should_prune():
                raise Pruned

        own = folder / f"trial-{trial.number}"
        try:
            best = train(prepared, own, lambda _: None, on_evaluation=watch).best
        except Pruned:
            say(f"trial {trial.number}: cut short, below the median of the others")
            raise optuna.TrialPruned from None
        finally:
            for surplus in ("checkpoints", "visualdl"):
                shutil.rmtree(own / surplus, ignore_errors=True)
        say(f"trial {trial.number}: best dev {recipe.metric} {best:.4f}")
        return best

    return run


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def search(
    recipe: Annotated[str, typer.Argument(help="A recipe with a table [search].")],
    form: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    trials: Annotated[int | None, typer.Option(min=1, help="In the place of search.trials.")] = None,
    out: Annotated[Path, typer.Option(help="Results go to <out>/<recipe name>/search/.")] = Path("artifacts"),
    storage: Annotated[str, typer.Option(help="Another database, such as postgresql://…; default: SQLite there.")] = "",
) -> None:
    """Searches a recipe's keys as its [search] says; resumes; the same command in two terminals shares the work.

    Example: python -m finetune search my.toml --trials 30
    """
    optuna = _optuna()
    chosen = load(recipe, form)
    settings = check_space(chosen)
    wanted = trials or settings.trials
    folder = out / chosen.name / "search"
    folder.mkdir(parents=True, exist_ok=True)
    study = make_study(chosen, settings, storage or f"sqlite:///{folder.resolve() / 'search.db'}")
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    done = len(study.get_trials(states=ended))
    console.print(f"[bold]search {chosen.name}[/bold]: {done} of {wanted} trials are done")
    if done < wanted:
        study.optimize(
            objective(chosen, settings, folder, say),
            callbacks=[optuna.study.MaxTrialsCallback(wanted, states=ended)],
        )
    if not study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        raise SystemExit("no trial came to its end")
    show(study, chosen)
    best = with_values(chosen, study.best_params)
    given = best.model_dump(mode="json", exclude_unset=True)
    del given["name"]
    path = folder / "best.toml"
    write_atomic(
        path, f"# The best of {len(study.trials)} trials: dev {chosen.metric} {study.best_value:.4f}.\n{toml(given)}\n"
    )
    say(f"wrote {path}")
    console.print(f"next: make finetune RECIPE={path}")


def show(study: Any, recipe: Recipe) -> None:
    """Prints the trials, best first."""
    from rich.table import Table

    table = Table()
    keys = list(study.best_params)
    for column in ("trial", f"dev {recipe.metric}", *keys, ""):
        table.add_column(column, justify="left" if column == "" else "right")
    order = sorted(study.trials, key=lambda trial: -(trial.value if trial.value is not None else -1.0))
    for trial in order[:15]:
        score = "–" if trial.value is None else f"{trial.value:.4f}"
        state = "" if trial.state.name == "COMPLETE" else trial.state.name.lower()
        table.add_row(str(trial.number), score, *(_short(trial.params.get(key, "–")) for key in keys), state)
    console.print(table)
