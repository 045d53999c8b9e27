"""Weights: the reader gives back what was written, and a file from outside cannot run anything."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bundle.errors import DataError
from finetune.model.torch_weights import Array, read_safetensors, read_torch_state

STORAGE_OF = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global:
    """A name in a pickle, as PyTorch writes it."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """A call in a pickle."""

    def __init__(self, function: Global, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class Storage:
    """A reference to raw elements."""

    def __init__(self, kind: str, key: str, count: int) -> None:
        self.pid = ("storage", Global("torch", kind), key, "cpu", count)


def pickled(value: Any) -> bytes:
    """Writes the few opcodes that a checkpoint uses by hand, so that no torch is needed."""

    def write(item: Any) -> bytes:
        match item:
            case Global():
                return b"c" + f"{item.module}\n{item.name}\n".encode()
            case Call():
                return write(item.function) + write(item.arguments) + b"R"
            case Storage():
                return write(item.pid) + b"Q"
            case tuple():
                return b"(" + b"".join(write(part) for part in item) + b"t"
            case dict():
                return b"}(" + b"".join(write(part) for pair in item.items() for part in pair) + b"u"
            case bool():
                return b"\x88" if item else b"\x89"
            case int():
                return b"\x8a\x08" + struct.pack("<q", item)
            case str():
                return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
            case _:
                raise AssertionError(item)

    return b"\x80\x02" + write(value) + b"."


def tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Call:
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, hooks)


def checkpoint(path: Path, value: Any, storages: dict[str, bytes], **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", value if isinstance(value, bytes) else pickled(value))
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
        for name, data in {"version": b"3\n", **more}.items():
            archive.writestr(f"model/{name}", data)
    return path


def strides_of(array: Array) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in array.strides)


arrays = st.sampled_from(sorted(STORAGE_OF)).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(arrays, min_size=1, max_size=4), data=st.data())
def test_a_checkpoint_gives_back_its_arrays(tmp_path: Path, wanted: list[Array], data: st.DataObject) -> None:
    tensors: dict[str, Any] = {}
    storages: dict[str, bytes] = {}
    for number, array in enumerate(wanted):
        offset = data.draw(st.integers(0, 3))
        raw = np.concatenate([np.zeros(offset, array.dtype), array.ravel()])
        storages[str(number)] = raw.tobytes()
        storage = Storage(STORAGE_OF[array.dtype.name], str(number), len(raw))
        call = tensor(storage, offset, array.shape, strides_of(np.ascontiguousarray(array).reshape(array.shape)))
        parameter = Call(Global("torch._utils", "_rebuild_parameter"), call, True, ())
        tensors[f"w{number}"] = parameter if number % 2 else call
    found = read_torch_state(checkpoint(tmp_path / "model.bin", tensors, storages, byteorder=b"little"))
    assert list(found) == list(tensors)
    for array, back in zip(wanted, found.values(), strict=True):
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_transposed_and_shared_storages_are_understood(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    storage = Storage("FloatStorage", "0", 12)
    value = {
        "whole": tensor(storage, 0, (3, 4), (4, 1)),
        "turned": tensor(storage, 0, (4, 3), (1, 4)),
        "row": tensor(storage, 4, (4,), (1,)),
        "column": tensor(storage, 1, (3,), (4,)),
        "scalar": tensor(storage, 7, (), ()),
    }
    found = read_torch_state(checkpoint(tmp_path / "m.bin", value, {"0": matrix.tobytes()}))
    np.testing.assert_array_equal(found["whole"], matrix)
    np.testing.assert_array_equal(found["turned"], matrix.T)
    np.testing.assert_array_equal(found["row"], matrix[1])
    np.testing.assert_array_equal(found["column"], matrix[:, 1])
    assert found["scalar"] == 7
    assert found["scalar"].shape == ()


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    wanted = np.array([1.0, -2.5, 0.15625, np.inf], dtype=np.float32)
    raw = (wanted.view(np.uint32) >> 16).astype("<u2").tobytes()
    value = {"w": tensor(Storage("BFloat16Storage", "0", 4), 0, (4,), (1,))}
    (found,) = read_torch_state(checkpoint(tmp_path / "m.bin", value, {"0": raw})).values()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


class Evil:
    """Runs a shell command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.file}",)


def test_a_pickle_that_would_run_a_command_is_refused_by_name(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    for protocol in (0, 2, 4):
        path = checkpoint(tmp_path / "m.bin", pickle.dumps({"w": Evil(trace)}, protocol), {})
        with pytest.raises(DataError, match=r"refused: it asks for \w+\.system"):
            read_torch_state(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "namedtuple"),
        ("numpy", "load"),
    ],
)
def test_only_the_names_of_a_state_dict_are_known(tmp_path: Path, module: str, name: str) -> None:
    path = checkpoint(tmp_path / "m.bin", {"w": Call(Global(module, name), "1")}, {})
    with pytest.raises(DataError) as caught:
        read_torch_state(path)
    assert f"it asks for {module}.{name}" in str(caught.value)


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    # BUILD with a pair sets attributes; here it would replace the defaults of a function or the name of a storage.
    for target in (Global("torch._utils", "_rebuild_tensor_v2"), Global("torch", "FloatStorage")):
        state = pickled(({}, {"__name__": "changed", "name": "LongStorage"}))[2:-1]
        content = b"\x80\x02" + pickled(target)[2:-1] + state + b"b."
        with pytest.raises(DataError):
            read_torch_state(checkpoint(tmp_path / "m.bin", content, {}))
    good = {"w": tensor(Storage("FloatStorage", "0", 1), 0, (1,), (1,))}
    assert read_torch_state(checkpoint(tmp_path / "m.bin", good, {"0": b"\0\0\x80\x3f"}))["w"] == 1


