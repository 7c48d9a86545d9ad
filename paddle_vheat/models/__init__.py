"""Models: the vHeat backbone, its classifier, UPerNet in the published layout, and segmentors for pixel contrast."""

from paddle_vheat.models.contrast import PixelContrastSegmentor, ProjectionHead, UPerNetContrast
from paddle_vheat.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from paddle_vheat.models.registry import create_model, list_models, register_model
from paddle_vheat.models.upernet import UPerNet
from paddle_vheat.models.vheat import VARIANTS, VHeat, VHeatClassifier

__all__ = [
    "VARIANTS",
    "MaskRCNN",
    "PixelContrastSegmentor",
    "ProjectionHead",
    "UPerNet",
    "UPerNetContrast",
    "VHeat",
    "VHeatClassifier",
    "build_mask_rcnn",
    "create_model",
    "list_models",
    "register_model",
]
