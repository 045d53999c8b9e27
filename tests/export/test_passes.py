"""Exact savings: what each changes, that a wrong one is undone and named, and what is recorded."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from bundle.errors import FusionMissing, ParityFailed
from bundle.folder import Bundle
from export.fuse import fuse_graph, slim
from export.graph import Graph, NoMatch
from export.journal import Journal
from export.parity import GoldenRows
from export.passes import KEY, PASSES, QUERY, VALUE, Facts, Pass, apply_passes, measure_gains, timed_inputs
from export.session import open_session, run_of

pytestmark = pytest.mark.slow

Copy = Callable[[str], Bundle]


def fused(bundle: Bundle, journal: Journal) -> tuple[onnx.ModelProto, Facts]:
    """The graph before the passes."""
    model = slim(onnx.load(str(bundle.path("onnx/model_fp32.onnx"))), journal)
    facts = Facts("input_ids", "token_type_ids", 0, bundle.manifest.task.kind)
    return fuse_graph(model, facts.ids, facts.types, facts.pad_id), facts


def only(name: str) -> list[Pass]:
    return [item for item in PASSES if item.name == name]


def counted(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_the_last_attention_has_one_query_and_no_key_or_value_for_every_token(exported: Copy, journal: Journal) -> None:
    bundle = exported("bert-classes")
    model, facts = fused(bundle, journal)
    golden = GoldenRows(bundle)
    cut, _ = apply_passes(model, facts, golden, journal, only("first-token"))
    taken, _ = apply_passes(cut, facts, golden, journal, only("first-query"))
    assert counted(taken)["Attention"] == counted(model)["Attention"] - 1
    products = [node for node in taken.graph.node if node.op_type == "MatMul" and node.input[1].startswith("first_")]
    assert [node.input[1] for node in products] == [QUERY, KEY, VALUE]
    # How many rows each of them has at 3 windows of 9 tokens: one per window, or one per window and head; never 9.
    probe = Graph(taken).finish([node.output[0] for node in products])
    ids = np.full((3, 9), 7)
    shapes = [
        value.shape[:2]
        for value in open_session(probe.SerializeToString()).run(None, {"input_ids": ids, "token_type_ids": ids * 0})
    ]
    assert shapes == [(3, 1), (3, 4), (3, 4)]


def test_the_runtime_does_not_put_a_norm_together_again(exported: Copy, tmp_path: Path) -> None:
    """It would: Add and LayerNormalization become its SkipLayerNormalization, which is several times slower."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as-run.onnx")
    ort.InferenceSession(str(exported("bert-classes").path("onnx/model_fused.onnx")), options)
    counts = counted(onnx.load(str(tmp_path / "as-run.onnx")))
    assert (counts["LayerNormalization"], counts["SkipLayerNormalization"]) == (4, 0)


def test_a_tagger_and_a_pair_keep_what_they_read(exported: Copy, journal: Journal) -> None:
    for name, absent in (("bert-tags", {"first-token", "first-query", "leftovers"}), ("bert-pairs", {"token-types"})):
        bundle = exported(name)
        _, records = apply_passes(*fused(bundle, journal), GoldenRows(bundle), journal)
        assert {record["name"] for record in records if not record["applied"]} == absent


def test_a_folded_input_stays_in_the_graph_and_is_not_read(exported: Copy) -> None:
    bundle = exported("ernie-classes")
    session = open_session(bundle.path("onnx/model_fused.onnx"))
    assert [item.name for item in session.get_inputs()] == ["input_ids", "token_type_ids"]
    run = run_of(session, bundle.manifest.signature)
    ids = np.array([[2, 9, 8, 7, 3, 0]])
    np.testing.assert_array_equal(run(ids, ids * 0)[0], run(ids, np.ones_like(ids))[0])


