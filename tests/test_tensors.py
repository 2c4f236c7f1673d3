"""Safetensors: what we write others read, what others write we read, and nothing malformed."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray
from strange import anything, outcome

from chumoku.errors import ChumokuError, InvalidArgumentError, InvalidTypeError, UnavailableError
from chumoku.tensors import read_tensors, write_tensors

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ">f4", ">i8"]
GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    count = len(text) if length is None else length
    path.write_bytes(count.to_bytes(8, "little") + text + data)
    return path


def same(one: dict[str, NDArray[Any]], two: dict[str, NDArray[Any]]) -> None:
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.shape == two[name].shape
        assert array.dtype == two[name].dtype.newbyteorder("=")
        assert array.tobytes() == two[name].astype(array.dtype).tobytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "__metadata__"),
        st.sampled_from(DTYPES).flatmap(
            lambda code: arrays_of.arrays(code, arrays_of.array_shapes(min_dims=0, min_side=0))
        ),
        max_size=5,
    )
)
def test_read_gives_back_what_was_written(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    write_tensors(tmp_path / "x.safetensors", arrays)
    same(read_tensors(tmp_path / "x.safetensors"), arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    narrow = bits.view(ml_dtypes.bfloat16)
    write_tensors(tmp_path / "x", {"a": narrow.reshape(256, 256)})
    found = read_tensors(tmp_path / "x")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32).ravel(), bits.astype(np.uint32) << 16)


def test_arrays_in_any_layout_are_written_in_order(tmp_path: Path) -> None:
    grid = np.arange(24.0).reshape(4, 6)
    write_tensors(
        tmp_path / "x", {"t": grid.T, "s": grid[::-2, ::3], "n": np.full((), 7, np.float32)}
    )
    found = read_tensors(tmp_path / "x")
    np.testing.assert_array_equal(found["t"], grid.T)
    np.testing.assert_array_equal(found["s"], grid[::-2, ::3])
    assert found["n"].shape == ()
    assert found["n"] == 7


def test_the_safetensors_package_agrees(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy", reason="the package safetensors is missing")
    arrays: dict[str, NDArray[Any]] = {
        "wide": np.linspace(0, 1, 7),
        "odd": np.arange(3, dtype=np.int8),
        "half": np.arange(5, dtype=np.float16),
        "flags": np.array([[True, False]]),
        "none": np.zeros((3, 0), np.float32),
    }
    write_tensors(tmp_path / "ours", arrays)
    same(package.load_file(tmp_path / "ours"), arrays)
    package.save_file(arrays, tmp_path / "theirs", metadata={"format": "np"})
    same(read_tensors(tmp_path / "theirs"), arrays)


def test_misaligned_numbers_are_read(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
    }
    data = b"\7" + np.array([1.5, -2.5]).tobytes()
    found = read_tensors(raw(tmp_path / "x", header, data))
    assert found["a"] == 7
    np.testing.assert_array_equal(found["b"], [1.5, -2.5])
    assert found["b"].flags.aligned


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**GOOD["a"], **changes}}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{]", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "a JSON list"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        ({"a": 3}, "dtype, shape"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "dtype, shape"),
        (entry(data_offsets=[0, 4, 8]), "dtype, shape"),
        (entry(dtype="F8_E4M3"), "F8_E4M3"),
        (entry(dtype=["F32"]), "dtype"),
        (entry(shape=[-2]), "whole numbers"),
        (entry(shape=[2.0]), "whole numbers"),
        (entry(shape=[True, 2]), "whole numbers"),
        (entry(shape=[1] * 99 + [2]), "whole numbers"),
        (entry(shape=[3]), "12"),
        (entry(shape=[2**40, 2**40]), "8 bytes"),
        (entry(shape=[2**80, 0], data_offsets=[0, 0]), "an array can have"),
        (entry(data_offsets=[8, 0]), "8 to 0"),
        (entry(data_offsets=[0, 80]), "0 to 80"),
        (entry(data_offsets=[2**70, 2**70 + 8]), "bytes from 0 to 8"),
        (entry(data_offsets=[4, 8], shape=[1]), "byte 4"),
        (entry(data_offsets=[0, 4], shape=[1]), "8 bytes behind"),
        ({**GOOD, "b": GOOD["a"]}, "b from byte 0"),
        ({}, "8 bytes behind"),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match="damaged") as raised:
        read_tensors(raw(tmp_path / "x", header, bytes(8)))
    assert says in str(raised.value)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**64 - 1])
def test_absurd_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"header of {length} bytes"):
        read_tensors(raw(tmp_path / "x", GOOD, bytes(8), length))


def test_every_cut_of_a_good_file_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", {"a": np.arange(4.0), "b": np.arange(3, dtype=np.int8)})
    whole = (tmp_path / "x").read_bytes()
    for stop in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:stop])
        with pytest.raises(InvalidArgumentError, match="x: got"):
            read_tensors(tmp_path / "x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_raises_our_error_or_nothing(tmp_path: Path, place: int, byte: int) -> None:
    write_tensors(tmp_path / "x", {"a": np.arange(4.0), "b": np.arange(3, dtype=np.int8)})
    changed = bytearray((tmp_path / "x").read_bytes())
    changed[place % len(changed)] = byte
    (tmp_path / "x").write_bytes(changed)
    with suppress(ChumokuError):
        read_tensors(tmp_path / "x")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(InvalidArgumentError, match="path"):
        read_tensors(tmp_path)
    with pytest.raises(InvalidArgumentError, match="folder that exists"):
        write_tensors(tmp_path / "no" / "x", {})


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([None])])
def test_dtypes_outside_the_format_are_refused(tmp_path: Path, array: NDArray[Any]) -> None:
    with pytest.raises(InvalidTypeError, match="float32"):
        write_tensors(tmp_path / "x", {"a": array})
    with pytest.raises(InvalidTypeError, match="NumPy array"):
        write_tensors(tmp_path / "x", {"a": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(InvalidArgumentError, match="__metadata__"):
        write_tensors(tmp_path / "x", {"__metadata__": np.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "x", {"a": np.ones(2)})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UnavailableError, match=r"path: got '.*/x' \(full\), expected a file that"):
        write_tensors(tmp_path / "x", {"a": np.zeros(2)})
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    np.testing.assert_array_equal(read_tensors(tmp_path / "x")["a"], np.ones(2))


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    for path in ("a\0b", "\ud800", "x" * 999, "", "."):
        with pytest.raises(ChumokuError, match="^path: got"):
            write_tensors(path, {})
        with pytest.raises(ChumokuError, match="^path: got"):
            read_tensors(path)
    with pytest.raises(InvalidTypeError, match="path: got None, expected a path"):
        read_tensors(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="arrays: got None, expected a mapping"):
        write_tensors(tmp_path / "x", None)  # type: ignore[arg-type]


def test_only_the_library_s_errors_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(5)
    for _ in range(1000):
        outcome(read_tensors, anything(rng))
        arrays = rng.choice([{"a": anything(rng), "b": np.ones(2)}, anything(rng)])
        written = outcome(write_tensors, rng.choice(["f", anything(rng)]), arrays)
        assert written is None or isinstance(written, type)
