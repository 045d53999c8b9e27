"""Every base × every head fuses completely and answers as PaddleNLP does, through the real converters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.folder import Bundle, open_bundle
from export.parity import FP32_TOLERANCE
from export.passes import PASS_TOLERANCE
from export.session import open_session, run_of
from tests.export.conftest import made_by
from tests.export.tiny import FAMILIES, LAYERS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for each, as far as the chain took it."""
    return made_by("families.py", tmp_path_factory.mktemp("families"))


def converted(families: Path, name: str) -> Bundle:
    error = families / name / "error.txt"
    assert not error.is_file(), error.read_text(encoding="utf-8")
    return open_bundle(families / name / "bundle")


@pytest.mark.parametrize("name", list(FAMILIES))
def test_it_fuses_in_every_layer_and_answers_as_the_trained_model(name: str, families: Path) -> None:
    bundle = converted(families, name)
    artifact = bundle.manifest.artifacts["onnx_fused"]
    # ELECTRA's head for whole texts has a gelu of its own.
    head = name.startswith("electra") and not name.endswith("token-classification")
    wanted = {"EmbedLayerNormalization": 1, "Attention": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
    assert artifact.details["fused"] == wanted | {"BiasGelu": LAYERS + head}
    counts = Counter(node.op_type for node in onnx.load(str(bundle.path(artifact.file))).graph.node)
    first = not bundle.manifest.task.tags
    # A last layer that is read at its first token has its attention taken apart.
    assert (counts["Attention"], counts["Softmax"]) == (LAYERS - first, int(first))
    assert (counts["LayerNormalization"], counts["SkipLayerNormalization"], counts["Erf"]) == (2 * LAYERS, 0, 0)
    assert artifact.parity is not None and artifact.parity.max_abs <= FP32_TOLERANCE
    assert artifact.parity.label_agreement == 1


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_pass_is_listed_with_its_parity_and_its_gain(name: str, families: Path) -> None:
    bundle = converted(families, name)
    passes = bundle.manifest.artifacts["onnx_fused"].details["passes"]
    assert isinstance(passes, list)
    applied = {item["name"]: item for item in passes if isinstance(item, dict) and item["applied"]}
    first = () if bundle.manifest.task.tags else ("first-token", "first-query", "leftovers")
    types = () if bundle.manifest.task.kind == "text-pair" else ("token-types",)
    assert set(applied) == {*first, *types, "int32-mask", "plain-norms"}
    for item in applied.values():
        assert item["max_abs"] <= PASS_TOLERANCE
        assert all(gain["ratio"] > 0 and gain["rounds"] >= 7 for gain in item["gains"])


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.endswith(("single-label", "multi-label"))])
def test_a_padded_batch_is_answered_as_by_the_graph_as_converted(name: str, families: Path) -> None:
    bundle = converted(families, name)
    rng = np.random.default_rng(5)
    ids = rng.integers(4, 160, (5, 13))
    types = np.zeros_like(ids)
    for row in range(5):
        ids[row, 13 - 2 * row :] = 0
        if bundle.manifest.task.kind == "text-pair":
            types[row, 3 : 13 - 2 * row] = 1
    answers = [
        run_of(open_session(bundle.path(f"onnx/model_{form}.onnx")), bundle.manifest.signature)(ids, types)
        for form in ("fp32", "fused")
    ]
    assert len(answers[0]) == len(bundle.manifest.signature.outputs)
    for one, other in zip(*answers, strict=True):
        # What stands at padded places is nobody's answer.
        real = ids != 0 if one.ndim == 3 else slice(None)
        np.testing.assert_allclose(one[real], other[real], atol=5e-5)