def test_a_window_of_padding_alone_does_not_become_nan(exported: Copy) -> None:
    bundle = exported("bert-classes")
    run = run_of(open_session(bundle.path("onnx/model_fused.onnx")), bundle.manifest.signature)
    ids = np.array([[2, 9, 3], [0, 0, 0]])
    assert np.isfinite(run(ids, ids * 0)[0]).all()


def test_a_pass_that_changes_an_answer_is_undone_and_named(copied: Copy, journal: Journal) -> None:
    def spoil(graph: Graph, facts: Facts) -> None:
        (embed,) = [node for node in graph.nodes if node.op_type == "EmbedLayerNormalization"]
        embed.input[3] = graph.add_constant("position_table", graph.constant(embed.input[3]) * np.float32(1.001))

    bundle = copied("bert-classes")
    model, facts = fused(bundle, journal)
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(ParityFailed, match=r"pass spoil does not compute what the graph before it does.*undone"):
        apply_passes(model, facts, GoldenRows(bundle), journal, [Pass("spoil", "nothing", spoil)])
    assert model.SerializeToString(deterministic=True) == before


def test_a_pass_whose_graph_does_not_load_is_named(exported: Copy, journal: Journal) -> None:
    def cut(graph: Graph, facts: Facts) -> None:
        (embed,) = [node for node in graph.nodes if node.op_type == "EmbedLayerNormalization"]
        del embed.output[1:]

    bundle = exported("bert-classes")
    with pytest.raises(ParityFailed, match=r"pass cut .* does not run"):
        apply_passes(*fused(bundle, journal), GoldenRows(bundle), journal, [Pass("cut", "nothing", cut)])


def test_a_pass_that_the_task_demands_and_that_does_not_apply_fails_the_export(
    exported: Copy, journal: Journal
) -> None:
    def never(graph: Graph, facts: Facts) -> None:
        raise NoMatch

    bundle = exported("bert-classes")
    wanted = Pass("never", "a thing that is not there", never, lambda facts: facts.first_only)
    with pytest.raises(FusionMissing, match=r"never \(a thing that is not there\): 0 of 1"):
        apply_passes(*fused(bundle, journal), GoldenRows(bundle), journal, [wanted])


def test_another_padding_id_keeps_its_mask(exported: Copy, journal: Journal) -> None:
    bundle = exported("bert-tags")
    model, facts = fused(bundle, journal)
    for item in model.graph.initializer:
        if item.name == "pad_id":
            item.CopyFrom(numpy_helper.from_array(np.array(1, np.int64), "pad_id"))
    graph = Graph(model)
    with pytest.raises(NoMatch):
        only("int32-mask")[0].apply(graph, Facts(facts.ids, facts.types, 1, facts.kind))


def test_gains_are_measured_in_turns_on_real_windows(exported: Copy, journal: Journal) -> None:
    bundle = exported("bert-classes")
    model, _ = fused(bundle, journal)
    inputs = timed_inputs(GoldenRows(bundle))
    assert all(len({ids.shape for ids, _ in batches}) == 1 for shape, batches in inputs.items())
    assert all((batches[0][0] != 0).mean() > 0.5 for batches in inputs.values())
    for gain in measure_gains(model, model, bundle.manifest.signature, inputs):
        assert gain["shape"] in inputs and isinstance(gain["rounds"], int) and gain["rounds"] >= 7
        low, high = gain["ratio_quartiles"]  # type: ignore[misc]
        assert low <= gain["ratio"] <= high  # type: ignore[operator]


def test_the_person_sees_a_table_of_the_passes(exported: Copy, tmp_path: Path) -> None:
    bundle = exported("bert-tags")
    words = io.StringIO()
    journal = Journal(tmp_path / "export.log", Console(file=words, width=120))
    apply_passes(*fused(bundle, journal), GoldenRows(bundle), journal)
    text = words.getvalue()
    assert all(item.name in text for item in PASSES)
    assert "without first-token: it needs a head that reads the first token" in text
