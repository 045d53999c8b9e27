"""What the commands of this room share: options that several of them have, and how they end when they cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from loadtests.errors import LoadTestError

Host = Annotated[str, typer.Option(help="Address of the gateway.")]
Model = Annotated[str | None, typer.Option(help="Model to ask; the first one served by default.")]
Seed = Annotated[int, typer.Option(help="The same seed sends the same requests.")]
MaxChars = Annotated[int, typer.Option(help="Leave out longer texts.")]
# Of a gateway that runs already.
TestTexts = Annotated[
    Path | None, typer.Option(help="JSONL file of texts; the model's test split under artifacts/ by default.")
]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="The host is not this machine, but mine.")]
# Of a gateway that the command starts itself.
AnyTexts = Annotated[
    Path | None, typer.Option(help="JSONL file of texts; the test split, or the golden rows, by default.")
]
Repository = Annotated[Path, typer.Option(help="Triton's folder of models, beside the bundles.")]


@contextmanager
def told() -> Iterator[None]:
    """An error of ours ends the command with one sentence and status 2, Ctrl-C with 130."""
    try:
        yield
    except LoadTestError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; nothing was written", err=True)
        raise typer.Exit(130) from error
