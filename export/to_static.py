"""Dynamic graph → static graph: PaddleNLP's checkpoint through ``paddle.jit`` to ``static/model.json`` + weights.

Paddle is imported only in a process of its own (`python -m export.to_static JOB.json`), because its converters may
abort a process and because it takes seconds and gigabytes. That process also runs the trained model itself on the
golden rows and on a sample of dev rows, so that later steps have the training framework's answers to compare with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from bundle.decode import FloatArray
from bundle.encode import Encoded, Encoder, IntArray
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.manifest import Quality
from bundle.predict import Predicted, Run, agreement, answers_of, encode_rows, judged, metrics_of, predict
from bundle.rows import Row, read_rows
from export.architectures import ARCHITECTURES, arrays_of, class_of
from export.artifact import adopt, is_current, source_of, workplace
from export.journal import Journal
from export.parity import FP32_TOLERANCE, PROBE, GoldenRows, check_probes, probe_windows
from export.spread import spread

NAME, SOURCE = "paddle_static", "paddle"
GRAPH, WEIGHTS, ANSWERS = "static/model.json", "static/model.pdiparams", "static/answers.npz"
# Dev rows that the training framework itself answers here; all of them would take minutes and prove little more.
SAMPLE_ROWS = 32
# What stands behind an answer's number for the second output of a multi-task model.
TOKEN_SUFFIX = ".token"
# What stands before the number of a golden row.
GOLDEN = "golden."


def to_static(bundle: Bundle, journal: Journal, *, force: bool = False) -> Bundle:
    """Adds the artifact ``paddle_static``.

    Raises:
        ExportError: an architecture that is not on the list, or no checkpoint.
        ConversionFailed: Paddle failed or crashed.
        ParityFailed: the trained model or the static graph does not give the golden logits.
    """
    manifest = bundle.manifest
    checkpoint = source_of(bundle, SOURCE)
    if manifest.made.architecture not in ARCHITECTURES:
        raise ExportError(
            f"{bundle.root}: cannot export {manifest.made.architecture!r}; known: {', '.join(ARCHITECTURES)}"
        )
    settings: dict[str, JsonValue] = {"pass": 2, "form": "pir", "sample_rows": SAMPLE_ROWS, "tolerance": FP32_TOLERANCE}
    if not force and is_current(bundle, NAME, SOURCE, settings):
        journal.say("  up to date")
        return bundle
    golden = GoldenRows(bundle)
    sample = sample_rows(bundle)
    encoded = encode_rows(sample, golden.encoder)
    with workplace(bundle, "static") as folder:
        batches = folder / "batches.npz"
        probes = probe_windows(golden)
        _write_batches(batches, [("golden", golden.encoded, 1), ("sample", encoded, 4096)], golden.encoder, probes)
        job = {
            "architecture": manifest.made.architecture,
            "checkpoint": str(bundle.path(checkpoint.file).parent.resolve()),
            "inputs": [tensor.name for tensor in manifest.signature.inputs],
            "outputs": len(manifest.signature.outputs),
            "folder": str(folder.resolve()),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        journal.say("    Paddle loads the checkpoint, saves the static graph and answers the golden rows in both forms")
        journal.worker("to_static", "export.to_static", [str((folder / "job.json").resolve())])
        with np.load(folder / "answers.npz", allow_pickle=False) as answers:
            dygraph = _replay(answers, "dygraph", len(manifest.signature.outputs))
            static = _replay(answers, "static", len(manifest.signature.outputs))
            golden.measure(SOURCE, golden.predict(dygraph, 1))
            proved = golden.predict(static, 1)
            parity = golden.measure(NAME, proved)
            reference = predict(encoded, golden.encoder, dygraph)
            found = predict(encoded, golden.encoder, static)
            asked = dygraph(*probes)
            check_probes(NAME, static, golden, (*probes, list(asked)))
        quality = quality_of(bundle, sample, found, reference) if sample else None
        extra = {"ids": probes[0], "types": probes[1], **{str(number): values for number, values in enumerate(asked)}}
        save_answers(
            folder / "sample.npz",
            {"": reference, GOLDEN: proved},
            {f"{PROBE}{key}": values for key, values in extra.items()},
        )
        architecture = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
        return adopt(
            bundle,
            NAME,
            {
                folder / "model.json": GRAPH,
                folder / "model.pdiparams": WEIGHTS,
                folder / "sample.npz": ANSWERS,
            },
            source=SOURCE,
            settings=settings,
            artifact_format="paddle-static",
            parity=parity,
            quality=quality,
            details={"architecture": architecture},
        )


def sample_rows(bundle: Bundle, count: int = SAMPLE_ROWS) -> list[Row]:
    """``count`` dev rows, evenly spread over the file; all of them where there are fewer."""
    if "dev" not in bundle.manifest.splits:
        return []
    rows = list(read_rows(bundle.path(bundle.manifest.splits["dev"].file)))
    return [rows[index] for index in spread(range(len(rows)), count)]


def quality_of(bundle: Bundle, rows: list[Row], found: list[Predicted], reference: list[Predicted] | None) -> Quality:
    """Metrics on rows of the dev split, and agreement with reference answers to the same rows."""
    task, joining = bundle.manifest.task, bundle.manifest.text.joining
    return Quality(
        split="dev",
        rows=len(rows),
        metrics=metrics_of(rows, found, task, joining),
        agreement=None
        if reference is None
        else agreement(*(judged(rows, answers_of(said, task, joining), task) for said in (reference, found))),
    )


def save_answers(path: Path, groups: dict[str, list[Predicted]], extra: Mapping[str, Any] | None = None) -> None:
    """The logits of some rows, window by window, as an ``.npz``; each group's names begin with its key.

    Args:
        extra: further arrays by their names.
    """
    arrays = {
        f"{group}{row}.{window}{suffix}": values
        for group, predicted in groups.items()
        for row, item in enumerate(predicted)
        for suffix, output in zip(("", TOKEN_SUFFIX), item.outputs, strict=False)
        for window, values in enumerate(output)
    }
    with path.open("wb") as stream:
        np.savez_compressed(stream, **arrays, **(extra or {}))


def load_answers(bundle: Bundle, encoded: list[Encoded], group: str = "") -> list[Predicted]:
    """The training framework's answers to the sample of dev rows; of the group `GOLDEN`, the static graph's.

    Raises:
        ExportError: they are not there, or belong to other rows.
    """
    source_of(bundle, NAME)
    suffixes = ("", TOKEN_SUFFIX)[: len(bundle.manifest.signature.outputs)]
    try:
        with np.load(bundle.path(ANSWERS), allow_pickle=False) as arrays:
            return [
                Predicted(
                    item,
                    *(
                        [arrays[f"{group}{row}.{window}{suffix}"] for window in range(len(item.windows))]
                        for suffix in suffixes
                    ),
                )
                for row, item in enumerate(encoded)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise ExportError(f"{bundle.path(ANSWERS)}: not the answers to these rows: {error}") from error


def _write_batches(
    path: Path, groups: list[tuple[str, list[Encoded], int]], encoder: Encoder, probes: tuple[IntArray, IntArray]
) -> None:
    """Writes the padded batches that `predict` will ask for, in its order, and the probes as the last one."""
    arrays: dict[str, Any] = {}

    def record(ids: Any, types: Any) -> list[FloatArray]:
        number = len(arrays) // 2
        arrays[f"ids.{number}"], arrays[f"types.{number}"] = ids, types
        return [np.zeros((len(ids), 2), np.float32)]

    for _, encoded, batch_tokens in groups:
        predict(encoded, encoder, record, batch_tokens=batch_tokens)
    record(*probes)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def _replay(answers: Any, form: str, outputs: int) -> Run:
    """The worker's answers as a model: `predict` asks for the same batches in the same order."""
    position = 0

    def run(ids: Any, types: Any) -> list[FloatArray]:
        nonlocal position
        found: list[FloatArray] = [answers[f"{form}.{position}.{output}"] for output in range(outputs)]
        position += 1
        return found

    return run


