"""Triton's script and configuration as Triton itself would use them, without a Triton."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from bundle.encode import Encoder
from bundle.folder import Bundle
from export.to_triton import write_repository


def parsed(config: str) -> dict[str, Any]:
    """A configuration as Triton hands it to the script."""
    message = text_format.Parse(config, model_config_pb2.ModelConfig())
    made: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return made


class Said:
    """The part of Triton's module for scripts that the script uses, and what was logged."""

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.informed: list[str] = []
        self.Logger = SimpleNamespace(log_warn=self.warned.append, log_info=self.informed.append)
        self.Tensor = lambda name, values: (name, values)

    @staticmethod
    def triton_string_to_numpy(name: str) -> type:
        assert name == "TYPE_FP32"
        return np.float32

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: request[name])

    @staticmethod
    def InferenceResponse(output_tensors: list[Any]) -> dict[str, Any]:  # noqa: N802
        return dict(output_tensors)


def script(folder: Path) -> ModuleType:
    """The script as it stands in a model's folder."""
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answered(bundle: Bundle, tmp_path: Path) -> dict[str, Any]:
    """What the script says of a text, as Triton would ask it."""
    folder = write_repository(bundle, tmp_path / "repository")
    model = script(folder).TritonPythonModel()
    config = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
        }
    )
    encoder = Encoder.of(bundle)
    row = encoder.row(encoder.encode("大国新闻，股市增长。"), 0)
    (answer,) = model.execute([{"input_ids": row.ids[None], "token_type_ids": row.types[None]}])
    return dict(answer)
