"""Reading Paddle's files: what honest ones hold, and that hostile or damaged ones do nothing."""

from __future__ import annotations

import collections
import pickle
import subprocess
import sys

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.weights import safe_pickle
from paddle_vheat.weights.safe_pickle import UnsafeFileError, load_arrays
from tests.weights import crafted
from tests.weights.crafted import block, call, mapping, named, number, numpy_array, numpy_dtype, program, text, together


@pytest.fixture
def put(tmp_path):
    def put(content):
        path = tmp_path / "x.pdparams"
        path.write_bytes(content)
        return path

    return put


def trained_linear():
    layer = paddle.nn.Linear(3, 2)
    schedule = paddle.optimizer.lr.PolynomialDecay(0.1, 10)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=layer.parameters())
    layer(paddle.ones([1, 3])).sum().backward()
    optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "bool", "uint8"])
def test_tensors_of_every_type(tmp_path, dtype):
    values = np.arange(12).reshape(3, 4) % 2
    saved = {"a": paddle.to_tensor(values).astype(dtype), "empty": paddle.zeros([0, 2], dtype), "s": paddle.ones([])}
    paddle.save(saved, str(tmp_path / "x.pdparams"))
    read = load_arrays(tmp_path / "x.pdparams")
    assert read["a"].dtype == np.dtype(dtype)
    assert np.array_equal(read["a"], values.astype(dtype))
    assert read["empty"].shape == (0, 2)
    assert read["s"].shape == ()
    assert not read["a"].flags.writeable


def test_bfloat16_is_uint16(tmp_path):
    paddle.save({"a": paddle.to_tensor([1.0, -2.5]).astype("bfloat16")}, str(tmp_path / "x.pdparams"))
    read = load_arrays(tmp_path / "x.pdparams")["a"]
    assert read.dtype == np.uint16
    assert ((read.astype(np.uint32) << 16).view(np.float32)).tolist() == [1.0, -2.5]


def test_state_dicts_optimizers_and_nested_files(tmp_path):
    layer, optimizer = trained_linear()
    paddle.save(layer.state_dict(), str(tmp_path / "x.pdparams"))
    read = load_arrays(tmp_path / "x.pdparams")
    assert np.array_equal(read["weight"], layer.weight.numpy())
    paddle.save(optimizer.state_dict(), str(tmp_path / "x.pdopt"))
    read = load_arrays(tmp_path / "x.pdopt")
    expected = optimizer.state_dict()
    assert set(read) >= set(expected)
    assert read["LR_Scheduler"] == expected["LR_Scheduler"]
    moment = next(name for name in expected if "moment1" in name)
    assert np.array_equal(read[moment], expected[moment].numpy())
    paddle.save({"model": layer.state_dict(), "pair": [layer.bias, 3]}, str(tmp_path / "x.pd"))
    read = load_arrays(tmp_path / "x.pd")
    assert np.array_equal(read["model"]["weight"], layer.weight.numpy())
    assert np.array_equal(read["pair"][0], layer.bias.numpy())
    assert read["pair"][1] == 3


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_every_protocol_order_and_byte_order(put, protocol):
    shared = np.arange(6.0).reshape(2, 3)
    content = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "big": np.arange(6, dtype=">f4"),
        "strided": np.arange(12)[::2],
        "complex": np.array([1j]),
        "nested": collections.OrderedDict(t=(1, shared, [shared]), n=None, f=0.5),
    }
    read = load_arrays(put(pickle.dumps(content, protocol)))
    for name in ("c", "fortran", "big", "strided", "complex"):
        assert np.array_equal(read[name], content[name]), name
    one, array, (again,) = read["nested"]["t"]
    assert one == 1
    assert np.array_equal(array, shared)
    assert again is array
    assert list(read["nested"]) == ["t", "n", "f"]


def test_containers_that_hold_themselves(put):
    loop = [np.ones(1)]
    loop.append(loop)
    read = load_arrays(put(pickle.dumps(loop, 4)))
    assert read[1] is read
    assert read[0].tolist() == [1.0]


@pytest.mark.parametrize("name", crafted.hostile_bodies("x"))
def test_code_is_not_run(put, tmp_path, name):
    touch = tmp_path / "touched"
    path = put(program(crafted.hostile_bodies(touch)[name]))
    with pytest.raises(UnsafeFileError, match=r"x\.pdparams: asks for .*so it was not read"):
        load_arrays(path)
    assert not touch.exists()


