"""``python -m finetune report``: one or several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.terminal import say


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Run folders or names under artifacts/; the first is told in full.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the (first) run's folder.")
    ] = None,
) -> None:
    """A training on one HTML page, and its pictures as PNGs: curves, layers, answers, examples, recipe.

    Several runs are drawn over each other. Example: python -m finetune report news reviews
    """
    from finetune.report.page import write_page
    from finetune.report.source import find, open_run

    opened = [open_run(find(run)) for run in runs]
    written = write_page(opened, out or opened[0].folder / "report.html")
    say(f"wrote {written[0]} ({written[0].stat().st_size / 1e3:.0f} kB, all in one file)")
    say(f"wrote {len(written) - 1} pictures in {written[0].with_suffix('')}")
