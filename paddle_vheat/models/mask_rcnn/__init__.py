"""Mask R-CNN on vHeat, for object detection and instance segmentation."""

from paddle_vheat.models.mask_rcnn.assign import random_sampler
from paddle_vheat.models.mask_rcnn.model import MODELS, MaskRCNN, Selection, build_mask_rcnn

__all__ = ["MODELS", "MaskRCNN", "Selection", "build_mask_rcnn", "random_sampler"]
