"""Run a script of a source checkout of PaddleSeg, PaddleClas or PaddleDetection, as it is, with vHeat registered:

    python -m paddle_vheat.integrations.run paddleseg tools/train.py --config ...
    python -m paddle_vheat.integrations.run paddleclas tools/train.py -c ...
    python -m paddle_vheat.integrations.run paddledet tools/train.py -c ...

Several processes: ``python -m paddle.distributed.launch`` wants the path of a file, and takes this one's.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from paddle_vheat._arguments import did_you_mean

LIBRARIES = ("paddleclas", "paddledet", "paddleseg")
_HERE = str(Path(__file__).resolve().parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import the integration, then run the script as the main program; returns the exit code.

    Args:
        arguments: the library, the script, and the script's own; None for the command line's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    library, script = (*given, "", "")[:2]
    if library not in LIBRARIES:
        hint = did_you_mean(library, LIBRARIES)
        return _refuse(f"no integration for {library!r}{hint} (known: {', '.join(LIBRARIES)})")
    if not os.path.isfile(script):
        return _refuse(f"no such script: {script!r}; expected {library} SCRIPT, and the script's own arguments")
    folder = Path(script).resolve().parent
    # As Python itself would have it; the libraries' scripts lie in tools/, and want the checkout around it.
    roots = [folder, folder.parent] if folder.name == "tools" else [folder]
    # Beside this file lies one of the library's own name.
    sys.path[:] = [*map(str, roots), *(entry for entry in sys.path if os.path.realpath(entry or ".") != _HERE)]
    try:
        importlib.import_module(f"paddle_vheat.integrations.{library}")
    except ImportError as error:
        return _refuse(f"{library} cannot be imported: {error}")
    sys.argv = [script, *given[2:]]
    runpy.run_path(script, run_name="__main__")
    return 0


def _refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
