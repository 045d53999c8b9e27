"""Lengths that OpenVINO is given: rounded up to a multiple, so that it meets few shapes.

OpenVINO's CPU plugin builds kernels for each shape that it has not met, which takes some 5 ms for a model of 4 layers,
more than such a window itself, and keeps about 2 MB for each. A batch's windows are padded to a multiple of `STEP`
tokens, and the answers of the added tokens are cut off again. The answers are the same, as they must be in a batch of
windows of different lengths; where they would not be (dynamic quantization), nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.manifest import Artifact, Manifest

STEP = 8


class Rounding:
    """How a model's batches are widened and its answers cut."""

    def __init__(self, manifest: Manifest, artifact: Artifact) -> None:
        signature = manifest.signature
        # Only ids are padded with the pad id; token types are 0 there, as everywhere else.
        self._fill = {tensor.name: manifest.text.pad_id if place == 0 else 0
                      for place, tensor in enumerate(signature.inputs)}  # fmt: skip
        self._per_token = {tensor.name for tensor in signature.outputs if "tokens" in tensor.shape}
        self._most = manifest.text.max_tokens if artifact.batch_invariant else 0

    def tokens(self, tokens: int) -> int:
        """The length that a batch of such a length is given; never beyond what a window of the model can have."""
        return max(tokens, min(-(-tokens // STEP) * STEP, self._most))

    def widened(self, feeds: Mapping[str, IntArray]) -> dict[str, IntArray]:
        """A batch, int64 (windows, tokens) by name of input, at its rounded length."""
        found = {}
        for name, values in feeds.items():
            more = self.tokens(values.shape[1]) - values.shape[1]
            found[name] = np.pad(values, ((0, 0), (0, more)), constant_values=self._fill[name]) if more else values
        return found

    def cut(self, name: str, values: FloatArray, tokens: int) -> FloatArray:
        """An output without what it says of the tokens that were added; a view."""
        return values[:, :tokens] if name in self._per_token else values
