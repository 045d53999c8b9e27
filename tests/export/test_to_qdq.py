"""INT8 written for OpenVINO: the same integers in operators that others know, proved, and chosen on OpenVINO alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.errors import ExportError, ParityFailed
from bundle.folder import Bundle, open_bundle
from bundle.machine import has_bfloat16, has_vnni
from bundle.manifest import Setup
from bundle.plan import openvino_settings, planned
from export import to_qdq as module
from export.bench import bench, served
from export.gate import DevSplit, Tolerance, gate
from export.journal import Journal
from export.parity import GoldenRows
from export.plan import AIMS, Wish
from export.session import open_session, run_of
from export.to_int8 import How, to_int8
from export.to_qdq import NAME, in_pairs, integer_products, to_qdq
from export.to_triton import config_pbtxt, write_repository
from tests.export.conftest import copier
from tests.export.test_bench import BRIEF
from tests.export.test_openvino import installed
from tests.export.test_plan import of, told, with_dev
from tests.export.triton_script import Said, answered, parsed
from tests.serving.conftest import Server
from tests.serving.tiny_bundle import elsewhere, make_bundle, with_plan

pytestmark = pytest.mark.slow
# A classifier whose INT8 passes the gate; it has one packed attention and one first query.
CLASSIFIER = "bert-pairs"
INTEGER = {"QAttention", "MatMulIntegerToFloat"}
# A processor that rounds otherwise may turn a row of such a model.
WIDE = Tolerance(max_drop=0.2, min_agreement=0.8, max_shift=0.2, max_noise=1.0)
Static = Callable[[str], Bundle]


@pytest.fixture(scope="module")
def made_static(exported: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Static:
    """A bundle with static scales, which the export chooses by how fast they are. It is shared."""
    folder = tmp_path_factory.mktemp("static")
    done: dict[str, Bundle] = {}

    def make(name: str) -> Bundle:
        if name not in done:
            root = folder / name / "bundle"
            shutil.copytree(exported(name).root, root)
            bundle, journal = open_bundle(root), Journal(folder / name / "export.log")
            dev = DevSplit(bundle)
            done[name] = gate(to_int8(bundle, journal, dev, WIDE, How(scheme="static")), journal, dev, WIDE)
        return done[name]

    return make


@pytest.fixture
def static(made_static: Static, tmp_path: Path) -> Static:
    """A copy of such a bundle that a test may change."""
    return copier(made_static, tmp_path)


@pytest.fixture
def dynamic(tmp_path: Path) -> Bundle:
    return with_dev(make_bundle(tmp_path / "dynamic" / "bundle", "dynamic", "single-label", precision="int8"))


def graph_of(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(str(bundle.path(bundle.manifest.artifacts[name].file)))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CLASSIFIER, "ernie-tags", "ernie-multitask"])
def test_every_integer_product_is_written_in_pairs_and_answers_as_before(made_static: Static, name: str) -> None:
    bundle = made_static(name)
    source = graph_of(bundle, "onnx_int8")
    made = in_pairs(source)
    found = operators(source)
    assert found.count("MatMulIntegerToFloat") > 2
    assert integer_products(made) == 3 * found.count("QAttention") + found.count("MatMulIntegerToFloat")
    assert not INTEGER & set(operators(made))

    golden, signature = GoldenRows(bundle), bundle.manifest.signature
    answers = [golden.predict(run_of(open_session(model.SerializeToString()), signature)) for model in (source, made)]
    for left, right in zip(*answers, strict=True):
        for mine, its in zip(left.logits + left.token_logits, right.logits + right.token_logits, strict=True):
            np.testing.assert_allclose(mine, its, atol=2e-3)


def test_what_is_added_to_a_products_columns_is_one_bias_right_behind_it(made_static: Static) -> None:
    made = in_pairs(graph_of(made_static(CLASSIFIER), "onnx_int8"))
    constants = {item.name for item in made.graph.initializer}
    readers = {name: node for node in made.graph.node for name in node.input}
    pairs = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    followed = 0
    for node in made.graph.node:
        if node.op_type == "MatMul" and set(node.input) <= pairs:
            bias = readers[node.output[0]]
            if bias.op_type == "Add":
                followed += 1
                after = readers[bias.output[0]]
                assert not (after.op_type == "Add" and set(after.input) & constants), after.name
    assert followed >= integer_products(made) - 2
    assert not {"BiasGelu", "Sum"} & set(operators(made))


def test_scales_that_are_computed_as_it_runs_cannot_be_written_and_the_bundle_stays_as_it_is(
    dynamic: Bundle, journal: Journal
) -> None:
    bundle = dynamic
    assert "DynamicQuantizeLinear" in operators(graph_of(bundle, "onnx_int8"))
    with pytest.raises(ExportError, match="DynamicQuantizeLinear"):
        to_qdq(bundle, journal)
    assert open_bundle(bundle.root).manifest == bundle.manifest
    assert not list(bundle.root.glob("onnx/*qdq*")) and not list(bundle.root.glob("onnx/.new-*"))


def test_the_artifact_is_for_openvino_alone_and_is_made_once(static: Static, journal: Journal) -> None:
    bundle = to_qdq(static(CLASSIFIER), journal)
    made = bundle.manifest.artifacts[NAME]
    assert (made.runtime, made.precision, made.made_from, made.batch_invariant) == (
        "openvino",
        "int8",
        "onnx_int8",
        True,
    )
    assert bundle.manifest.published == "onnx_int8"
    assert NAME not in bundle.manifest.servable
    assert bundle.manifest.servable_on("openvino") == (NAME, *bundle.manifest.servable[1:])
    assert bundle.manifest.servable_on("onnxruntime") == bundle.manifest.servable
    source = bundle.manifest.artifacts["onnx_int8"]
    assert made.parity and source.parity and made.parity.tolerance == source.parity.tolerance
    written = bundle.path(made.file).stat().st_mtime_ns
    assert to_qdq(bundle, journal).manifest == bundle.manifest
    assert bundle.path(made.file).stat().st_mtime_ns == written
    bundle.verify()


def constant(model: onnx.ModelProto, stem: str, place: int = 0) -> onnx.TensorProto:
    return [item for item in model.graph.initializer if item.name.startswith(stem)][place]


def a_scale_of_another_weight(model: onnx.ModelProto) -> None:
    one = constant(model, "pair_scale")
    one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one)[::-1].copy(), one.name))


def weights_that_were_not_turned(model: onnx.ModelProto) -> None:
    one = next(
        item for item in model.graph.initializer if item.name.startswith("pair_weight") and item.dims[0] == item.dims[1]
    )
    one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).T.copy(), one.name))


def a_bias_that_was_lost(model: onnx.ModelProto) -> None:
    biases = [item for item in model.graph.initializer if item.name.startswith("pair_bias")]
    one = max(biases, key=lambda item: np.abs(numpy_helper.to_array(item)).sum())
    one.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(one), one.name))


def padding_that_is_read(model: onnx.ModelProto) -> None:
    one = constant(model, "away")
    one.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), one.name))


@pytest.mark.parametrize(
    "spoil",
    [
        a_scale_of_another_weight,
        weights_that_were_not_turned,
        a_bias_that_was_lost,
        padding_that_is_read,
    ],
)
def test_a_graph_that_was_written_wrongly_does_not_enter_the_bundle(
    static: Static,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[onnx.ModelProto], None],
) -> None:
    def spoilt(model: onnx.ModelProto) -> onnx.ModelProto:
        made = in_pairs(model)
        spoil(made)
        return made

    monkeypatch.setattr(module, "in_pairs", spoilt)
    bundle = static(CLASSIFIER)
    with pytest.raises(ParityFailed):
        to_qdq(bundle, journal)
    assert NAME not in open_bundle(bundle.root).manifest.artifacts


# --- on OpenVINO -----------------------------------------------------------------------------------------------------


@installed
def test_openvino_computes_the_products_in_eight_bits_and_the_gate_passes_its_answers(
    static: Static, journal: Journal
) -> None:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    from export.on_openvino import refusal

    bundle = to_qdq(static(CLASSIFIER), journal)
    artifact = bundle.manifest.artifacts[NAME]
    assert refusal(bundle, NAME, journal) == ""
    assert refusal(bundle, "onnx_int8", journal).startswith("OpenVINO cannot open it")
    settings = openvino_settings(1, 1, artifact)
    assert settings["INFERENCE_PRECISION_HINT"] == ("bf16" if has_bfloat16() else "f32")
    assert openvino_settings(1, 1, bundle.manifest.artifacts["onnx_fp32"])["INFERENCE_PRECISION_HINT"] == "f32"
    compiled = openvino.Core().compile_model(str(bundle.path(artifact.file)), "CPU", settings)
    kinds = [
        (node.get_rt_info()["layerType"].astype(str), node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ops()
    ]
    if has_vnni():
        assert kinds.count(("FullyConnected", "u8")) == artifact.details["integer_products"]


@installed
def test_a_plan_tries_it_on_openvino_in_the_place_of_int8_and_never_on_onnx_runtime(
    static: Static,
) -> None:
    wish = Wish("quick", clients=2, paddle=False)
    made, text = told(static(CLASSIFIER), wish)
    tried = {(trial.setup.runtime, trial.setup.artifact) for trial in of(made).table}
    assert ("openvino", NAME) in tried and ("onnxruntime", "onnx_int8") in tried
    assert ("onnxruntime", NAME) not in tried and ("openvino", "onnx_int8") not in tried
    assert of(made).left_out == {} and "for OpenVINO" in text
    for aim in AIMS:
        choice, instead = of(made).choice(aim), of(made).on_onnxruntime(aim)
        assert choice.artifact != NAME or choice.runtime == "openvino"
        assert instead.artifact != NAME
    assert all(duel.against.artifact != NAME for duel in of(made).vs_defaults)
    again, text = told(made, wish)
    assert "up to date" in text and again.manifest == made.manifest
    # A plan from before there was this form.
    older = of(made).model_copy(
        update={"artifacts": {key: value for key, value in of(made).artifacts.items() if key != NAME}}
    )
    older = older.model_copy(update={aim: of(made).on_onnxruntime(aim) for aim in AIMS} | {"instead": {}})
    _, text = told(made.save(made.manifest.model_copy(update={"plan": older})), wish)
    assert "up to date" not in text


@installed
def test_what_cannot_be_written_for_openvino_is_told_and_the_plan_goes_on(dynamic: Bundle) -> None:
    made, text = told(dynamic, Wish("quick", clients=2, paddle=False))
    assert f"without {NAME} on OpenVINO: DynamicQuantizeLinear" in text.replace("\n", " ")
    assert "no static scales" in of(made).left_out[f"{NAME} on openvino"]
    assert "up to date" in told(made, Wish("quick", clients=2, paddle=False))[1]


@installed
def test_the_bench_times_it_on_openvino_and_knows_what_is_served(static: Static, journal: Journal) -> None:
    bundle = chosen_on(to_qdq(static(CLASSIFIER), journal), "openvino")
    forms = ["onnx_fp32", "onnx_int8", NAME]
    record = bench(bundle, batches=[1], tokens=(16,), effort=BRIEF, threads=1, only=forms)
    assert record["served"] == [NAME] and record["published"] == "onnx_int8"
    assert record["left_out"] == {}
    found = record["candidates"][NAME]
    assert found["tolerance"] == record["candidates"]["onnx_int8"]["tolerance"]
    assert 0 < found["parity_max_abs"] <= found["tolerance"]
    assert all(cell["results"][NAME]["n"] for cell in record["cells"])
    without = bundle.save(bundle.manifest.model_copy(update={"plan": None}))
    assert served(without.manifest) == ["onnx_int8"]


# --- who may choose it, and what others are given --------------------------------------------------------------------


def chosen_on(bundle: Bundle, runtime: str, **more: object) -> Bundle:
    """The bundle with a plan that chose the form for both aims."""
    plan = of(with_plan(bundle))
    setup = Setup.model_validate({"artifact": NAME, "runtime": runtime, "threads": 1, "sessions": 2, "windows": 8})
    instead = {aim: setup.model_copy(update={"runtime": "onnxruntime", "artifact": "onnx_int8"}) for aim in AIMS}
    known = {name: bundle.manifest.artifacts[name].identity for name in (NAME, "onnx_int8")}
    update = {"latency": setup, "throughput": setup, "instead": instead, "artifacts": known, **more}
    return bundle.save(bundle.manifest.model_copy(update={"plan": plan.model_copy(update=update)}))


def test_a_plan_that_would_run_it_on_another_runtime_is_void(static: Static, journal: Journal) -> None:
    bundle = to_qdq(static(CLASSIFIER), journal)
    assert planned(chosen_on(bundle, "openvino").manifest, "throughput") is not None
    assert planned(chosen_on(bundle, "onnxruntime").manifest, "throughput") is None


def test_triton_is_given_it_with_what_openvino_is_told_and_the_native_backend_what_onnx_runtime_runs_best(
    static: Static, journal: Journal
) -> None:
    manifest = chosen_on(to_qdq(static(CLASSIFIER), journal), "openvino").manifest
    parameters = parsed(config_pbtxt(manifest))["parameters"]
    assert parameters["format"]["string_value"] == NAME
    assert json.loads(parameters["openvino"]["string_value"]) == openvino_settings(1, 1, manifest.artifacts[NAME])
    native = parsed(config_pbtxt(manifest, backend="onnxruntime"))
    assert native["parameters"]["format"]["string_value"] == "onnx_int8"
    assert native["instance_group"][0]["count"] == 2


def told_to_openvino(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> dict[str, object]:
    """What Triton's script tells OpenVINO."""
    told_to: list[dict[str, object]] = []

    def compile_model(graph: str, device: str, settings: dict[str, object]) -> object:
        told_to.append(settings)
        raise ImportError("enough was seen")

    seen = SimpleNamespace(Core=lambda: SimpleNamespace(compile_model=compile_model))
    monkeypatch.setitem(sys.modules, "openvino", seen)
    answered(bundle, tmp_path)
    return told_to[0]


