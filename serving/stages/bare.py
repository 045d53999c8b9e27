"""The bare engine: ONNX Runtime on texts that were tokenized before, in as many sessions and threads as the gateway.

    python -m serving.stages.bare BUNDLES MODEL CLIENTS < places.jsonl

Each line that is read is a JSON list of rows of the dev split; they are computed once, and a line ``{"seconds",
"cpu_seconds", "ms"}`` is printed. What is computed together is decided as in the gateway (`serving.running`): where a
plan joins the windows of several requests, those of CLIENTS texts stand in line at a time.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import onnxruntime as ort

from bundle.batching import groups
from bundle.encode import IntArray, pad
from bundle.predict import batches
from bundle.rows import read_rows
from serving.catalogue import ServedModel, load
from serving.engines import feeds, outputs_of
from serving.running import running
from serving.settings import Settings

Feed = tuple[IntArray, IntArray]


class Bare:
    """The sessions of one model."""

    def __init__(self, model: ServedModel, clients: int) -> None:
        self.model, self._clients, how = model, clients, model.running
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = how.threads, 1
        options.log_severity_level = 3
        copies = 1 if how.threads == 1 else how.sessions
        opened = [
            ort.InferenceSession(str(model.graph), options, providers=["CPUExecutionProvider"]) for _ in range(copies)
        ]
        self._sessions = [opened[number % copies] for number in range(how.sessions)]
        self._encoded = [model.encoder.encode(text, truncate=True) for text in texts_of(model)]
        self._outputs = outputs_of(model)

    def calls(self, places: list[int]) -> list[tuple[list[int], Feed]]:
        """Computations for some texts: which texts end with each, and what it is given."""
        encoder, how = self.model.encoder, self.model.running
        waiting, found = iter(places), []
        while some := list(islice(waiting, self._clients if how.windows else 1)):
            windows = [(text, number) for text in some for number in range(len(self._encoded[text].windows))]
            rows = [encoder.row(self._encoded[text], number) for text, number in windows]
            lengths = [len(row.ids) for row in rows]
            if not self.model.artifact.batch_invariant:
                together = [[index] for index in range(len(rows))]
            elif how.windows:
                together = groups(lengths, how.windows, how.by_length)
            else:
                together = list(batches(lengths, how.batch_tokens))
            last = {windows[index][0]: number for number, group in enumerate(together) for index in group}
            for number, group in enumerate(together):
                ended = [text for text, call in last.items() if call == number]
                found.append((ended, pad([rows[index] for index in group], encoder.spec.pad_id)))
        return found

    def run(self, places: list[int]) -> dict[str, object]:
        """Computes some texts, every session taking the next computation when it is idle."""
        waiting = iter(self.calls(places))
        busy, begun = time.process_time(), time.perf_counter()
        ms: list[float] = []

        def work(session: ort.InferenceSession) -> None:
            for _, feed in waiting:
                started = time.perf_counter()
                session.run(self._outputs, feeds(self.model, *feed))
                ms.append(round((time.perf_counter() - started) * 1000, 4))

        with ThreadPoolExecutor(len(self._sessions)) as pool:
            for done in [pool.submit(work, session) for session in self._sessions]:
                done.result()
        return {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - busy, "ms": ms}


def texts_of(model: ServedModel) -> list[str]:
    """The texts of the dev split, or of the golden rows where the bundle has no such split; in their order."""
    if "dev" not in model.manifest.splits:
        return [row.text for row in model.golden]
    return [row.text for row in read_rows(model.bundle.path(model.manifest.splits["dev"].file))]


def served(bundles: Path, name: str) -> ServedModel:
    """The model as the gateway runs it with its embedded engine, under the same settings."""
    given: dict[str, Any] = {"engine": "onnx", "bundles": bundles}
    settings = Settings(**given)
    return load(bundles, run_as=lambda manifest: running(manifest, settings))[name]


def main(bundles: Path, name: str, clients: int) -> None:
    """Answers lines until there are no more."""
    bare = Bare(served(bundles, name), clients)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(bare.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
