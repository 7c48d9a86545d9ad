"""Backward pass of bilinear resizing on the CPU: two matrix products beside Paddle's own.

python benchmarks/bilinear_backward.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from paddle_vheat.cpu import configure_cpu

print(configure_cpu())

from paddle_vheat._paddle import F, paddle  # noqa: E402
from paddle_vheat.ops import resize_bilinear  # noqa: E402

# (batch, channels, old side lengths, new side lengths): logits of the demo, of Cityscapes crops, of ADE20K crops.
CASES = [(8, 19, (32, 64), (128, 256)), (2, 19, (128, 256), (512, 1024)), (2, 150, (128, 128), (512, 512))]


def backward_ms(resize: Any, case: tuple, repeats: int = 5) -> float:
    """Median time of the backward pass alone, in milliseconds."""
    batch, channels, old, new = case
    x = paddle.randn([batch, channels, *old])
    x.stop_gradient = False
    times = []
    for _ in range(repeats + 1):
        y = resize(x, list(new)).sum()
        start = time.perf_counter()
        y.backward()
        times.append(time.perf_counter() - start)
        x.clear_grad()
    return 1e3 * sorted(times[1:])[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the backward pass of bilinear resizing.")
    parser.add_argument("--json", metavar="FILE", help="also write the table here")
    args = parser.parse_args()
    rows = []
    print(f"{'case':<44} {'Paddle':>10} {'products':>10} {'ratio':>7}")
    for case in CASES:
        batch, channels, old, new = case
        theirs = backward_ms(lambda x, size: F.interpolate(x, size, mode="bilinear"), case)
        ours = backward_ms(resize_bilinear, case)
        name = f"{batch} x {channels} x {old[0]} x {old[1]} -> {new[0]} x {new[1]}"
        print(f"{name:<44} {theirs:>7.1f} ms {ours:>7.1f} ms {theirs / ours:>6.1f}x")
        rows.append({"case": name, "paddle_ms": theirs, "products_ms": ours, "ratio": theirs / ours})
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
