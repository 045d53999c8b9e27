"""Outside references of the bench: how they are talked to, what of their weights is converted, what is void.

Their libraries stand in environments that a checkout need not have, so what runs here is the real worker with this
interpreter and ONNX Runtime alone; `make bench ARGS=--references` proves each real one with the golden rows.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.errors import ExportError
from bundle.folder import open_bundle
from export.references import worker
from export.references.known import REFERENCES
from export.references.process import Worker
from export.references.weights import CLASSES, transformers_config, transformers_name, transformers_state

ROOT = Path(__file__).resolve().parents[2]
PADDLE_NAMES = {
    "bert.embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.layer_norm.bias": "bert.embeddings.LayerNorm.bias",
    "bert.encoder.layers.11.self_attn.q_proj.weight": "bert.encoder.layer.11.attention.self.query.weight",
    "bert.encoder.layers.0.self_attn.out_proj.bias": "bert.encoder.layer.0.attention.output.dense.bias",
    "bert.encoder.layers.0.norm1.weight": "bert.encoder.layer.0.attention.output.LayerNorm.weight",
    "bert.encoder.layers.0.linear1.weight": "bert.encoder.layer.0.intermediate.dense.weight",
    "bert.encoder.layers.0.linear2.weight": "bert.encoder.layer.0.output.dense.weight",
    "bert.encoder.layers.0.norm2.bias": "bert.encoder.layer.0.output.LayerNorm.bias",
    "bert.pooler.dense.weight": "bert.pooler.dense.weight",
    "ernie.embeddings.task_type_embeddings.weight": "ernie.embeddings.task_type_embeddings.weight",
    "classifier.bias": "classifier.bias",
}


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paddle", "transformers"), PADDLE_NAMES.items())
def test_a_weight_has_its_name_in_transformers(paddle: str, transformers: str) -> None:
    assert transformers_name(paddle) == transformers


@pytest.mark.parametrize("name", ["bert.encoder.layers.0.self_attn.rotary.weight", "electra.whatever", "classifier"])
def test_a_weight_without_counterpart_is_named(name: str) -> None:
    with pytest.raises(ExportError, match=name):
        transformers_name(name)


def test_linear_layers_are_turned_and_nothing_else() -> None:
    random = np.random.default_rng(3)
    shapes = {
        "bert.embeddings.word_embeddings.weight": (9, 4),
        "bert.encoder.layers.0.linear1.weight": (4, 8),
        "bert.encoder.layers.0.linear1.bias": (8,),
        "bert.pooler.dense.weight": (4, 4),
        "classifier.weight": (4, 3),
    }
    state = {name: random.normal(size=shape) for name, shape in shapes.items()}
    made = transformers_state(state, "BertForSequenceClassification")
    assert made["bert.embeddings.word_embeddings.weight"].shape == (9, 4)
    for name in ("bert.encoder.layers.0.linear1.weight", "bert.pooler.dense.weight", "classifier.weight"):
        assert np.array_equal(made[transformers_name(name)], state[name].T.astype(np.float32))
    assert all(value.dtype == np.float32 and value.flags["C_CONTIGUOUS"] for value in made.values())
    # What no output reads is no part of transformers' tagger.
    assert set(made) - set(transformers_state(state, "BertForTokenClassification")) == {"bert.pooler.dense.weight"}


def test_the_configuration_keeps_what_the_arithmetic_depends_on() -> None:
    config = {"hidden_size": 8, "layer_norm_eps": 1e-5, "hidden_act": "relu", "fuse": False, "hidden_dropout_prob": 0.1}
    made = transformers_config(config, "ErnieForTokenClassification", 3)
    assert (made["hidden_size"], made["layer_norm_eps"], made["hidden_act"]) == (8, 1e-5, "relu")
    assert (made["model_type"], made["hidden_dropout_prob"], len(made["id2label"])) == ("ernie", 0.0, 3)
    assert "fuse" not in made


@pytest.mark.parametrize("name", ["BertForMultiTask", "ElectraForTokenClassification"])
def test_a_class_that_transformers_lacks_or_names_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=f"{name} cannot be converted"):
        transformers_config({}, name, 2)
    assert name not in CLASSES


@pytest.mark.slow
def test_a_trained_checkpoint_is_converted_whole(trained: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    bundle = open_bundle(trained / "ernie-classes" / "bundle")
    command = [sys.executable, "-W", "ignore", "-m", "export.references.weights", str(bundle.root), str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    made = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["ErnieForSequenceClassification"]
    for layer in range(config["num_hidden_layers"]):
        shape = made[f"ernie.encoder.layer.{layer}.intermediate.dense.weight"].shape
        assert shape == (config["intermediate_size"], config["hidden_size"])
    assert made["classifier.weight"].shape == (len(bundle.manifest.task.labels), config["hidden_size"])


# --- talking ---------------------------------------------------------------------------------------------------------


def test_arrays_arrive_as_they_were_sent() -> None:
    arrays = [np.arange(6, dtype=np.int64).reshape(2, 3).T, np.float32([[0.5]]), np.empty((0, 4), dtype=np.int64)]
    stream = io.BytesIO()
    worker.send(stream, {"do": "run"}, arrays)
    worker.send(stream, {"seconds": 0.25})
    stream.seek(0)
    message, found = worker.receive(stream)
    assert message == {"do": "run"}
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays, found, strict=True))
    assert worker.receive(stream) == ({"seconds": 0.25}, [])
    with pytest.raises(EOFError):
        worker.receive(stream)


def test_a_message_that_breaks_off_is_the_end() -> None:
    stream = io.BytesIO()
    worker.send(stream, {}, [np.zeros(100)])
    with pytest.raises(EOFError):
        worker.receive(io.BytesIO(stream.getvalue()[:-1]))


def graph(path: Path, weights: Any) -> Path:
    """Logits = Σ of the rows of ``weights`` that the ids name, as transformers' exports ask for a mask."""
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["rows"], axis=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        numpy_helper.from_array(np.array([-1], dtype=np.int64), "last"),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["windows", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["windows", weights.shape[1]])]
    made = helper.make_graph(nodes, "reference", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def start(tmp_path: Path, file: Path, kind: str = "onnx") -> Worker:
    job = {"kind": kind, "file": str(file), "threads": 1, "outputs": 1, "pad_id": 0}
    return Worker.start("reference", Path(sys.executable), job, tmp_path)


def test_a_worker_opens_a_model_answers_and_ends(tmp_path: Path) -> None:
    weights = np.random.default_rng(5).normal(size=(7, 3)).astype(np.float32)
    made = start(tmp_path, graph(tmp_path / "model.onnx", weights))
    made.hello()
    assert "onnxruntime" in made.versions
    seconds, _ = made.ask("open")
    assert seconds > 0
    ids = np.array([[3, 4, 0], [5, 6, 1]])
    seconds, outputs = made.call(ids, np.zeros_like(ids))
    assert 0 < seconds < 10
    assert np.allclose(outputs[0], [weights[3] + weights[4], weights[5] + weights[6] + weights[1]])
    # A call that cannot be answered is told, and the next one works.
    with pytest.raises(ExportError, match="reference: "):
        made.call(np.array([[99]]), np.array([[0]]))
    assert made.call(ids, np.zeros_like(ids))[1][0].shape == (2, 3)
    made.close()
    assert made.process.returncode == 0


def test_what_a_worker_cannot_open_is_told_with_the_reason(tmp_path: Path) -> None:
    made = start(tmp_path, tmp_path / "missing.onnx")
    made.hello()
    with pytest.raises(ExportError, match=r"reference: .*missing\.onnx"):
        made.ask("open")
    made.close()


def test_a_library_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = start(tmp_path, tmp_path / "model.onnx", "transformers")
    with pytest.raises(ExportError, match="No module named 'torch'"):
        made.hello()
    made.close()


def test_a_worker_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    made = start(tmp_path, tmp_path / "model.onnx", "no such kind")
    with pytest.raises(ExportError, match="no such kind"):
        made.hello()
    made.process.wait(20)
    with pytest.raises(ExportError, match="its process died"):
        made.ask("open")
    made.close()


def test_every_reference_has_a_lock_without_addresses() -> None:
    locks = ROOT / "requirements"
    for name in {reference.environment for reference in REFERENCES.values()}:
        content = (locks / f"references-{name}.txt").read_text(encoding="utf-8")
        assert "--hash=sha256:" in content
        assert "://" not in content
        assert "--find-links" not in content and "index-url" not in content
    assert {reference.kind for reference in REFERENCES.values()} <= set(worker.KINDS)
