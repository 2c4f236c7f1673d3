""".npz files: what is written comes back bit for bit, and a bad file is refused in one way."""

import io
import os
import threading
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chumoku.archive import read_arrays, write_arrays
from chumoku.errors import InvalidArgumentError, InvalidTypeError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([np.nan, -0.0, np.inf, 5e-324]),
    "c": np.array([[-1, 2**63 - 1]], np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(7, np.int64),
    "text": np.frombuffer("その猫は".encode(), np.uint8),
}


def npy(array, version=(1, 0)):
    """The bytes of an .npy file."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version, allow_pickle=True)
    return out.getvalue()


def header(text, data=b""):
    """An .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def archive(members, kind=zipfile.ZIP_STORED):
    """The bytes of an archive with such members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as made:
        for name, data in members:
            made.writestr(name, data)
    return out.getvalue()


def test_bit_for_bit(tmp_path):
    write_arrays(tmp_path / "x", ARRAYS)
    back = read_arrays(str(tmp_path / "x"))
    assert list(back) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()
        back[name][...] = 1


def test_numpy_reads_it_without_pickle(tmp_path):
    write_arrays(tmp_path / "x.npz", ARRAYS)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as back:
        assert back.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert np.array_equal(back[name], array, equal_nan=True)


def test_what_numpy_saves_is_read(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    assert read_arrays(tmp_path / "x.npz")["c"].tolist() == [[-1, 2**63 - 1]]


def test_layouts_and_byte_orders_become_plain(tmp_path):
    wide = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    for array in (
        wide.T,
        wide[::-1, ::2, ::-1],
        wide.astype(">f8"),
        np.broadcast_to(wide, (2,) * 1 + wide.shape),
    ):
        write_arrays(tmp_path / "x", {"a": array})
        (back,) = read_arrays(tmp_path / "x").values()
        assert np.array_equal(back, array)
        assert back.dtype == np.float64


def test_equal_arrays_give_equal_files(tmp_path):
    for name in "xy":
        write_arrays(tmp_path / name, ARRAYS)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "x"
    write_arrays(file, ARRAYS)
    old = file.read_bytes()

    def fails(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", fails)
        with pytest.raises(KeyboardInterrupt):
            write_arrays(file, {"a": ARRAYS["a"]})
    assert file.read_bytes() == old
    assert os.listdir(tmp_path) == ["x"]
    write_arrays(file, {"a": ARRAYS["a"]})
    assert list(read_arrays(file)) == ["a"]
    assert os.listdir(tmp_path) == ["x"]


def test_many_threads_may_write_one_file(tmp_path):
    def work(number):
        for _ in range(10):
            write_arrays(tmp_path / "x", {"a": np.full(1000, number, np.int64)})
            (found,) = read_arrays(tmp_path / "x").values()
            assert len(set(found.tolist())) == 1
            done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 40
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.float16), np.zeros(2, object), np.array(["a"]), [1.0], None]
)
def test_only_plain_numbers_are_written(tmp_path, array):
    with pytest.raises(InvalidTypeError, match="x: got .*float32, float64, int64, uint8"):
        write_arrays(tmp_path / "x", {"x": array})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("path", [None, 3, b"x", ["x"]])
def test_paths_of_a_wrong_kind(path):
    with pytest.raises(InvalidTypeError, match="path: got"):
        write_arrays(path, ARRAYS)
    with pytest.raises(InvalidTypeError, match="path: got"):
        read_arrays(path)


@pytest.mark.parametrize("path", ["", "/", "missing/x", "a\0b", "folder", "x" * 300])
def test_paths_that_do_not_work(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    with pytest.raises(InvalidArgumentError, match="path: got"):
        write_arrays(path, ARRAYS)
    with pytest.raises(InvalidArgumentError, match="path: got"):
        read_arrays(path)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InvalidArgumentError, match="no plain file"):
            read_arrays(path)


ONE = npy(np.arange(3.0))
BOMB = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }\n"
BAD = {
    "nothing": b"",
    "text": b"hello",
    "half a magic": b"PK\x03\x04",
    "a plain array": ONE,
    "a pickle": b"\x80\x04N.",
    "compressed": archive([("a.npy", npy(np.zeros(10**6)))], zipfile.ZIP_DEFLATED),
    "bzip2": archive([("a.npy", ONE)], zipfile.ZIP_BZIP2),
    "objects": archive([("a.npy", npy(np.array([{}, None], object)))]),
    "strings": archive([("a.npy", npy(np.array(["a"])))]),
    "float16": archive([("a.npy", npy(np.zeros(3, np.float16)))]),
    "big endian": archive([("a.npy", npy(np.zeros(3, ">f8")))]),
    "records": archive([("a.npy", npy(np.zeros(3, [("x", "<f8")])))]),
    "Fortran order": archive([("a.npy", npy(np.ones((2, 3), order="F")))]),
    "version 2": archive([("a.npy", npy(np.zeros(3), (2, 0)))]),
    "no npy": archive([("a.txt", b"hello")]),
    "no array": archive([("a.npy", b"hello")]),
    "empty member": archive([("a.npy", b"")]),
    "cut header": archive([("a.npy", ONE[:40])]),
    "cut numbers": archive([("a.npy", ONE[:-1])]),
    "more numbers": archive([("a.npy", ONE + b"\0")]),
    "absurd size": archive([("a.npy", header(BOMB % "10000000000000, "))]),
    "absurd sizes": archive([("a.npy", header(BOMB % "4294967296, 4294967296"))]),
    "nothing of an absurd size": archive([("a.npy", header(BOMB % "0, 9999999999999999999"))]),
    "negative size": archive([("a.npy", header(BOMB % "-1,"))]),
    "many axes": archive([("a.npy", header(BOMB % ("1, " * 1000 + "1"), b"\0" * 8))]),
    "code": archive([("a.npy", header(BOMB % "__import__('os').abort(),"))]),
    "nested": archive([("a.npy", header(BOMB % ("(" * 5000 + ")" * 5000)))]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    file = tmp_path / "x.npz"
    file.write_bytes(BAD[case])
    with pytest.raises(InvalidArgumentError, match="x.npz: got .* save it again") as raised:
        read_arrays(file)
    assert len(str(raised.value)) < 500


def test_sizes_that_do_not_fit_are_told(tmp_path):
    for case, got, wanted in [("cut numbers", 23, 24), ("more numbers", 25, 24)]:
        (tmp_path / "x").write_bytes(BAD[case])
        with pytest.raises(InvalidArgumentError, match=f"a: {got} bytes, expected {wanted}"):
            read_arrays(tmp_path / "x")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice(tmp_path):
    (tmp_path / "x").write_bytes(archive([("a.npy", ONE), ("a.npy", ONE)]))
    with pytest.raises(InvalidArgumentError, match="'a.npy', expected different names"):
        read_arrays(tmp_path / "x")


def test_a_member_that_declares_more_than_the_file_has(tmp_path):
    data = bytearray(archive([("a.npy", ONE)]))
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InvalidArgumentError, match="arrays larger than the file"):
        read_arrays(tmp_path / "x")


def whole_file(tmp_path):
    write_arrays(tmp_path / "whole", ARRAYS)
    return (tmp_path / "whole").read_bytes()


def test_files_cut_short(tmp_path):
    data = whole_file(tmp_path)
    for length in range(0, len(data), 7):
        (tmp_path / "x").write_bytes(data[:length])
        with pytest.raises(InvalidArgumentError):
            read_arrays(tmp_path / "x")


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_changed_bytes_are_refused_or_harmless(tmp_path_factory, data):
    """A checksum covers the numbers: whatever is read has them as they were."""
    folder = tmp_path_factory.mktemp("changed")
    bytes_ = bytearray(whole_file(folder))
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x").write_bytes(bytes_)
    try:
        found = read_arrays(folder / "x")
    except InvalidArgumentError:
        return
    numbers = [array.tobytes() for array in ARRAYS.values()]
    assert all(array.tobytes() in numbers for array in found.values())
