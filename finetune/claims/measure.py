"""One arm with one seed → its row: trains as `finetune.train` does, scores the test rows, and says what it cost.

Rows stand in one file, a JSON object a line, added as they are made: an interrupted run goes on behind the last one.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bundle.errors import DataError, TrainingDiverged
from bundle.machine import commit, hardware
from bundle.manifest import Joining
from finetune.claims.arms import ARMS, Arm
from finetune.curve.record import History, read
from finetune.machine import quiet_paddle
from finetune.model.base import BaseModel, State
from finetune.prepare import Prepared, Say, prepare
from finetune.targets import IGNORED

Row = dict[str, Any]
RESULTS = Path("docs/results/claims.jsonl")
# Windows of a test row that are read, as in the evaluations while training.
WINDOWS = 2
# Steps of a probe: the first ones allocate and are not timed.
PROBE_STEPS, PROBE_SKIPPED = 6, 2


@dataclass(frozen=True)
class ReducedBase(BaseModel):
    """The lowest layers of a base model, as many as its ``config`` says."""

    def weights(self) -> State:
        layers = self.config["num_hidden_layers"]
        return {
            name: value
            for name, value in super().weights().items()
            if not name.startswith("encoder.layers.") or int(name.split(".")[2]) < layers
        }


def reduced(prepared: Prepared, arm: Arm) -> Prepared:
    """The same rows with the arm's base model."""
    base = prepared.base
    config = {**base.config, "num_hidden_layers": min(arm.layers, base.config["num_hidden_layers"])}
    return replace(prepared, base=ReducedBase(base.folder, base.family, config, base.source))


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file; none where there is no file.

    Raises:
        DataError: the file is no text, or a line is not a row. A last line that a kill cut short is left out.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict) or not {"arm", "seed", "sha256"} <= row.keys():
            raise DataError(f"{path}:{number}: not a row of a claim (arm, seed, sha256)")
        rows.append(row)
    return rows


def missing(rows: Sequence[Row], arms: Sequence[Arm], seeds: Sequence[int]) -> list[tuple[Arm, int]]:
    """What is still to be trained, seed by seed, so that arms that are compared are trained close together."""
    known = {(row["arm"], row["seed"], row["sha256"]) for row in rows}
    return [(arm, seed) for seed in seeds for arm in arms if (arm.name, seed, arm.checksum(seed)) not in known]


