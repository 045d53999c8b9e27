"""Where a training goes on after it was interrupted: its last whole checkpoint, and what PaddleNLP forgets of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bundle.folder import write_atomic
from finetune import parallel
from finetune.curve.record import NAME, read_until
from finetune.prepare import Prepared, Say

SPENT = "spent.json"


def checkpoint_of(prepared: Prepared, run: Path, say: Say) -> Path | None:
    """The last whole checkpoint of the same recipe and data; another run's checkpoints are removed."""
    run.mkdir(parents=True, exist_ok=True)
    mark = run / "run.json"
    wanted: dict[str, Any] = {"recipe_sha256": prepared.recipe.checksum(), "data_sha256": prepared.data_sha256}
    if parallel.processes() > 1:
        wanted["processes"] = parallel.processes()
    known = json.loads(mark.read_text()) if mark.is_file() else None
    folder = run / "checkpoints"
    if known != wanted and parallel.rank() == 0:
        if folder.is_dir():
            say(f"recipe or data changed: the checkpoints in {folder} are dropped")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run / "visualdl", ignore_errors=True)
        (run / NAME).unlink(missing_ok=True)
        (run / "history.jsonl").unlink(missing_ok=True)
        write_atomic(mark, json.dumps(wanted))
        return None
    if known != wanted:
        return None
    # trainer_state.json is the first file of a checkpoint to be written, rng_state and the scheduler the last.
    whole = [path for path in folder.glob("checkpoint-*") if (path / "scheduler.pdparams").is_file()]
    if prepared.recipe.train.sharding != "off":  # each process signs for its share
        whole = [path for path in whole if len(list(path.glob("saved_signal_*"))) == parallel.processes()]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0


def save_spent(checkpoint: Path, seconds: float) -> None:
    """Notes how long the training took up to a checkpoint, interruptions left out."""
    (checkpoint / SPENT).write_text(json.dumps({"seconds": round(seconds, 1)}), encoding="utf-8")


def spent_until(checkpoint: Path | None) -> float:
    """Seconds of training up to a checkpoint; 0 where nothing is known of them."""
    path = checkpoint / SPENT if checkpoint is not None else None
    if path is None or not path.is_file():
        return 0.0
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])


def read_history(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def had_stopped(trainer: Any, run: Path, step: int, patience: int) -> bool:
    """Whether the run had stopped early at the step from which it is resumed.

    PaddleNLP forgets at a resume how many evaluations were no better; the history knows, and its callback is told.
    """
    from paddlenlp.trainer import EarlyStoppingCallback

    events = [event for event in read_until(run / NAME, step).of("event") if not event.get("dry_run")]
    since = max((event["step"] for event in events if "rollback" in event), default=0)
    name = f"dev_{trainer.args.metric_for_best_model.removeprefix('eval_')}"
    best, count = None, 0
    for point in read_history(run / "history.jsonl"):
        if name not in point or point["step"] > step:
            continue
        better = best is None or point[name] > best
        best = point[name] if best is None else max(best, point[name])
        # A rollback at an evaluation comes after it was counted.
        count = 0 if better or point["step"] <= since else count + 1
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = count
    return count >= patience or any(event["strategy"] == "early-stop" for event in events)
