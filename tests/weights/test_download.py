"""Downloads, against a server on this machine that can do everything that a network does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import paddle_vheat
from paddle_vheat.config import load_config
from paddle_vheat.models import registry
from paddle_vheat.models.mask_rcnn import MaskRCNN
from paddle_vheat.models.vheat import Variant
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.weights import download
from paddle_vheat.weights.download import ADDRESSES, DownloadError, cached_path, fetch, local_file
from paddle_vheat.weights.loading import read_weights
from tests.models.mask_rcnn.micro import micro_backbone, micro_detector, reference_detector
from tests.weights.published import published_shapes, random_state, write_torch_file
from tools.convert_weights import main

CONTENT = np.random.default_rng(0).bytes(700_000)  # more than two blocks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path; ``server.seen`` are the requests' (path, Range)."""

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        kind, *_ = self.path.strip("/").split("/")
        content, first = server.content, len(server.seen) == 1
        if kind == "404":
            return self.send_error(404)
        if kind == "busy" and first:
            return self.send_error(503)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", server.target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        start = 0
        wanted = self.headers.get("Range")
        if wanted and kind != "no-range" and self.headers.get("If-Range") == server.tag:
            start = int(wanted[len("bytes=") : -1])
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html" if kind == "page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        if kind != "no-tag":
            self.send_header("ETag", server.tag)
        self.end_headers()
        end = len(content) // 2 if kind == "always-cut" or (kind in ("cut", "no-range", "no-tag") and first) else None
        self.wfile.write(content[start:end] if kind != "stalled" or not first else content[: len(content) // 2])
        if kind == "stalled" and first:
            self.wfile.flush()
            server.released.wait(20)
        return None

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_VHEAT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.tag, server.seen, server.released = CONTENT, '"first"', [], threading.Event()
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.target = f"{server.address}/plain/elsewhere.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def left(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_once_and_then_from_the_cache(server, tmp_path, capsys):
    address = f"{server.address}/plain/a%20b.pth?v=1"
    path = fetch(address)
    assert path == cached_path(address)
    assert path.parent == tmp_path / "home" / "weights"
    assert path.name.endswith("-a_b.pth")
    assert path.read_bytes() == CONTENT
    assert path.with_name(f"{path.name}.sha256").read_text() == f"{DIGEST}  {path.name}\n"
    assert left(path.parent) == [path.name, f"{path.name}.sha256"]
    assert f"downloading {address} to {path}" in capsys.readouterr().err
    assert fetch(address, DIGEST.upper()) == path
    assert len(server.seen) == 1
    assert capsys.readouterr().err == ""
    assert cached_path(f"{server.address}/other/a%20b.pth?v=1") != path


# Ranges: a cut connection and one that stalls are continued where they ended; where the server has no ranges, or says
# nothing by which the file could be known again, from the beginning.
HALF = f"bytes={len(CONTENT) // 2}-"


@pytest.mark.parametrize(
    ("kind", "ranges"),
    [
        ("busy", [None, None]),
        ("cut", [None, HALF]),
        ("no-range", [None, HALF]),
        ("no-tag", [None, None]),
        ("stalled", [None, HALF]),
        ("moved", [None, None]),
    ],
)
def test_a_network_with_troubles(server, monkeypatch, kind, ranges):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    path = fetch(f"{server.address}/{kind}/a.pth")
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.seen] == ranges
    assert left(path.parent) == [path.name, f"{path.name}.sha256"]


def test_a_later_call_continues_what_an_interrupted_one_left(server, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    address = f"{server.address}/cut/a.pth"
    with pytest.raises(DownloadError, match=r"the connection ended after 350000 of 700000 bytes"):
        fetch(address)
    path = cached_path(address)
    assert not path.exists()
    assert fetch(address).read_bytes() == CONTENT
    assert server.seen[-1][1] == HALF


def test_a_part_of_an_older_version_is_not_continued(server, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    address = f"{server.address}/cut/a.pth"
    with pytest.raises(DownloadError):
        fetch(address)
    server.content, server.tag = CONTENT[::-1], '"second"'
    assert fetch(address).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_as_long_as_the_file(server):
    """As a process leaves it that is killed before the renaming."""
    address = f"{server.address}/plain/a.pth"
    path = cached_path(address)
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.part").write_bytes(CONTENT)
    path.with_name(f"{path.name}.part.tag").write_text(server.tag)
    assert fetch(address).read_bytes() == CONTENT
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("kind", "message", "requests"),
    [
        ("404", r"the server says 404 Not Found\); fetch this address by other means, put the file at .*a\.pth and", 1),
        ("always-cut", "the connection ended after 350000 of 700000 bytes", 5),
        ("page", "gives a web page and no file", 1),
    ],
)
def test_what_cannot_be_had(server, kind, message, requests):
    address = f"{server.address}/{kind}/a.pth"
    server.tag = 'W/"weak"'  # which is no reason to continue
    with pytest.raises(DownloadError, match=message) as error:
        fetch(address)
    assert str(error.value).startswith(address)
    assert len(server.seen) == requests
    assert not cached_path(address).exists()


def test_offline(server, capsys):
    server.server_close()  # nobody listens any more
    address = f"{server.address}/plain/a.pth"
    with pytest.raises(DownloadError, match=r"cannot be downloaded .no connection: .*refused") as error:
        fetch(address)
    path = cached_path(address)
    assert f"put the file at {path} and run the same again" in str(error.value)
    path.write_bytes(CONTENT)  # as the message says
    assert fetch(address) == path
    assert DIGEST in path.with_name(f"{path.name}.sha256").read_text()


def test_a_folder_that_may_only_be_read(server, monkeypatch):
    """Such as one for all users of a cluster, filled by hand."""
    address = f"{server.address}/plain/a.pth"
    path = cached_path(address)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    path.with_name(f".{path.name}.lock").mkdir()  # cannot be opened as a file
    monkeypatch.setattr(download, "write_atomically", refuse)
    assert fetch(address) == path
    assert left(path.parent) == [path.name]
    with pytest.raises(PermissionError):
        fetch(f"{server.address}/plain/b.pth")


def test_another_file_than_expected(server):
    address = f"{server.address}/plain/a.pth"
    wrong = 64 * "0"
    with pytest.raises(DownloadError, match=rf"its SHA-256 is {DIGEST}, expected {wrong} \(--sha256\)"):
        fetch(address, wrong)
    path = cached_path(address)
    assert left(path.parent) == [f"{path.name}.part.tag"]  # nothing to use, and nothing recorded
    fetch(address)
    path.write_bytes(CONTENT[:-1])  # damaged later
    with pytest.raises(DownloadError, match=rf"expected {DIGEST} \(.*a\.pth\.sha256\); remove it, and it is downl"):
        fetch(address)
    path.unlink()
    server.content = CONTENT[::-1]  # replaced on the server
    with pytest.raises(DownloadError, match="has another file than expected"):
        fetch(address)
    assert not path.exists()
    with pytest.raises(DownloadError, match=r"expected 64 hexadecimal digits, got 'abc'"):
        fetch(address, "abc")


def test_redirections_that_are_not_followed(server):
    server.target = "ftp://127.0.0.1/a.pth"
    with pytest.raises(DownloadError, match=r"redirected to ftp://.*not encrypted or no web address"):
        fetch(f"{server.address}/moved/a.pth")
    with pytest.raises(DownloadError, match="begins with http"):
        fetch("file:///etc/passwd")


def test_a_disk_that_is_known_to_be_too_small(server, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 19})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match=r"1 MiB are needed, and 0 MiB free; .*PADDLE_VHEAT_HOME"):
        fetch(f"{server.address}/plain/a.pth")


