"""Evaluate a model; see `python val.py --help`."""

import sys

from paddle_vheat.cli import val

if __name__ == "__main__":
    sys.exit(val())
