"""OpenVINO in the gateway's own process: what a plan may have chosen in the place of ONNX Runtime's sessions.

One model with a stream for each computation at a time; the streams share its weights. Which calls are computed, and by
which thread, is `serving.engines.onnx_engine`'s part, to which a stream looks like a session.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError
from bundle.manifest import Artifact, Manifest
from bundle.plan import openvino_settings
from bundle.rounding import Rounding


class Stream:
    """One computation at a time of a model; two threads may not call the same one.

    Attributes:
        inputs, outputs: names of the model's tensors; an input that the graph does not read may be gone.
    """

    def __init__(self, compiled: Any, rounding: Rounding) -> None:
        self.inputs = sorted(name for port in compiled.inputs for name in port.get_names())
        self.outputs = sorted(name for port in compiled.outputs for name in port.get_names())
        self._request = compiled.create_infer_request()
        self._rounding = rounding

    def run(self, outputs: Sequence[str], feeds: dict[str, IntArray]) -> list[FloatArray]:
        """Named outputs of one batch, as ONNX Runtime's session gives them.

        Args:
            feeds: int64 (windows, tokens) each.
        """
        given = {name: feeds[name] for name in self.inputs}
        tokens = next(iter(given.values())).shape[1]
        found = self._request.infer(self._rounding.widened(given))
        return [self._rounding.cut(name, found[name], tokens) for name in outputs]


def open_streams(graph: Path, manifest: Manifest, artifact: Artifact, sessions: int, threads: int) -> list[Stream]:
    """Opens a graph once, for so many computations at the same time.

    Args:
        artifact: of the manifest, whose graph it is.
        threads: of each computation.

    Raises:
        BundleError: OpenVINO cannot load the graph.
    """
    # OpenVINO reports its use to its makers unless this package is missing.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino

        compiled = openvino.Core().compile_model(str(graph), "CPU", openvino_settings(sessions, threads, artifact))
    except Exception as error:  # RuntimeError for all that it does not know, ImportError for a broken installation
        raise BundleError(f"{graph}: OpenVINO cannot load it: {error}") from error
    rounding = Rounding(manifest, artifact)
    return [Stream(compiled, rounding) for _ in range(sessions)]


def openvino_version() -> str:
    """OpenVINO's version, where it has been loaded."""
    # Behind the first hyphen stand the build and its branch.
    return str(getattr(sys.modules.get("openvino"), "__version__", "")).partition("-")[0]
