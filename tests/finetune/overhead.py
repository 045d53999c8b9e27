"""What watching costs: ``python -m tests.finetune.overhead``.

Plain updates, updates at which the layers are looked at (level 2) and looks inside the model (level 3) take turns on
one model, so that a busy machine slows all alike. Each ratio is a median's, spread over the default interval.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from finetune.machine import quiet_paddle


def measure(rounds: int, layers: int, width: int, batch: int, tokens: int) -> dict[str, float]:
    """Median seconds of an update, of one with a look at the layers, of the update after it, and of a look inside."""
    quiet_paddle()
    import paddle
    from paddlenlp.transformers import ErnieConfig, ErnieForSequenceClassification

    from finetune.curve.signals import Signals
    from finetune.prepare import prepare
    from finetune.recipe import load
    from tests.finetune.short_training import write_recipe

    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), curve="level = 3\nlayers_every = 1000\ndeep_every = 1000")
        prepared = prepare(load(str(recipe)), lambda _: None)
        signals = Signals(prepared, [[(0, 0)] * batch] * 4000, Path(folder) / "run")
        config = ErnieConfig(
            vocab_size=21128,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=4 * width,
            num_labels=2,
        )
        model = ErnieForSequenceClassification(config)
        model.train()
        optimizer = paddle.optimizer.AdamW(
            1e-5, parameters=model.parameters(), grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)
        )
        signals.begin(model, 0)
        generator = np.random.default_rng(0)
        times: dict[str, list[float]] = {"plain": [], "look": [], "after": [], "inside": []}

        def update(step: int, watched: bool) -> float:
            inputs: dict[str, Any] = {
                "input_ids": paddle.to_tensor(generator.integers(5, 21000, (batch, tokens))),
                "labels": paddle.to_tensor(generator.integers(0, 2, batch)),
            }
            start = time.perf_counter()
            logits = model(inputs["input_ids"])
            loss = paddle.nn.functional.cross_entropy(logits, inputs["labels"])
            loss.backward()
            if watched:
                signals.seen(float(loss), inputs, (logits,))
                signals.gradients(step)
            optimizer.step()
            optimizer.clear_grad()
            if watched:
                signals.updated()
            return time.perf_counter() - start

        update(0, False)
        for _ in range(rounds):
            times["plain"].append(update(0, False))
            times["look"].append(update(1000, True))
            times["after"].append(update(1001, True))
            start = time.perf_counter()
            signals._inside(model)
            times["inside"].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    from finetune.curve.settings import Curve

    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("rounds", 15), ("layers", 4), ("width", 312), ("batch", 16), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    chosen = parser.parse_args()
    found = measure(**vars(chosen))
    every = Curve()
    plain = found["plain"]
    second = (found["look"] + found["after"] - 2 * plain) / every.layers_every / plain
    third = second + found["inside"] / every.deep_every / plain
    print(", ".join(f"{name} {1000 * value:.0f} ms" for name, value in found.items()))
    print(f"level 2: {second:+.1%} of an update, every {every.layers_every}")
    print(f"level 3: {third:+.1%} of an update, inside every {every.deep_every}")


if __name__ == "__main__":
    main()
