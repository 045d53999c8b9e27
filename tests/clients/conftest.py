"""The servers of the serving room's tests, for clients to ask."""

from __future__ import annotations

from tests.serving.conftest import bundles, onnx_server

__all__ = ["bundles", "onnx_server"]
