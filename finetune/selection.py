"""``python -m finetune lr-range`` and ``sensitivity``: what a recipe could choose, looked at before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.terminal import FormName, Out, RecipeName, load, say


def lr_range(
    recipe: RecipeName = "news",
    form: FormName = "quick",
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

    if not 0 < low < high:
        raise SystemExit("--low must be above 0 and below --high")
    chosen = load(recipe, form)
    folder = out / chosen.name / "lr-range"
    range_test(prepare(chosen, say), folder, say, low=low, high=high, updates=updates, check=check)


def sensitivity(
    recipe: RecipeName = "news",
    form: FormName = "quick",
    out: Out = Path("artifacts"),
    budget: Annotated[float, typer.Option(min=0, max=1, help="Share of the encoder's weights to train.")] = 0.3,
    batches: Annotated[int, typer.Option(min=1, help="Batches that are measured.")] = 16,
    warm: Annotated[int, typer.Option(min=0, help="Updates of the new head alone before.")] = 32,
) -> None:
    """Ranks the layers by what they weigh in the loss and proposes which to train under a budget.

    Example: python -m finetune sensitivity news --budget 0.2
    """
    from finetune.prepare import prepare
    from finetune.sensitivity import analyse

    chosen = load(recipe, form)
    folder = out / chosen.name / "sensitivity"
    analyse(prepare(chosen, say), folder, say, batches=batches, warm=warm, budget=budget)
