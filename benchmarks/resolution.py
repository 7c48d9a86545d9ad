"""How cost grows with the image: vHeat beside Swin, and the heat conduction operator beside softmax attention.

    python benchmarks/resolution.py [--variant B] [--json FILE] [--plot FILE]

The backbones run in evaluation in the same Paddle (dynamic graph, float32, batch 1), vHeat folded for each size. Swin
is PaddleSeg's, with windows of 7 x 7 at every size and with windows that grow with the image (7 at 224, 24 at 768), so
that they see the same part of it; these up to ``--growing`` pixels a side only, since their attention grows as the
square. Each measurement has a process of its own. The exponent is that of a power law in the number of pixels, fitted
over all sizes that were measured. Memory is what Paddle allocates beyond the weights. PyTorch's vHeat at these sizes:
``make bench-torch ARGS="--inference 224x1 2048x1 --training --forms dygraph"``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402

from paddle_vheat._paddle import F, paddle  # noqa: E402

SIZES = [224, 384, 512, 768, 1024, 1536, 2048]
OPERATORS = ("heat conduction", "softmax attention")
POSITIONS = [14, 28, 56, 96, 128]  # side of the map
SWIN = {
    "T": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "B": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
}
VHEAT = {"T": "vheat_tiny", "B": "vheat_base"}
GROWING = ", growing windows"
CHANNELS, HEADS = 128, 4  # of the first stage of both


def build(name: str, size: int) -> Any:
    family, variant = name.removesuffix(GROWING).split("-")
    if family == "vHeat":
        from paddle_vheat.models import create_model

        return create_model(VHEAT[variant], img_size=size).fold(size).backbone
    from paddleseg.models.backbones.swin_transformer import SwinTransformer

    # Windows that grow divide the last map, as in Swin's own models for 384 (window 12).
    model = SwinTransformer(**SWIN[variant], window_size=size // 32 if name.endswith(GROWING) else 7)
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
    from paddle_vheat.ops import HeatConduction2D
    from paddle_vheat.ops.heat import FoldedHeatConduction2D

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
    rows = {name: {p: found[f"{name} {p}"][key] for p in points if f"{name} {p}" in found} for name in names}
    print(f"\n{title}, and how many times ours\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for point in points:
        ours = rows[names[0]][point]
        cells = [f"{row[point]:.1f} ({row[point] / ours:.2f}x)" if point in row else "" for row in rows.values()]
        print(f"| {point} | {' | '.join(cells)} |")
    exponents = {n: common.fitted_exponent([p * p for p in row], list(row.values())) for n, row in rows.items()}
    print(f"| grows as pixels to the power | {' | '.join(f'{e:.2f}' for e in exponents.values())} |")
    values = {name: list(row.values()) for name, row in rows.items()}  # the first of ``sizes``, where there are fewer
    return {"sizes": points, **values, "exponents": exponents}


def draw(path: str, tables: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tables), figsize=(4.2 * len(tables), 4))
    for axis, (title, rows) in zip(axes, tables.items()):
        for name, exponent in rows["exponents"].items():
            axis.plot(rows["sizes"][: len(rows[name])], rows[name], marker="o", label=f"{name} (pixels^{exponent:.2f})")
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
    parser = common.make_parser(__doc__)
    parser.add_argument("--variant", choices=list(VHEAT), default="B")
    parser.add_argument("--growing", type=int, default=1024, help="largest side with growing windows; default 1024")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="sides of the image in pixels")
    parser.add_argument("--positions", nargs="+", type=int, default=POSITIONS, help="sides of the operators' map")
    parser.add_argument("--plot", metavar="FILE", help="draw the tables as a PNG")
    args = parser.parse_args()
    if args.job is not None:
        job = args.job
        print(json.dumps(measure_operator(job) if "side" in job else measure_model(job)))
        return
    print(SETTINGS)
    limit = common.matmul_limit()
    print(f"matrix-product limit: {limit:.0f} GFLOP/s")
    found = {}
    models = tuple(f"{name}-{args.variant}{kind}" for name, kind in (("vHeat", ""), ("Swin", ""), ("Swin", GROWING)))
    for size in args.sizes:
        for name in models[: 3 if size <= args.growing else 2]:
            found[f"{name} {size}"] = common.in_own_process(__file__, {"name": name, "size": size})
    for side in args.positions:
        for name in OPERATORS:
            found[f"{name} {side}"] = common.in_own_process(__file__, {"name": name, "side": side})
    tables = {
        "backbone, milliseconds": table("backbone, milliseconds per image", models, "ms", args.sizes, found),
        "backbone, Gmult-adds": table("backbone, multiply-adds, billions", models, "gmacs", args.sizes, found),
        "backbone, activations MiB": table(
            "backbone, peak memory beyond the weights, MiB", models, "activations_mib", args.sizes, found
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
