"""What parity catches: each test breaks a good graph in one way and reads the error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bundle.errors import ParityFailed
from bundle.folder import Bundle
from export.parity import GoldenRows, check_axes, check_onnx, rounding_tolerance
from export.session import open_session, run_of

pytestmark = pytest.mark.slow

Copy = Callable[[str], Bundle]


@pytest.fixture
def bundle(exported: Copy) -> Bundle:
    return exported("bert-classes")


@pytest.fixture
def graph(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(str(bundle.path("onnx/model_fused.onnx")))


def weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from (item for item in model.graph.initializer if len(item.dims) == 2)


def refused(model: onnx.ModelProto, bundle: Bundle, reason: str) -> None:
    with pytest.raises(ParityFailed, match=reason):
        check_onnx("candidate", model.SerializeToString(), GoldenRows(bundle))


def test_a_good_graph_passes_and_the_tolerance_is_recorded(graph: onnx.ModelProto, bundle: Bundle) -> None:
    parity = check_onnx("candidate", graph.SerializeToString(), GoldenRows(bundle))
    assert parity.reference == "paddle"
    assert parity.tolerance == 1e-4
    assert parity.rows == 10 and parity.windows > parity.rows


def test_one_changed_weight_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    item = max(weights(graph), key=lambda weight: weight.dims[1])
    value = numpy_helper.to_array(item).copy()
    value[3, 5] += 1
    item.CopyFrom(numpy_helper.from_array(value, item.name))
    refused(graph, bundle, r"a logit differs by .*, the tolerance is 0\.0001")


def test_a_weight_that_is_not_a_number_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    item = next(iter(weights(graph)))
    value = numpy_helper.to_array(item).copy()
    value[:] = np.nan
    item.CopyFrom(numpy_helper.from_array(value, item.name))
    refused(graph, bundle, "not finite")


def test_a_dropped_operator_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    tanh = next(node for node in graph.graph.node if node.op_type == "Tanh")
    for node in graph.graph.node:
        node.input[:] = [tanh.input[0] if name == tanh.output[0] else name for name in node.input]
    graph.graph.node.remove(tanh)
    refused(graph, bundle, "a logit differs")


def test_a_dropped_mask_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    for node in graph.graph.node:
        if node.op_type == "Attention":
            del node.input[3]
    refused(graph, bundle, "a logit differs")


def test_padding_that_leaks_is_caught_even_where_no_golden_row_is_padded(
    graph: onnx.ModelProto, bundle: Bundle
) -> None:
    for node in graph.graph.node:
        if node.op_type == "Attention":
            del node.input[3]
    run = run_of(open_session(graph.SerializeToString()), bundle.manifest.signature)
    with pytest.raises(ParityFailed, match=r"padded to \d+ tokens in a batch of \d+, a logit moves"):
        check_axes("candidate", run, GoldenRows(bundle))


def test_another_output_name_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    graph.graph.output[0].name = "fetch_name_0"
    graph.graph.node[-1].output[0] = "fetch_name_0"
    refused(graph, bundle, r"outputs are \['fetch_name_0'\], the manifest says \['logits'\]")


def test_swapped_inputs_are_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    first, second = (onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in graph.graph.input)
    graph.graph.input[0].CopyFrom(second)
    graph.graph.input[1].CopyFrom(first)
    refused(graph, bundle, r"inputs are \['token_type_ids', 'input_ids'\]")


def test_a_fixed_axis_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    for item in graph.graph.input:
        item.type.tensor_type.shape.dim[1].dim_value = 32
    refused(graph, bundle, r"input_ids: axis 1 \(tokens\) is fixed at 32")


def test_a_wrong_number_of_labels_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    *_, matmul, add = graph.graph.node
    for item in graph.graph.initializer:
        if item.name in (matmul.input[1], *add.input):
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item)[..., :2], item.name))
    graph.graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    refused(graph, bundle, "logits: axis 1 is 2, not 3")


def test_another_dtype_is_caught(graph: onnx.ModelProto, bundle: Bundle) -> None:
    logits = graph.graph.output[0].name
    graph.graph.node[-1].output[0] = "narrow"
    graph.graph.node.append(helper.make_node("Cast", ["narrow"], [logits], to=onnx.TensorProto.DOUBLE))
    graph.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    refused(graph, bundle, r"logits is tensor\(double\), not float32")


def test_a_quantized_graph_gets_a_bound_that_another_cpu_can_keep(bundle: Bundle) -> None:
    assert rounding_tolerance(0.01) == 0.1
    assert rounding_tolerance(0.4) == 0.8
    parity = bundle.manifest.artifacts["onnx_int8"].parity
    assert parity is not None
    assert parity.tolerance == rounding_tolerance(parity.max_abs)


def test_the_static_graph_answers_as_the_checkpoint_does(bundle: Bundle) -> None:
    path: Path = bundle.path("static/model.json")
    assert path.is_file() and bundle.path("static/model.pdiparams").is_file()
    parity = bundle.manifest.artifacts["paddle_static"].parity
    assert parity is not None and parity.max_abs < 1e-5
