"""What was weighed to make evaluation on a CPU faster, each beside what it would replace.

    python benchmarks/means.py [--json FILE]

Operators as they occur in vHeat-T (dynamic graph, float32), best of many calls, both forms taking turns; settings that
hold for a process (allocator, MKL's path, threads) on the whole network, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402

from paddle_vheat._paddle import F, paddle  # noqa: E402
from paddle_vheat.ops.dct import cosine_basis  # noqa: E402

STAGES = ((96, 4), (192, 8), (384, 16), (768, 32))  # channels and stride


def best(forms: dict[str, Callable[[], Any]], rounds: int = 20) -> dict[str, float]:
    """Milliseconds of each form, taking turns."""
    found = dict.fromkeys(forms, float("inf"))
    for _ in range(rounds):
        for name, run in forms.items():
            start = time.perf_counter()
            run()
            found[name] = min(found[name], 1e3 * (time.perf_counter() - start))
    return found


def folded_transform(x: Any) -> Callable[[], Any]:
    """The DCT over the rows of (B, N, D), N even, by the symmetry of its basis: half the multiply-adds."""
    n = x.shape[1]
    basis = cosine_basis(n, x.dtype)
    even, odd = basis[0::2, : n // 2].clone(), basis[1::2, : n // 2].clone()
    backwards = paddle.arange(n - 1, n // 2 - 1, -1)

    def run() -> Any:
        top, bottom = x[:, : n // 2], paddle.index_select(x, backwards, axis=1)
        both = paddle.stack([paddle.matmul(even, top + bottom), paddle.matmul(odd, top - bottom)], axis=2)
        return both.reshape(x.shape)

    return run


def operators(size: int, batch: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the forms, summed over one application in each of the four stages."""
    sums: dict[str, dict[str, float]] = {}
    for channels, stride in STAGES:
        side = size // stride
        plate = paddle.randn([batch, side, side, channels])
        planes = plate.transpose([0, 3, 1, 2])
        rows, flat = plate.reshape([-1, channels]), plate.reshape([batch, side, side * channels])
        hidden = paddle.randn([batch, side, side, 4 * channels])
        weight, bias = paddle.randn([channels, channels]), paddle.randn([channels])
        kernel, decay = paddle.randn([channels, 1, 3, 3]), paddle.randn([side, side, channels])
        basis, unit = cosine_basis(side, "float32"), paddle.ones([channels])

        def convolve(b: Any = None) -> Any:
            return F.conv2d(planes, kernel, b, 1, 1, 1, channels)  # noqa: B023

        pairs: dict[str, dict[str, Callable[[], Any]]] = {
            "bias of a linear layer: added, or what the product is added to": {
                "before": lambda: F.linear(rows, weight, bias),  # noqa: B023
                "after": lambda: paddle.addmm(bias.unsqueeze(0), rows, weight),  # noqa: B023
            },
            "bias of the depthwise convolution: added, or passed on to the linear layer": {
                "before": lambda: convolve(bias),  # noqa: B023
                "after": convolve,
            },
            "channels last after it: transposed and multiplied, or by the product": {
                "before": lambda: paddle.matmul(planes.transpose([0, 2, 3, 1]), weight),  # noqa: B023
                "after": lambda: paddle.matmul(planes.flatten(2), weight, transpose_x=True),  # noqa: B023
            },
            "decay of one image: (H, W, C), or (1, H, W, C)": {
                "before": lambda: plate[:1] * decay,  # noqa: B023
                "after": lambda: plate[:1] * decay.unsqueeze(0),  # noqa: B023
            },
            "DCT over one axis: dense, or even and odd halves": {
                "before": lambda: paddle.matmul(basis, flat),  # noqa: B023
                "after": folded_transform(flat) if side % 2 == 0 else lambda: paddle.matmul(basis, flat),  # noqa: B023
            },
            "channels last or first for the linear layer": {
                "before": lambda: paddle.matmul(rows, weight),  # noqa: B023
                "after": lambda: paddle.matmul(weight, planes.flatten(2), transpose_x=True),  # noqa: B023
            },
            "LayerNorm over the last axis, or over the channels of NCHW by elementary operations": {
                "before": lambda: F.layer_norm(plate, [channels], unit, bias),  # noqa: B023
                "after": lambda: _norm_over_channels(planes),  # noqa: B023
            },
            "GELU: exact, or by tanh (another function)": {
                "before": lambda: F.gelu(hidden),  # noqa: B023
                "after": lambda: F.gelu(hidden, approximate=True),  # noqa: B023
            },
            "SiLU times heat: as it is, or by tanh": {
                "before": lambda: plate * F.silu(plate),  # noqa: B023
                "after": lambda: _gate_by_tanh(plate, plate),  # noqa: B023
            },
        }
        for name, forms in pairs.items():
            found = best(forms)
            total = sums.setdefault(name, dict.fromkeys(found, 0.0))
            for form, milliseconds in found.items():
                total[form] += milliseconds
    return sums


def _gate_by_tanh(heat: Any, gate: Any) -> Any:
    half = gate * 0.5
    product = heat * half
    return product + product * paddle.tanh(half)


def _norm_over_channels(planes: Any) -> Any:
    centred = planes - planes.mean(1, keepdim=True)
    return centred * paddle.rsqrt((centred * centred).mean(1, keepdim=True) + 1e-5)


def network(job: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of folded vHeat-T in the process's settings."""
    from paddle_vheat.models import create_model

    model = create_model("vheat_tiny", img_size=job["size"]).fold(job["size"])
    images = paddle.randn([1, 3, job["size"], job["size"]])
    with paddle.no_grad():
        return best({"ms": lambda: model(images)}, rounds=15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 768])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(network(json.loads(args.job))))
        return
    report: dict[str, Any] = {"settings": SETTINGS, "gflops_limit": common.matmul_limit()}
    with paddle.no_grad():
        for size, batch in [(size, 1) for size in args.sizes] + [(args.sizes[0], 4)]:
            print(f"\n{size} x {size}, batch {batch}: once in each of the four stages, ms")
            report[f"operators {size}, batch {batch}"] = found = operators(size, batch)
            for name, forms in found.items():
                ratio = forms["before"] / forms["after"]
                print(f"{name:<84} {forms['before']:>7.2f} {forms['after']:>7.2f} {ratio:>6.2f}x")
    settings: dict[str, dict[str, str | None]] = {
        "as set by configure_cpu": {},
        "freed memory given back": {"MALLOC_ARENA_TEST": "8"},  # any MALLOC_ variable is the user's own tuning
        "MKL's AVX2 path": {"MKL_DEBUG_CPU_TYPE": "5"},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "as Paddle is by default": {"PADDLE_VHEAT_CPU": "off", "MKL_DEBUG_CPU_TYPE": None},
    }
    for size in args.sizes:
        print(f"\n{size} x {size}: the whole network, ms")
        for name, variables in settings.items():
            found = common.in_own_process(__file__, {"size": size}, **variables)
            report[f"network {size}, {name}"] = found
            print(f"{name:<30} {found['ms']:>8.1f}")
    common.write_json(args.json, report)


if __name__ == "__main__":
    main()
