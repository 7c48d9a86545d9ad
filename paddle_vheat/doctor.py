"""What a bug report needs, and what will not work here:   python -m paddle_vheat.doctor

Prints one finding a line, runs a self-test of a few seconds, and ends with exit code 0, or 1 if something is wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paddle_vheat import __version__
from paddle_vheat._files import check_disk
from paddle_vheat.cpu import configure_cpu, count_cores, processor_fields

TESTED_PADDLES = ("2.6.2", "3.2.2", "3.3.1")
PACKAGES = (
    "paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddleclas", "numpy", "pillow", "opencv-python",
    "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless", "scipy", "safetensors",
    "onnx", "onnxruntime", "onnxruntime-gpu", "paddle2onnx", "visualdl", "faiss-cpu",
)  # fmt: skip


class Finding(NamedTuple):
    """A line of the report; ``level`` is "ok", "note" (works, but read it) or "WRONG"."""

    level: str
    name: str
    text: str


Findings = Iterator[Finding]


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter here and are installed, by name."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def system() -> Findings:
    cores, memory = count_cores(), "?"
    with contextlib.suppress(OSError):
        kilobytes = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
        memory = f"{int(kilobytes[1]) / 2**20:.0f} GiB" if kilobytes else memory
    yield Finding("ok", "paddle-vheat", f"{__version__}, from {Path(__file__).parent}")
    yield Finding("ok", "python", f"{platform.python_version()}, {platform.platform()}")
    yield Finding("ok", "machine", f"{platform.machine()}, {cores} cores, {memory} of memory")


def packages(versions: dict[str, str]) -> Findings:
    """Versions, and sets of them that do not go together."""
    yield Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in versions.items()) or "none")

    def major(name: str) -> int:
        return int(re.match(r"\d+", versions.get(name, "0"))[0])  # type: ignore[index]

    for kind in ("paddlepaddle", "opencv"):
        several = [name for name in versions if name.startswith(kind)]
        if len(several) > 1:
            text = f"{' and '.join(several)} are installed in one folder; uninstall all, install one"
            yield Finding("WRONG", kind, text)
    paddles = [name for name in versions if name.startswith("paddlepaddle")]
    if len(paddles) == 1 and versions[paddles[0]].split("+")[0].split(".post")[0] not in TESTED_PADDLES:
        yield Finding("note", "paddle", f"{versions[paddles[0]]} was not tested; {', '.join(TESTED_PADDLES)} were")
    if major("pillow") >= 13:
        yield Finding("WRONG", "pillow", "13 and later refuse what RandAugment asks of posterize; install pillow<13")
    if "paddleseg" in versions and major("numpy") >= 2:
        yield Finding("note", "numpy", "PaddleSeg's OpenCV (up to 4.5.5.64) was built for NumPy 1; install numpy<2")
    if "paddle2onnx" in versions and paddles and major(paddles[0]) < 3:
        yield Finding("note", "paddle2onnx", "export to ONNX needs Paddle 3")


def imports() -> Findings:
    """Libraries that are installed and do not load."""
    for module, package in (("PIL", "pillow"), ("cv2", "opencv"), ("onnxruntime", "onnxruntime"), ("scipy", "scipy")):
        if importlib.util.find_spec(module) is None:
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # of a binary that does not fit: ImportError, AttributeError, SystemError ...
            yield Finding("WRONG", package, f"cannot be imported: {type(error).__name__}: {_first_line(error)}")


def processor(line: str) -> Findings:
    """Threads and paths of the CPU's libraries, as :func:`configure_cpu` said in ``line``, and what there could be."""
    flags = processor_fields().get("flags", [])
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags]
    has = ", ".join(wide) or "no AVX2 that is known of"
    yield Finding("ok", "cpu", f"{line.removeprefix('CPU: ')}; the processor has {has}")


def graphics(paddle: Any) -> Findings:
    """Whether this Paddle holds code for the GPUs that are there."""
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if not paddle.is_compiled_with_cuda():
        level = "note" if devices else "ok"
        more = f", and {len(devices)} GPUs are there: see docs/install.md" if devices else ""
        yield Finding(level, "gpu", f"this Paddle is for CPUs only{more}")
        return
    archs = [str(arch) for arch in getattr(paddle.version, "cuda_archs", list)()]
    count = paddle.device.cuda.device_count()
    yield Finding(
        "ok" if count else "WRONG", "gpu", f"{count} visible; CUDA {paddle.version.cuda()}, built for {archs}"
    )
    for i in range(count):
        capability = "".join(map(str, paddle.device.cuda.get_device_capability(i)))
        fits = not archs or capability in archs
        text = f"{paddle.device.cuda.get_device_name(i)}, sm_{capability}"
        yield Finding("ok" if fits else "WRONG", f"gpu {i}", text + ("" if fits else ": not among those of the build"))


