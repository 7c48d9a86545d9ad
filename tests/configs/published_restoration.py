"""SwinIR's recipe (arXiv 2108.10257, its release and its training options), which vHeatIR takes over, in our keys.

Nothing here is read from our configurations; see ``published.py``.
"""

from __future__ import annotations

from typing import Any

from tests.configs.published import Deviates

_ITERS = 1_600_000
_MILESTONES = [800_000, 1_200_000, 1_400_000, 1_500_000]
_FOLDERS = [f"data/{name}" for name in ("DIV2K_train_HR", "Flickr2K", "BSD500", "WED")]


def _run(model: dict[str, Any], channels: int, degradation: dict[str, Any], halved: bool, val: str) -> dict[str, Any]:
    """Of 1.6 M iterations; those that start from another run's weights with half of the rate and the milestones."""
    jpeg = degradation["type"] == "jpeg"
    half = 2 if halved else 1
    to_gray = "either" if jpeg else Deviates("opencv", "gray images; how they were made is not said")
    return {
        "task": "restoration",
        "model": {
            "in_channels": channels,
            "width": 180,
            "depths": [6] * 6,
            "mlp_ratio": 2.0,
            "drop_path_rate": 0.1,
            "img_range": 255.0 if jpeg else 1.0,
            **model,
        },
        "pretrained": Deviates(
            None, "for the halved runs the weights of sigma 15 or quality 40, which the user passes"
        ),
        "degradation": degradation,
        "train": {
            "folders": Deviates(_FOLDERS, "their folders of the same images"),
            "crop": 126 if jpeg else 128,
            **({"to_gray": to_gray} if channels == 1 else {}),
        },
        "val": {"folders": Deviates([f"data/{val}"], "their folder"), **({"to_gray": "luma"} if jpeg else {})},
        "loss": {"type": "Charbonnier", "eps": 1e-9},
        "optimizer": {"type": "Adam", "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0},
        "lr_scheduler": {
            "type": "MultiStep",
            "learning_rate": 2e-4 / half,
            "milestones": [milestone // half for milestone in _MILESTONES],
            "gamma": 0.5,
        },
        "batch_size": 8,
        "iters": Deviates(_ITERS // 2, "not said; as the milestones") if halved else _ITERS,
        "ema": 0.999,
    }


def _vheat_ir(patch: int) -> dict[str, Any]:
    return {"name": "vheat_ir", "freq_size": Deviates(patch, "nothing is published; the training patch's size")}


_SWIN_IR = {"name": "swin_ir", "heads": 6, "window": 8}
_CHANNELS = {"gray": (1, "Set12"), "color": (3, "McMaster")}

RUNS = {
    **{
        f"vheat_ir_{kind}_dn{sigma}": _run(_vheat_ir(128), channels, {"type": "noise", "sigma": sigma}, sigma > 15, val)
        for kind, (channels, val) in _CHANNELS.items()
        for sigma in (15, 25, 50)
    },
    **{
        f"vheat_ir_jpeg{quality}": _run(_vheat_ir(126), 1, {"type": "jpeg", "quality": quality}, quality < 40, "LIVE1")
        for quality in (10, 20, 30, 40)
    },
    "swin_ir_gray_dn15": _run(_SWIN_IR, 1, {"type": "noise", "sigma": 15}, False, "Set12"),
}
