"""Files by their address, and released checkpoints by name: fetched once, kept, and verified whenever they are used.

The releases are the authors'. They carry no licence, so they are fetched from there and never passed on. Written
against these addresses, which we have never downloaded from.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from paddle_vheat._files import cache_home, naming, sync, write_atomically
from paddle_vheat.errors import UserError
from paddle_vheat.models.registry import unknown_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_RELEASES = "https://github.com/MzeroMiko/vHeat/releases/download"
# By our names. The ImageNet classifiers have those of the models; the authors have released no small segmentor.
ADDRESSES = {
    "vheat_tiny": f"{_RELEASES}/vheatcls/vHeat_tiny.pth",
    "vheat_small": f"{_RELEASES}/vheatcls/vHeat_small.pth",
    "vheat_base": f"{_RELEASES}/vheatcls/vHeat_base.pth",
    "upernet_vheat_tiny": f"{_RELEASES}/vheatseg/vHeat_tiny_seg.pth",
    "upernet_vheat_base": f"{_RELEASES}/vheatseg/vHeat_base_seg.pth",
    "mask_rcnn_vheat_tiny": f"{_RELEASES}/vheatdet/vHeat_tiny_det.pth",
    "mask_rcnn_vheat_small": f"{_RELEASES}/vheatdet/vHeat_small_det.pth",
    "mask_rcnn_vheat_base": f"{_RELEASES}/vheatdet/vHeat_base_det.pth",
    "mask_rcnn_vheat_tiny_3x": f"{_RELEASES}/vheatdet/vHeat_tiny_det_ms3x.pth",
    "mask_rcnn_vheat_small_3x": f"{_RELEASES}/vheatdet/vHeat_small_det_ms3x.pth",
}

ATTEMPTS = 5
TIMEOUT = 30.0  # seconds without a byte
WAIT = 1.0  # seconds before the second attempt, doubled before each further one
BLOCK = 1 << 18


class DownloadError(UserError):
    """A file that cannot be fetched, or is not the one that was expected."""


class _Interrupted(Exception):
    """Worth another attempt."""


def local_file(pretrained: bool | str | Path, model: str = "") -> Path:
    """The file that the option ``pretrained`` means, fetched if need be.

    Args:
        pretrained: True for the released checkpoint of ``model``; "imagenet" for the released ImageNet classifier of
            its backbone; the name of a release (:data:`ADDRESSES`); an address, http or https; or a file's path.
        model: such as "vheat_tiny" or "mask_rcnn_vheat_tiny".

    Raises:
        UserError: if nothing is released under the name, or the file cannot be fetched.
    """
    text = str(pretrained)
    if isinstance(pretrained, str) and "://" in text:
        return fetch(text)
    if pretrained is True:
        name = model
    elif pretrained == "imagenet" and not Path(text).is_file():  # a folder of this name is data
        name = (re.findall(r"vheat_(?:tiny|small|base)$", model.lower()) or [model])[0]
    elif text in ADDRESSES and not Path(text).is_file():
        name = text
    else:
        return Path(text).expanduser()
    return fetch(release(name, f"pretrained: {pretrained}"))


def release(name: str, option: str) -> str:
    """The address of a release; a UserError that begins with ``option`` if there is none of this name."""
    if name not in ADDRESSES:
        raise UserError(f"{option}: {unknown_name('released checkpoint', name, list(ADDRESSES))}")
    return ADDRESSES[name]


def cache_folder() -> Path:
    """``$PADDLE_VHEAT_HOME/weights``, or ``~/.cache/paddle_vheat/weights``."""
    return cache_home() / "weights"


def cached_path(address: str) -> Path:
    """Where the file of an address is kept."""
    name = re.sub(r"[^\w.-]", "_", Path(unquote(urlsplit(address).path)).name) or "file"
    # Two addresses may end alike.
    prefix = "" if address in ADDRESSES.values() else hashlib.sha256(address.encode()).hexdigest()[:8] + "-"
    return cache_folder() / (prefix + name)


def fetch(address: str, sha256: str | None = None) -> Path:
    """The file of an address, downloaded if it is not there yet.

    Its SHA-256 is recorded beside it, in ``NAME.sha256``, at the first download, and compared at every later use and
    download. Processes that ask for the same file wait for each other.

    Args:
        address: http or https.
        sha256: what it must be, 64 hexadecimal digits; None for what is recorded.

    Raises:
        DownloadError: if the file cannot be fetched, saying where to put it instead; or is not the expected one.
        OSError: if the folder cannot be written, or the disk is full.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise DownloadError(f"{address}: expected an address that begins with http:// or https://")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DownloadError(f"--sha256: expected 64 hexadecimal digits, got {sha256!r}")
    path = cached_path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if path.is_file():
            _check(path, path, sha256, "remove it, and it is downloaded again")
            return path
        part = path.with_name(f"{path.name}.part")
        _download(address, part, path)
        try:
            _check(part, path, sha256, f"{address} has another file than expected")
        except DownloadError:
            part.unlink()
            raise
        sync(part)
        os.replace(part, path)
        _tag_file(part).unlink(missing_ok=True)
    return path


