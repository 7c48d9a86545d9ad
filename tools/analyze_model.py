"""Parameters and multiply-adds of a model by part, in the training form and folded for inference.

python tools/analyze_model.py --model vheat_base --size 224
python tools/analyze_model.py --config configs/vheat_t_ade20k.yml --size 512
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from paddle_vheat.cli_tools import run_tool
from paddle_vheat.config import load_config
from paddle_vheat.tasks import find_task


def analyze(args: argparse.Namespace) -> None:
    from paddle_vheat.analysis.cost import PUBLISHED, count, total
    from paddle_vheat.models import create_model
    from paddle_vheat.models.vheat import VHeat, size_pair
    from paddle_vheat.ops import fold

    given = args.size or [224]
    size = size_pair(given[0] if len(given) == 1 else given, "--size")
    if args.model:
        model = create_model(args.model, img_size=size)
    else:
        config = load_config(args.config)
        task = find_task(config, args.config)[1].make_task(config, args.config, None, None)
        model = task.build_model(pretrained=False)
        backbones = [layer for layer in model.sublayers() if isinstance(layer, VHeat)]
        if not args.size and backbones:
            size = backbones[0].img_size
    training, folded = count(model, size), count(fold(model, size), size)
    parts = [*training, *(part for part in folded if part not in training)]
    width = max(len(part) for part in parts)
    print(f"{args.model or args.config}, {size[0]} x {size[1]} pixels")
    print(f"{'':<{width}} {'training form':>24} {'folded':>24}")
    print(f"{'part':<{width}} {'parameters':>12} {'Gmult-adds':>11} {'parameters':>12} {'Gmult-adds':>11}")
    for name in parts:
        print(f"{name:<{width}} {_cells(training.get(name))} {_cells(folded.get(name))}")
    print(f"{'total':<{width}} {_cells(total(training))} {_cells(total(folded))}")
    if args.model in PUBLISHED and size == (224, 224):
        parameters, operations = PUBLISHED[args.model]
        print(f"published (folded form): {parameters}M parameters, {operations}G multiply-adds")
        if args.model == "vheat_base":
            print("the paper's last version prints 68M and 11.2G for base; no public configuration gives that")


def _cells(cost: Any) -> str:
    return f"{'-':>12} {'-':>11}" if cost is None else f"{cost.parameters:12,d} {cost.multiply_adds / 1e9:11.3f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count parameters and multiply-adds by part, in both forms.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="vheat_tiny, vheat_small or vheat_base")
    which.add_argument("--config", help="configuration of any model with a vHeat backbone")
    text = "pixels: N, or H W; default 224, or the configuration's"
    parser.add_argument("--size", nargs="+", type=int, metavar="N", help=text)
    return run_tool(analyze, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
