"""Which outside references there are, in which environment each stands, and what it needs from the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(".venv-references")
# Float32 in another library and another order of sums; ours are held to a tenth of it.
FP32_TOLERANCE = 1e-3
# A reference that is not float32 and names another label on more golden rows than this is some other model.
LEAST_AGREEMENT = 0.8


@dataclass(frozen=True, slots=True)
class Reference:
    """One outside reference.

    Attributes:
        environment: folder under ``.venv-references``, made by ``make references``.
        kind: how `worker` opens it.
        precision: of most of its arithmetic.
        file: in the folder that its kind prepares; empty where the converted checkpoint is opened.
        batch_invariant: false where scales are found per call, so that a window's logits depend on its neighbours.
        about: what it is, for people.
    """

    environment: str
    kind: str
    precision: str
    file: str = ""
    batch_invariant: bool = True
    about: str = ""


REFERENCES = {
    "transformers_fp32": Reference("torch", "transformers", "fp32", about="transformers, PyTorch"),
    "transformers_int8": Reference(
        "torch", "transformers", "int8", batch_invariant=False, about="transformers, PyTorch's dynamic INT8"
    ),
    "optimum_fp32": Reference("torch", "optimum", "fp32", "fp32/model.onnx", about="optimum's ONNX export"),
    "optimum_o2": Reference("torch", "optimum", "fp32", "o2/model_optimized.onnx", about="optimum's O2 graph"),
    "optimum_int8": Reference(
        "torch", "optimum", "int8", "int8/model_quantized.onnx", False, "optimum's dynamic INT8 of its export"
    ),
    "onnxruntime_int8": Reference(
        "torch", "optimum", "int8", "o2/model_int8.onnx", False, "ONNX Runtime's dynamic INT8 of optimum's O2 graph"
    ),
    "openvino_fp32": Reference("openvino", "openvino", "fp32", "fp32.xml", about="OpenVINO, held to float32"),
    "openvino_default": Reference(
        "openvino", "openvino", "bf16", "fp32.xml", about="OpenVINO as it comes: bfloat16 where the CPU has it"
    ),
    "openvino_int8": Reference("openvino", "openvino", "int8", "int8.xml", about="OpenVINO, NNCF's post-training INT8"),
}


def python_of(environment: str, root: Path = ENVIRONMENTS) -> Path:
    """The interpreter of a reference's environment, whether it is there or not."""
    return root / environment / "bin" / "python"
