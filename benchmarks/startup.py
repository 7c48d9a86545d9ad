"""What a command takes before it does something: processor seconds of the process, and of `import paddle` alone.

    python benchmarks/startup.py [--root ANOTHER_CHECKOUT]

One thread, the lowest of ``--rounds`` in turns; the first, which compiles Python files and kernels, does not count.
Reads data/street_scenes (`make demo` writes it) and configs/demo*.yml of the checkout.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ONE_STEP = ["--iters", "1", "--save_interval", "1"]


def processor_seconds(command: list[str], root: Path) -> float:
    """User and system time of a process and its children."""
    dropped = "PYTHONDONTWRITEBYTECODE"
    environment = {name: value for name, value in os.environ.items() if name != dropped}
    environment.update(PYTHONPATH=str(root), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    before = os.times()
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def jobs(root: Path, out: str) -> dict[str, list[str]]:
    weights = f"{out}/demo/iter_1/model.pdparams"
    scenes = sorted((root / "data/street_scenes/leftImg8bit/val").rglob("*.png"))
    demo, digits = ["--config", "configs/demo.yml"], ["--config", "configs/demo_digits.yml"]
    return {
        "import paddle": ["-c", "import paddle"],
        "import paddle_vheat": ["-c", "import paddle_vheat"],
        "import paddle_vheat.models": ["-c", "import paddle_vheat.models"],
        "train.py, digits, first step": ["train.py", *digits, "--save_dir", f"{out}/digits", *ONE_STEP],
        "train.py, segmentation, first step": ["train.py", *demo, "--save_dir", f"{out}/demo", *ONE_STEP],
        "predict.py, segmentation, one picture": [
            "predict.py", *demo, "--model_path", weights, "--image_path", str(scenes[0]),
            "--save_dir", f"{out}/pictures",
        ],
    }  # fmt: skip


def one_round(root: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        return {name: processor_seconds(command, root) for name, command in jobs(root, out).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout whose commands are run; default: this one")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds = [one_round(args.root.resolve()) for _ in range(args.rounds + 1)]
    print("| | processor seconds |\n|---|---|")
    for name in rounds[0]:
        print(f"| {name} | {min(one[name] for one in rounds[1:]):.2f} |")


if __name__ == "__main__":
    main()
