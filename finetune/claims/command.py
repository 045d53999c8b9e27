"""``python -m finetune claims``: what articles claim, measured again; progress, resume, and docs/claims.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from finetune.terminal import console, say


def claims(
    only: Annotated[str, typer.Option(help="Only claims whose name contains this.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm, with seeds from 13 on.")] = 3,
    results: Annotated[
        Path, typer.Option(help="The rows, one JSON object a line; known ones are not trained again.")
    ] = (Path("docs/results/claims.jsonl")),
    plan: Annotated[bool, typer.Option("--plan", help="Only say what is still to be trained.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/claims.md; train nothing.")
    ] = False,
    row: Annotated[str, typer.Option(hidden=True, help="ARM:SEED: train it and print its row.")] = "",
) -> None:
    """Trains the arms of each claim that are not in the results file yet.

    Interrupted, it goes on where it was. Example: python -m finetune claims --only clipping
    """
    from finetune.claims.arms import SEEDS
    from finetune.claims.measure import arms_of, measure, measure_all, missing, read_rows
    from finetune.claims.table import CLAIMS, render

    if row:
        name, _, number = row.partition(":")
        print(json.dumps(measure(arms_of([name])[0], int(number))))
        return
    if markdown:
        print(render(read_rows(results)))
        return
    chosen = [claim for claim in CLAIMS if only in claim.name]
    if not chosen:
        raise SystemExit(f"no claim is called {only!r}; there are {', '.join(claim.name for claim in CLAIMS)}")
    arms = arms_of([name for claim in chosen for name in claim.arms])
    wanted = missing(read_rows(results), arms, [SEEDS[0] + n for n in range(seeds)])
    console.print(f"[bold]claims[/bold]: {len(wanted)} of {len(arms) * seeds} trainings are to be done; {results}")
    if plan:
        for arm, seed in wanted:
            say(f"{arm.name}, seed {seed}")
        return
    for _ in measure_all(results, arms, [SEEDS[0] + n for n in range(seeds)], say):
        pass
    console.print("next: make tables")
