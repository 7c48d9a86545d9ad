"""Train a model; see `python train.py --help`."""

import sys

from paddle_vheat.cli import train

if __name__ == "__main__":
    sys.exit(train())
