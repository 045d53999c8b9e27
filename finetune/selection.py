"""``python -m finetune lr-range`` and ``sensitivity``: what a recipe could choose, looked at before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a TOML file.")]
Form = Annotated[str, typer.Option(help="quick (2 CPU cores, minutes) or full.")]
Out = Annotated[Path, typer.Option(help="Folder under which results go, as <out>/<recipe name>/.")]


def say(sentence: str) -> None:
    console.print(f"  {sentence}", markup=False)


def lr_range(
    recipe: Recipe = "news",
    form: Form = "quick",
    out: Out = Path("artifacts"),
    low: Annotated[float, typer.Option(help="The sweep's first rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="The sweep's last rate.")] = 1.0,
    updates: Annotated[int, typer.Option(min=10, help="Updates of the sweep.")] = 100,
    check: Annotated[int, typer.Option(min=0, help="Updates of each run that tries a rate; 0 tries none.")] = 40,
) -> None:
    """Sweeps the learning rate and suggests one, as a hint that is tried in two short runs.

    Example: python -m finetune lr-range news
    """
    from finetune.lr_range import range_test
    from finetune.prepare import prepare
    from finetune.recipe import load

    if not 0 < low < high:
        raise SystemExit("--low must be above 0 and below --high")
    if form not in ("quick", "full"):
        raise SystemExit("--form must be quick or full")
    chosen = load(recipe, form)  # type: ignore[arg-type]
    folder = out / chosen.name / "lr-range"
    range_test(prepare(chosen, say), folder, say, low=low, high=high, updates=updates, check=check)


def sensitivity(
    recipe: Recipe = "news",
    form: Form = "quick",
    out: Out = Path("artifacts"),
    budget: Annotated[float, typer.Option(min=0, max=1, help="Share of the encoder's weights to train.")] = 0.3,
    batches: Annotated[int, typer.Option(min=1, help="Batches that are measured.")] = 16,
    warm: Annotated[int, typer.Option(min=0, help="Updates of the new head alone before.")] = 32,
) -> None:
    """Ranks the layers by what they weigh in the loss and proposes which to train under a budget.

    Example: python -m finetune sensitivity news --budget 0.2
    """
    from finetune.prepare import prepare
    from finetune.recipe import load
    from finetune.sensitivity import analyse

    if form not in ("quick", "full"):
        raise SystemExit("--form must be quick or full")
    chosen = load(recipe, form)  # type: ignore[arg-type]
    folder = out / chosen.name / "sensitivity"
    analyse(prepare(chosen, say), folder, say, batches=batches, warm=warm, budget=budget)