def add_row(path: Path, row: Row) -> None:
    """Appends a row in one write; a broken last line of a killed run is taken away first."""
    rows = read_rows(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_text(encoding="utf-8") if rows else ""
    if content and not content.endswith("\n"):
        path.write_text(content[: content.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def measure_all(path: Path, arms: Sequence[Arm], seeds: Sequence[int], say: Say) -> Iterator[Row]:
    """Trains what is missing, one after the other; each row is written before the next is begun."""
    wanted = missing(read_rows(path), arms, seeds)
    began = time.monotonic()
    for number, (arm, seed) in enumerate(wanted, 1):
        row = _same(path, arm, seed) or (measure_apart(arm, seed) if arm.alone else measure(arm, seed))
        add_row(path, row)
        left = (time.monotonic() - began) / number * (len(wanted) - number)
        score = "" if row.get("score") is None else f"{row['metric']} {row['score']:.3f}, "
        say(f"{number}/{len(wanted)} {arm.name}, seed {seed}: {score}{row['seconds']:.0f} s; {left / 60:.0f} min left")
        yield row


def _same(path: Path, arm: Arm, seed: int) -> Row | None:
    """The twin's row as this arm's own, where its controller did nothing."""
    if not arm.twin:
        return None
    checksum = ARMS[arm.twin].checksum(seed)
    for row in read_rows(path):
        if (row["arm"], row["seed"], row["sha256"]) == (arm.twin, seed, checksum) and not row["events"]:
            return {**row, "arm": arm.name, "sha256": arm.checksum(seed), "same_as": arm.twin, "seconds": 0.0}
    return None


def measure_apart(arm: Arm, seed: int) -> Row:
    """The row, from a process of its own.

    Raises:
        DataError: the process failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "finetune", "claims", "--row", f"{arm.name}:{seed}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.split("\n") if line.startswith("{")]
    if done.returncode or not lines:
        raise DataError(f"claim {arm.name}, seed {seed}: {(done.stdout + done.stderr).strip()[-400:]}")
    row: Row = json.loads(lines[-1])
    return row


def measure(arm: Arm, seed: int) -> Row:
    """Trains one arm in this process."""
    quiet_paddle()
    recipe = arm.build(seed)
    prepared = reduced(prepare(recipe, lambda _: None), arm)
    row: Row = {"arm": arm.name, "seed": seed, "sha256": arm.checksum(seed), "metric": recipe.metric}
    before = _resident()
    began = time.monotonic()
    found = _probe(prepared, arm.probe == "recompute") if arm.probe else _trained(prepared)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row |= {**found, "seconds": round(time.monotonic() - began, 1)}
    if arm.alone:
        row |= {"before_mib": round(before), "peak_mib": round(peak)}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    machine = hardware()
    load = round(os.getloadavg()[0], 1)
    return row | {
        "created": created,
        "commit": commit(),
        "machine": f"{machine['cpu']}, {machine['cores']} cores",
        "load": load,
    }


def _trained(prepared: Prepared) -> Row:
    from bundle.predict import metrics_of
    from finetune.train import predict_rows, train

    metric = prepared.recipe.metric
    with tempfile.TemporaryDirectory(prefix="claims-") as folder:
        try:
            # The trainer's own progress would bury that of the claims.
            with contextlib.redirect_stdout(io.StringIO()):
                trained = train(prepared, Path(folder), lambda _: None)
        except TrainingDiverged:
            return {"score": None, "diverged": True, **of_history(read(Path(folder)), metric)}
        history = read(Path(folder))
        predicted = predict_rows(trained.model, prepared.test_sample, prepared, windows=WINDOWS)
    scores = metrics_of(prepared.test_sample, predicted, prepared.task, Joining(pooling="mean"))
    return {"score": round(scores[metric], 4), "planned": trained.planned, **of_history(history, metric)}


def of_history(history: History, metric: str) -> Row:
    """What a record tells of a training that claims are about.

    ``dev``: of each evaluation [step, dev loss, dev score, train loss of the later half of the steps since the last
    one, train loss of all of them].
    """
    dev, train, last = [], history.of("train"), 0
    for point in history.of("dev"):
        own = [p["loss"] for p in train if last < p["step"] <= point["step"] and p["loss"] is not None]
        last = point["step"]
        mean = round(float(np.mean(own)), 4) if own else None
        dev.append([point["step"], point["loss"], point["scores"].get(metric), point["train_loss"], mean])
    events = [event for event in history.of("event") if not event.get("dry_run")]
    return {
        "steps": history.step,
        "tokens_s": train[-1].get("tokens_s") if train else None,
        "dev": dev,
        "events": [f"{event['strategy']} at {event['step']}" for event in events],
        "findings": sorted({point["name"] for point in history.of("finding")}),
    }


def _probe(prepared: Prepared, recompute: bool) -> Row:
    """Steps of one batch (forward, backward, AdamW) with activations kept or computed again (Chen et al. 2016)."""
    import paddle

    from finetune.losses import loss_of

    spec, batch = prepared.encoder.spec, prepared.recipe.train.batch
    paddle.seed(prepared.recipe.train.seed)
    random = np.random.default_rng(prepared.recipe.train.seed)
    model = prepared.base.build(prepared.task, prepared.recipe.train.dropout)
    if recompute:
        model.recompute_enable()
    model.train()
    optimizer = paddle.optimizer.AdamW(learning_rate=1e-5, parameters=model.parameters())
    ids = paddle.to_tensor(random.integers(1000, 20000, (batch, spec.max_tokens)))
    labels = paddle.to_tensor(random.integers(0, len(prepared.task.labels), batch))
    assert int(labels.min()) > IGNORED
    seconds = []
    for _ in range(PROBE_STEPS):
        began = time.perf_counter()
        logits = model(ids, token_type_ids=paddle.zeros_like(ids))
        loss_of((logits,), {"labels": labels}, prepared.task, None).backward()
        optimizer.step()
        optimizer.clear_grad()
        seconds.append(time.perf_counter() - began)
    return {"score": None, "step_ms": round(1000 * median(seconds[PROBE_SKIPPED:]), 1)}


def _resident() -> float:
    """Memory of this process now, MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def arms_of(names: Sequence[str]) -> list[Arm]:
    """Arms by name, without doubles.

    Raises:
        DataError: there is no such arm.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise DataError(f"there is no arm {unknown[0]!r}; known: {', '.join(ARMS)}")
    return [ARMS[name] for name in dict.fromkeys(names)]