def test_a_disk_that_fills_up(server, tmp_path):
    """By the limit on a file's size, which like a full disk lets a part of it be written."""
    script = (
        "import resource, signal, sys\n"
        "from paddle_vheat.weights.download import fetch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "fetch(sys.argv[1])\n"
    )
    address = f"{server.address}/plain/a.pth"
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in done.stderr
    path = cached_path(address)
    assert f"{path.name}.part" in done.stderr
    assert left(path.parent) == [f"{path.name}.part.tag"]


def test_processes_that_ask_at_once_download_once(server):
    script = "import sys\nfrom paddle_vheat.weights.download import fetch\nprint(fetch(sys.argv[1]))\n"
    address = f"{server.address}/plain/a.pth"
    words = [sys.executable, "-c", script, address]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in running} == {str(cached_path(address))}
    assert len(server.seen) == 1


# --- names --------------------------------------------------------------------------------------------


def test_names_of_releases(monkeypatch):
    monkeypatch.setattr(download, "fetch", lambda address: Path(address))
    expected = {
        (True, "vheat_tiny"): "vheatcls/vHeat_tiny.pth",
        ("imagenet", "vheat_base"): "vheatcls/vHeat_base.pth",
        ("imagenet", "mask_rcnn_vheat_small"): "vheatcls/vHeat_small.pth",
        (True, "mask_rcnn_vheat_small"): "vheatdet/vHeat_small_det.pth",
        ("upernet_vheat_tiny", "UPerNetMMSeg"): "vheatseg/vHeat_tiny_seg.pth",
    }
    for (pretrained, model), end in expected.items():
        assert str(local_file(pretrained, model)).endswith(f"/releases/download/{end}")
    assert local_file("weights/a.pdparams", "vheat_tiny") == Path("weights/a.pdparams")
    with pytest.raises(ValueError, match=r"pretrained: True: unknown released checkpoint 'swin_ir' .*known: vheat"):
        local_file(True, "swin_ir")


