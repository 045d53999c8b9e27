"""What the commands of this room share: the console, how progress is told, the arguments that several of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from finetune import recipe as recipes

console = Console(highlight=False, soft_wrap=True)
RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a TOML file.")]
FormName = Annotated[str, typer.Option(help="quick (2 CPU cores, minutes) or full.")]
Out = Annotated[Path, typer.Option(help="Folder under which results go, as <out>/<recipe name>/.")]


def say(sentence: str) -> None:
    """One line about what is being done, as it is: brackets in it are no markup."""
    console.print(f"  {sentence}", markup=False)


def load(recipe: str, form: str) -> recipes.Recipe:
    """The recipe that a command line names, in the form that it names.

    Raises:
        SystemExit: there is no such form.
        RecipeError: the recipe is wrong.
    """
    if form not in get_args(recipes.Form):
        raise SystemExit("--form must be quick or full")
    return recipes.load(recipe, form)  # type: ignore[arg-type]
