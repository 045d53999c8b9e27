"""Short trainings as one of several processes: ``recipe run-folder`` pairs, one after the other.

A run folder that is named again loses its last checkpoint, and the training goes on from the one before.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bundle.errors import RecipeError
from finetune import parallel
from tests.finetune.short_training import run

seen: set[str] = set()
for recipe, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    if folder in seen:
        import paddle

        paddle.distributed.barrier()
        if parallel.rank() == 0:
            checkpoints = Path(folder, "checkpoints").glob("checkpoint-*")
            last = max(checkpoints, key=lambda path: int(path.name[11:]))
            shutil.copytree(last, Path(folder, "before"))
            shutil.rmtree(last)
        paddle.distributed.barrier()
    seen.add(folder)
    try:
        done = run(Path(recipe), Path(folder))
        if parallel.rank() == 0:
            Path(folder, "resumed.txt").write_text(str(done.resumed_from), encoding="utf-8")
    except RecipeError as error:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "refused.txt").write_text(str(error), encoding="utf-8")