def folders() -> Findings:
    """Whether what is kept between runs can be written."""
    from paddle_vheat.weights.download import cache_folder

    named = {"weights": cache_folder(), "temporary": Path(tempfile.gettempdir())}
    if importlib.util.find_spec("paddleseg") is not None:
        named["paddleseg"] = Path(os.environ.get("SEG_HOME") or "~/.paddleseg").expanduser()
    for name, folder in named.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            check_disk(there)
            yield Finding("ok", "folder", f"{name}: {folder}")
        except OSError as error:
            yield Finding("WRONG", "folder", f"{name}: {folder} cannot be written ({error.strerror or error})")


# --- self-test ----------------------------------------------------------------------------------------


def check_operator() -> str:
    """Heat conduction against cosines in float64."""
    import numpy as np

    from paddle_vheat._paddle import paddle
    from paddle_vheat.ops import conduct_heat, heat_decay

    height, width = 5, 7
    rng = np.random.default_rng(0)
    heat, diffusivity = rng.standard_normal((height, width)), rng.random((height, width))

    def modes(n: int) -> np.ndarray:
        basis = np.cos(np.pi * np.arange(n)[:, None] * (np.arange(n) + 0.5) / n)
        return basis / np.linalg.norm(basis, axis=1, keepdims=True)

    rows, columns = modes(height), modes(width)
    squares = (np.pi * np.arange(height)[:, None] / height) ** 2 + (np.pi * np.arange(width) / width) ** 2
    expected = rows.T @ (rows @ heat @ columns.T * np.exp(-diffusivity * squares)) @ columns
    given = (paddle.to_tensor(array[..., None].astype(np.float32)) for array in (heat, diffusivity))
    found = conduct_heat(next(given).unsqueeze(0), heat_decay(next(given))).numpy()[0, ..., 0]
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error < 1e-5:  # float32 sums of seven terms, twice
        raise ArithmeticError(f"differs from float64 by {error:.1e} of the largest value")
    return f"differs from float64 by {error:.0e}"


def check_training() -> str:
    """Some steps on one batch, which must be learned."""
    from paddle_vheat._paddle import F, paddle
    from paddle_vheat.engine.adamw import AdamW
    from paddle_vheat.ops.native import missing
    from paddle_vheat.ops.training import accelerate_training

    model, images, labels = accelerate_training(_small_classifier()), paddle.randn([8, 3, 32, 32]), paddle.arange(8) % 4
    optimizer = AdamW(3e-3, parameters=model.parameters())
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    if not losses[-1] < losses[0]:
        raise ArithmeticError(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
    kernels = f"without kernels in C: {missing()}" if missing() else "by kernels in C"
    return f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}, {kernels}"


def check_export() -> str:
    """An export, compared with the model by every runtime that is here."""
    from paddle_vheat._paddle import PADDLE_2
    from paddle_vheat.deploy.description import read_description
    from paddle_vheat.export import export_model, scores_spec

    tools = all(importlib.util.find_spec(name) for name in ("paddle2onnx", "onnx", "onnxruntime")) and not PADDLE_2
    model, shape = _small_classifier(), (1, 3, 32, 32)
    model.eval()
    ops: list[dict[str, Any]] = [{"ResizeImage": {"size": [32, 32]}}, {"NormalizeImage": {"order": ""}}]
    spec = scores_spec(model, shape, "softmax", 4, per_pixel=False, transforms=ops, min_size=32)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        found = export_model(spec, "classification", out, shape, lambda text: None, "both" if tools else "paddle")
        onednn = read_description(out).onednn
    return f"{', '.join(dict.fromkeys(one.runtime for one in found if one.ok))} right; oneDNN in use: {onednn}"


def _small_classifier() -> Any:
    from paddle_vheat._paddle import paddle
    from paddle_vheat.models import VHeatClassifier

    paddle.seed(0)
    return VHeatClassifier(4, embed_dim=8, depths=(1, 1, 1, 1), img_size=32, drop_path_rate=0.0)


def self_test() -> Findings:
    checks: dict[str, Callable[[], str]] = {
        "operator": check_operator, "training": check_training, "export": check_export,
    }  # fmt: skip
    for name, check in checks.items():
        start, said = time.perf_counter(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                text = check()
            yield Finding("ok", name, f"{text} ({time.perf_counter() - start:.1f} s)")
        except Exception as error:  # whatever is broken here, it is what the report is about
            yield Finding("WRONG", name, f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def examine() -> Findings:
    """Everything, in order."""
    line = configure_cpu() if "paddle" not in sys.modules else "CPU: Paddle was imported before, with its own settings"
    os.environ.setdefault("GLOG_minloglevel", "2")
    yield from system()
    yield from packages(installed_versions())
    yield from imports()
    yield from processor(line)
    try:
        from paddle_vheat._paddle import paddle
    except Exception as error:
        yield Finding("WRONG", "paddle", f"cannot be imported: {type(error).__name__}: {_first_line(error)}")
        return
    yield from graphics(paddle)
    yield from folders()
    yield from self_test()


def main() -> int:
    wrong = 0
    for level, name, text in examine():
        print(f"{level:<6}{name:<14}{text}", flush=True)
        wrong += level == "WRONG"
    print("everything works" if not wrong else f"{wrong} of these will not work here")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
