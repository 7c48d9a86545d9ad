"""Learning-rate schedules that paddle.optimizer.lr does not have in closed form."""

from __future__ import annotations

import math

from paddle_vheat._paddle import paddle


class WarmupCosine(paddle.optimizer.lr.LRScheduler):
    """Linear warm-up, then a half cosine, stepped per iteration; every value is computed from its step alone.

    For step t of ``total``: ``start + (peak - start) t / warmup`` in the first ``warmup`` steps, then
    ``end + (peak - end) (1 + cos(pi (t - warmup) / (total - warmup))) / 2``.

    Args:
        peak: learning rate after the warm-up.
        total: steps in all.
        warmup: steps of warm-up.
        start: learning rate of step 0.
        end: learning rate that the cosine goes down to.
    """

    def __init__(self, peak: float, total: int, warmup: int = 0, start: float = 0.0, end: float = 0.0) -> None:
        if not 0 <= warmup < total:
            raise ValueError(f"the warm-up of {warmup} steps must be shorter than the run of {total}")
        self.peak, self.total, self.warmup, self.start, self.end = peak, total, warmup, start, end
        super().__init__(learning_rate=peak)

    def get_lr(self) -> float:
        step = min(self.last_epoch, self.total)
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        progress = (step - self.warmup) / (self.total - self.warmup)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
