"""Short trainings as one of several processes: ``recipe run-folder`` pairs, one after the other."""

from __future__ import annotations

import sys
from pathlib import Path

from bundle.errors import RecipeError
from tests.finetune.short_training import run

for recipe, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    try:
        run(Path(recipe), Path(folder))
    except RecipeError as error:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "refused.txt").write_text(str(error), encoding="utf-8")
