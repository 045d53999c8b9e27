"""Base weights come from Paddle and PyTorch layouts alike, by restricted readers, and never silently at random."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import AssetUnavailable, DataError
from bundle.manifest import Task, bio_labels
from finetune.model.base import open_base, torch_to_paddle
from finetune.model.paddle_weights import read_paddle_state
from tests.tiny_base import PIECES, tiny_base


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("this must never be printed",))


def test_a_weights_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(pickle.dumps({"embeddings.word_embeddings.weight": Harmful()}))
    with pytest.raises(DataError, match=r"builtins\.print"):
        read_paddle_state(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"a": "b"})])
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model_state.pdparams"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"model_state\.pdparams"):
        read_paddle_state(path)


def test_torch_names_and_layouts_become_paddles() -> None:
    query = np.arange(6.0).reshape(2, 3)
    state = torch_to_paddle(
        {
            "bert.encoder.layer.3.attention.self.query.weight": query,
            "bert.embeddings.LayerNorm.gamma": np.ones(3),
            "bert.embeddings.position_ids": np.arange(4),
            "bert.embeddings.word_embeddings.weight": np.ones((5, 3)),
            "cls.predictions.bias": np.ones(5),
        }
    )
    assert set(state) == {
        "encoder.layers.3.self_attn.q_proj.weight",
        "embeddings.layer_norm.weight",
        "embeddings.word_embeddings.weight",
    }
    np.testing.assert_array_equal(state["encoder.layers.3.self_attn.q_proj.weight"], query.T)
    assert state["embeddings.word_embeddings.weight"].shape == (5, 3)


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(DataError, match="bert, ernie"):
        open_base(str(tmp_path))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        open_base(str(tmp_path))


@pytest.mark.slow
def test_a_hub_name_without_a_hub_names_the_two_offline_ways(tmp_path: Path) -> None:
    with pytest.raises(AssetUnavailable) as error:
        open_base("no-such-owner/no-such-ernie", cache=tmp_path)
    assert len(error.value.ways_out) == 2
    assert "model_state.pdparams" in str(error.value) and "m3e-small" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ernie", "bert"])
def test_every_encoder_weight_reaches_the_headed_model(tmp_path: Path, family: str) -> None:
    folder = tiny_base(tmp_path / family, family)
    base = open_base(str(folder))
    model = base.build(Task(kind="single-label", labels=("a", "b", "c")))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights = read_paddle_state(folder / "model_state.pdparams")
    for name, value in weights.items():
        np.testing.assert_array_equal(state[f"{family}.{name}"], value, err_msg=name)
    assert base.tokenizer().get_vocab_size() == len(PIECES)


@pytest.mark.slow
def test_a_pytorch_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    import paddle
    from safetensors.numpy import save_file

    folder = tiny_base(tmp_path / "paddle", "bert")
    other = tmp_path / "torch"
    other.mkdir()
    for name in ("config.json", "vocab.txt"):
        (other / name).write_bytes((folder / name).read_bytes())
    names = {
        ".self_attn.q_proj.": ".attention.self.query.",
        ".self_attn.k_proj.": ".attention.self.key.",
        ".self_attn.v_proj.": ".attention.self.value.",
        ".self_attn.out_proj.": ".attention.output.dense.",
        ".linear1.": ".intermediate.dense.",
        ".linear2.": ".output.dense.",
        ".norm1.": ".attention.output.LayerNorm.",
        ".norm2.": ".output.LayerNorm.",
        "embeddings.layer_norm.": "embeddings.LayerNorm.",
        "encoder.layers.": "encoder.layer.",
    }
    state = {}
    for name, value in read_paddle_state(folder / "model_state.pdparams").items():
        new = name
        for ours, theirs in names.items():
            new = new.replace(ours, theirs)
        linear = value.ndim == 2 and "embeddings" not in name
        state[f"bert.{new}"] = np.ascontiguousarray(value.T if linear else value)
    save_file(state, str(other / "model.safetensors"))
    ids = paddle.to_tensor(np.array([[2, 8, 9, 10, 3]]))
    answers = []
    for path in (folder, other):
        paddle.seed(1)
        model = open_base(str(path)).build(Task(kind="token-classification", labels=bio_labels(["X", "Y"])))
        model.eval()
        answers.append(model.bert(ids)[0].numpy())
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)


@pytest.mark.slow
def test_missing_encoder_weights_are_an_error_and_not_a_random_start(tmp_path: Path) -> None:
    import paddle

    folder = tiny_base(tmp_path / "base", "bert")
    state = read_paddle_state(folder / "model_state.pdparams")
    del state["encoder.layers.1.linear1.weight"]
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(folder / "model_state.pdparams"))
    with pytest.raises(DataError, match=r"1 encoder weights are missing, first bert\.encoder\.layers\.1\.linear1"):
        open_base(str(folder)).build(Task(kind="single-label", labels=("a", "b")))


@pytest.mark.slow
def test_weights_of_another_size_are_an_error(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base", "ernie")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has shape"):
        open_base(str(folder)).build(Task(kind="single-label", labels=("a", "b")))
