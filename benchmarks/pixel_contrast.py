"""The pixel contrast loss beside PaddleSeg's, forward and backward, at the scale of a Cityscapes batch.

    python benchmarks/pixel_contrast.py [--json FILE] [--step]

Two images of 512 x 1024 with embeddings at a quarter of that (128 x 256), 19 classes. The same tensors go through
PaddleSeg's ``PixelContrastCrossEntropyLoss`` and ours, in one run, taking turns. With ``PADDLE_VHEAT_CPU=off`` in the
environment it runs as Paddle is by default, which is what a PaddleSeg project has. ``--step`` also times a training
step of HRNet_W48 with the loss (minutes on a CPU, and 20 GB), to say what share of it the loss is.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from paddle_vheat.cpu import configure_cpu

print(configure_cpu())

import _common as common  # noqa: E402

from paddle_vheat._paddle import F, paddle  # noqa: E402
from paddle_vheat.integrations.paddleseg import registry  # noqa: E402
from paddle_vheat.losses import PixelContrastLoss  # noqa: E402

IMAGES, CLASSES, HEIGHT, WIDTH = 2, 19, 128, 256


def make_batch(channels: int) -> tuple[dict[str, Any], Any]:
    """Logits that are right for about 70 % of the pixels, embeddings of length 1, labels in blocks of 32 x 32."""
    paddle.seed(0)
    blocks = paddle.randint(0, CLASSES, [IMAGES, HEIGHT // 8, WIDTH // 8])
    small = blocks.repeat_interleave(8, axis=1).repeat_interleave(8, axis=2)
    wrong = paddle.rand(small.shape) < 0.3
    predicted = paddle.where(wrong, paddle.randint(0, CLASSES, small.shape), small)
    logits = F.one_hot(predicted, CLASSES).transpose([0, 3, 1, 2])
    embedding = F.normalize(paddle.randn([IMAGES, channels, HEIGHT, WIDTH]), axis=1)
    embedding.stop_gradient = False
    label = small.repeat_interleave(4, axis=1).repeat_interleave(4, axis=2)
    return {"seg": logits, "embed": embedding}, label


def time_once(loss: Any, preds: dict[str, Any], label: Any) -> float:
    """Seconds of forward and backward."""
    preds["embed"].clear_grad()
    start = time.perf_counter()
    loss(preds, label).backward()
    return time.perf_counter() - start


def fill(bank: Any) -> None:
    """Random entries in every slot, as after some hundred steps."""
    for part in ("segment", "pixel"):
        queue = getattr(bank, f"{part}_queue")
        queue.set_value(F.normalize(paddle.randn(queue.shape), axis=2))
        getattr(bank, f"{part}_count").set_value(paddle.full([CLASSES], bank.memory_size, dtype="int64"))


def compare(channels: int, rounds: int) -> dict[str, float]:
    preds, label = make_batch(channels)
    theirs: Any = registry()["PixelContrastCrossEntropyLoss"]
    losses = {"PaddleSeg": theirs(), "ours": PixelContrastLoss()}
    losses["ours, bank"] = PixelContrastLoss(
        temperature=0.07, max_views=1, memory_size=5000, num_classes=CLASSES, proj_dim=channels
    )
    fill(losses["ours, bank"].bank)
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            for _ in range(1 if name == "PaddleSeg" else 3):
                times[name].append(time_once(loss, preds, label))
    return {name: statistics.median(values) for name, values in times.items()}


def training_step() -> dict[str, float]:
    """Seconds of a step of HRNet_W48 with both heads at 512 x 1024, batch 1, and of the loss in it."""
    from paddle_vheat.integrations.paddleseg import PixelContrastSegmentor

    backbone: Any = registry()["HRNet_W48"]
    model = PixelContrastSegmentor(num_classes=CLASSES, backbone=backbone(), proj_dim=720)
    loss, images = PixelContrastLoss(), paddle.randn([1, 3, 4 * HEIGHT, 4 * WIDTH])
    label = make_batch(8)[1][:1]
    spent = 0.0

    def contrast(preds: dict[str, Any]) -> Any:
        nonlocal spent
        # Its own backward pass, apart from the network's.
        embedding = preds["embed"].detach()
        embedding.stop_gradient = False
        start = time.perf_counter()
        value = loss({"seg": preds["seg"].detach(), "embed": embedding}, label)
        value.backward()
        spent = time.perf_counter() - start
        return (preds["embed"] * embedding.grad).sum()

    def step() -> None:
        logits, preds = model(images)
        (F.cross_entropy(logits, label, axis=1) + 0.1 * contrast(preds)).backward()

    return {"step": common.seconds(step, repeats=1), "loss": spent}


def main() -> None:
    parser = common.make_parser(__doc__, rounds=3, own_processes=False)
    parser.add_argument("--step", action="store_true", help="also time a training step of HRNet_W48")
    args = parser.parse_args()
    report: dict[str, Any] = {"paddle": paddle.__version__}
    print(f"{IMAGES} embeddings of {HEIGHT} x {WIDTH}, {CLASSES} classes; seconds, forward + backward (median)")
    print(f"{'D':>5} {'PaddleSeg':>10} {'ours':>8} {'ratio':>7} {'ours, bank of 5000':>20}")
    for channels in (256, 720):
        found = compare(channels, args.rounds)
        ratio = found["PaddleSeg"] / found["ours"]
        report[f"D={channels}"] = {**found, "ratio": ratio}
        theirs, ours, bank = (found[name] for name in ("PaddleSeg", "ours", "ours, bank"))
        print(f"{channels:>5} {theirs:>10.2f} {ours:>8.3f} {ratio:>6.0f}x {bank:>20.3f}")
    if args.step:
        report["HRNet_W48 step"] = found = training_step()
        print(
            f"training step of HRNet_W48, 512 x 1024, batch 1: {found['step']:.1f} s, of which the loss "
            f"{found['loss']:.2f} s ({100 * found['loss'] / found['step']:.1f} %)"
        )
    common.write_json(args.json, report)


if __name__ == "__main__":
    main()
