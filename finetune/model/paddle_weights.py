"""A restricted reader for ``.pdparams`` files: arrays by name, and nothing that a pickle could run.

`paddle.load` unpickles without limits. A file from a hub or a colleague is foreign, so it is read here with an
unpickler that knows only what `paddle.save` writes for a state dict: numpy arrays and ordered dictionaries.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import DataError

_ALLOWED: dict[tuple[str, str], Any] = {}


def _allowed() -> dict[tuple[str, str], Any]:
    if not _ALLOWED:
        import _codecs
        from collections import OrderedDict

        import numpy.core.multiarray as multiarray

        _ALLOWED.update(
            {
                ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,  # type: ignore[attr-defined]
                ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,  # type: ignore[attr-defined]
                ("numpy", "ndarray"): np.ndarray,
                ("numpy", "dtype"): np.dtype,
                ("collections", "OrderedDict"): OrderedDict,
                ("builtins", "tuple"): tuple,
                ("__builtin__", "tuple"): tuple,
                # Protocol 2 writes an array's bytes as a latin-1 string that this turns back.
                ("_codecs", "encode"): _codecs.encode,
            }
        )
    return _ALLOWED


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _allowed()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need") from None


def read_paddle_state(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads a state dict that `paddle.save` or PaddleNLP's ``save_pretrained`` wrote.

    Returns:
        arrays by parameter name.

    Raises:
        DataError: not such a file, or one that asks for anything but arrays.
    """
    try:
        with path.open("rb") as stream:
            table = _Reader(stream, encoding="latin1").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(f"{path}: not a plain file of Paddle weights: {error}") from error
    if not isinstance(table, dict):
        raise DataError(f"{path}: not a state dict")
    result: dict[str, npt.NDArray[Any]] = {}
    for name, value in table.items():
        # Newer releases write a parameter as (its internal name, array).
        array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiu":
            result[str(name)] = array
    if not result:
        raise DataError(f"{path}: holds no arrays")
    return result
