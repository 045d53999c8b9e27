"""OpenVINO as a runtime of the plan: what it may run, what is told where it is left out, what Triton is given.

What needs the library runs where it is installed (`make openvino`); a machine without it is stood in for elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bundle.errors import ExportError
from bundle.folder import Bundle, open_bundle
from bundle.machine import cores
from bundle.manifest import Setup
from bundle.plan import openvino_missing, openvino_settings, planned
from export.journal import Journal
from export.plan import AIMS, Board, Course, Wish, candidates
from export.session import open_session, run_of
from export.to_triton import config_pbtxt
from export.traffic import Lap
from tests.export.test_plan import BRIEF, of, told, with_dev
from tests.export.triton_script import Said, answered, parsed
from tests.serving.tiny_bundle import make_bundle, with_plan

installed = pytest.mark.skipif(openvino_missing(), reason="OpenVINO is optional and not installed; `make openvino`")
QUICK = Wish("quick", clients=2, paddle=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return with_dev(make_bundle(tmp_path / "news" / "bundle", "news", "single-label"))


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which it is not installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)


def runtimes(bundle: Bundle) -> set[str]:
    return {trial.setup.runtime for trial in of(bundle).table}


# --- without it ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_openvino")
@pytest.mark.parametrize("wish", [BRIEF, pytest.param(QUICK, marks=pytest.mark.slow)])
def test_a_plan_without_openvino_says_so_in_a_line_and_how_to_get_it(bundle: Bundle, wish: Wish) -> None:
    made, text = told(bundle, wish)
    lines = [line.strip() for line in text.splitlines() if "without OpenVINO" in line]
    assert lines == [
        "without OpenVINO: it is not installed; `make openvino` installs it (requirements/openvino.txt)",
    ]
    assert runtimes(made) == {"onnxruntime"}
    assert of(made).left_out.keys() == {"openvino"} and not of(made).instead


def test_a_plan_that_is_to_do_without_openvino_says_nothing_of_it(bundle: Bundle) -> None:
    made, text = told(bundle, Wish("brief", clients=2, paddle=False, openvino=False))
    assert "OpenVINO:" not in text and runtimes(made) == {"onnxruntime"}
    assert of(made).left_out == {"openvino": "it was not asked for"}


def test_every_setup_of_a_form_can_be_on_openvino(bundle: Bundle) -> None:
    usual = candidates(bundle.manifest, ["onnx_fp32"], 4, [1, 8])
    other = candidates(bundle.manifest, ["onnx_fp32"], 4, [1, 8], runtime="openvino")
    assert [setup.model_copy(update={"runtime": "openvino"}) for setup in usual] == other
    # Its streams share one set of weights, however many threads each has.
    assert len(candidates(bundle.manifest, ["onnx_fp32"], 4, [1, 8], 0, "openvino")) == len(other)
    assert str(other[0]) == "onnx_fp32 on OpenVINO 1×4, 1 window"


class Driven(Course):
    """A search whose rounds have made-up laps: a rate for each setup."""

    def __init__(self, rates: Callable[[Setup], float], defaults: Setup) -> None:
        self.rates = rates
        self.boards = {aim: Board(aim, defaults, 1e6) for aim in AIMS}
        self.track: Any = SimpleNamespace(mix=SimpleNamespace(texts=[[0] * 40]))

    def size(self, *_: object) -> int:
        return 10

    def drive(self, aim: Any, stage: str, setups: Any, rounds: int, size: int, seconds: float = 0.0) -> int:
        board = self.boards[aim]
        lap = {setup: Lap(100 / self.rates(setup), (100 / self.rates(setup),)) for setup in [board.defaults, *setups]}
        board.rounds += [lap] * rounds
        return rounds


@pytest.mark.parametrize("aim", AIMS)
def test_the_best_of_onnx_runtime_is_known_where_openvino_is_twice_as_fast(bundle: Bundle, aim: Any) -> None:
    from export.plan import EFFORTS

    effort = EFFORTS["quick"]
    both = [
        setup
        for runtime in ("onnxruntime", "openvino")
        for setup in candidates(bundle.manifest, ["onnx_fp32"], 2, effort.windows, runtime=runtime)
    ]

    def rate(setup: Setup) -> float:
        return (200 if setup.runtime == "openvino" else 100) + setup.sessions + setup.windows / 1000

    defaults = Setup(artifact="onnx_fp32", threads=2, sessions=1, windows=1)
    choice, instead = Driven(rate, defaults).narrow(aim, "quick", both, effort)
    assert (choice.runtime, choice.sessions) == ("openvino", 2)
    assert (instead.runtime, instead.sessions) == ("onnxruntime", 2)


# --- with it ---------------------------------------------------------------------------------------------------------


@installed
def test_the_brief_plan_of_an_export_leaves_openvino_to_the_thorough_one(bundle: Bundle) -> None:
    made, text = told(bundle)
    assert "without OpenVINO: the brief search leaves it to `make plan`" in text
    assert runtimes(made) == {"onnxruntime"} and "openvino" in of(made).machine.versions


@installed
@pytest.mark.slow
def test_openvino_is_measured_beside_onnx_runtime_and_the_plan_travels(bundle: Bundle) -> None:
    made, text = told(bundle, QUICK)
    assert runtimes(made) == {"onnxruntime", "openvino"}
    assert "OpenVINO" in text and "without" not in text
    assert "openvino" in of(made).machine.versions and of(made).left_out == {}
    for trial in of(made).table:
        if trial.setup.runtime == "openvino" and trial.setup.windows in (1, 8) and trial.setup.by_length:
            assert trial.loaded_requests and trial.texts_per_second and trial.throughput_ratio
    for aim in AIMS:
        choice, instead = of(made).choice(aim), of(made).on_onnxruntime(aim)
        assert instead.runtime == "onnxruntime" and (choice == instead) == (aim not in of(made).instead)
    assert open_bundle(bundle.root).manifest.plan == of(made)

    again, text = told(made, QUICK)
    assert "up to date: quick plan" in text and again.manifest == made.manifest
    # What was proved and measured is not proved and measured again.
    dropped = made.save(made.manifest.model_copy(update={"plan": None}))
    same, text = told(dropped, QUICK)
    assert " 0 rounds were measured now" in text and of(same).table == of(made).table


@installed
@pytest.mark.slow
def test_what_openvino_does_not_compute_as_promised_is_left_out_with_the_reason(tmp_path: Path) -> None:
    bundle = with_dev(make_bundle(tmp_path / "b", "news", "single-label"))
    other = make_bundle(tmp_path / "other", "other", "single-label", seed=1)
    bundle.path("golden.jsonl").write_bytes(other.path("golden.jsonl").read_bytes())
    bundle = bundle.save(bundle.manifest.model_copy(update={"golden": bundle.refer("golden.jsonl")}))
    made, text = told(bundle, QUICK)
    assert "without onnx_fp32 on OpenVINO: a logit differs by" in text.replace("\n", " ")
    assert runtimes(made) == {"onnxruntime"}
    assert "the tolerance is 0.0001" in of(made).left_out["onnx_fp32 on openvino"]


@installed
@pytest.mark.slow
def test_a_form_that_is_not_float32_needs_the_gate_on_openvino_too(tmp_path: Path) -> None:
    made, _ = told(with_dev(make_bundle(tmp_path / "b", "b", "single-label", precision="int8")), QUICK)
    assert runtimes(made) == {"onnxruntime"}
    assert "no gate's report to judge it by" in of(made).left_out["onnx_int8 on openvino"]


@installed
@pytest.mark.slow
def test_float32_forms_are_proved_and_int8_with_operators_that_openvino_does_not_know_is_left_out(
    exported: Callable[[str], Bundle], journal: Journal
) -> None:
    from export.on_openvino import refusal

    bundle = exported("bert-classes")
    assert [refusal(bundle, form, journal) for form in ("onnx_fp32", "onnx_fused")] == ["", ""]
    assert "QAttention" in refusal(bundle, "onnx_int8", journal)


@installed
@pytest.mark.slow
def test_an_int8_form_passes_the_gate_again_with_openvinos_answers(
    copied: Callable[[str], Bundle], journal: Journal
) -> None:
    from export.on_openvino import refusal

    # OpenVINO can open it. The gate has refused it: these weights are drawn too wide for 8 bits.
    bundle = copied("ernie-multitask")
    assert refusal(bundle, "onnx_int8", journal).startswith("the gate refuses it: ")
    # Under bounds that it keeps.
    report = json.loads(bundle.path("gate.json").read_text(encoding="utf-8"))
    report["basis"] |= {"max_drop": 1.0, "min_agreement": 0.0, "max_shift": 1.0, "max_noise": 1.0}
    bundle.path("gate.json").write_text(json.dumps(report), encoding="utf-8")
    assert refusal(bundle, "onnx_int8", journal) == ""


@installed
def test_a_graph_that_openvino_cannot_open_is_told_in_a_line(bundle: Bundle, tmp_path: Path) -> None:
    from export.on_openvino import open_streams

    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="OpenVINO cannot open it: ") as caught:
        open_streams(tmp_path / "broken.onnx", bundle.manifest, bundle.manifest.artifacts["onnx_fp32"], 1, 1)
    assert "\n" not in str(caught.value)
    assert sys.modules["openvino_telemetry"] is None, "it reports nothing to its makers"


@installed
def test_streams_answer_beside_each_other_and_keep_what_they_gave(bundle: Bundle) -> None:
    from export.on_openvino import open_streams

    artifact = bundle.manifest.artifacts["onnx_fp32"]
    first, second = open_streams(bundle.path(artifact.file), bundle.manifest, artifact, 2, 1)
    ids = np.array([[2, 9, 10, 3]])
    (before,) = first(ids, ids * 0)
    kept = before.copy()
    (other,) = first(ids + 5, ids * 0)
    assert np.array_equal(before, kept) and not np.allclose(before, other)
    assert np.allclose(second(ids, ids * 0)[0], kept, atol=1e-6)
    assert before.dtype == np.float32 and before.shape == (1, 3)


@installed
def test_a_tagger_answers_for_the_tokens_that_it_was_given_and_no_others(tmp_path: Path) -> None:
    from export.on_openvino import open_streams

    bundle = make_bundle(tmp_path / "b", "ner", "token-classification")
    artifact = bundle.manifest.artifacts["onnx_fp32"]
    (run,) = open_streams(bundle.path(artifact.file), bundle.manifest, artifact, 1, 1)
    usual = run_of(open_session(bundle.path(artifact.file)), bundle.manifest.signature)
    for windows, tokens in ((1, 5), (3, 8), (2, 13), (1, bundle.manifest.text.max_tokens)):
        ids = np.random.default_rng(tokens).integers(2, 20, (windows, tokens))
        (found,), (wanted,) = run(ids, ids * 0), usual(ids, ids * 0)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-5)


# --- Triton's files and script ---------------------------------------------------------------------------------------


def test_tritons_configuration_names_openvino_and_what_it_is_told(bundle: Bundle) -> None:
    usual = config_pbtxt(with_plan(bundle, sessions=2, threads=3, windows=4).manifest)
    chosen = with_plan(bundle, runtime="openvino", sessions=2, threads=3, windows=4).manifest
    parameters = parsed(config_pbtxt(chosen))["parameters"]
    told_to = openvino_settings(1, 3, bundle.manifest.artifacts["onnx_fp32"])
    assert json.loads(parameters.pop("openvino")["string_value"]) == told_to
    assert parameters.pop("round_to") == {"string_value": "8"}
    assert parameters.pop("max_tokens") == {"string_value": str(bundle.manifest.text.max_tokens)}
    assert parameters == parsed(usual)["parameters"]
    # The container's native backend runs the same form on ONNX Runtime.
    assert "openvino" not in config_pbtxt(chosen, backend="onnxruntime")
    assert "openvino" not in config_pbtxt(chosen, aim=None)


@pytest.mark.usefixtures("without_openvino")
def test_tritons_script_runs_the_same_graph_on_onnx_runtime_where_openvino_is_missing(
    bundle: Bundle, tmp_path: Path, said: Said
) -> None:
    usual = answered(with_plan(bundle), tmp_path)
    assert not said.warned
    found = answered(with_plan(bundle, runtime="openvino"), tmp_path)
    assert np.array_equal(found["logits"], usual["logits"])
    (warning,) = said.warned
    assert warning.startswith("news: the plan chose OpenVINO, which is not installed")


@installed
def test_tritons_script_follows_a_plan_for_openvino(bundle: Bundle, tmp_path: Path, said: Said) -> None:
    usual = answered(with_plan(bundle), tmp_path)
    assert not said.informed
    planned_here = with_plan(bundle, runtime="openvino", sessions=1, threads=cores())
    assert planned(planned_here.manifest, "throughput") is not None
    found = answered(planned_here, tmp_path)
    assert np.allclose(found["logits"], usual["logits"], atol=1e-5)
    assert not said.warned
    assert said.informed and said.informed[0].startswith("news: OpenVINO ")