def _check(file: Path, path: Path, pinned: str | None, advice: str) -> None:
    """Compare a file with its SHA-256; record that where nothing is recorded."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    found, record = digest.hexdigest(), path.with_name(f"{path.name}.sha256")
    recorded = record.read_text(encoding="utf-8").split()[:1] if record.is_file() else []
    for expected, origin in ((pinned, "--sha256"), (recorded[0] if recorded else None, str(record))):
        if expected is not None and expected.lower() != found:
            raise DownloadError(f"{path}: its SHA-256 is {found}, expected {expected} ({origin}); {advice}")
    if recorded:
        return
    text = f"{found}  {path.name}\n"
    try:
        write_atomically(record, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    except OSError:
        if file != path:
            raise
        # A folder that somebody else has filled and that may only be read.


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        file = path.with_name(f".{path.name}.lock").open("a")
    except OSError:
        if not path.is_file():
            raise
        yield  # a folder that may only be read: there is nothing to lock
        return
    with file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _download(address: str, part: Path, path: Path) -> None:
    """Fill ``part`` from an address, in several attempts if need be."""
    print(f"downloading {address} to {path}", file=sys.stderr, flush=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _receive(address, part)
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            if error.code == 416:  # the part that is there is not of this file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                break
        except _Interrupted as error:
            reason = str(error)
        if attempt < ATTEMPTS:
            print(f"{reason}; attempt {attempt + 1} of {ATTEMPTS}", file=sys.stderr, flush=True)
            time.sleep(WAIT * 2 ** (attempt - 1))
    raise DownloadError(
        f"{address}: cannot be downloaded ({reason}); fetch this address by other means, put the file at {path} and "
        "run the same again"
    )


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        schemes = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if schemes[1] not in ("https", schemes[0]):
            raise DownloadError(f"{req.full_url}: redirected to {newurl}, which is not encrypted or no web address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(address: str, part: Path) -> None:
    """One attempt, which continues what an earlier one left if the server still has the same file."""
    tag_file = _tag_file(part)
    tag = tag_file.read_text(encoding="utf-8") if tag_file.is_file() else ""
    start = part.stat().st_size if tag and part.is_file() else 0
    headers = {"User-Agent": "paddle-vheat", "Accept-Encoding": "identity"}
    if start:
        headers.update({"Range": f"bytes={start}-", "If-Range": tag})
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.build_opener(_Redirect).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection: {getattr(error, 'reason', None) or error}") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{address}: gives a web page and no file (a proxy's, or a log-in)")
        continued = response.status == 206 and f"bytes {start}-" in response.headers.get("Content-Range", "")
        start = start if continued else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        _check_space(part, (total or 0) - start)
        # Only a strong tag or a date is good for If-Range.
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        tag_file.write_text("" if tag.startswith("W/") else tag, encoding="utf-8")
        done = _copy(response, part, start, total)
    if total is not None and done != total:
        raise _Interrupted(f"the connection ended after {done} of {total} bytes")


def _copy(response: Any, part: Path, start: int, total: int | None) -> int:
    """Write what comes; returns the length of the file."""
    done = start
    shown: Any = {"initial": start, "unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}
    with part.open("ab" if start else "wb") as file, tqdm(desc=part.stem, total=total, **shown) as bar:
        while True:
            try:
                block = response.read1(BLOCK)  # what is there
            except (OSError, http.client.HTTPException) as error:
                raise _Interrupted(f"after {done} bytes: {error}") from error
            if not block:
                return done
            try:
                with naming(part):
                    file.write(block)
                    file.flush()
            except OSError:  # such as a full disk, which is better left with the space
                with contextlib.suppress(OSError):
                    os.truncate(part, 0)
                part.unlink()
                raise
            done += len(block)
            bar.update(len(block))


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(
            f"{part.parent}: {needed / 2**20:.0f} MiB are needed, and {free / 2**20:.0f} MiB free; make room, or set "
            "PADDLE_VHEAT_HOME to a folder elsewhere"
        )


def _tag_file(part: Path) -> Path:
    """What says which version of the file a part is of."""
    return part.with_name(f"{part.name}.tag")
