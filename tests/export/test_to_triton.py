"""The Triton repository: the whole text of config.pbtxt, and how the folder is replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.errors import ChecksumMismatch, ExportError
from bundle.golden import read_golden
from bundle.plan import this_machine
from export.to_triton import Chosen, chosen_before, config_pbtxt, usual_buckets, write_again, write_repository
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

    assert {path.name for path in repository.iterdir()} == {"other", "news", "news_16"}
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


def test_the_config_of_a_length_bucket_for_nvidias_container(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "desk", "multi-task", version=3)
    sha = bundle.manifest.artifacts["onnx_fp32"].sha256
    narrow, wide = (
        config_pbtxt(bundle.manifest, backend="onnxruntime", threads=8, instances=2, tokens=tokens, buckets=(16, 32))
        for tokens in (16, 32)
    )

    assert narrow == (
        "# Written by `make export` from the bundle 'desk'; changes are lost at the next export.\n"
        'name: "desk_16"\n'
        'platform: "onnxruntime_onnx"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 64\n"
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ 16 ] } ]\n'
        'input [ { name: "token_type_ids" data_type: TYPE_INT64 dims: [ 16 ] } ]\n'
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]\n'
        'output [ { name: "token_logits" data_type: TYPE_FP32 dims: [ 16, 5 ] '
        'label_filename: "token_labels.txt" } ]\n'
        "instance_group [ { kind: KIND_CPU count: 2 } ]\n"
        "version_policy { specific { versions: [ 3 ] } }\n"
        "dynamic_batching {\n"
        "  preferred_batch_size: [ 64 ]\n"
        "  max_queue_delay_microseconds: 500\n"
        "  default_queue_policy { max_queue_size: 256 }\n"
        "}\n"
        'parameters { key: "format" value { string_value: "onnx_fp32" } }\n'
        f'parameters {{ key: "graph_sha256" value {{ string_value: "{sha}" }} }}\n'
        'parameters { key: "batch_invariant" value { string_value: "true" } }\n'
        'parameters { key: "bucket_of" value { string_value: "desk" } }\n'
        'parameters { key: "intra_op_thread_count" value { string_value: "8" } }\n'
        'parameters { key: "inter_op_thread_count" value { string_value: "1" } }\n'
        'parameters { key: "execution_mode" value { string_value: "0" } }\n'
        "model_warmup [ {\n"
        '  name: "one window"\n'
        "  batch_size: 1\n"
        '  inputs { key: "input_ids" value { data_type: TYPE_INT64 dims: [ 16 ] zero_data: true } }\n'
        '  inputs { key: "token_type_ids" value { data_type: TYPE_INT64 dims: [ 16 ] zero_data: true } }\n'
        "} ]\n"
    )
    assert wide == (
        narrow.replace('name: "desk_16"\n', 'name: "desk"\n')
        .replace("dims: [ 16", "dims: [ 32")
        .replace('key: "bucket_of" value { string_value: "desk" }', 'key: "buckets" value { string_value: "16,32" }')
    )


def test_a_plan_says_what_a_bucket_prefers_and_how_it_is_computed(tmp_path: Path) -> None:
    bundle = with_plan(make_bundle(tmp_path / "b", "news", "single-label"), sessions=3, threads=2, windows=16)
    config = config_pbtxt(bundle.manifest, backend="onnxruntime", tokens=32, buckets=(32,))

    assert "max_batch_size: 16\n" in config and "preferred_batch_size: [ 16 ]\n" in config
    assert "max_queue_delay_microseconds: 0\n" in config and "kind: KIND_CPU count: 3" in config
    assert 'key: "intra_op_thread_count" value { string_value: "2" }' in config


def test_a_longer_bucket_prefers_fewer_windows_together(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "b", "news", "single-label").manifest
    text = manifest.text.model_copy(update={"max_tokens": 512})
    long = manifest.model_copy(update={"text": text})

    assert usual_buckets(manifest) == (16, 32) and usual_buckets(long) == (128, 256, 512)
    configs = [config_pbtxt(long, backend="onnxruntime", tokens=n, buckets=(128, 256, 512)) for n in (128, 256, 512)]
    assert ["preferred_batch_size: [ 16 ]" in configs[0], "preferred_batch_size: [ 8 ]" in configs[1]] == [True, True]
    assert "preferred_batch_size: [ 4 ]" in configs[2]


def test_a_gpu_gets_instances_of_its_kind_and_no_plan(tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "b", "news", "single-label")
    planned = with_plan(bare, sessions=3, threads=2, windows=16)
    for backend in ("python", "onnxruntime"):
        for_cpu = config_pbtxt(bare.manifest, backend=backend)  # type: ignore[arg-type]
        for_gpu = config_pbtxt(planned.manifest, backend=backend, gpu=True)  # type: ignore[arg-type]
        assert for_gpu == for_cpu.replace("KIND_CPU", "KIND_GPU")
    with pytest.raises(ExportError, match=r"integer products are a processor's; .*--device gpu"):
        config_pbtxt(make_bundle(tmp_path / "i", "news", "single-label", precision="int8").manifest, gpu=True)


def test_each_bucket_has_the_graph_the_labels_and_golden_windows_of_its_lengths(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "ner", "token-classification", version=2)
    repository = tmp_path / "repository"
    assert write_repository(bundle, repository, backend="onnxruntime", buckets=(24, 12)) == repository / "ner"

    lengths = sorted({len(ids) for row in read_golden(bundle.path(bundle.manifest.golden.file)) for ids in row.ids})
    ranges = {"ner_12": (0, 12), "ner_24": (12, 24), "ner": (24, 32)}
    assert {path.name for path in repository.iterdir()} == set(ranges)
    for name, (above, most) in ranges.items():
        folder = repository / name
        assert {path.name for path in folder.iterdir()} == {"2", "config.pbtxt", "labels.txt", "warmup"}
        assert (folder / "2" / "model.onnx").read_bytes() == bundle.path("onnx_fp32/model.onnx").read_bytes()
        config = (folder / "config.pbtxt").read_text(encoding="utf-8")
        own = [length for length in lengths if above < length <= most] or [max(n for n in lengths if n <= most)]
        warm = {int(path.name.partition(".")[0]) for path in (folder / "warmup").iterdir()}
        assert warm <= set(own) and {min(own), max(own)} <= warm
        for length in warm:
            assert f'dims: [ {most} ] input_data_file: "{length}.input_ids"' in config
            ids = np.frombuffer((folder / "warmup" / f"{length}.input_ids").read_bytes(), "<i8")
            assert len(ids) == most and (ids[:length] != 0).all() and (ids[length:] == 0).all()


def test_buckets_that_are_no_more_go_and_other_models_stay(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    write_repository(make_bundle(tmp_path / "o", "news_letters", "single-label"), repository)
    write_repository(bundle, repository, backend="onnxruntime", buckets=(12, 20))
    write_repository(bundle, repository, backend="onnxruntime", buckets=(20,))
    assert {path.name for path in repository.iterdir()} == {"news", "news_20", "news_letters"}
    write_repository(bundle, repository)
    assert {path.name for path in repository.iterdir()} == {"news", "news_letters"}


def test_a_model_and_a_bucket_of_the_same_name_are_refused(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    news, other = (make_bundle(tmp_path / name, name, "single-label") for name in ("news", "news_16"))
    write_repository(other, repository)
    with pytest.raises(ExportError, match="news_16 is a model of its own, and a length bucket of 'news' has its name"):
        write_repository(news, repository, backend="onnxruntime")
    assert {path.name for path in repository.iterdir()} == {"news_16"}
    write_repository(news, tmp_path / "second", backend="onnxruntime")
    with pytest.raises(ExportError, match="news_16 is a length bucket of 'news'"):
        write_repository(other, tmp_path / "second")


def test_what_must_be_computed_at_its_true_length_has_no_buckets(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label", precision="int8")
    write_repository(bundle, tmp_path / "repository", backend="onnxruntime")
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["news"]
    with pytest.raises(ExportError, match="would depend on its padding"):
        write_repository(bundle, tmp_path / "repository", buckets=(16,))


def test_a_length_that_no_window_has_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    for tokens in (0, 33):
        with pytest.raises(ExportError, match=f"a bucket of {tokens} tokens is none: .* have 1 to 32"):
            write_repository(bundle, tmp_path / "repository", buckets=(tokens,))


def test_a_model_is_written_again_as_it_was(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    bundle = make_bundle(tmp_path / "b", "news", "single-label")
    assert chosen_before(repository, "news") == Chosen()
    write_repository(bundle, repository, buckets=(12,), response_cache=True, gpu=True)
    before = (repository / "news_12" / "config.pbtxt").read_text(encoding="utf-8")
    assert chosen_before(repository, "news") == Chosen("python", True, True, (12, 32))
    write_again(bundle, repository, chosen_before(repository, "news"), "throughput")
    assert (repository / "news_12" / "config.pbtxt").read_text(encoding="utf-8") == before
    # A form that may not be padded, and that no GPU computes, is written as it can be.
    quantized = make_bundle(tmp_path / "i", "news", "single-label", precision="int8")
    write_again(quantized, repository, chosen_before(repository, "news"), "throughput")
    assert chosen_before(repository, "news") == Chosen("python", True, False, ())