@pytest.fixture
def micro(monkeypatch):
    """Models of 16 channels under the names of the large ones."""
    build = registry._vheat("vheat_tiny", Variant(16, (1, 1, 1, 1), False, None, 0.0))
    builders = {"vheat_tiny": build, "mask_rcnn_vheat_tiny": micro_detector}
    monkeypatch.setattr(registry, "_BUILDERS", {**registry._BUILDERS, **builders})


def publish(server, tmp_path):
    """Have the server give a checkpoint of such a model in the published layout; returns its arrays."""
    state = random_state(published_shapes(16, (1, 1, 1, 1), False, size=64))
    write_torch_file(tmp_path / "published.pth", {"model": state})
    server.content = (tmp_path / "published.pth").read_bytes()
    return state


def test_create_model_by_name_by_address_and_from_a_published_file(server, tmp_path, monkeypatch, micro):
    state = publish(server, tmp_path)
    address = f"{server.address}/plain/vHeat_tiny.pth"
    monkeypatch.setitem(ADDRESSES, "vheat_tiny", address)
    model = paddle_vheat.create_model("vheat_tiny", pretrained=True, img_size=64)
    assert cached_path(address) == tmp_path / "home" / "weights" / "vHeat_tiny.pth"  # a release's own name
    assert model.default_cfg["source"] == str(cached_path(address))
    arrays = read_weights(cached_path(address))
    for other in ("imagenet", address, tmp_path / "published.pth"):
        again = paddle_vheat.create_model("vheat_tiny", pretrained=other, img_size=64)
        assert np.array_equal(again.head.weight.numpy(), state["classifier.3.weight"].T)
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), arrays[name]), name
    new_head = paddle_vheat.create_model("vheat_tiny", pretrained=True, num_classes=7)
    assert np.array_equal(new_head.norm.weight.numpy(), state["classifier.0.weight"])
    backbone = paddle_vheat.create_model("vheat_tiny", pretrained="imagenet", features_only=True)
    assert np.array_equal(backbone.stem.conv1.weight.numpy(), state["patch_embed.conv1.weight"])
    detector = paddle_vheat.create_model("mask_rcnn_vheat_tiny", pretrained="imagenet")
    assert np.array_equal(detector.backbone.stem.conv1.weight.numpy(), state["patch_embed.conv1.weight"])
    assert len(server.seen) == 1
    with pytest.raises(ValueError, match=r"of a model with 1000 classes, and this model has 7"):
        paddle_vheat.create_model("vheat_tiny", pretrained=address, num_classes=7)  # a file of one's own is strict


@pytest.mark.parametrize("classes", [5, 3])
def test_a_whole_detector_by_name(server, tmp_path, monkeypatch, golden_checkpoint, classes):
    """All of the released detector for its own number of classes; for another, all but the heads' last layers."""
    server.content = golden_checkpoint("maskrcnn_micro").read_bytes()
    monkeypatch.setitem(ADDRESSES, "mask_rcnn_vheat_tiny", f"{server.address}/plain/vHeat_tiny_det.pth")

    def build(num_classes=80):
        return MaskRCNN(num_classes, micro_backbone(), 32, 48)

    monkeypatch.setitem(registry._BUILDERS, "mask_rcnn_vheat_tiny", build)
    found = paddle_vheat.create_model("mask_rcnn_vheat_tiny", pretrained=True, num_classes=classes).state_dict()
    expected = reference_detector(golden_checkpoint("maskrcnn_micro")).state_dict()
    new = ("box_head.scores.", "box_head.deltas.", "mask_head.classifier.") if classes != 5 else ()
    for name, value in found.items():
        equal = value.shape == expected[name].shape and np.array_equal(value.numpy(), expected[name].numpy())
        assert equal != any(part in name for part in new), name


