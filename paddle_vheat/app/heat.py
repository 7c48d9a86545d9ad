"""What the page shows of heat: the arrays are those of :mod:`paddle_vheat.analysis`.

Decays depend on the weights and the size of the input, and on no picture. So they are computed once, for the size that
the network is made for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paddle_vheat._files import finite
from paddle_vheat._paddle import paddle
from paddle_vheat.analysis import Observation, conduction, observe, reach
from paddle_vheat.analysis.conduction import mean_over_channels
from paddle_vheat.analysis.observe import input_shape
from paddle_vheat.app.pictures import data_url, ramp, veil
from paddle_vheat.errors import UserError

TIMES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Stops of the time slider; the operator's own time is 1."""

QUANTILES = (0.1, 0.5, 0.9)


class HeatView:
    """The operators of a network, for the page.

    Args:
        model: a network with heat conduction, not folded.

    Raises:
        ValueError: if it holds none.
    """

    def __init__(self, model: Any) -> None:
        channels, height, width = input_shape(model)
        seen = observe(model, paddle.zeros([1, channels, height, width]))
        if not seen:
            raise ValueError("its heat conduction has no decay: it is an ablation with a filter of Fourier modes")
        self.size = height, width
        self._decays = [one.decay for one in seen]
        self._blocks = [_describe(one) for one in seen]

    def describe(self) -> dict[str, Any]:
        """Input size, stops of the time slider, and of every block its place, k and reach: plain values for JSON."""
        return {"size": list(self.size), "times": list(TIMES), "blocks": self._blocks}

    def spread(self, block: int, y: float, x: float, time: float) -> dict[str, Any]:
        """Heat that has spread from a place.

        Args:
            block: its number in :meth:`describe`.
            y, x: the place, as shares of the picture's height and width, from 0 to 1.
            time: from 0 to the last of ``TIMES``.

        Returns:
            ``picture`` (a pixel for each patch), ``patch`` [row, column], and of the heat ``sum``, ``peak``,
            ``minimum`` and ``largest`` (in magnitude; the end of the colours).

        Raises:
            UserError: for a block, place or time that does not exist, and a time that this block's filter has not.
        """
        if not 0 <= block < len(self._decays):
            raise UserError(f"block {block} does not exist; expected 0 to {len(self._decays) - 1}")
        if not (0 <= y <= 1 and 0 <= x <= 1):  # true for NaN
            raise UserError(f"the place (y {y:g}, x {x:g}) is outside the picture; expected 0 to 1")
        if not 0 <= time <= TIMES[-1]:
            raise UserError(f"the time {time:g} is not possible; expected 0 to {TIMES[-1]:g}")
        decay = self._decays[block]
        height, width = decay.shape[:2]
        patch = min(int(y * height), height - 1), min(int(x * width), width - 1)
        if time != int(time) and decay.min() < 0:
            raise UserError(
                f"this block's filter is negative somewhere, so it has no time {time:g}; expected 0, 1, 2 ..."
            )
        heat = conduction(decay, patch, (time,))[0]
        numbers = {"sum": float(heat.sum()), "peak": float(heat.max()), "minimum": float(heat.min())}
        numbers["largest"] = max(abs(numbers["peak"]), abs(numbers["minimum"]))
        return finite({"picture": data_url(veil(heat)), "patch": list(patch), **numbers})


def _describe(one: Observation) -> dict[str, Any]:
    sigma = reach(one.decay)
    return finite(
        {
            "stage": one.stage + 1,
            "block": one.block + 1,
            "patches": list(one.size),
            "stride": one.stride,
            "reach": sigma,
            "reach_pixels": sigma * one.stride,
            "k": _diffusivity(one.k),
        }
    )


def _diffusivity(k: np.ndarray) -> dict[str, Any] | None:
    """Of k (H, W, C) its picture on the plane of modes, and figures; None if none of it is known."""
    known = k[~np.isnan(k)]
    if not known.size:
        return None
    plane = mean_over_channels(k)
    highest = float(np.nanmax(plane))
    return {
        "picture": data_url(ramp(plane, highest)),
        "highest": highest,
        "mean": float(known.mean()),
        "quantiles": np.quantile(known, QUANTILES).tolist(),
        "share_of_zeros": float((known == 0).mean()),
    }