def test_tritons_script_takes_float32_where_the_plan_was_measured_on_another_machine(
    static: Static, journal: Journal, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = to_qdq(static(CLASSIFIER), journal)
    settings = openvino_settings(1, 1, here.manifest.artifacts[NAME])
    assert told_to_openvino(monkeypatch, chosen_on(here, "openvino"), tmp_path) == settings
    there = elsewhere()
    foreign = chosen_on(here, "openvino", machine=there)
    found = told_to_openvino(monkeypatch, foreign, tmp_path)
    assert found["INFERENCE_PRECISION_HINT"] == "f32"
    assert any("the plan is foreign" in line for line in said.warned)


def test_without_openvino_tritons_script_runs_it_on_onnx_runtime_with_the_same_answers(
    static: Static, journal: Journal, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = to_qdq(static(CLASSIFIER), journal)
    usual = answered(with_plan(bundle), tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = answered(chosen_on(bundle, "openvino"), tmp_path)
    np.testing.assert_allclose(found["logits"], usual["logits"], atol=2e-3)
    assert "the plan chose OpenVINO, which is not installed" in said.warned[-1]


@installed
def test_both_engines_serve_it_on_openvino(static: Static, journal: Journal, tmp_path: Path) -> None:
    bundle = chosen_on(to_qdq(static(CLASSIFIER), journal), "openvino")
    write_repository(bundle, tmp_path / "model_repository")
    rows = [{"text": row.text, "pair": row.pair} for row in GoldenRows(bundle).rows]
    answers = []
    for engine in ("onnx", "triton"):
        places = ("--bundles", str(tmp_path), "--model-repository", str(tmp_path / "model_repository"))
        server = Server(tmp_path, "--engine", engine, *places).until_ready()
        try:
            assert f"{NAME} on OpenVINO 2×1" in server.output
            answer = httpx.post(f"{server.url}/v1/models/{bundle.name}/predict", json={"inputs": rows}, timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["format"] == NAME
            answers.append([row["label"] for row in answer.json()["predictions"]])
        finally:
            assert server.stop() == 0
    assert answers[0] == answers[1]
