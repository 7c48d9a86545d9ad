"""Reading PyTorch's files without PyTorch: the references, every kind of tensor, hostile and damaged files."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from paddle_vheat.weights.safe_pickle import UnsafeFileError
from paddle_vheat.weights.torch_file import Placeholder, read_torch_file
from tests.conftest import golden
from tests.weights import crafted
from tests.weights.crafted import call, listed, mapping, named, number, storage, tensor, text, together, torch_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pth"


def test_the_references(golden_checkpoint):
    content = read_torch_file(golden_checkpoint("vheat_micro_pre"))
    model = content["model"]
    assert len(model) == 115
    assert model["patch_embed.conv1.weight"].shape == (8, 3, 3, 3)
    assert model["freq_embed.2"].shape == (4, 4, 64)
    assert {array.dtype for array in model.values()} == {np.dtype("float32")}
    assert {"grad/" + name for name in model} == {name for name in golden("vheat_micro_pre") if name[:5] == "grad/"}
    segmentor = read_torch_file(golden_checkpoint("upernet_micro"))["state_dict"]
    assert segmentor["decode_head.conv_seg.weight"].shape == (7, 32, 1, 1)
    assert {array.dtype for array in segmentor.values()} == {np.dtype("float32"), np.dtype("int64")}


@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [
        ("FloatStorage", "<f4", [1.5, -2.25, 3e38]),
        ("DoubleStorage", "<f8", [1e300, 0.1]),
        ("HalfStorage", "<f2", [1.5, -65504.0, 6e-8]),
        ("LongStorage", "<i8", [2**62, -1]),
        ("IntStorage", "<i4", [-(2**31), 5]),
        ("ShortStorage", "<i2", [-5, 7]),
        ("CharStorage", "i1", [-5, 7]),
        ("ByteStorage", "u1", [5, 255]),
        ("BoolStorage", "?", [True, False]),
    ],
)
def test_every_kind_of_storage(path, kind, dtype, values):
    array = np.array(values, dtype)
    body = mapping(a=tensor(storage(kind, "0", len(values)), [len(values)], [1]))
    read = read_torch_file(torch_file(path, body, {"0": array.tobytes()}))["a"]
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, array)
    assert not read.flags.writeable


def test_bfloat16_is_widened(path):
    raw = np.array([0x3F80, 0xC020, 0x7F80], "<u2")
    body = mapping(a=tensor(storage("BFloat16Storage", "0", 3), [3], [1]))
    read = read_torch_file(torch_file(path, body, {"0": raw.tobytes()}))["a"]
    assert read.dtype == np.float32
    assert read.tolist() == [1.0, -2.5, float("inf")]


def test_strided_tensors_of_one_storage(path):
    values = np.arange(24, dtype="<f4")
    stored = storage("FloatStorage", "0", 24)
    body = mapping(
        whole=tensor(stored, [4, 6], [6, 1]),
        transposed=tensor(stored, [6, 4], [1, 6]),
        part=tensor(stored, [2, 3], [6, 2], offset=7),
        scalar=tensor(stored, [], [], offset=23),
        empty=tensor(stored, [0, 5], [5, 1]),
        expanded=tensor(stored, [3, 2], [0, 1]),
        parameter=call(named("torch._utils", "_rebuild_parameter"), tensor(stored, [24], [1]), b"\x88", b"N"),
    )
    read = read_torch_file(torch_file(path, body, {"0": values.tobytes()}))
    square = values.reshape(4, 6)
    assert np.array_equal(read["whole"], square)
    assert np.array_equal(read["transposed"], square.T)
    assert np.array_equal(read["part"], values[7 + np.array([[0, 2, 4], [6, 8, 10]])])
    assert read["scalar"] == 23
    assert read["empty"].shape == (0, 5)
    assert read["expanded"].tolist() == [[0, 1]] * 3
    assert np.array_equal(read["parameter"], values)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ([5], [1], 0),
        ([4], [1], 1),
        ([2], [4], 0),
        ([2**40, 2**20], [0, 0], 0),
        ([5], [0], 0),
        ([-1], [1], 0),
        ([2], [-1], 1),
        ([1], [1], -1),
        ([2, 2], [1], 0),
        ([0, 2**62, 2**62], [0, 0, 0], 0),
    ],
)
def test_tensors_that_reach_out_of_their_storage(path, shape, strides, offset):
    body = mapping(a=tensor(storage("FloatStorage", "0", 4), shape, strides, offset))
    with pytest.raises(UnsafeFileError, match=r"x\.pth: (a tensor of|damaged)"):
        read_torch_file(torch_file(path, body, {"0": bytes(16)}))


@pytest.mark.parametrize("name", crafted.hostile_bodies("x"))
def test_code_is_not_run(path, tmp_path, name):
    touch = tmp_path / "touched"
    body = mapping(x=crafted.hostile_bodies(touch)[name], a=tensor(storage("FloatStorage", "0", 1), [1], [1]))
    torch_file(path, body, {"0": np.float32(3).tobytes()})
    if name == "in a state":  # of an OrderedDict, where it is dropped
        assert read_torch_file(path)["x"] == {"a": {}}
    else:  # objects that are none of our business
        assert isinstance(read_torch_file(path)["x"], Placeholder)
    assert read_torch_file(path)["a"] == 3
    assert not touch.exists()


def test_objects_become_placeholders_whatever_is_done_to_them(path):
    config = named("yacs.config", "CfgNode")
    made = config + b")\x81"
    filled = made + crafted.MARK + text("k") + number(1) + b"u" + mapping(state=number(1)) + crafted.BUILD
    body = mapping(
        config=filled,
        items=made + crafted.MARK + number(1) + number(2) + b"e",
        one_item=made + number(1) + b"a",
        chain=call(call(call(named("functools", "partial"), named("os", "system")), text("true")), text("true")),
        inside=call(named("a", "B"), call(named("c", "D"), filled)),
        scalar=call(named("numpy.core.multiarray", "scalar"), crafted.numpy_dtype("f8"), crafted.block(bytes(8))),
        array=crafted.numpy_array([2], crafted.numpy_dtype("u4"), crafted.block(bytes(8))),
        kept=listed(number(7), text("x")),
    )
    read = read_torch_file(torch_file(path, body))
    for name in ("config", "items", "one_item", "chain", "inside", "scalar"):
        assert isinstance(read[name], Placeholder), name
        assert vars(read[name]) == {}
    assert read["array"].tolist() == [0, 0]
    assert read["kept"] == [7, "x"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (crafted.numpy_array([1], crafted.numpy_dtype("O8", "|"), b"]N" + b"a"), "an array of 'O8'"),
        (named("a", "B") + mapping(append=number(1)) + crafted.BUILD, "sets the state of a type"),
        (
            named("torch._utils", "_rebuild_tensor_v2")
            + together(b"N", mapping(__defaults__=number(1)))
            + crafted.BUILD,
            "sets the state of a function",
        ),
        (
            together(text("module"), named("torch", "FloatStorage"), text("0"), text("cpu"), number(1)) + b"Q",
            "'module'",
        ),
        (storage("ComplexFloatStorage", "0", 1), "no storage of numbers"),
        (storage("FloatStorage", "../x", 1), "damaged or truncated .*no item named"),
        (storage("FloatStorage", "0", 3), "storage 0 holds 4 values, expected 3"),
        (storage("DoubleStorage", "short", 1), "damaged or truncated .*buffer size"),
        (call(named("torch._utils", "_rebuild_tensor_v2"), number(1)), "damaged or truncated"),
    ],
)
def test_pickles_that_are_no_checkpoint(path, body, message):
    torch_file(path, mapping(a=body), {"0": bytes(16), "short": bytes(7)})
    with pytest.raises(UnsafeFileError, match=message) as error:
        read_torch_file(path)
    assert str(path) in str(error.value)


def memory_of(path):
    """Kilobytes that reading takes at most, in a process of its own."""
    code = (
        "import resource, sys\n"
        "from paddle_vheat.weights.torch_file import read_torch_file, UnsafeFileError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_torch_file(sys.argv[1])\n"
        "except UnsafeFileError as error: print(error, file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


@pytest.mark.parametrize("strides", [[1, 512], [512, 1]])
def test_many_tensors_of_one_storage_take_no_memory(path, strides):
    stored = tensor(storage("FloatStorage", "0", 2**18), [512, 512], strides)
    torch_file(path, listed(*[stored] * 3000), {"0": bytes(2**20)})
    # 3000 copies of 1 MiB would be 3 GB; 3000 views are Python objects of some 1000 bytes, and the file 2 MB
    assert memory_of(path)[0] < 50_000


def test_compressed_and_overlapping_entries(path):
    body = tensor(storage("ByteStorage", "0", 2**29), [2**29], [1])
    torch_file(path, body, {"0": bytes(2**29)}, compression=zipfile.ZIP_DEFLATED)
    memory, said = memory_of(path)
    assert memory < 50_000
    assert "is compressed or overlaps another" in said
    # Sixty entries of which each claims the same 10 MB of the file.
    body = listed(*[tensor(storage("ByteStorage", str(i), 10**7), [10**7], [1]) for i in range(60)])
    torch_file(path, body, {"0": bytes(10**7)})
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("archive/data/0")
        for i in range(1, 60):
            twin = zipfile.ZipInfo(f"archive/data/{i}")
            for name in ("header_offset", "file_size", "compress_size", "CRC", "compress_type"):
                setattr(twin, name, getattr(first, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    memory, said = memory_of(path)
    assert memory < 60_000
    assert "x.pth" in said


def test_files_of_other_kinds(path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    for content, message in [
        (b"", "of an unknown kind"),
        (legacy, "a bare pickle: PyTorch's format before 1.6"),
        (b"\n <!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"<html>", "an HTML page"),
        (archive.getvalue(), "of an unknown kind"),
        (b"PK\x03\x04", "damaged or truncated"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UnsafeFileError, match=message):
            read_torch_file(path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*y\.pth"):
        read_torch_file(path.with_name("y.pth"))


def test_zip_files_that_are_no_checkpoint(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "x")
    with pytest.raises(UnsafeFileError, match=r"x\.pth: .*no data\.pkl in it"):
        read_torch_file(path)
    torch_file(path, b"N", byteorder=b"big")
    with pytest.raises(UnsafeFileError, match="big-endian"):
        read_torch_file(path)
    assert read_torch_file(torch_file(path, mapping(a=number(1)), byteorder=b"little", version=b"3\n")) == {"a": 1}
    assert read_torch_file(torch_file(path, number(5), root="some/where/")) == 5


def test_truncated_at_every_eighth(golden_checkpoint, path):
    content = golden_checkpoint("vheat_micro_pre").read_bytes()
    for eighth in range(8):
        path.write_bytes(content[: len(content) * eighth // 8])
        with pytest.raises(UnsafeFileError, match=r"x\.pth: (damaged|expected a zip)"):
            read_torch_file(path)


def test_changed_values_are_noticed(golden_checkpoint, path):
    content = bytearray(golden_checkpoint("vheat_micro_pre").read_bytes())
    with zipfile.ZipFile(golden_checkpoint("vheat_micro_pre")) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    content[entry.header_offset + 200 + entry.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="Bad CRC-32"):
        read_torch_file(path)