ONE = Storage("FloatStorage", "0", 4)
RAW = {"0": bytes(16)}
BROKEN: list[tuple[Any, dict[str, bytes], str]] = [
    ({"w": tensor(ONE, 0, (5,), (1,))}, RAW, "reaches past its storage"),
    ({"w": tensor(ONE, 1, (4,), (1,))}, RAW, "reaches past its storage"),
    ({"w": tensor(ONE, -1, (1,), (1,))}, RAW, "whole numbers from 0"),
    ({"w": tensor(ONE, 0, (2,), (-1,))}, RAW, "whole numbers from 0"),
    ({"w": tensor(ONE, 0, (1 << 40,), (0,))}, RAW, "repeats its storage"),
    ({"w": tensor(ONE, 0, (2, 2), (1,))}, RAW, "do not fit together"),
    ({"w": tensor(ONE, 0, (4,), (1,))}, {"0": bytes(15)}, "has 15 bytes where 16 are expected"),
    ({"w": tensor(ONE, 0, (4,), (1,))}, {}, "data/0 is missing"),
    ({"w": tensor(Storage("FloatStorage", "../version", 1), 0, (1,), (1,))}, RAW, "is missing"),
    ({"epoch": 3}, RAW, "'epoch' is not a tensor"),
    ((1, 2), RAW, "holds tuple where a state dict is expected"),
    ({}, RAW, "holds no tensors"),
    (b"\x80\x02garbage", RAW, "damaged checkpoint"),
    (b"", RAW, "damaged checkpoint"),
]


@pytest.mark.parametrize(("value", "storages", "reason"), BROKEN, ids=[case[2] for case in BROKEN])
def test_a_broken_checkpoint_is_refused_with_the_reason(
    tmp_path: Path, value: Any, storages: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_torch_state(checkpoint(tmp_path / "m.bin", value, storages))
    assert str(caught.value).startswith(f"{tmp_path}/m.bin: ")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_the_description_gives_arrays_or_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(pickled({"w": tensor(ONE, 0, (2, 2), (2, 1)), "v": tensor(ONE, 1, (3,), (1,))}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_torch_state(checkpoint(tmp_path / "m.bin", bytes(content), RAW))
    except DataError as error:
        assert str(error).startswith(f"{tmp_path}/m.bin: ")
    else:
        assert all(isinstance(array, np.ndarray) for array in found.values())


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "m.bin", {"w": tensor(ONE, 0, (4,), (1,))}, {"0": b"0123456789abcdef"})
    content = good.read_bytes()
    (tmp_path / "flipped.bin").write_bytes(content.replace(b"0123456789abcdef", b"0123456789abcdeX"))
    (tmp_path / "cut.bin").write_bytes(content[: len(content) // 2])
    (tmp_path / "legacy.bin").write_bytes(pickle.dumps({"w": 1}))
    with zipfile.ZipFile(tmp_path / "other.bin", "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", pickled({}) + bytes(1000))
    checkpoint(tmp_path / "big.bin", {}, {}, byteorder=b"big")
    for name, reason in {
        "flipped": "not a readable zip checkpoint",
        "cut": "not a readable zip checkpoint",
        "legacy": "before 1.6 must be saved again",
        "other": "a zip, but not a PyTorch checkpoint",
        "packed": "is compressed",
        "big": "big-endian",
        "gone": "no such file",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_torch_state(tmp_path / f"{name}.bin")


def test_an_ordered_dict_with_metadata_is_a_state_dict(tmp_path: Path) -> None:
    # What torch.save(model.state_dict()) writes: an OrderedDict that carries a _metadata attribute.
    stream = io.BytesIO()
    state: OrderedDict[str, Any] = OrderedDict()
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    pickle.Pickler(stream, 2).dump(state)
    item = pickled({"w": tensor(ONE, 0, (4,), (1,))})[4:-2]
    content = stream.getvalue()[:-1] + b"(" + item + b"u."
    raw = np.arange(4, dtype="<f4")
    np.testing.assert_array_equal(
        read_torch_state(checkpoint(tmp_path / "m.bin", content, {"0": raw.tobytes()}))["w"], raw
    )


def test_safetensors_are_read_and_damage_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "m.safetensors"
    wanted = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([True, False]), "c": np.array(3)}
    path.write_bytes(save(wanted))
    found = read_safetensors(path)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x20\xc0")
    np.testing.assert_array_equal(read_safetensors(path)["w"], np.array([1.0, -2.5], np.float32))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        read_safetensors(path)
    with pytest.raises(DataError, match="no such file"):
        read_safetensors(tmp_path / "gone")
