"""Restoration on the CPU: vHeatIR beside SwinIR, by the size of the picture; and where the matrix DCT stops paying.

    python benchmarks/restoration.py [--json FILE] [--sizes 128 256 512 1024] [--models vheat_ir_light swin_ir_light]

Time, peak memory of the process beyond the libraries, and multiply-adds for each megapixel, in evaluation, in the
dynamic graph and in ONNX Runtime, each in a process of its own. The second table takes a map of 32 channels through the
transform, a product with a decay, and back: by matrix products as the models do, by a real FFT with mirrored ends, and
by matrix products in tiles of 128 pixels without overlap, which is another result (it conducts within tiles only).
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import _process  # noqa: E402
import numpy as np  # noqa: E402

from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.deploy.runtimes import load_onnx  # noqa: E402
from paddle_vheat.engine.task import Program  # noqa: E402
from paddle_vheat.export.onnx import convert_to_onnx  # noqa: E402
from paddle_vheat.export.program import save_program  # noqa: E402
from paddle_vheat.models import create_model  # noqa: E402
from paddle_vheat.ops import fold  # noqa: E402
from paddle_vheat.ops.dct import dct2, idct2  # noqa: E402
from paddle_vheat.tasks.restoration.deploy import signature  # noqa: E402

CHANNELS, TILE = 32, 128


def measure_model(job: dict[str, Any]) -> dict[str, float]:
    size, shape = job["size"], (1, 1, job["size"], job["size"])
    before = _process.resident_mib()
    paddle.seed(0)
    model = fold(create_model(job["model"]), (size, size)) if "vheat" in job["model"] else create_model(job["model"])
    model.eval()
    image = paddle.rand(shape)
    with tempfile.TemporaryDirectory() as temporary, paddle.no_grad():
        if job["runtime"] == "onnx":
            takes, path = signature(shape), Path(temporary) / "model.onnx"
            convert_to_onnx(*save_program(Program(model, *takes), Path(temporary)), path, *takes)
            run, array = load_onnx(path, takes), image.numpy()
            return _process.measure(lambda: run(array), 1.0, before)
        found = _process.measure(lambda: model(image), 1.0, before)
        with common.multiply_adds() as operations:
            model(image)
        return {**found, "multiply_adds": operations[0]}


def fft_dct(x: Any) -> Any:
    """DCT-II of the second axis of (B, N, ...), orthonormal, by a real FFT of 2 N mirrored values."""
    n = x.shape[1]
    spectrum = paddle.fft.rfft(paddle.concat([x, x.flip(1)], 1), axis=1)[:, :n]
    phase = np.exp(-0.5j * np.pi * np.arange(n) / n) * np.sqrt(0.5 / n)
    phase[0] *= np.sqrt(0.5)
    return (spectrum * paddle.to_tensor(phase.astype(np.complex64).reshape([1, n] + [1] * (x.ndim - 2)))).real()


def fft_idct(x: Any) -> Any:
    n = x.shape[1]
    phase = np.exp(0.5j * np.pi * np.arange(n) / n) * np.sqrt(2.0 * n)
    phase[0] *= np.sqrt(2.0)
    spectrum = x * paddle.to_tensor(phase.astype(np.complex64).reshape([1, n] + [1] * (x.ndim - 2)))
    return paddle.fft.irfft(paddle.concat([spectrum, paddle.zeros_like(spectrum[:, :1])], 1), n=2 * n, axis=1)[:, :n]


def fft_conduct(x: Any, decay: Any) -> Any:
    spectrum = fft_dct(fft_dct(x).transpose([0, 2, 1, 3])) * decay.transpose([1, 0, 2])
    return fft_idct(fft_idct(spectrum).transpose([0, 2, 1, 3]))


def conduct(x: Any, decay: Any) -> Any:
    return idct2(dct2(x, (1, 2)) * decay, (1, 2))


def tiled(x: Any, decay: Any) -> Any:
    side = x.shape[1] // TILE
    parts = x.reshape([side, TILE, side, TILE, CHANNELS]).transpose([0, 2, 1, 3, 4]).flatten(0, 1)
    parts = conduct(parts, decay[:TILE, :TILE]).reshape([side, side, TILE, TILE, CHANNELS])
    return parts.transpose([0, 2, 1, 3, 4]).reshape(x.shape)


def measure_transform(job: dict[str, Any]) -> dict[str, float]:
    paddle.seed(0)
    side = job["side"]
    x, decay = paddle.randn([1, side, side, CHANNELS]), paddle.rand([side, side, CHANNELS])
    with paddle.no_grad():
        largest = float((fft_conduct(x, decay) - conduct(x, decay)).abs().max())
        if largest > 1e-4:
            raise RuntimeError(f"the FFT's result differs by {largest}")
        ways = {"matrices": conduct, "fft": fft_conduct, "tiles": tiled}
        return {name: common.seconds(functools.partial(way, x, decay), 3, 0.5) for name, way in ways.items()}


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512, 1024], help="sides in pixels")
    parser.add_argument("--sides", nargs="+", type=int, default=[128, 256, 512, 1024, 2048], help="of the transforms")
    parser.add_argument("--models", nargs="+", default=["vheat_ir_light", "swin_ir_light"])
    args = parser.parse_args()
    if args.job is not None:
        job = args.job
        print(json.dumps(measure_transform(job) if "side" in job else measure_model(job)))
        return
    limit = common.matmul_limit()
    print(f"matrix-product limit: {limit:.0f} GFLOP/s\n\nfor each megapixel")
    models, transforms = {}, {}
    for size in args.sizes:
        for name in args.models:
            for runtime in ("dygraph", "onnx"):
                job = {"model": name, "size": size, "runtime": runtime}
                found = models[f"{name} {size} {runtime}"] = common.in_own_process(__file__, job)
                pixels = size**2 / 1e6
                line = f"{found['seconds'] / pixels:8.2f} s {found['peak_mib'] / pixels:8.0f} MiB"
                if "multiply_adds" in found:
                    line += f" {found['multiply_adds'] / pixels / 1e9:8.1f} G multiply-adds"
                print(f"{size:>5} {name:<16} {runtime:<8} {line}", flush=True)
    print(
        f"\nthere and back, {CHANNELS} channels, milliseconds\n{'side':>5} {'matrices':>10} {'fft':>10} {'tiles':>10}"
    )
    for side in args.sides:
        found = transforms[str(side)] = common.in_own_process(__file__, {"side": side})
        print(f"{side:>5} " + " ".join(f"{1e3 * found[way]:>10.1f}" for way in found), flush=True)
    report = {"settings": SETTINGS, "gflops_limit": limit, "models": models, "transforms": transforms}
    common.write_json(args.json, report)


if __name__ == "__main__":
    main()
