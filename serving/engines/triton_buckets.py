"""Windows of a call → the length buckets of a Triton model, and their outputs back together.

Each window goes to the shortest bucket that holds it, padded to the bucket's length, since that is the one shape which
the bucket's model takes (`bundle.buckets`). What is added is padding like the caller's own, and is cut off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.decode import FloatArray
from bundle.encode import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The windows of a call that go to one bucket.

    Attributes:
        tokens: of a window there.
        rows: which windows of the call they are, int64 (part,).
        input_ids, token_type_ids: int64 (part, tokens).
    """

    tokens: int
    rows: npt.NDArray[np.int64]
    input_ids: IntArray
    token_type_ids: IntArray


def split(input_ids: IntArray, token_type_ids: IntArray, pad_id: int, buckets: Sequence[int]) -> list[Part]:
    """A call's windows by their buckets, the shortest bucket first.

    Args:
        input_ids, token_type_ids: int64 (windows, tokens).
        buckets: ascending; the last holds every window of the model.

    Raises:
        ValueError: a window is longer than the last.
    """
    real = input_ids != pad_id
    # Tokens up to the last one that is not padding; of a window of nothing else, all of them.
    lengths = input_ids.shape[1] - real[:, ::-1].argmax(axis=1)
    places = np.searchsorted(buckets, lengths)
    if (places == len(buckets)).any():
        raise ValueError(f"a window has {lengths.max()} tokens, the longest bucket {buckets[-1]}")
    parts = []
    for place in np.unique(places):
        tokens, rows = buckets[place], np.flatnonzero(places == place)
        width = min(tokens, input_ids.shape[1])
        ids = np.full((len(rows), tokens), pad_id, dtype=np.int64)
        types = np.zeros((len(rows), tokens), dtype=np.int64)
        ids[:, :width], types[:, :width] = input_ids[rows, :width], token_type_ids[rows, :width]
        parts.append(Part(tokens, rows, ids, types))
    return parts


def joined(
    parts: Sequence[Part], answers: Sequence[Sequence[FloatArray]], windows: int, tokens: int
) -> tuple[FloatArray, ...]:
    """The outputs of a call, as if its windows had been computed together.

    Args:
        answers: the outputs of each part: float32 (part, labels), or (part, tokens of the bucket, labels).
        windows, tokens: of the call as it came.

    Returns:
        float32 (windows, labels), or (windows, tokens, labels) with zeros where a bucket was shorter.
    """
    found = []
    for values in zip(*answers, strict=True):
        axes = (windows, tokens, values[0].shape[-1]) if values[0].ndim == 3 else (windows, values[0].shape[-1])
        whole = np.zeros(axes, dtype=np.float32)
        for part, own in zip(parts, values, strict=True):
            if own.ndim == 3:
                width = min(tokens, own.shape[1])
                whole[part.rows, :width] = own[:, :width]
            else:
                whole[part.rows] = own
        found.append(whole)
    return tuple(found)
