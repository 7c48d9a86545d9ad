"""List files, as editors on any system write them."""

from __future__ import annotations

import pytest

from paddle_vheat.data.list_file import read_list
from paddle_vheat.errors import DataError, MissingFileError


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_lines(tmp_path, mark, end):
    path = tmp_path / "list.txt"
    path.write_bytes(mark + end.join([b"a.jpg 0", b"", "bä.jpg 1".encode(), b""]))
    assert read_list(path) == ["a.jpg 0", "", "bä.jpg 1"]


def test_tabs(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg 0\nb c.jpg\t1\n")
    with pytest.raises(
        DataError, match=r"list\.txt, line 2: a tab; expected ' ' between the columns, got 'b c\.jpg\\t1'"
    ):
        read_list(path)
    assert read_list(path, "\t") == ["a.jpg 0", "b c.jpg\t1"]
    path.write_text("a.jpg 0\t\n\t\n")  # nothing but space at the end of a line
    assert len(read_list(path)) == 2


def test_what_is_no_list(tmp_path):
    with pytest.raises(MissingFileError, match=r"cannot read the list .*none\.txt: there is no such file"):
        read_list(tmp_path / "none.txt")
    with pytest.raises(MissingFileError, match="it is a folder, not a file"):
        read_list(tmp_path)
    (tmp_path / "utf16.txt").write_text("a.jpg 0", encoding="utf-16")
    with pytest.raises(DataError, match=r"utf16\.txt: no text file in UTF-8"):
        read_list(tmp_path / "utf16.txt")
