"""Losses: the cross-image pixel contrast and its memory bank."""

from paddle_vheat.losses.info_nce import info_nce
from paddle_vheat.losses.memory_bank import MemoryBank
from paddle_vheat.losses.pixel_contrast import PixelContrastLoss

__all__ = ["MemoryBank", "PixelContrastLoss", "info_nce"]
