"""INT8: really integer, portable in its arithmetic, and independent of what a window is batched with."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from rich.console import Console

from bundle.folder import Bundle
from bundle.manifest import Calibration, Task
from bundle.manifest import Scheme as AnyScheme
from bundle.predict import Predicted, encode_rows
from bundle.rows import Row, read_rows
from export.gate import DevSplit, Tolerance
from export.journal import Journal
from export.parity import GoldenRows
from export.ranges import grid, least_error
from export.session import open_session, run_of
from export.to_int8 import (
    WEIGHT_LIMIT,
    Bench,
    Candidate,
    How,
    Scheme,
    Seen,
    count_products,
    difference,
    head_agreement,
    plan_activation,
    quantize_weight,
    serialized,
    to_int8,
)

Copy = Callable[[str], Bundle]
LAYERS = 2
# Of each layer QKV, the output and two of the feed-forward; a classifier's last QKV is three products of their own.
TAGGER = 4 * LAYERS
CLASSIFIER = TAGGER + 2
MILD = Tolerance(max_drop=1, min_agreement=0, max_shift=1, max_noise=2)


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_the_grid_holds_zero_exactly_and_its_ends_within_half_a_step(low: float, high: float) -> None:
    scale, zero = grid(low, high)
    assert 0 <= zero <= 255 and scale > 0
    for value in (low, high, 0.0):
        step = np.clip(np.rint(value / scale) + zero, 0, 255)
        assert abs((step - zero) * scale - value) <= scale * 0.5001 + 1e-9 or value in (low, high)
        assert abs((step - zero) * scale - value) <= scale * 1.001
    assert (np.clip(zero, 0, 255) - zero) * scale == 0


@given(st.integers(0, 2**32 - 1))
def test_a_weight_comes_back_within_half_a_step_of_its_column(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(16, 5)) * rng.uniform(0.01, 10, 5)).astype(np.float32)
    weight[:, 3] = 0
    small, scale = quantize_weight(weight)
    assert small.dtype == np.int8 and np.abs(small.astype(int)).max() <= WEIGHT_LIMIT
    assert (np.abs(small * scale - weight) <= scale * 0.501).all()


def test_two_products_never_overflow_the_16_bits_of_plain_avx2() -> None:
    assert 2 * 255 * WEIGHT_LIMIT <= 2**15 - 1


def test_the_least_error_range_cuts_a_lone_outlier_and_keeps_an_even_tensor() -> None:
    rng = np.random.default_rng(1)
    even = rng.uniform(-2, 2, 20_000).astype(np.float32)
    low, high = least_error(even, float(even.min()), float(even.max()))
    assert high > 1.9 and low < -1.9
    spiked = np.append(rng.normal(size=200_000).astype(np.float32), np.float32(12))
    low, high = least_error(spiked, float(spiked.min()), 12.0)
    assert high < 12


def test_a_channel_far_larger_than_the_rest_is_evened_out() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(32, 8)).astype(np.float32)
    tokens = rng.normal(size=(500, 32)).astype(np.float32)
    plain, large = Seen(), Seen()
    plain.add(tokens, np.arange(500))
    tokens[:, 7] *= 40
    weight[7] /= 40
    large.add(tokens, np.arange(500))
    assert plan_activation(large, [weight]).factors is not None
    activation = plan_activation(plain, [rng.normal(size=(32, 8)).astype(np.float32)])
    assert activation.factors is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-classes", "ernie-pairs", "ernie-tags", "electra-classes", "ernie-multitask"])
def test_every_encoder_product_is_an_integer_one(name: str, exported: Copy) -> None:
    bundle = exported(name)
    artifact = bundle.manifest.artifacts["onnx_int8"]
    model = onnx.load(str(bundle.path(artifact.file)))
    kept = artifact.details["kept_float32"]
    assert isinstance(kept, list)
    wanted = TAGGER if bundle.manifest.task.tags else CLASSIFIER
    assert count_products(model) == wanted - len(kept) == artifact.details["integer_products"]
    small = [numpy_helper.to_array(item) for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8]
    assert len(small) == count_products(model)
    assert max(int(np.abs(item.astype(int)).max()) for item in small) <= WEIGHT_LIMIT


@pytest.fixture(scope="module")
def bench(exported: Copy, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bundle = exported("ernie-classes")
    fused = onnx.load(str(bundle.path("onnx/model_fused.onnx")))
    return Bench(bundle, fused, GoldenRows(bundle), Journal(tmp_path_factory.mktemp("log") / "export.log"))


@pytest.mark.slow
def test_a_static_graph_answers_a_window_alike_alone_and_in_a_padded_batch(bench: Bench) -> None:
    session = open_session(bench.candidate(Scheme("static")).model.SerializeToString())
    run = run_of(session, bench.signature)
    alone = np.concatenate([run(window.ids[None], window.types[None])[0] for window in bench.windows[:12]])
    golden = GoldenRows(bench.bundle)
    one, many = golden.predict(run, 1), golden.predict(run, 4096)
    assert np.isfinite(alone).all()
    for left, right in zip(one, many, strict=True):
        np.testing.assert_allclose(np.stack(left.logits), np.stack(right.logits), atol=0.02)


def test_the_error_is_measured_over_every_output(bench: Bench) -> None:
    logits, tokens = [np.zeros(3, np.float32)], [np.zeros((4, 5), np.float32)]
    one = Predicted(bench.encoded[0], logits, tokens)
    assert difference([one], [Predicted(bench.encoded[0], logits, [tokens[0] + 1])]) == 0.5
    assert difference([one], [Predicted(bench.encoded[0], [logits[0] + 1], tokens)]) == 0.5


@pytest.mark.slow
def test_a_dynamic_graph_finds_its_scales_in_each_call(bench: Bench) -> None:
    candidate = bench.candidate(Scheme("dynamic"))
    ops = [node.op_type for node in candidate.model.graph.node]
    assert "DynamicQuantizeLinear" in ops and "QuantizeLinear" not in ops
    assert candidate.products == CLASSIFIER


@pytest.mark.slow
def test_products_that_are_kept_stay_float32(bench: Bench) -> None:
    everything = bench.candidate(Scheme("static"))
    keep = tuple(site.output for site in bench.sites[:3])
    partial = bench.candidate(Scheme("static", keep))
    assert partial.products == everything.products - 3
    nothing = bench.candidate(Scheme("static", tuple(site.output for site in bench.sites)))
    assert nothing.products == 0 and nothing.error < 1e-6


@pytest.mark.slow
def test_quantizing_twice_gives_the_same_bytes(bench: Bench) -> None:
    assert serialized(bench.candidate(Scheme("static")).model) == serialized(bench.candidate(Scheme("static")).model)


@pytest.mark.slow
def test_sensitive_products_come_in_growing_sets(bench: Bench) -> None:
    sets = bench.sensitive(bench.candidate(Scheme("static")))
    assert [len(item) for item in sets] == [1, 2, 4]
    assert set(sets[0]) < set(sets[1]) < set(sets[2])


@pytest.mark.slow
def test_a_bundle_without_calibration_rows_is_calibrated_on_its_dev_rows(copied: Copy, journal: Journal) -> None:
    bundle = copied("bert-classes")
    splits = {name: ref for name, ref in bundle.manifest.splits.items() if name != "calibration"}
    bundle = bundle.save(bundle.manifest.model_copy(update={"splits": splits}))
    bundle = to_int8(bundle, journal, DevSplit(bundle), Tolerance(min_agreement=0.5, max_drop=0.5))
    details = bundle.manifest.artifacts["onnx_int8"].details
    rows = list(read_rows(bundle.path(splits["dev"].file)))
    windows = sum(len(item.windows) for item in encode_rows(rows, GoldenRows(bundle).encoder))
    assert details["calibration_windows"] == windows


@pytest.mark.slow
def test_the_calibration_rows_of_two_heads_are_compared_head_by_head(exported: Copy) -> None:
    candidates = exported("ernie-multitask").manifest.artifacts["onnx_int8"].details["candidates"]
    assert isinstance(candidates, list) and isinstance(candidates[0], dict)
    shares = candidates[0]["calibration_agreement"]
    assert isinstance(shares, dict) and set(shares) == {"labels", "entities"}
    # Whole answers would agree no more often than the worse head.
    assert isinstance(shares["labels"], float) and shares["labels"] >= 0.9


def test_a_row_counts_for_the_head_that_it_tells_about() -> None:
    task = Task(kind="multi-task", labels=("a", "b"), token_labels=("O", "B-X", "I-X"))
    rows = [Row("x", "a"), Row("x", entities=()), Row("x", "b", entities=())]
    left = [(0, ()), (0, ()), (1, ())]
    right = [(0, ((0, 1, "X"),)), (1, ()), (1, ((0, 1, "X"),))]
    assert head_agreement(rows, left, right, task) == {"labels": 1.0, "entities": 0.5}
    assert head_agreement([Row("x")] * 3, left, right, task)["labels"] == pytest.approx(2 / 3)
    assert head_agreement(rows, [0, 1, 1], [0, 1, 0], Task(kind="single-label", labels=("a", "b"))) == {
        "rows": pytest.approx(2 / 3)
    }


@pytest.mark.slow
def test_what_was_tried_and_timed_is_recorded(exported: Copy) -> None:
    details = exported("bert-classes").manifest.artifacts["onnx_int8"].details
    candidates, clock = details["candidates"], details["ms_per_window"]
    assert isinstance(candidates, list) and isinstance(clock, dict)
    schemes = [item["scheme"] for item in candidates if isinstance(item, dict)]
    assert schemes[:2] == ["static", "dynamic"]
    assert set(clock) == {"onnx_fused", "onnx_int8"}


@pytest.mark.slow
@pytest.mark.parametrize("calibration", ["min-max", "entropy", "percentile"])
def test_every_way_of_calibration_makes_a_graph_that_answers(calibration: Calibration, exported: Copy) -> None:
    bundle = exported("bert-classes")
    made = candidate_of(bundle, How("static", calibration))
    assert made.products == CLASSIFIER
    assert made.agreement["rows"] > 0.85 and made.error < 0.1


@pytest.mark.slow
def test_one_scale_for_a_whole_weight_is_one_number_in_the_graph(exported: Copy) -> None:
    model = candidate_of(exported("bert-classes"), How("static", weight_scales="tensor")).model
    constants = {item.name: item for item in model.graph.initializer}
    places = {"QAttention": 4, "MatMulIntegerToFloat": 3}
    scales = [constants[node.input[places[node.op_type]]] for node in model.graph.node if node.op_type in places]
    assert len(scales) == CLASSIFIER and all(list(item.dims) == [] for item in scales)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "bits", "precision"), [("weights-8", 8, "int8"), ("weights-4", 4, "int4")])
def test_weights_of_few_bits_are_smaller_and_do_not_depend_on_the_batch(
    scheme: AnyScheme, bits: int, precision: str, copied: Copy, journal: Journal
) -> None:
    bundle = copied("bert-pairs")
    bundle = to_int8(bundle, journal, DevSplit(bundle), MILD, How(scheme))
    artifact = bundle.manifest.artifacts["onnx_int8"]
    assert artifact.precision == precision and artifact.batch_invariant
    assert artifact.details["weights"] == f"{bits} bits, one scale per 32 values"
    assert artifact.details["integer_products"] == CLASSIFIER
    model = onnx.load(str(bundle.path(artifact.file)))
    small = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(small) == 6 * LAYERS, "Q, K and V on their own, and the three other products"
    fused = bundle.manifest.artifacts["onnx_fused"]
    assert artifact.bytes < fused.bytes
    golden = GoldenRows(bundle)
    run = run_of(open_session(bundle.path(artifact.file)), bundle.manifest.signature)
    assert difference(golden.predict(run, 1), golden.predict(run)) < 1e-3
    candidates = artifact.details["candidates"]
    assert isinstance(candidates, list) and len(candidates) == 1, "a scheme that is asked for is made alone"


@pytest.mark.slow
def test_the_sensitivity_of_every_product_is_printed_and_kept(exported: Copy, tmp_path: Path) -> None:
    bundle = exported("bert-classes")
    words = io.StringIO()
    fused = onnx.load(str(bundle.path("onnx/model_fused.onnx")))
    bench = Bench(bundle, fused, GoldenRows(bundle), Journal(tmp_path / "log", Console(file=words, width=80)))
    bench.sensitive(bench.candidate(Scheme("static")))
    errors = [item["error_without"] for item in bench.sensitivity]
    assert len(errors) == CLASSIFIER and errors == sorted(errors)  # type: ignore[type-var]
    assert {item["product"] for item in bench.sensitivity} >= {"layer 1, attention QKV", "layer 2, feed-forward out"}
    worst = str(bench.sensitivity[0]["product"])
    assert worst in words.getvalue() and "product left in float32" in words.getvalue()


@pytest.mark.slow
def test_the_manifest_keeps_the_sensitivity_where_products_had_to_be_tried(exported: Copy) -> None:
    details = exported("bert-tags").manifest.artifacts["onnx_int8"].details
    kept, candidates = details["sensitivity"], details["candidates"]
    assert isinstance(kept, list) and isinstance(candidates, list)
    tried = any("kept" in str(item["scheme"]) for item in candidates if isinstance(item, dict))
    assert len(kept) == (TAGGER if tried else 0)
    assert all(isinstance(item, dict) and set(item) == {"product", "tensor", "error_without", "gain"} for item in kept)


@pytest.mark.slow
def test_another_calibration_makes_the_step_run_again(copied: Copy, tmp_path: Path) -> None:
    bundle = copied("bert-classes")
    words = io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=200))
    bundle = to_int8(bundle, journal, DevSplit(bundle), how=How("static", "percentile"))
    assert "up to date" not in words.getvalue()
    assert bundle.manifest.artifacts["onnx_int8"].details["calibration"] == "percentile"
    to_int8(bundle, journal, DevSplit(bundle), how=How("static", "percentile"))
    assert "up to date" in words.getvalue()


def candidate_of(bundle: Bundle, how: How) -> Candidate:
    fused = onnx.load(str(bundle.path("onnx/model_fused.onnx")))
    bench = Bench(bundle, fused, GoldenRows(bundle), Journal(bundle.root.parent / "trial.log"), how)
    return bench.candidate(Scheme(how.scheme))
