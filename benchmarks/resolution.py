"""How cost grows with the image: vHeat-B beside Swin-B, and the heat conduction operator beside softmax attention.

    python benchmarks/resolution.py [--json FILE] [--plot FILE]

The backbones run in evaluation in the same Paddle (dynamic graph, float32, batch 1), vHeat folded for each size. Swin-B
is PaddleSeg's, with windows of 7 x 7 at every size and with windows that grow with the image (7 at 224, 24 at 768), so
that they see the same part of it. Each measurement has a process of its own. The exponent is that of a power law in
the number of pixels, fitted over all sizes. Memory is what Paddle allocates beyond the weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402

from paddle_vheat._paddle import F, paddle  # noqa: E402

SIZES = [224, 384, 512, 768, 1024]
MODELS = ("vHeat-B", "Swin-B", "Swin-B, growing")
OPERATORS = ("heat conduction", "softmax attention")
POSITIONS = [14, 28, 56, 96, 128]  # side of the map
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
CHANNELS, HEADS = 128, 4  # of the first stage of both


def build(name: str, size: int) -> Any:
    if name == "vHeat-B":
        from paddle_vheat.models import create_model

        return create_model("vheat_base", img_size=size).fold(size).backbone
    from paddleseg.models.backbones.swin_transformer import SwinTransformer

    # Windows that grow divide the last map, as in Swin's own models for 384 (window 12).
    model = SwinTransformer(**SWIN_BASE, window_size=7 if name == "Swin-B" else size // 32)
    model.eval()
    return model


def measure_model(job: dict[str, Any]) -> dict[str, float]:
    """Milliseconds, multiply-adds (billions) and peak memory beyond the model itself (MiB) of a backbone."""
    paddle.seed(0)
    model, x = build(job["name"], job["size"]), paddle.randn([1, 3, job["size"], job["size"]])
    with paddle.no_grad():
        with common.multiply_adds() as operations:
            peak = common.peak_mib(lambda: model(x))
        time = common.seconds(lambda: model(x), repeats=3, least=2.0)
    return {"ms": 1e3 * time, "gmacs": operations[0] / 1e9, "activations_mib": peak}


def attention(x: Any, weights: list[Any]) -> Any:
    """Multi-head softmax attention over all positions: what a ViT does where vHeat conducts heat."""
    batch, positions, channels = x.shape
    parts = paddle.matmul(x, weights[0]).reshape([batch, positions, 3, HEADS, channels // HEADS])
    query, key, value = (parts[:, :, i].transpose([0, 2, 1, 3]) for i in range(3))
    scores = F.softmax(paddle.matmul(query, key, transpose_y=True) * (channels // HEADS) ** -0.5, axis=-1)
    return paddle.matmul(paddle.matmul(scores, value).transpose([0, 2, 1, 3]).flatten(2), weights[1])


def measure_operator(job: dict[str, Any]) -> dict[str, float]:
    """Milliseconds and peak memory beyond the inputs (MiB) of one token mixer on a map of ``side`` x ``side``."""
    from paddle_vheat.models.vheat import FoldedHeatConduction2D
    from paddle_vheat.ops import HeatConduction2D

    paddle.seed(0)
    side = job["side"]
    if job["name"] == "heat conduction":
        folded = FoldedHeatConduction2D(HeatConduction2D(CHANNELS), paddle.ones([side, side, CHANNELS]))
        x = paddle.randn([1, side, side, CHANNELS])

        def run() -> Any:
            return folded(x)
    else:
        weights = [paddle.randn([CHANNELS, 3 * CHANNELS]) * 0.1, paddle.randn([CHANNELS, CHANNELS]) * 0.1]
        x = paddle.randn([1, side * side, CHANNELS])

        def run() -> Any:
            return attention(x, weights)

    with paddle.no_grad():
        peak = common.peak_mib(run)
        time = common.seconds(run, repeats=3, least=0.5)
    return {"ms": 1e3 * time, "activations_mib": peak}


def table(title: str, names: Sequence[str], key: str, points: list[int], found: dict[str, Any]) -> dict[str, Any]:
    """Print one quantity of ours (the first) and its competitors over the sizes, with ratios and fitted exponents."""
    values = {name: [found[f"{name} {point}"][key] for point in points] for name in names}
    print(f"\n{title}, and how many times ours\n{'size':>6}" + "".join(f"{name:>26}" for name in names))
    for i, point in enumerate(points):
        cells = [f"{values[name][i]:>18.1f} ({values[name][i] / values[names[0]][i]:>4.2f})" for name in names]
        print(f"{point:>6}" + "".join(f"{cell:>26}" for cell in cells))
    exponents = {n: common.fitted_exponent([p * p for p in points], values[n]) for n in names}
    print(f"{'growth':>6}" + "".join(f"{f'pixels^{exponents[name]:.2f}':>26}" for name in names))
    return {"sizes": points, **values, "exponents": exponents}


def draw(path: str, tables: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(4.2 * len(tables), 4))
    for axis, (title, rows) in zip(axes, tables.items()):
        for name, exponent in rows["exponents"].items():
            axis.plot(rows["sizes"], rows[name], marker="o", label=f"{name} (pixels^{exponent:.2f})")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(rows["sizes"], [str(size) for size in rows["sizes"]])
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="sides of the image in pixels")
    parser.add_argument("--positions", nargs="+", type=int, default=POSITIONS, help="sides of the operators' map")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw the tables as a PNG")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        print(json.dumps(measure_operator(job) if "side" in job else measure_model(job)))
        return
    print(SETTINGS)
    limit = common.matmul_limit()
    print(f"matrix-product limit: {limit:.0f} GFLOP/s")
    found = {}
    for size in args.sizes:
        for name in MODELS:
            found[f"{name} {size}"] = common.in_own_process(__file__, {"name": name, "size": size})
    for side in args.positions:
        for name in OPERATORS:
            found[f"{name} {side}"] = common.in_own_process(__file__, {"name": name, "side": side})
    tables = {
        "backbone, milliseconds": table("backbone, milliseconds per image", MODELS, "ms", args.sizes, found),
        "backbone, Gmult-adds": table("backbone, multiply-adds, billions", MODELS, "gmacs", args.sizes, found),
        "backbone, activations MiB": table(
            "backbone, peak memory beyond the weights, MiB", MODELS, "activations_mib", args.sizes, found
        ),
        "one operator, milliseconds": table(
            f"one token mixer of {CHANNELS} channels, milliseconds", OPERATORS, "ms", args.positions, found
        ),
    }
    common.write_json(args.json, {"settings": SETTINGS, "gflops_limit": limit, "tables": tables})
    if args.plot:
        draw(args.plot, tables)


if __name__ == "__main__":
    main()
