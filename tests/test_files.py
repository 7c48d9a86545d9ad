"""Paths that are not what they should be, and outputs that may not be replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from paddle_vheat._files import check_folder, no_such_file, write_output
from paddle_vheat.errors import UserError


def test_what_a_path_is_instead_of_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    assert no_such_file(tmp_path / "file") == ""
    assert no_such_file(tmp_path / "none", "list") == f"no such list: {tmp_path / 'none'}"
    for path, kind in (
        (tmp_path, "a folder"),
        (tmp_path / "fifo", "a FIFO (named pipe)"),
        (Path("/dev/null"), "a device"),
    ):
        assert no_such_file(path) == f"no such file: {path} (it is {kind}, not a file)"
    assert "cannot be opened" in no_such_file("a\0b")


def test_folders_to_write_into(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("not/yet/there")
    for good in (tmp_path, tmp_path / "new" / "folder", tmp_path / "link"):
        check_folder(good, "--save_dir")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
    for bad in (tmp_path / "file", tmp_path / "file" / "x" / "y", "/dev/full", "/dev/full/x"):
        with pytest.raises(UserError, match=r"--save_dir .*: (.*file|/dev/full) is no folder"):
            check_folder(bad, "--save_dir")


def test_what_is_no_regular_file_is_written_into(tmp_path):
    """A FIFO stands for all of them: a device could be replaced by a test that fails."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("fifo", "link"):
        write_output(str(tmp_path / name), "scores")
        assert os.read(reader, 100) == b"scores"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link"]
