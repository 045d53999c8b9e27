"""`python -m export profile`: every node is counted once, with the work that its shapes demand."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundle.errors import ExportError
from bundle.folder import Bundle
from export.__main__ import app
from export.profiler import Node, Roof, nodes_of, picture, profile, summary

Copy = Callable[[str], Bundle]
ROOF = Roof(fp32=100, int8=400, near=50, far=10)


def event(
    name: str, op: str, inputs: list[dict[str, list[int]]], outputs: list[dict[str, list[int]]]
) -> dict[str, object]:
    shapes = {"op_name": op, "input_type_shape": inputs, "output_type_shape": outputs}
    return {"name": f"{name}_kernel_time", "dur": 10, "args": shapes}


def test_work_and_bytes_follow_from_the_shapes() -> None:
    (product,) = nodes_of(
        [event("a", "MatMul", [{"float": [2, 8, 16]}, {"float": [16, 4]}], [{"float": [2, 8, 4]}])], 1
    )
    assert (product.fp32, product.int8) == (2 * 2 * 8 * 16 * 4, 0)
    assert product.moved == 4 * (2 * 8 * 16 + 16 * 4 + 2 * 8 * 4)
    (packed,) = nodes_of(
        [event("b", "QAttention", [{"uint8": [1, 6, 8]}, {"int8": [8, 24]}], [{"float": [1, 6, 8]}])], 1
    )
    assert packed.int8 == 2 * 6 * 8 * 24
    assert packed.fp32 == 2 * (2 * 6 * 6 * 8)  # scores and context
    (added,) = nodes_of([event("c", "Add", [{"float": [5, 7]}, {"float": [7]}], [{"float": [5, 7]}])], 1)
    assert added.fp32 == 0 and added.moved == 4 * (35 + 7 + 35)


def test_a_roof_is_the_slower_of_work_and_bytes() -> None:
    assert ROOF.seconds(1e9, 0, 10) == pytest.approx(1 / 100)
    assert ROOF.seconds(0, 4e9, 10) == pytest.approx(1 / 100)
    assert ROOF.seconds(0, 0, 1e10) == pytest.approx(1)  # far beyond the caches
    assert ROOF.seconds(0, 0, 5e5) == pytest.approx(1e-5)  # within them


def test_warm_up_calls_are_left_out_and_the_median_is_taken() -> None:
    node = event("a", "Add", [{"float": [1]}], [{"float": [1]}])
    (found,) = nodes_of([{**node, "dur": value} for value in (900, 800, 3, 1, 2)], 3)
    assert found.microseconds == [3, 1, 2] and found.median == 2


def test_figures_of_all_operators_add_up() -> None:
    nodes = [Node(str(n), op, "layer 1", "", 1e6, 0, 1e4, [float(n + 1)]) for n, op in enumerate(("A", "B", "A"))]
    told = summary(nodes, ROOF, [0.01, 0.02])
    assert [item["op"] for item in told["operators"]] == ["A", "B"]
    assert sum(item["share"] for item in told["operators"]) == pytest.approx(1, abs=1e-3)
    assert told["whole"]["ms"] == pytest.approx(0.006)


@pytest.mark.slow
@pytest.mark.parametrize("artifact", ["onnx_fused", "onnx_int8"])
def test_the_command_writes_the_table_and_the_picture(artifact: str, exported: Copy, tmp_path: Path) -> None:
    bundle = exported("bert-classes")
    words = [
        "profile",
        str(bundle.root),
        "--artifact",
        artifact,
        "--runs",
        "5",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]
    answer = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
    assert answer.exit_code == 0, answer.output
    assert "LayerNormalization" in answer.output and "of roof" in answer.output
    stem = tmp_path / f"profile-{bundle.name}-{artifact}-1x32"
    told = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert {node["part"] for node in told["nodes"]} == {"embedding", "layer 1", "layer 2", "head"}
    assert told["calls"] == 5 and told["roof"]["fp32"] > 0 and told["hardware"]["cores"]
    drawn = ElementTree.parse(stem.with_suffix(".svg")).getroot()
    titles = [item.text or "" for item in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(told["nodes"]) + 4
    assert picture(told) == stem.with_suffix(".svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_another_artifact_is_refused_with_the_known_ones(exported: Copy) -> None:
    with pytest.raises(ExportError, match="no ONNX artifact 'paddle'; there are onnx_fp32, onnx_fused, onnx_int8"):
        profile(exported("bert-classes"), "paddle")
