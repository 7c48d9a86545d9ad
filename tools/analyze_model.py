"""Parameters and multiply-adds of a model by part, in the training form and folded for inference.

python tools/analyze_model.py --model vheat_base --size 224
python tools/analyze_model.py --config configs/vheat_t_ade20k.yml --size 512
"""

from __future__ import annotations

import argparse
import sys

from paddle_vheat.cpu import configure_cpu


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count parameters and multiply-adds by part, in both forms.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="vheat_tiny, vheat_small or vheat_base")
    which.add_argument("--config", help="configuration of any model with a vHeat backbone")
    parser.add_argument(
        "--size", nargs="+", type=int, metavar="N", help="pixels: N, or H W; default 224, or the configuration's"
    )
    args = parser.parse_args(argv)
    if "paddle" not in sys.modules:
        configure_cpu()
    from paddle_vheat.analysis.cost import PUBLISHED, count, total
    from paddle_vheat.models import create_model
    from paddle_vheat.models.vheat import VHeat, size_pair
    from paddle_vheat.ops import fold

    try:
        given = args.size or [224]
        size = size_pair(given[0] if len(given) == 1 else given, "--size")
        if args.model:
            model = create_model(args.model, img_size=size)
        else:
            from paddle_vheat.config import load_config
            from paddle_vheat.tasks import find_task

            config = load_config(args.config)
            task = find_task(config, args.config)[1].make_task(config, args.config, None, None)
            model = task.build_model(pretrained=False)
            backbones = [layer for layer in model.sublayers() if isinstance(layer, VHeat)]
            if not args.size and backbones:
                size = backbones[0].img_size
        training, folded = count(model, size), count(fold(model, size), size)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parts = [*training, *(part for part in folded if part not in training)]
    width = max(len(part) for part in parts)
    print(f"{args.model or args.config}, {size[0]} x {size[1]} pixels")
    print(f"{'':<{width}} {'training form':>24} {'folded':>24}")
    print(f"{'part':<{width}} {'parameters':>12} {'Gmult-adds':>11} {'parameters':>12} {'Gmult-adds':>11}")
    for name in parts:
        cells = []
        for costs in (training, folded):
            cost = costs.get(name)
            cells += (
                [f"{cost.parameters:12,d}", f"{cost.multiply_adds / 1e9:11.3f}"]
                if cost
                else [f"{'-':>12}", f"{'-':>11}"]
            )
        print(f"{name:<{width}} {' '.join(cells)}")
    sums = [total(costs) for costs in (training, folded)]
    cells = [cell for cost in sums for cell in (f"{cost.parameters:12,d}", f"{cost.multiply_adds / 1e9:11.3f}")]
    print(f"{'total':<{width}} {' '.join(cells)}")
    if args.model in PUBLISHED and size == (224, 224):
        parameters, operations = PUBLISHED[args.model]
        print(f"published (folded form): {parameters}M parameters, {operations}G multiply-adds")
        if args.model == "vheat_base":
            print("the paper's last version prints 68M and 11.2G for base; no public configuration gives that")
    return 0


if __name__ == "__main__":
    sys.exit(main())
