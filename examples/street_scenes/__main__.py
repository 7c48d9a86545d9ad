"""The command: ``python -m examples.street_scenes --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from examples.street_scenes.dataset import write_dataset


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.street_scenes",
        description="Write procedural street scenes in the layout of Cityscapes, with COCO annotations.",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=200, help="training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=50, help="validation scenes (default %(default)s)")
    parser.add_argument("--height", type=int, default=128, help="in pixels (default %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="in pixels (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace scenes made with other arguments")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 for unusable arguments."""
    args = _parser().parse_args(argv)
    size = (args.height, args.width)
    try:
        written = write_dataset(args.output, args.train, args.val, size, args.seed, overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "written to" if written else "already complete in"
    print(f"{args.train} training and {args.val} validation scenes {state} {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
