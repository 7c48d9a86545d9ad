"""How well a segmentation model keeps the classes apart: cosine similarities and a picture of its pixel features.

python tools/embedding_report.py --config configs/demo_contrast.yml --model_path output/demo_contrast/best_model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from paddle_vheat.cpu import configure_cpu


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Similarity of pixel features within and between classes on the validation set, and a picture."
    )
    parser.add_argument("--config", required=True, help="segmentation configuration")
    parser.add_argument("--model_path", required=True, help="checkpoint, or a folder with model.pdparams")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY=VALUE", help="as of train.py")
    parser.add_argument("--pixels", type=int, default=20, help="pixels drawn per class and image; default 20")
    parser.add_argument("--method", choices=("pca", "tsne"), default="tsne", help="of the picture; default tsne")
    parser.add_argument("--seed", type=int, default=0, help="of the pixels and the picture; default 0")
    parser.add_argument("--save_dir", default="output/embedding", help="default output/embedding")
    return parser.parse_args(argv)


def report(args: argparse.Namespace) -> None:
    if args.pixels < 2:
        raise ValueError(f"--pixels must be at least 2, got {args.pixels}")
    from paddle_vheat._files import write_atomically
    from paddle_vheat.cli import load_checkpoint
    from paddle_vheat.config import load_config
    from paddle_vheat.errors import UserError
    from paddle_vheat.tasks import find_task
    from paddle_vheat.tasks.segmentation import embedding
    from paddle_vheat.tasks.segmentation.task import SegmentationTask

    config = load_config(args.config, args.opts)
    if find_task(config, args.config)[0] != "segmentation":
        raise UserError(f"{args.config} is no segmentation configuration")
    task = SegmentationTask(config, args.config)
    model = task.build_model(pretrained=False)
    load_checkpoint(task, model, args.model_path)
    names = task.class_names
    found = embedding.collect(model, task.dataset("val"), task.num_classes, args.pixels, args.seed)
    summary, panels = {}, {}
    for kind, samples in found.items():
        similarity = embedding.cosine_similarities(samples, task.num_classes)
        summary[kind] = {"intra_class": similarity.intra, "inter_class": similarity.inter, "pixels": len(samples.rows)}
        print(f"\n{kind}: {len(samples.rows)} pixels of width {samples.rows.shape[1]}")
        print(f"{'class':<16} {'within':>8} {'nearest class':>14}")
        for name, within, nearest in zip(names, similarity.per_class, similarity.nearest):
            print(f"{name:<16} {within:>8.3f} {nearest:>14.3f}")
        print(f"mean cosine similarity within a class {similarity.intra:.3f}, between classes {similarity.inter:.3f}")
        panels[f"{kind}: within {similarity.intra:.2f}, between {similarity.inter:.2f}"] = embedding.project(
            samples, args.method, seed=args.seed
        )
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"config": args.config, "model_path": args.model_path, **summary}, indent=1) + "\n"
    write_atomically(folder / "similarity.json", lambda path: Path(path).write_text(text, encoding="utf-8"))
    write_atomically(folder / "embedding.png", lambda path: embedding.draw_picture(path, panels, names, task.palette))
    print(f"\nwritten: {folder / 'similarity.json'}, {folder / 'embedding.png'}")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if "paddle" not in sys.modules:
        configure_cpu()
    try:
        report(args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
