"""The Triton repository: the whole text of config.pbtxt, and how the folder is replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.errors import ChecksumMismatch, ExportError
from bundle.golden import read_golden
from bundle.plan import this_machine
from export.to_triton import config_pbtxt, write_repository
from tests.serving.tiny_bundle import make_bundle, with_plan


def test_the_config_for_the_server_from_pip(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "ner", "token-classification", version=3)
    sha = bundle.manifest.artifacts["onnx_fp32"].sha256

    assert config_pbtxt(bundle.manifest, instances=2, threads=1) == (
        "# Written by `make export` from the bundle 'ner'; changes are lost at the next export.\n"
        'name: "ner"\n'
        'backend: "python"\n'
        "max_batch_size: 64\n"
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true } ]\n'
        'input [ { name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true } ]\n'
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [ -1, 5 ] label_filename: "labels.txt" } ]\n'
        "instance_group [ { kind: KIND_CPU count: 2 } ]\n"
        "version_policy { specific { versions: [ 3 ] } }\n"
        "dynamic_batching {\n"
        "  max_queue_delay_microseconds: 500\n"
        "  default_queue_policy { max_queue_size: 256 }\n"
        "}\n"
        'parameters { key: "format" value { string_value: "onnx_fp32" } }\n'
        f'parameters {{ key: "graph_sha256" value {{ string_value: "{sha}" }} }}\n'
        'parameters { key: "batch_invariant" value { string_value: "true" } }\n'
        'parameters { key: "pad_id" value { string_value: "0" } }\n'
        'parameters { key: "intra_op_threads" value { string_value: "1" } }\n'
        "model_warmup [ {\n"
        '  name: "one window"\n'
        "  batch_size: 1\n"
        '  inputs { key: "input_ids" value { data_type: TYPE_INT64 dims: [ 32 ] zero_data: true } }\n'
        '  inputs { key: "token_type_ids" value { data_type: TYPE_INT64 dims: [ 32 ] zero_data: true } }\n'
        "} ]\n"
    )


def test_the_config_for_nvidias_container(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    sha = bundle.manifest.artifacts["onnx_fp32"].sha256

    assert config_pbtxt(bundle.manifest, backend="onnxruntime", threads=8) == (
        "# Written by `make export` from the bundle 'news'; changes are lost at the next export.\n"
        'name: "news"\n'
        'platform: "onnxruntime_onnx"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 64\n"
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]\n'
        'input [ { name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]\n'
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]\n'
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        "version_policy { specific { versions: [ 1 ] } }\n"
        "dynamic_batching {\n"
        "  max_queue_delay_microseconds: 500\n"
        "  default_queue_policy { max_queue_size: 256 }\n"
        "}\n"
        'parameters { key: "format" value { string_value: "onnx_fp32" } }\n'
        f'parameters {{ key: "graph_sha256" value {{ string_value: "{sha}" }} }}\n'
        'parameters { key: "batch_invariant" value { string_value: "true" } }\n'
        'parameters { key: "intra_op_thread_count" value { string_value: "8" } }\n'
        'parameters { key: "inter_op_thread_count" value { string_value: "1" } }\n'
        'parameters { key: "execution_mode" value { string_value: "0" } }\n'
        "model_warmup [ {\n"
        '  name: "one window"\n'
        "  batch_size: 1\n"
        '  inputs { key: "input_ids" value { data_type: TYPE_INT64 dims: [ 32 ] zero_data: true } }\n'
        '  inputs { key: "token_type_ids" value { data_type: TYPE_INT64 dims: [ 32 ] zero_data: true } }\n'
        "} ]\n"
    )


def test_the_plan_pins_instances_threads_and_batching(tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "b", "ner", "token-classification")
    bundle = with_plan(bare, sessions=3, threads=2, windows=16, by_length=False)
    machine = this_machine()

    assert config_pbtxt(bundle.manifest) == (
        config_pbtxt(bare.manifest, instances=3, threads=2)
        .replace("max_batch_size: 64\n", "max_batch_size: 16\n")
        .replace("max_queue_delay_microseconds: 500\n", "max_queue_delay_microseconds: 0\n")
        .replace(
            'parameters { key: "intra_op_threads" value { string_value: "2" } }\n',
            'parameters { key: "intra_op_threads" value { string_value: "2" } }\n'
            'parameters { key: "by_length" value { string_value: "false" } }\n'
            f'parameters {{ key: "plan_cpu" value {{ string_value: "{machine.cpu}" }} }}\n'
            f'parameters {{ key: "plan_cores" value {{ string_value: "{machine.cores}" }} }}\n',
        )
    )
    native = config_pbtxt(bundle.manifest, backend="onnxruntime")
    assert 'key: "intra_op_thread_count" value { string_value: "2" }' in native
    assert "kind: KIND_CPU count: 3" in native and "max_batch_size: 16" in native


def test_what_is_asked_for_wins_over_the_plan(tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "b", "news", "single-label")
    bundle = with_plan(bare, sessions=3, threads=2, windows=16)

    asked = config_pbtxt(bundle.manifest, instances=2)
    assert "kind: KIND_CPU count: 2" in asked and "max_batch_size: 16" in asked
    assert 'key: "intra_op_threads" value { string_value: "0" }' in asked and "plan_cpu" not in asked
    assert config_pbtxt(bundle.manifest, aim=None) == config_pbtxt(bare.manifest)


def test_the_native_backend_does_not_batch_what_must_run_alone(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label", precision="int8")

    assert "dynamic_batching" not in config_pbtxt(bundle.manifest, backend="onnxruntime")
    assert "dynamic_batching" in config_pbtxt(bundle.manifest, backend="python")
    assert 'key: "batch_invariant" value { string_value: "false" }' in config_pbtxt(bundle.manifest)


def test_the_folder_holds_the_graph_the_script_and_the_labels(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label", version=2)
    folder = write_repository(bundle, tmp_path / "repository")

    assert folder == tmp_path / "repository" / "news"
    assert (folder / "2" / "model.onnx").read_bytes() == bundle.path("onnx_fp32/model.onnx").read_bytes()
    assert "class TritonPythonModel" in (folder / "2" / "model.py").read_text(encoding="utf-8")
    assert (folder / "labels.txt").read_text(encoding="utf-8") == "负面\n中性\n正面\n"


def test_writing_again_replaces_the_model_and_leaves_the_others(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_repository(make_bundle(tmp_path / "other", "other", "single-label"), repository)
    write_repository(make_bundle(tmp_path / "a", "news", "single-label", version=1), repository)
    folder = write_repository(
        make_bundle(tmp_path / "b", "news", "single-label", version=2), repository, backend="onnxruntime"
    )

    assert {path.name for path in repository.iterdir()} == {"other", "news"}
    assert {path.name for path in folder.iterdir()} == {"2", "config.pbtxt", "labels.txt", "warmup"}
    assert {path.name for path in (folder / "2").iterdir()} == {"model.onnx"}


def test_a_model_is_warmed_up_with_golden_windows_of_several_lengths(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    folder = write_repository(bundle, tmp_path / "repository")
    config = (folder / "config.pbtxt").read_text(encoding="utf-8")

    lengths = [len(ids) for row in read_golden(bundle.path(bundle.manifest.golden.file)) for ids in row.ids]
    for tokens in (min(lengths), max(lengths)):
        assert (
            "model_warmup [ {\n"
            f'  name: "a golden window of {tokens} tokens"\n'
            "  batch_size: 1\n"
            f'  inputs {{ key: "input_ids" value {{ data_type: TYPE_INT64 dims: [ {tokens} ] '
            f'input_data_file: "{tokens}.input_ids" }} }}\n'
            f'  inputs {{ key: "token_type_ids" value {{ data_type: TYPE_INT64 dims: [ {tokens} ] '
            f'input_data_file: "{tokens}.token_type_ids" }} }}\n'
            "} ]\n"
        ) in config
        ids = np.frombuffer((folder / "warmup" / f"{tokens}.input_ids").read_bytes(), "<i8")
        assert any(
            np.array_equal(ids, window)
            for row in read_golden(bundle.path(bundle.manifest.golden.file))
            for window in row.ids
        )


def test_a_response_cache_is_asked_for_only_where_it_is_wanted(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    assert "response_cache" not in config_pbtxt(bundle.manifest)
    assert "response_cache { enable: true }\n" in config_pbtxt(bundle.manifest, response_cache=True)


def test_a_damaged_graph_leaves_the_old_repository_as_it_was(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    folder = write_repository(bundle, tmp_path / "repository")
    before = (folder / "1" / "model.onnx").read_bytes()
    graph = bundle.path("onnx_fp32/model.onnx")
    graph.unlink()
    graph.write_bytes(before[:-1])

    with pytest.raises(ChecksumMismatch, match=r"model\.onnx"):
        write_repository(bundle, tmp_path / "repository")
    assert (folder / "1" / "model.onnx").read_bytes() == before
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["news"]


def test_a_bundle_that_publishes_nothing_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label", published=False)
    with pytest.raises(ExportError, match="publishes no artifact"):
        write_repository(bundle, tmp_path / "repository")


def test_a_model_of_two_tasks_has_both_outputs_each_with_its_label_names(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "desk", "multi-task")
    folder = write_repository(bundle, tmp_path / "repository")

    config = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert 'output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]' in config
    assert (
        'output [ { name: "token_logits" data_type: TYPE_FP32 dims: [ -1, 5 ] label_filename: "token_labels.txt" } ]'
        in config
    )
    assert (folder / "labels.txt").read_text(encoding="utf-8") == "询问\n预订\n抱怨\n"
    assert (folder / "token_labels.txt").read_text(encoding="utf-8") == "O\nB-PER\nI-PER\nB-LOC\nI-LOC\n"
