"""Mask R-CNN on vHeat, for object detection and instance segmentation."""

from functools import partial

from paddle_vheat.models.mask_rcnn.assign import random_sampler
from paddle_vheat.models.mask_rcnn.model import MODELS, MaskRCNN, Selection, build_mask_rcnn
from paddle_vheat.models.registry import register_model

for _name in MODELS:
    register_model(_name, partial(build_mask_rcnn, _name))

__all__ = ["MODELS", "MaskRCNN", "Selection", "build_mask_rcnn", "random_sampler"]
