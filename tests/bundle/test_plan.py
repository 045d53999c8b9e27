"""The plan in the manifest: what drops it, and whether it is for this machine."""

from __future__ import annotations

import json
from pathlib import Path

from bundle.folder import open_bundle
from bundle.manifest import Setup
from bundle.plan import planned, this_machine, why_foreign
from tests.serving.tiny_bundle import elsewhere, make_bundle, rebind, with_plan


def test_a_bundle_from_before_there_were_plans_still_opens(tmp_path: Path) -> None:
    make_bundle(tmp_path, "old", "single-label")
    file = tmp_path / "bundle.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    del manifest["plan"]
    file.write_text(json.dumps(manifest), encoding="utf-8")

    opened = open_bundle(tmp_path).manifest
    assert opened.plan is None
    assert planned(opened, "throughput") is None


def test_a_plan_travels_in_the_manifest(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path, "a", "single-label"), sessions=2, windows=8, by_length=False)
    opened = open_bundle(tmp_path).manifest
    assert opened.plan == bundle.manifest.plan is not None
    choice = planned(opened, "latency")
    assert choice and (choice.sessions, choice.windows, choice.by_length) == (2, 8, False)
    assert planned(opened, None) is None


def test_a_plan_goes_with_the_graph_that_it_measured(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path / "a", "a", "single-label"))
    other = make_bundle(tmp_path / "b", "b", "single-label", seed=1)
    rebind(bundle, other.path("onnx_fp32/model.onnx"))
    assert open_bundle(tmp_path / "a").manifest.plan is None


def test_a_plan_does_not_serve_what_the_gate_has_withdrawn(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path, "a", "single-label", precision="int8"))
    manifest = bundle.manifest.model_copy(update={"published": ""})
    assert planned(manifest, "throughput") is None
    assert bundle.save(manifest).manifest.plan is None


def test_a_plan_of_another_processor_is_foreign_and_both_sides_are_told(tmp_path: Path) -> None:
    here = this_machine()
    plan = with_plan(make_bundle(tmp_path, "a", "single-label")).manifest.plan
    assert plan and why_foreign(plan, here) == ""
    assert why_foreign(plan, here.model_copy(update={"memory_gib": 1.0})) == "", "memory does not change the choice"
    told = why_foreign(plan, elsewhere())
    assert here.cpu in told and "Abacus 3000, 77 core(s)" in told


def test_a_setup_from_before_there_was_a_choice_of_runtimes_is_onnx_runtimes(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path, "old", "single-label"))
    file = tmp_path / "bundle.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    for name in ("latency", "throughput", "defaults"):
        del manifest["plan"][name]["runtime"]
    del manifest["plan"]["instead"], manifest["plan"]["left_out"]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    opened = open_bundle(tmp_path).manifest
    assert opened.plan == bundle.manifest.plan
    choice = planned(opened, "latency")
    assert choice and choice.runtime == "onnxruntime" and opened.plan.on_onnxruntime("latency") == choice


def test_a_plan_goes_with_the_form_that_stands_in_for_its_choice(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path, "a", "single-label"), runtime="openvino")
    plan = bundle.manifest.plan
    assert plan and plan.on_onnxruntime("throughput") == plan.defaults
    stand_in = Setup(artifact="onnx_int8", threads=1, sessions=1, windows=1)
    changed = bundle.manifest.model_copy(update={"plan": plan.model_copy(update={"instead": {"latency": stand_in}})})
    assert changed.without_stale_plan().plan is None
