"""Micro vHeat with parts of its operator replaced, micro Swin and micro ConvNeXt: the same short training for each.

    python benchmarks/ablations.py --data data/cifar10 --save_dir output/ablations --json FILE --plot FILE

``--data`` is a folder with ``train/<class>/`` and ``val/<class>/``. All models see the same batches, augmented alike,
in the same number of iterations; they are scored once, after the last. Finished runs in ``--save_dir`` are kept, and
one that was killed starts again. Swin and ConvNeXt are PaddleClas' (requirements-clas.txt).

The ways to bring frequency embeddings to another size make no difference in training. They are scored on larger images,
with the weights of the trained "full".
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import numpy as np  # noqa: E402

from paddle_vheat._files import write_output  # noqa: E402
from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.analysis import observe, reach  # noqa: E402
from paddle_vheat.config import load_config  # noqa: E402
from paddle_vheat.engine.evaluate import evaluate, evaluating  # noqa: E402
from paddle_vheat.engine.optim import TrainOptions  # noqa: E402
from paddle_vheat.engine.trainer import Trainer  # noqa: E402
from paddle_vheat.models.ablation import ALIGNMENTS  # noqa: E402
from paddle_vheat.tasks.classification.task import ClassificationTask  # noqa: E402
from paddle_vheat.weights.loading import save_weights  # noqa: E402

ABLATIONS: dict[str, Any] = {
    "full": None,
    **{f"k_fixed {v}": {"k_fixed": v} for v in (0, 1, 5, 10)},
    **{name: name for name in ("k_scalar", "k_channel", "k_mode", "k_content", "dct_filter", "fft_filter")},
    "no_gate": "no_gate",
    "no_dwconv": "no_dwconv",
    "no mixing": {"k_fixed": 0, "no_dwconv": True},  # a control: only strided convolutions see more than one patch
}
# Depths and widths are those that give the nearest number of parameters; windows are of 4 patches, as maps are small.
# ConvNeXt has no layer scale here: vHeat-T has none, and from 1e-6 a run this short would not get the blocks to work.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Swin": (
        "legendary_models.swin_transformer",
        "SwinTransformer",
        {"embed_dim": 16, "depths": [2, 2, 3, 1], "num_heads": [1, 2, 4, 8], "window_size": 4, "drop_path_rate": 0.0},
    ),
    "ConvNeXt": (
        "model_zoo.convnext",
        "ConvNeXt",
        {"dims": [20, 40, 80, 160], "depths": [1, 1, 2, 1], "layer_scale_init_value": 0},
    ),
}
MODELS = (*ABLATIONS, *OTHERS)


class Comparison(ClassificationTask):
    """The classification of configs/vheat_micro_cifar10.yml with a smaller network, which may be another's."""

    def __init__(self, data: Path, model: str, size: int, ablation: Any = None, eval_size: int | None = None) -> None:
        train, val = "DataLoader.Train.dataset", "DataLoader.Eval.dataset"
        settings = {
            "Arch.embed_dim": 16,
            "Arch.depths": [1, 1, 2, 1],
            "Arch.img_size": size,
            "Arch.drop_path_rate": 0.0,
            f"{train}.image_root": str(data / "train"),
            f"{train}.transform_ops.1.RandCropImage.size": size,
            f"{train}.transform_ops.1.RandCropImage.scale": [0.7, 1.0],
            f"{val}.image_root": str(data / "val"),
            f"{val}.transform_ops.1.ResizeImage.size": eval_size or size,
            "Optimizer.lr.learning_rate": 2e-3,
            "Optimizer.lr.warmup_epoch": 0.1,
        }
        config = load_config(
            common.ROOT / "configs" / "vheat_micro_cifar10.yml", [f"{k}={v}" for k, v in settings.items()]
        )
        config["Arch"]["ablation"] = ablation
        super().__init__(config, model)
        self.model, self.size = model, size

    def build_model(self, pretrained: bool = True) -> Any:
        if self.model not in OTHERS:
            return super().build_model(pretrained)
        module, name, options = OTHERS[self.model]
        sized = {"img_size": self.size} if name.startswith("Swin") else {}
        build = getattr(importlib.import_module(f"paddleclas.ppcls.arch.backbone.{module}"), name)
        return build(class_num=self.num_classes, **sized, **options)

    def parameter_factors(self, model: Any) -> Mapping[str, Any]:
        if not hasattr(model, "no_weight_decay"):
            model.no_weight_decay = lambda: {name for name, p in model.named_parameters() if p.ndim == 1}
        return super().parameter_factors(model)