class Reduced:
    """What an attacker would write: Python's own way of naming a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reduce_of_python_is_not_run(put, tmp_path, protocol):
    touch = tmp_path / "touched"
    content = {"weight": np.ones(3), "x": [Reduced(open, str(touch), "w")]}
    with pytest.raises(UnsafeFileError, match="asks for"):
        load_arrays(put(pickle.dumps(content, protocol)))
    with pytest.raises(UnsafeFileError, match=r"asks for|an array of 'O8'"):
        load_arrays(put(pickle.dumps({"x": np.array([Reduced(open, str(touch), "w")], object)}, protocol)))
    assert not touch.exists()


FLOATS = numpy_dtype("f4")
HOSTILE_ARRAYS = {
    "objects": numpy_array([1], numpy_dtype("O8", "|"), b"]N" + b"a"),
    "objects by name": numpy_array([1], call(named("numpy", "dtype"), text("object")), block(bytes(8))),
    "structured": numpy_array([1], call(named("numpy", "dtype"), text("f4,O")), block(bytes(12))),
    "text": numpy_array([1], numpy_dtype("U4"), block(bytes(16))),
    "nothing a value": numpy_array([2**40], numpy_dtype("V0", "|"), block(b"")),
    "more than is there": numpy_array([2**40], FLOATS, block(bytes(4))),
    "less than is there": numpy_array([1], FLOATS, block(bytes(8))),
    "negative": numpy_array([-1, -1], FLOATS, block(bytes(4))),
    "a list": numpy_array([1], FLOATS, b"]N" + b"a"),
    "no dtype": numpy_array([1], text("f4"), block(bytes(4))),
    "calling the array class": call(named("numpy", "ndarray"), together(number(2**40))),
    "the array class anew": named("numpy", "ndarray") + together(together(number(2**40))) + b"\x81",
    "another class": call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "dtype"), b")", block(b"b")),
    "a buffer of objects": call(
        named("numpy.core.numeric", "_frombuffer"), block(bytes(8)), text("O"), together(number(1)), text("C")
    ),
    "attributes of a class": named("numpy", "dtype") + together(b"N", mapping(__init__=number(1))) + crafted.BUILD,
    "attributes of a function": named("numpy.core.multiarray", "_reconstruct")
    + together(b"N", mapping(__defaults__=number(1)))
    + crafted.BUILD,
    "attributes of the array class": named("numpy", "ndarray") + mapping(a=number(1)) + crafted.BUILD,
    "items at once": call(named("collections", "OrderedDict"), b"]"),
    "an item of an array": numpy_array([1], FLOATS, block(bytes(4))) + number(0) + number(1) + b"s",
    "a persistent reference": text("x") + b"Q",
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_arrays_that_are_none(put, name):
    before = {cls: dict(vars(cls)) for cls in (safe_pickle._Dtype, safe_pickle._Array, safe_pickle._Dict)}
    with pytest.raises(UnsafeFileError, match=r"x\.pdparams"):
        load_arrays(put(program(HOSTILE_ARRAYS[name])))
    assert all(dict(vars(cls)) == names for cls, names in before.items())
    assert safe_pickle._reconstruct.__defaults__ is None


BOMBS = {
    "memo index": b"N" + b"r\xff\xff\xff\x00",  # Python's C unpickler takes 256 MiB here, and 64 GiB at most
    "block": b"\x8e" + (2**40).to_bytes(8, "little") + b"x",
    "text": b"\x8d" + (2**40).to_bytes(8, "little") + b"x",
    "frame": b"\x95" + (2**40).to_bytes(8, "little") + b"x",
    # The same 1 MiB in 5000 arrays: 5 GB if each were a copy.
    "repeated block": block(bytes(2**20))
    + b"q\x00"
    + b"0"
    + crafted.listed(*[numpy_array([2**18], FLOATS, b"h\x00")] * 5000),
    # Ten lists of ten of ten ...: 10^30 places to visit.
    "nested lists": b"].q\x00".replace(b".", b"")
    + b"".join(b"0]q" + bytes([i]) + crafted.MARK + (b"h" + bytes([i - 1])) * 10 + b"e" for i in range(1, 31)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, name):
    path = tmp_path / "x.pdparams"
    path.write_bytes(program(BOMBS[name]))
    code = (
        "import resource, sys\n"
        "from paddle_vheat.weights.safe_pickle import load_arrays, UnsafeFileError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_arrays(sys.argv[1])\n"
        "except UnsafeFileError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    # kilobytes; the largest file has 2 MB, and 5000 arrays are Python objects of some 500 bytes
    assert int(done.stdout) < 50_000


def test_truncated_at_every_eighth(put):
    layer, optimizer = trained_linear()
    for state in (layer.state_dict(), optimizer.state_dict()):
        paddle.save(state, str(put(b"")))
        whole = put(b"").with_name("whole")
        paddle.save(state, str(whole))
        content = whole.read_bytes()
        assert load_arrays(whole)
        for eighth in range(8):
            with pytest.raises(UnsafeFileError, match=r"damaged or truncated|it is empty"):
                load_arrays(put(content[: len(content) * eighth // 8]))


def test_no_byte_that_is_changed_runs_code_or_leaks_another_error(put):
    paddle.save({"a": paddle.ones([2, 3]), "b": [1.5, "x"]}, str(put(b"").with_name("whole")))
    content = put(b"").with_name("whole").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in range(2, len(content)):
        changed = bytearray(content)
        changed[position] = rng.integers(256)
        try:
            load_arrays(put(bytes(changed)))
        except UnsafeFileError:
            refused += 1
    assert refused > len(content) // 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "it starts with b'<!DOCTYPE html"),
        (b"PK\x03\x04" + bytes(30), "it starts with b'PK"),
        (b"\x80\x04", "damaged or truncated .2 bytes; EOFError"),
        (b"\x80\x7f", "damaged or truncated .*unsupported pickle protocol"),
    ],
)
def test_other_files(put, content, message):
    with pytest.raises(UnsafeFileError, match=message):
        load_arrays(put(content))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*x\.pdparams"):
        load_arrays(tmp_path / "x.pdparams")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path)
