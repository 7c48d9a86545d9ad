"""How often something random may happen."""

from __future__ import annotations

import math


def within(count: int, trials: int, prob: float) -> bool:
    """Five standard deviations: with correct code one comparison in 1.7 million fails, and the seeds are fixed."""
    return abs(count - trials * prob) <= 5 * math.sqrt(trials * prob * (1 - prob))