def spectra(model: Any, size: int) -> list[dict[str, Any]]:
    """k and E of every operator that has a decay of its own, whatever the image."""
    found = []
    for one in observe(model, paddle.zeros([1, 3, size, size])):
        values = one.k[np.isfinite(one.k)]
        found.append(
            {
                "stage": one.stage + 1,
                "block": one.block + 1,
                "k_mean": float(values.mean()),
                "k_zero_share": float((values == 0).mean()),
                "decay_mean": float(one.decay.mean()),
                "decay_outside_0_1_share": float(((one.decay < 0) | (one.decay > 1 + 1e-6)).mean()),
                "reach_patches": None if math.isnan(r := reach(one.decay)) else r,
            }
        )
    return found


def top1(task: Any, model: Any) -> float:
    scores = evaluate(task, model, progress=False)
    assert scores is not None  # nothing stops it
    return 100 * scores.values["top1"]


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train and score one model; its result is kept in its folder."""
    folder = Path(args.save_dir) / f"{name.replace(' ', '_')}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    task: Any = Comparison(args.data, name, args.size, ABLATIONS.get(name))
    options = TrainOptions(
        iters=args.iters, save_interval=args.iters, save_dir=str(folder), seed=seed, log_iters=50, resume_model="auto",
        keep_checkpoint_max=1,
    )  # fmt: skip
    trainer = Trainer(task, options)
    found: dict[str, Any] = {"model": name, "seed": seed, "iters": args.iters, "size": args.size}
    with common.multiply_adds() as operations, evaluating(trainer.model):
        trainer.model(paddle.zeros([1, 3, args.size, args.size]))
    parameters = sum(math.prod(p.shape) for p in trainer.model.parameters())
    found.update(parameters=parameters, multiply_adds=operations[0])
    if name in ABLATIONS:
        found["before"] = spectra(trainer.model, args.size)
    if trainer.run()["stopped"]:
        raise KeyboardInterrupt
    found["top1"] = top1(task, trainer.model)
    if name in ABLATIONS:
        found["after"] = spectra(trainer.model, args.size)
    save_weights(trainer.model, folder / "trained.pdparams")
    write_output(str(result), json.dumps(found, indent=1) + "\n")
    print(f"{name}, seed {seed}: {found['top1']:.2f} %", flush=True)
    return found


def align(args: argparse.Namespace, alignment: str, seed: int) -> dict[str, Any]:
    """Score a trained "full" on larger images, its embeddings brought to their size in one way."""
    folder = Path(args.save_dir) / f"full-{seed}"
    result = folder / f"{alignment}.json"
    if not result.is_file():
        ablation = {"alignment": alignment}
        task = Comparison(args.data, f"{alignment} at {args.eval_size}", args.size, ablation, args.eval_size)
        model = task.build_model()
        task.load(model, str(folder / "trained.pdparams"))
        found = {"alignment": alignment, "seed": seed, "eval_size": args.eval_size, "top1": top1(task, model)}
        write_output(str(result), json.dumps(found, indent=1) + "\n")
        print(f"{alignment} at {args.eval_size}, seed {seed}: {found['top1']:.2f} %", flush=True)
    return json.loads(result.read_text(encoding="utf-8"))


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation (that of a sample) over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"top1": values, "mean": statistics.mean(values), "deviation": deviation}


def over_blocks(runs: list[dict[str, Any]], when: str, key: str) -> list[float | None]:
    """A statistic of the operators, mean over seeds and the blocks of each stage."""
    means = []
    for stage in range(1, 5):
        values = [one[key] for r in runs for one in r.get(when, ()) if one["stage"] == stage and one[key] is not None]
        means.append(statistics.mean(values) if values else None)
    return means


def summarize(runs: list[dict[str, Any]], aligned: list[dict[str, Any]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in MODELS:
        mine = [r for r in runs if r["model"] == name]
        if not mine:
            continue
        rows[name] = {key: mine[0][key] for key in ("parameters", "multiply_adds")} | spread([r["top1"] for r in mine])
        for key in ("k_mean", "k_zero_share", "decay_mean", "decay_outside_0_1_share", "reach_patches"):
            before, after = (over_blocks(mine, when, key) for when in ("before", "after"))
            if any(v is not None for v in after):
                rows[name][key] = {"before": before, "after": after}
    sizes = {
        a: spread(scores) for a in ALIGNMENTS if (scores := [one["top1"] for one in aligned if one["alignment"] == a])
    }
    return {"models": rows, "alignment": sizes}


def print_table(report: dict[str, Any]) -> None:
    print(
        "| model | parameters | multiply-adds | top-1 (%) by seed | mean | deviation | reach, stages 1 to 4 (patches) |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in report["models"].items():
        reaches = row.get("reach_patches", {}).get("after", [])
        cells = [
            f"{row['parameters'] / 1e6:.3f}M", f"{row['multiply_adds'] / 1e6:.2f}M",
            ", ".join(f"{v:.1f}" for v in row["top1"]), f"{row['mean']:.1f}",
            "" if row["deviation"] is None else f"{row['deviation']:.1f}",
            ", ".join("-" if r is None else f"{r:.2f}" for r in reaches),
        ]  # fmt: skip
        print(f"| `{name}` | {' | '.join(cells)} |")
    for name, row in report["alignment"].items():
        print(f"{name}: {', '.join(f'{v:.1f}' for v in row['top1'])}; mean {row['mean']:.1f}")


def draw(report: dict[str, Any], path: str) -> None:
    """Accuracy of every model, a point for each seed and a bar for the mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "ablations"  # equal data, equal file
    rows = sorted(report["models"].items(), key=lambda item: item[1]["mean"])
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for i, (name, row) in enumerate(rows):
        colour = "tab:grey" if name in OTHERS else "tab:red" if name == "full" else "tab:blue"
        axes.plot(row["top1"], [i] * len(row["top1"]), "o", color=colour, alpha=0.6, markersize=5)
        axes.plot([row["mean"]] * 2, [i - 0.3, i + 0.3], color=colour, linewidth=2)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlabel(f"top-1 (%) after {report['iters']} iterations; a point for each seed, a bar for their mean")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
    print(f"written: {path}")


def main() -> None:
    parser = common.make_parser(__doc__, own_processes=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and val/<class>/")
    parser.add_argument("--save_dir", default="output/ablations", help="folder of the runs; default output/ablations")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iters", type=int, default=400, help="of 64 images; default 400")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels; default 64")
    parser.add_argument("--eval_size", type=int, default=96, help="of the comparison of alignments; default 96")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    print(SETTINGS)
    runs = [run(args, name, seed) for seed in args.seeds for name in args.models]  # stopped, there are whole seeds
    aligned = [align(args, one, seed) for seed in args.seeds for one in ALIGNMENTS if "full" in args.models]
    report = {"iters": args.iters, "batch_size": 64, "size": args.size, "eval_size": args.eval_size}
    report |= {"seeds": args.seeds, **summarize(runs, aligned)}
    print_table(report)
    common.write_json(args.json, report)
    if args.plot:
        draw(report, args.plot)


if __name__ == "__main__":
    main()
