"""What each lighter way of training costs and saves, and what late gradients do to the loss curve.

``make efficiency`` (``python -m tests.finetune.efficiency``) trains a small model in each way, each time in a process
of its own and in turns, and writes ``docs/results/training/efficiency.json``; ``--table`` prints that file's tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.finetune.short_training import run, write_recipe
from tests.tiny_base import mood_rows, tiny_base

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "training" / "efficiency.json"
# Four layers of 128, batches of 16 windows of 64 tokens: the activations outweigh the weights, as in a real training.
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "initializer_range": 0.02,
}
WARM, UPDATES = 2, 6
USUAL = {"epochs": "1", "eval_every": "1.0", "watch_rows": "4", "watch_windows": "1", "learning_rate": "1e-4"}
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "as usual": (1, {}),
    "4 steps of 4 windows (accumulate)": (1, {"batch": "4", "accumulate": "4"}),
    "recompute": (1, {"recompute": "true"}),
    "embeddings and 2 of 4 layers frozen": (1, {"freeze_layers": "2"}),
    "the uppermost layer (train_layers = 1)": (1, {"train_layers": "1"}),
    "attention's output only": (1, {"train_parts": '"attention-output"'}),
    "head and pooler only (train_layers = 0)": (1, {"train_layers": "0"}),
    "gradients 3 updates late": (1, {"delay": "3", "delay_compensation": "0.04"}),
    "2 processes": (2, {}),
    "2 processes, ZeRO stage 1": (2, {"sharding": '"stage1"'}),
}
LATE: dict[str, dict[str, str]] = {
    "in time, another seed": {"seed": "14"},
    "4 updates late, λ = 0": {"delay": "4"},
    "4 updates late, λ = 0.04": {"delay": "4", "delay_compensation": "0.04"},
    "4 updates late, λ = 30": {"delay": "4", "delay_compensation": "30.0"},
}


def one(recipe: Path, folder: Path) -> None:
    """Trains in this process; the first of several writes what each update and the whole took.

    Seconds are those that the process computed: on a shared machine the clock tells more of its neighbours.
    """
    import time

    from paddlenlp.trainer import TrainerCallback

    from finetune import parallel
    from finetune.prepare import prepare
    from finetune.recipe import load
    from finetune.train import train

    done: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.append(time.process_time())

    prepared = prepare(load(str(recipe)), lambda _: None)
    before = _memory("VmRSS")
    train(prepared, folder, lambda _: None, watched=False, callbacks=[Clock()])
    if parallel.rank() == 0:
        seconds = [later - earlier for earlier, later in itertools.pairwise(done[WARM - 1 :])]
        found = {"seconds": seconds, "mib": (_memory("VmHWM") - before) / 1024}
        (folder / "efficiency.json").write_text(json.dumps(found), encoding="utf-8")


def measure(rounds: int) -> dict[str, Any]:
    """Every way, in turns: median seconds of an update, and the most memory that the training added, in MiB."""
    from finetune import parallel

    # One thread for each process, so that two of them are compared with one of the same kind.
    os.environ.update(dict.fromkeys(parallel.THREADS, "1"))
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "mib": []} for name in WAYS}
    long = [row for row in mood_rows(40 * 16) if len(row[0]) > 80] * 2
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        _import()
        assert _apart(lambda: tiny_base(base, shape=SHAPE)) == 0
        for turn in range(rounds):
            for number, (name, (processes, train)) in enumerate(WAYS.items()):
                place = Path(folder) / f"{number}-{turn}"
                rows = [(text * 2, label) for text, label in long[: 16 * (WARM + UPDATES)]]
                recipe = write_recipe(
                    place, base=base, rows=rows, train={**USUAL, **train}, text="max_tokens = 64\noverlap = 8"
                )
                if processes == 1:
                    assert _apart(lambda recipe=recipe, place=place: one(recipe, place / "run")) == 0
                else:
                    arguments = ["--one", str(recipe), str(place / "run")]
                    assert parallel.launch(processes, arguments, Path(__file__), threads=1) == 0
                result = json.loads((place / "run" / "efficiency.json").read_text())
                found[name]["seconds"] += result["seconds"]
                found[name]["mib"].append(result["mib"])
                print(f"{name}: {statistics.median(result['seconds']):.2f} s, {result['mib']:.0f} MiB", flush=True)
    return {
        name: {"seconds": statistics.median(own["seconds"]), "mib": statistics.median(own["mib"])}
        for name, own in found.items()
    }


def _import() -> None:
    """What takes seconds to import, once for all the processes that are forked."""
    from finetune.machine import quiet_paddle

    quiet_paddle()
    import finetune.trainer
    import finetune.watch

    assert finetune.trainer and finetune.watch


def _apart(work: Callable[[], object]) -> int:
    """Runs it in a process forked from this one, in which nothing was computed yet; returns the exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def late() -> dict[str, Any]:
    """How far the loss curve of late gradients is from that of gradients in time, and where it ends."""
    from finetune.curve.record import read

    train = {"epochs": "4", "eval_every": "0.125", "watch_rows": "60", "learning_rate": "1.5e-3"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_base(folder / "base")

        def curve(place: str, more: dict[str, str]) -> list[float]:
            run(write_recipe(folder / place, base=base, train={**train, **more}), folder / place / "run")
            history = read(folder / place / "run")
            chance = history.run["dev_chance"]
            return [point["loss"] / chance for point in history.of("dev")]

        usual = curve("usual", {})
        result: dict[str, Any] = {"in time": {"distance": 0.0, "end": usual[-1], "curve": usual}}
        for number, (words, more) in enumerate(LATE.items()):
            own = curve(str(number), more)
            distance = statistics.mean(abs(a - b) for a, b in zip(own, usual, strict=True))
            result[words] = {"distance": distance, "end": own[-1], "curve": own}
    return result


def tables(record: dict[str, Any]) -> list[str]:
    """The two tables of a results file, in Markdown."""
    ways, usual = record["ways"], record["ways"]["as usual"]
    lines = [
        "| way | update, CPU s of a process | of usual | memory of training, MiB | of usual |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, own in ways.items():
        lines.append(
            f"| {name} | {own['seconds']:.2f} | {own['seconds'] / usual['seconds']:.2f} | {own['mib']:.0f} "
            f"| {own['mib'] / usual['mib']:.2f} |"
        )
    lines += [
        "",
        "| gradients | distance of the dev loss from that in time | dev loss at the end |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {name} | {own['distance']:.3f} | {own['end']:.3f} |" for name, own in record["late"].items()]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    from bundle.folder import write_atomic
    from bundle.machine import commit, hardware, versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "RUN"), help="one training, of which there are several")
    parser.add_argument("--table", action="store_true", help="print the tables of the results file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("ways", "late"), help="measure one of the two, keep the other")
    chosen = parser.parse_args(arguments)
    if chosen.one:
        one(Path(chosen.one[0]), Path(chosen.one[1]))
        return
    if not chosen.table:
        record = {
            "command": "make efficiency",
            "rounds": chosen.rounds,
            "updates": UPDATES,
            "warm_up": WARM,
            "model": {**SHAPE, "batch": 16, "tokens": 64, "threads": 1},
            "commit": commit(),
            "hardware": hardware(),
            "versions": versions(("paddlepaddle", "paddlenlp", "numpy")),
            "ways": measure(chosen.rounds) if chosen.only != "late" else _known("ways"),
            "late": late() if chosen.only != "ways" else _known("late"),
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(RESULTS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(tables(json.loads(RESULTS.read_text(encoding="utf-8")))))


def _known(part: str) -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))[part]


def _memory(what: str) -> int:
    """Of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {what}")


if __name__ == "__main__":
    main()
