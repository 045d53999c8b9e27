"""PyTorch and safetensors weights → NumPy arrays, without PyTorch and without running what a file says.

A ``pytorch_model.bin`` is a zip: a pickle that describes the tensors, and one raw file for each storage. The pickle
is read by an unpickler that knows ordered dictionaries, tensors and storages and refuses every other name, so a file
from outside cannot run code. What the names of the weights mean is left to the model code.

The layout of the zip follows PyTorch's own notes on serialization semantics ("zipfile-based" format, since 1.6).
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from bundle.errors import DataError

Array = npt.NDArray[Any]

# How the elements lie in a storage, little-endian; bfloat16 has no NumPy type and is widened to float32.
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_SAFETENSORS = {
    "F32": "<f4",
    "F64": "<f8",
    "F16": "<f2",
    "BF16": _BFLOAT16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}

# A pickle that only describes tensors stays far below this many bytes.
MAX_PICKLE = 64 << 20


def read_torch_state(path: Path | str) -> dict[str, Array]:
    """Reads a PyTorch state dict in the zip format.

    Args:
        path: a file as ``torch.save(model.state_dict(), path)`` writes it.

    Returns:
        name → array with the tensor's shape and dtype; bfloat16 becomes float32.

    Raises:
        DataError: not such a file, damaged, or it names anything but tensors (the name is in the sentence).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            value = _Reader(archive, path).load()
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: not a readable zip checkpoint ({error}); files of PyTorch before 1.6 must be saved again, "
            "or converted to safetensors"
        ) from error
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{path}: damaged checkpoint: {error}") from error
    return _flat(value, path)


def read_safetensors(path: Path | str) -> dict[str, Array]:
    """Reads a safetensors file.

    Returns:
        name → array with the tensor's shape and dtype; bfloat16 becomes float32.

    Raises:
        DataError: no such file, damaged, or an element type that NumPy does not know.
    """
    import safetensors

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from error
    arrays: dict[str, Array] = {}
    for name, tensor in tensors:
        kind = _SAFETENSORS.get(tensor["dtype"])
        if kind is None:
            raise DataError(f"{path}: {name} has the element type {tensor['dtype']}, which is not supported")
        arrays[name] = _elements(tensor["data"], kind).reshape(tensor["shape"])
    return arrays


def _elements(data: bytes | bytearray, kind: str) -> Array:
    """Raw little-endian bytes as a writable one-dimensional array."""
    if kind == _BFLOAT16:
        # bfloat16 is the upper half of a float32.
        return (np.frombuffer(data, dtype="<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(bytearray(data), dtype=kind)


def _flat(value: object, path: Path) -> dict[str, Array]:
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: holds {type(value).__name__} where a state dict is expected")
    arrays: dict[str, Array] = {}
    for name, array in value.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {name!r} is not a tensor; save the model's state dict alone")
        arrays[name] = array
    if not arrays:
        raise DataError(f"{path}: holds no tensors")
    return arrays


@dataclass(frozen=True, slots=True)
class _StorageType:
    """What a pickle's ``torch.FloatStorage`` becomes: the name of an element layout, and nothing that can be called."""

    name: str


class _Reader(pickle.Unpickler):
    """Unpickles a state dict. What it hands to the pickle is made anew each time, so that none of it can be changed."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self._members = {info.filename: info for info in archive.infolist()}
        descriptions = [name for name in self._members if name.rpartition("/")[2] == "data.pkl"]
        if len(descriptions) != 1:
            raise DataError(f"{path}: a zip, but not a PyTorch checkpoint: it holds {len(descriptions)} data.pkl")
        self._root = descriptions[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in self._members and self._member("byteorder", 16).strip() != b"little":
            raise DataError(f"{path}: saved on a big-endian machine, which is not supported")
        self._storages: dict[str, Array] = {}
        super().__init__(io.BytesIO(self._member("data.pkl", MAX_PICKLE)))

    def find_class(self, module: str, name: str) -> Any:
        """Gives the few names that a state dict needs, each in a harmless form of our own."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _StorageType(name)
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._maker(_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return self._maker(_parameter)
        raise DataError(f"{self._path}: refused: it asks for {module}.{name}, which is no part of a state dict")

    def persistent_load(self, pid: object) -> Array:
        """A storage: one-dimensional array of the elements in ``data/<key>``."""
        match pid:
            case ("storage", _StorageType(name), str(key), str(), int(count)):
                pass
            case _:
                self._broken("a storage is not described as PyTorch does")
        if key not in self._storages:
            kind = _STORAGES[name]
            size = 2 if kind == _BFLOAT16 else np.dtype(kind).itemsize
            data = self._member(f"data/{key}", None)
            if len(data) != count * size:
                self._broken(f"storage {key} has {len(data)} bytes where {count * size} are expected")
            self._storages[key] = _elements(data, kind)
        return self._storages[key]

    def _maker(self, function: Callable[..., Array]) -> Callable[..., Array]:
        return lambda *arguments: function(*arguments)

    def _member(self, name: str, limit: int | None) -> bytes:
        info = self._members.get(self._root + name)
        if info is None:
            self._broken(f"{name} is missing")
        # PyTorch never compresses; a compressed member could unfold to any size.
        if info.compress_type != zipfile.ZIP_STORED:
            self._broken(f"{name} is compressed, which PyTorch never does")
        if limit is not None and info.file_size > limit:
            self._broken(f"{name} has {info.file_size:,} bytes; at most {limit:,} make sense")
        return self._archive.read(info)

    def _broken(self, reason: str) -> NoReturn:
        raise DataError(f"{self._path}: damaged checkpoint: {reason}")


def _tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> Array:
    """A tensor over a storage; offset and strides count elements. What follows (gradients, hooks) is not needed."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError("a tensor lies over something that is no storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        raise ValueError("a tensor's shape and strides do not fit together")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(offset, int):
        raise ValueError("a tensor's shape, strides and offset must be whole numbers from 0")
    count = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if count and last >= len(storage):
        raise ValueError(f"a tensor of shape {shape} reaches past its storage of {len(storage)} elements")
    if count > len(storage):
        # A repeated (expanded) tensor; with a stride of 0 a few bytes could claim any amount of memory.
        raise ValueError(f"a tensor of shape {shape} repeats its storage of {len(storage)} elements")
    if not count:
        return np.empty(shape, dtype=storage.dtype)
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape=shape, strides=[step * storage.itemsize for step in strides]
    )
    return np.ascontiguousarray(view).reshape(shape)


def _parameter(data: object, *_: object) -> Array:
    """A parameter is the tensor that it wraps."""
    if not isinstance(data, np.ndarray):
        raise TypeError("a parameter wraps something that is no tensor")
    return data