def convert(job: dict[str, Any]) -> None:
    """The worker: runs in a process of its own, where Paddle is imported."""
    import paddle
    from paddle.static import InputSpec
    from paddlenlp import transformers

    folder = Path(job["folder"])
    model = class_of(transformers, job["architecture"]).from_pretrained(job["checkpoint"])
    model.eval()
    config = model.config
    architecture = {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "activation": config.hidden_act,
        "pad_id": config.pad_token_id,
        "positions": config.max_position_embeddings,
    }
    (folder / "architecture.json").write_text(json.dumps(architecture), encoding="utf-8")
    with np.load(folder / "batches.npz", allow_pickle=False) as arrays:
        batches = [(arrays[f"ids.{n}"], arrays[f"types.{n}"]) for n in range(len(arrays) // 2)]
    answers: dict[str, Any] = {}

    def answer(form: str, layer: Any) -> None:
        with paddle.no_grad():
            for number, (ids, types) in enumerate(batches):
                found = layer(paddle.to_tensor(ids), paddle.to_tensor(types))
                for output, values in enumerate(arrays_of(found, job["outputs"])):
                    answers[f"{form}.{number}.{output}"] = values

    answer("dygraph", model)
    spec = [InputSpec([None, None], "int64", name=name) for name in job["inputs"]]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec), str(folder / "model"))
    static = paddle.jit.load(str(folder / "model"))
    static.eval()
    answer("static", static)
    with (folder / "answers.npz").open("wb") as stream:
        np.savez(stream, **answers)


if __name__ == "__main__":
    convert(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
