"""Models: the vHeat backbone, its classifier, UPerNet in the published layout, and segmentors for pixel contrast."""

from paddle_vheat.models import evaluated as _evaluated  # noqa: F401 - registers its forms
from paddle_vheat.models import trained as _trained  # noqa: F401 - registers its forms
from paddle_vheat.models.classifier import VHeatClassifier
from paddle_vheat.models.contrast import PixelContrastSegmentor, ProjectionHead, UPerNetContrast
from paddle_vheat.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from paddle_vheat.models.registry import create_model, list_models, register_model
from paddle_vheat.models.restoration import RestorationNet, build_swin_ir, build_vheat_ir
from paddle_vheat.models.upernet import UPerNet
from paddle_vheat.models.vheat import VARIANTS, VHeat

__all__ = [
    "VARIANTS",
    "MaskRCNN",
    "PixelContrastSegmentor",
    "ProjectionHead",
    "RestorationNet",
    "UPerNet",
    "UPerNetContrast",
    "VHeat",
    "VHeatClassifier",
    "build_mask_rcnn",
    "build_swin_ir",
    "build_vheat_ir",
    "create_model",
    "list_models",
    "register_model",
]
