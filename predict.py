"""Predict images; see `python predict.py --help`."""

import sys

from paddle_vheat.cli import predict

if __name__ == "__main__":
    sys.exit(predict())