def test_configurations_take_names_and_addresses(server, tmp_path, monkeypatch):
    # Not above: these tests run on NumPy 2 too, on which PaddleSeg's OpenCV cannot be imported (see the Makefile).
    from paddle_vheat.integrations import paddleseg

    state = publish(server, tmp_path)
    address = f"{server.address}/plain/vHeat_tiny.pth"
    monkeypatch.setitem(ADDRESSES, "vheat_tiny", address)
    arch = {"name": "vHeat", "class_num": 3, "embed_dim": 16, "depths": [1, 1, 1, 1], "img_size": 64}
    config = load_config("configs/demo_digits.yml")
    for pretrained in ("vheat_tiny", address, str(tmp_path / "published.pth")):
        model = ClassificationTask({**config, "Arch": {**arch, "pretrained": pretrained}}, "digits").build_model()
        assert np.array_equal(model.norm.weight.numpy(), state["classifier.0.weight"])
        backbone = {"type": "vHeat", **{k: v for k, v in arch.items() if k[:2] in ("em", "de", "im")}}
        block = {"type": "UPerNetMMSeg", "num_classes": 3, "channels": 16, "backbone": backbone}
        for built in (
            paddleseg.assemble({**block, "backbone": {**backbone, "pretrained": pretrained}}, paddleseg.registry(), ""),
            paddleseg.assemble({**block, "pretrained": pretrained}, paddleseg.registry(), ""),
        ):
            assert np.array_equal(built.backbone.stem.conv1.weight.numpy(), state["patch_embed.conv1.weight"])
    with pytest.raises(ValueError, match=r"'Arch\.pretrained' must be a file, an address, True or imagenet, got 1\.5"):
        ClassificationTask({**config, "Arch": {**arch, "pretrained": 1.5}}, "digits")
    with pytest.raises(ValueError, match=r"pretrained: imagenet: unknown released checkpoint 'vHeat'"):
        ClassificationTask({**config, "Arch": {**arch, "pretrained": "imagenet"}}, "digits").build_model()


def test_conversion_of_a_published_file_is_strict(tmp_path):
    state = random_state(published_shapes(16, (1, 1, 2, 1), False, size=64, classes=10))
    del state["layers.2.1.op.linear.bias"]
    write_torch_file(tmp_path / "a.pth", {"model": state})
    with pytest.raises(ValueError, match=r"a\.pth does not fit VHeatClassifier .1 missing"):
        read_weights(tmp_path / "a.pth")


def test_convert_weights_downloads(server, tmp_path, monkeypatch, capsys):
    state = publish(server, tmp_path)
    digest = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setitem(ADDRESSES, "vheat_tiny", f"{server.address}/plain/vHeat_tiny.pth")
    monkeypatch.chdir(tmp_path)
    assert main(["--download", "vheat_tiny", "--sha256", digest]) == 0
    assert "classification, custom, 1000 classes" in capsys.readouterr().out
    assert np.array_equal(read_weights("weights/vheat_tiny.pdparams")["head.bias"], state["classifier.3.bias"])
    assert main(["--download", ADDRESSES["vheat_tiny"], "b.pdparams", "--sha256", 64 * "0"]) == 2
    assert "expected 0000" in capsys.readouterr().err
    assert main(["--download", "vheat_tinny"]) == 2
    assert "--download: unknown released checkpoint 'vheat_tinny'; did you mean" in capsys.readouterr().err
    for words in (["a.pth"], ["a.pth", "b.pdparams", "--sha256", digest], ["a", "b", "--download", "vheat_tiny"]):
        with pytest.raises(SystemExit):
            main(words)


def test_a_file_in_the_way_of_a_name(tmp_path, monkeypatch):
    """What is there goes before what has the same name elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "fetch", lambda address: Path(address).name)
    (tmp_path / "imagenet").mkdir()  # a folder is data
    assert local_file("imagenet", "vheat_tiny") == "vHeat_tiny.pth"
    (tmp_path / "vheat_tiny").write_bytes(b"")
    assert local_file("vheat_tiny") == Path("vheat_tiny")
