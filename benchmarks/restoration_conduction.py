"""Does conduction earn its place in denoising? A small vHeatIR trained in several ways, each with and without its k.

    python benchmarks/restoration_conduction.py --train data/BSD400 --val data/Set12 --json FILE

All see the same number of pixels, in the same number of iterations. Finished runs in ``--save_dir`` are kept, and one
that was killed starts again. Each way is one answer to "k starts near 0, and nothing makes it grow".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

SETTINGS = configure_cpu()

import _common as common  # noqa: E402
import numpy as np  # noqa: E402

from paddle_vheat._files import write_output  # noqa: E402
from paddle_vheat._paddle import paddle  # noqa: E402
from paddle_vheat.config import load_config  # noqa: E402
from paddle_vheat.engine.evaluate import evaluate  # noqa: E402
from paddle_vheat.engine.optim import Factors, TrainOptions  # noqa: E402
from paddle_vheat.engine.trainer import Trainer  # noqa: E402
from paddle_vheat.ops import HeatConduction2D  # noqa: E402
from paddle_vheat.tasks.restoration.task import RestorationTask  # noqa: E402

CONFIG = common.ROOT / "configs" / "vheat_ir_light_gray_dn25.yml"


def operators(model: Any) -> list[HeatConduction2D]:
    return [layer for layer in model.sublayers() if isinstance(layer, HeatConduction2D)]


def without(model: Any) -> None:
    """k is 0 and stays it: ReLU has no gradient there, and what it would come from is frozen."""
    for layer in operators(model):
        for parameter in layer.to_k.parameters():
            parameter.set_value(paddle.zeros_like(parameter))
            parameter.stop_gradient = True


def spread(model: Any) -> None:
    """k is from 0 to 2 over the channels."""
    for layer in operators(model):
        layer.to_k.bias.set_value(paddle.linspace(0.0, 2.0, layer.channels))


def of_k(model: Any, factors: Factors) -> dict[str, Factors]:
    """These factors for all that k is computed from."""
    names = [name for name, _ in model.named_parameters()]
    return {name: factors for name in names if "to_k" in name or name.endswith("frequency_embedding")}


def decayed(model: Any) -> dict[str, Factors]:
    chosen = of_k(model, Factors())
    return {name: Factors(decay=0.0) for name, _ in model.named_parameters() if name not in chosen}


NOTHING: Callable[[Any], Any] = lambda model: {}  # noqa: E731
FASTER: Callable[[Any], Any] = lambda model: of_k(model, Factors(lr=10.0))  # noqa: E731
# What changes in the configuration, in the fresh model, and in the learning rate and weight decay of its parameters.
WAYS: dict[str, tuple[list[str], Callable[[Any], Any], Callable[[Any], Mapping[str, Factors]]]] = {
    "as configured": ([], NOTHING, NOTHING),
    "never any conduction": ([], without, NOTHING),
    "k from 0 to 2 at the start": ([], spread, NOTHING),
    "rate x 10 for k": ([], NOTHING, FASTER),
    "k from 0 to 2, rate x 10": ([], spread, FASTER),
    "weight decay 0.001 for k": (["optimizer.weight_decay=0.001"], NOTHING, decayed),
    "crops twice as large": (["train.crop=96", "batch_size=2", "model.freq_size=96"], NOTHING, NOTHING),
}


class Way(RestorationTask):
    def __init__(self, args: argparse.Namespace, name: str) -> None:
        changes, self.prepare_model, self.factors = WAYS[name]
        folders = [f"train.folders={json.dumps(args.train)}", f"val.folders={json.dumps(args.val)}"]
        config = load_config(CONFIG, [*folders, "batch_size=8", f"iters={args.iters}", *changes])
        super().__init__(config, name, argparse.Namespace(ablate="k=0"))

    def build_model(self, pretrained: bool = True) -> Any:
        model = super().build_model(pretrained)
        self.prepare_model(model)
        return model

    def parameter_factors(self, model: Any) -> Mapping[str, Factors]:
        return self.factors(model)


def diffusivities(model: Any) -> list[dict[str, float]]:
    """Mean of k and share of k = 0 in every group of blocks."""
    found = []
    for group in model.groups:
        ks = np.stack([b.mixer.thermal_diffusivity(group.frequency_embedding).numpy() for b in group.blocks])
        found.append({"k_mean": float(ks.mean()), "k_zero_share": float((ks == 0).mean())})
    return found


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train and score one; its result is kept in its folder."""
    folder = Path(args.save_dir) / f"{list(WAYS).index(name)}-{seed}"
    result = folder / "result.json"
    if not result.is_file():
        task: Any = Way(args, name)
        options = TrainOptions(
            iters=args.iters, save_interval=args.iters, save_dir=str(folder), seed=seed, log_iters=100,
            resume_model="auto", keep_checkpoint_max=1,
        )  # fmt: skip
        trainer = Trainer(task, options)
        if trainer.run()["stopped"]:
            raise KeyboardInterrupt
        scores = evaluate(task, trainer.model, progress=False)
        assert scores is not None  # nothing stops it
        means = {kind: values["PSNR"] for kind, values in scores.report["means"].items()}
        found = {"way": name, "seed": seed, "psnr": means, "groups": diffusivities(trainer.model)}
        write_output(str(result), json.dumps(found, indent=1) + "\n")
        print(f"{name}, seed {seed}: {means}", flush=True)
    return json.loads(result.read_text(encoding="utf-8"))


def print_table(runs: list[dict[str, Any]]) -> None:
    print("| | PSNR (dB) by seed | the same with k = 0 | mean k, groups 1 to 4 | share of k = 0 |")
    print("|---|---|---|---|---|")
    for name in WAYS:
        mine = [r for r in runs if r["way"] == name]
        if mine:
            scores = [", ".join(f"{r['psnr'][kind]:.2f}" for r in mine) for kind in ("restored", "k=0")]
            for key in ("k_mean", "k_zero_share"):
                by_group = zip(*([group[key] for group in r["groups"]] for r in mine))
                scores.append(", ".join(f"{statistics.mean(values):.3f}" for values in by_group))
            print(f"| {name} | {' | '.join(scores)} |")


def main() -> None:
    parser = common.make_parser(__doc__, own_processes=False)
    parser.add_argument("--train", nargs="+", required=True, help="folders of images to train on")
    parser.add_argument("--val", nargs="+", required=True, help="folders of images to score")
    parser.add_argument("--save_dir", default="output/conduction", help="folder of the runs; default output/conduction")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="NAME", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--iters", type=int, default=400, help="of 18,432 pixels; default 400")
    args = parser.parse_args()
    print(SETTINGS)
    runs = [run(args, name, seed) for seed in args.seeds for name in args.ways]  # stopped, there are whole seeds
    print_table(runs)
    common.write_json(args.json, {"iters": args.iters, "seeds": args.seeds, "runs": runs})


if __name__ == "__main__":
    main()
