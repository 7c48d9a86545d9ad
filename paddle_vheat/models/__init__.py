"""Models: the vHeat trunk, its classifier, and UPerNet in the published layout."""

from paddle_vheat.models.registry import create_model, list_models
from paddle_vheat.models.upernet import UPerNet
from paddle_vheat.models.vheat import VARIANTS, VHeat, VHeatClassifier

__all__ = ["VARIANTS", "UPerNet", "VHeat", "VHeatClassifier", "create_model", "list_models"]
