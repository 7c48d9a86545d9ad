"""The discrete cosine transform and the Heat Conduction Operator."""

from paddle_vheat.ops.dct import cosine_basis, dct, dct2, idct, idct2
from paddle_vheat.ops.fold import fold
from paddle_vheat.ops.heat import HeatConduction2D, conduct_heat, heat_decay, squared_frequencies
from paddle_vheat.ops.pool import adaptive_average_pool
from paddle_vheat.ops.resize import resize_bicubic, resize_bilinear

__all__ = [
    "HeatConduction2D",
    "adaptive_average_pool",
    "conduct_heat",
    "cosine_basis",
    "dct",
    "dct2",
    "fold",
    "heat_decay",
    "idct",
    "idct2",
    "resize_bicubic",
    "resize_bilinear",
    "squared_frequencies",
]
