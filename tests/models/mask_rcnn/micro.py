"""The micro detector of the reference, and its two cases."""

from __future__ import annotations

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.models.mask_rcnn import MaskRCNN, Selection
from paddle_vheat.models.vheat import VHeat
from paddle_vheat.weights.key_map import convert_state
from paddle_vheat.weights.loading import load_state
from paddle_vheat.weights.torch_file import read_torch_file

MEAN = np.asarray([123.675, 116.28, 103.53], np.float32)
STD = np.asarray([58.395, 57.12, 57.375], np.float32)
CASES = ("a", "b")  # one image; two of different sizes in one batch


def micro_backbone() -> VHeat:
    return VHeat(embed_dim=16, depths=(1, 1, 1, 1), img_size=64, drop_path_rate=0.0)


def micro_detector(**selection) -> MaskRCNN:
    numbers = {"train_per_level": 200, "test_per_level": 200, "proposals": 60, "rpn_samples": 64, "roi_samples": 32}
    return MaskRCNN(5, micro_backbone(), 32, 48, Selection(**{**numbers, **selection}))


def reference_detector(path, **selection) -> MaskRCNN:
    model = micro_detector(**selection)
    load_state(model, convert_state(read_torch_file(path)["state_dict"]), "the reference")
    model.eval()
    return model


def batch(data, case):
    """Normalised and padded images (B, 3, H, W) and their sizes (B, 2) of one case of the reference."""
    sizes = data[f"{case}/img_shape"]
    height, width = -(-sizes.max(axis=0) // 32) * 32
    images = np.zeros((len(sizes), 3, height, width), np.float32)
    for i, (h, w) in enumerate(sizes):
        rgb = data[f"{case}/image{i}_bgr"][..., ::-1].astype(np.float32)
        images[i, :, :h, :w] = ((rgb - MEAN) / STD).transpose(2, 0, 1)
    return paddle.to_tensor(images), paddle.to_tensor(sizes)


def unpack(packed, width):
    return np.unpackbits(packed, axis=-1, count=width)


def targets(data, case):
    sizes = data[f"{case}/img_shape"]
    return [
        {
            "boxes": data[f"{case}/gt{i}_boxes"],
            "labels": data[f"{case}/gt{i}_labels"],
            "masks": unpack(data[f"{case}/gt{i}_masks_packed"], int(w)),
            "image_size": (int(h), int(w)),
        }
        for i, (h, w) in enumerate(sizes)
    ]


def every_nth(n, k):
    """The sampler that the reference was made with."""
    return np.arange(k) * n // k
