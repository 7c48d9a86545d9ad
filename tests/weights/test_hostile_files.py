"""Files that Paddle's own loader would obey, and safetensors that lie: refused, in bounded memory.

Pickles byte by byte are in test_safe_pickle.py, PyTorch's archives (zip bombs, absurd shapes) in test_torch_file.py.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from paddle_vheat.engine.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from paddle_vheat.weights.loading import read_weights
from paddle_vheat.weights.safe_pickle import UnsafeFileError
from tests.conftest import paddle


class Payload:
    """A pickle of it opens a file for writing when it is loaded."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_paddle_runs_it_and_we_do_not(tmp_path):
    """A state dict with one more entry, as ``paddle.save`` itself writes it."""
    touch, path = tmp_path / "touched", tmp_path / "x.pdparams"
    content = {"weight": np.ones([2, 3], np.float32), "extra": Payload(touch)}
    path.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UnsafeFileError, match=r"x\.pdparams: asks for .*open; a file of weights holds arrays only"):
        read_weights(path)
    assert not touch.exists()
    with contextlib.suppress(NotImplementedError):  # once it has run, Paddle complains of what it returned
        paddle.load(str(path))
    assert touch.exists()


def test_a_checkpoint_with_a_payload_is_not_resumed(tmp_path):
    """Its checksums are right: whoever can write the file can compute them."""
    touch = tmp_path / "touched"
    folder = save_checkpoint(tmp_path, 3, {"model.pdparams": {"w": paddle.ones([2])}}, {})
    evil = pickle.dumps({"w": Payload(touch)}, 4)
    (folder / "model.pdparams").write_bytes(evil)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["files"]["model.pdparams"] = {"size": len(evil), "crc32": zlib.crc32(evil)}
    del state["crc32"]
    state["crc32"] = zlib.crc32(json.dumps(state, sort_keys=True).encode())
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(UnsafeFileError, match="asks for"):
        read_checkpoint(folder)
    assert not touch.exists()


def put_state(folder, **changes):
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state.update(changes)
    del state["crc32"]
    state["crc32"] = zlib.crc32(json.dumps(state, sort_keys=True).encode())
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"../../secret": {"size": 1, "crc32": 1}}}, "names the file '../../secret'"),
        ({"files": {"/etc/passwd": {"size": 1, "crc32": 1}}}, "names the file '/etc/passwd'"),
        ({"files": {"model.pdparams": {"size": "1", "crc32": 1}}}, "expected names within the folder"),
        ({"files": []}, "state.json is damaged"),
        ({"iteration": -1}, "its iteration is -1"),
        ({"iteration": 1e9}, "its iteration is 1000000000.0"),
        ({"iteration": 10**40}, "its iteration is 1000"),
        ({"best": 5}, "its 'best' is int"),
        ({"best": {"best_model": {"score": "x", "iteration": 1}}}, "its 'best.best_model' is"),
        ({"lr_scheduler": [1]}, "its 'lr_scheduler' is list"),
        ({"options": None}, "its 'options' is NoneType"),
    ],
)
def test_a_forged_state_is_refused(tmp_path, changes, message):
    folder = save_checkpoint(tmp_path, 3, {"model.pdparams": {"w": paddle.ones([2])}}, {})
    put_state(folder)
    assert read_checkpoint(folder)[0]["iteration"] == 3
    put_state(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(folder)
    assert str(folder) in str(error.value)


def test_a_state_nested_without_end(tmp_path):
    folder = save_checkpoint(tmp_path, 3, {"model.pdparams": {"w": paddle.ones([2])}}, {})
    (folder / "state.json").write_text('{"a": ' + "[" * 200_000, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        read_checkpoint(folder)


# --- safetensors ------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape, end, dtype="F32", start=0):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


LIES = {
    "header of 2^60 bytes": safetensors({}, length=2**60),
    "header of 90 MB that is not there": safetensors({}, length=90 * 2**20),
    "shape of 2^62": safetensors(entry([2**31, 2**31], 16)),
    "shape that overflows": safetensors(entry([2**32, 2**32, 2**32], 16)),
    "data past the end": safetensors(entry([2**28], 2**30)),
    "data before the start": safetensors(entry([4], 16, start=-16)),
    "negative shape": safetensors(entry([-4], 16)),
    "unknown dtype": safetensors(entry([4], 16, dtype="O")),
    "no JSON": safetensors(b"{" * 1000),
    "nested without end": safetensors(b'{"a":' * 20000),
    "nothing": b"",
}


@pytest.mark.parametrize("name", LIES)
def test_safetensors_that_lie(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(LIES[name])
    with pytest.raises(UnsafeFileError, match=r"x\.safetensors: damaged, or not a safetensors file"):
        read_weights(path)


def test_safetensors_that_lie_take_little_memory(tmp_path):
    for i, content in enumerate(LIES.values()):
        (tmp_path / f"{i}.safetensors").write_bytes(content)
    code = (
        "import resource, sys, pathlib\n"
        "import safetensors.numpy\n"
        "from paddle_vheat.weights.loading import read_weights, UnsafeFileError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: read_weights(path)\n"
        "    except UnsafeFileError: pass\n"
        "    else: raise SystemExit('was read')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 20_000  # kilobytes


def test_sound_safetensors_are_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(entry([4], 16)))
    assert read_weights(path)["w"].tolist() == [0, 0, 0, 0]
