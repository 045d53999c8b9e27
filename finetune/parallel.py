"""One training in several processes: each reads its share of every batch, and Paddle adds up the gradients.

``python -m finetune run RECIPE --processes 2`` is started once for each process by ``paddle.distributed.launch``. The
plan of batches stays that of one process, and each process weighs its loss by the rows that it read of a batch: the
loss curve is that of a single process, but for the order in which floats are added.

What Paddle 3.2.2 can do on a CPU, over gloo (tried with two processes): data parallelism, and ZeRO stage 1, in which
each process keeps the optimizer's state of its share of the weights (Rajbhandari et al. 2020). Stages 2 and 3 end in an
assertion of ``group_sharded_parallel``: "only support gpu, xpu and custom_device".
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bundle.errors import RecipeError
from finetune.recipe import Recipe

_NOISE = re.compile(r"^LAUNCH |^-{10}|^={5}|^FLAGS\(|^I\d{4} |^W\d{4} |^\[20\d\d-|^$|UserWarning|warnings\.warn")


THREADS = ("OMP_NUM_THREADS", "FLAGS_paddle_num_threads")


def processes() -> int:
    """How many processes train together, as ``paddle.distributed.launch`` tells each of them."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def rank() -> int:
    """This process among them, from 0 on."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def launch(count: int, arguments: list[str], script: Path | None = None, threads: int | None = None) -> int:
    """Runs ``python -m finetune``, or another script, with the arguments in several processes.

    Returns:
        the exit status.

    What rank 0 prints is shown; the others' output is shown where one of them failed.
    """
    from bundle.machine import cores

    environment = dict(os.environ)
    # Each process would take all cores for itself otherwise, and they would wait for each other.
    for name in THREADS:
        environment[name] = str(threads or max(1, cores() // count))
    # Paddle starts a script by its path, and would find the modules beside it in the place of the packages.
    room = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(room.parent), environment.get("PYTHONPATH")]))
    environment["PYTHONSAFEPATH"] = "1"
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch"]
        command += ["--nproc_per_node", str(count), "--log_dir", logs, str(script or room / "__main__.py"), *arguments]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:  # Paddle's own words, and what rank 0 prints
                if line.startswith("  ") or not _NOISE.search(line):
                    print(line, end="", flush=True)
        for number in range(1, count if process.returncode else 1):
            log = Path(logs) / f"workerlog.{number}"
            if log.is_file():
                print(f"process {number}:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}", flush=True)
        return process.returncode


def check(recipe: Recipe, on_gpu: bool) -> None:
    """Refuses what several processes, or this machine, cannot do.

    Raises:
        RecipeError: with what is needed.
    """
    count, settings = processes(), recipe.train

    def refuse(key: str, reason: str) -> None:
        raise RecipeError(recipe.name, key, reason)

    if settings.sharding != "off" and count == 1:
        refuse("train.sharding", "needs several processes: python -m finetune run RECIPE --processes 2")
    if settings.sharding in ("stage2", "stage3") and not on_gpu:
        refuse(
            "train.sharding",
            f"{settings.sharding} needs GPUs, one for each process: Paddle's group_sharded_parallel refuses a CPU; "
            "stage1 runs on one",
        )
    if count == 1:
        return
    if settings.batch < count:
        refuse("train.batch", f"{settings.batch} windows cannot be shared by {count} processes")
    if recipe.curve.control == "on":
        refuse("curve.control", "a controller that interferes needs one process: each would decide by itself")
    if settings.delay:
        refuse("train.delay", "simulates the workers in one process; leave out --processes")
    if settings.head_first or settings.unfreeze != "at-once":
        refuse("train.unfreeze", f"{count} processes share gradients of layers that are trained from the start only")


def share(items: list[Any]) -> list[Any]:
    """This process's part of a batch; the first item where there are fewer than processes (its weight is 0 then)."""
    return items[rank() :: processes()] or items[:1]


def weight(count: int) -> float:
    """Factor on the mean loss of this process's share of a batch, so that Paddle's mean over processes is the batch's.

    Args:
        count: items of the whole batch.
    """
    own = len(range(rank(), count, processes()))
    return own * processes() / count


def mean(value: float) -> float:
    """Mean over the processes."""
    if processes() == 1:
        return value
    import paddle

    tensor = paddle.to_tensor([value], dtype="float64")
    paddle.distributed.all_reduce(tensor)
    return float(tensor[0]) / processes()
