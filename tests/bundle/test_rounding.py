"""Batches whose windows' lengths are rounded up: padding is added, and nothing of the answers is lost or added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.folder import Bundle
from bundle.rounding import STEP, Rounding
from tests.serving.tiny_bundle import make_bundle

pytestmark = pytest.mark.properties


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(Path(tmp_path_factory.mktemp("desk")) / "bundle", "desk", "multi-task")


@given(windows=st.integers(1, 4), share=st.floats(0, 1))
def test_only_padding_is_added_up_to_a_multiple_or_to_the_longest_window(
    bundle: Bundle, windows: int, share: float
) -> None:
    manifest = bundle.manifest
    most, pad_id = manifest.text.max_tokens, manifest.text.pad_id
    tokens = 1 + round(share * (most - 1))
    rounding = Rounding(manifest, manifest.artifacts["onnx_fp32"])
    ids = np.arange(windows * tokens).reshape(windows, tokens) + 5
    wide = rounding.widened({"input_ids": ids, "token_type_ids": ids % 2})
    length = rounding.tokens(tokens)
    assert tokens <= length < tokens + STEP and length <= most and (length % STEP == 0 or length == most)
    for name, before, fill in (("input_ids", ids, pad_id), ("token_type_ids", ids % 2, 0)):
        assert wide[name].shape == (windows, length) and wide[name].dtype == before.dtype
        assert (wide[name][:, :tokens] == before).all() and (wide[name][:, tokens:] == fill).all()

    labels = np.zeros((windows, 3), np.float32)
    assert rounding.cut("logits", labels, tokens).shape == labels.shape
    said = np.arange(windows * length * 5, dtype=np.float32).reshape(windows, length, 5)
    assert np.array_equal(rounding.cut("token_logits", said, tokens), said[:, :tokens])


def test_what_padding_would_change_is_left_as_it_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "b", "single-label", precision="int8")
    artifact = bundle.manifest.artifacts["onnx_int8"].model_copy(update={"batch_invariant": False})
    rounding = Rounding(bundle.manifest, artifact)
    assert [rounding.tokens(tokens) for tokens in range(1, 60)] == list(range(1, 60))


def test_a_window_that_is_longer_than_the_model_was_made_for_is_not_cut(bundle: Bundle) -> None:
    most = bundle.manifest.text.max_tokens
    assert Rounding(bundle.manifest, bundle.manifest.artifacts["onnx_fp32"]).tokens(most + 3) == most + 3
