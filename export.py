"""Export a model; see `python export.py --help`."""

import sys

from paddle_vheat.cli import export

if __name__ == "__main__":
    sys.exit(export())
