"""What other people's runs were configured with, in our keys; nothing here is read from our configurations.

``Deviates`` marks a value that is not the source's; its text is what the source has.
"""

from __future__ import annotations

from typing import Any


class Deviates:
    """A value of ours in the place of the source's."""

    def __init__(self, ours: Any, source: str) -> None:
        self.ours, self.source = ours, source


NOT_GIVEN = "not in the source"  # keys that only our schema has
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5, 0.5, 0.5]  # Normalize without arguments


def _normalize(mean: list[float], std: list[float]) -> dict[str, Any]:
    return {"type": "Normalize", "mean": mean, "std": std}


def _cityscapes(train: list[Any], val: list[Any]) -> dict[str, Any]:
    root = Deviates("data/cityscapes", "their folder")
    return {
        "train_dataset": {"type": "Cityscapes", "dataset_root": root, "mode": "train", "transforms": train},
        "val_dataset": {"type": "Cityscapes", "dataset_root": root, "mode": "val", "transforms": val},
    }


# PaddleSeg: configs/hrnet_w48_contrast/HRNet_W48_contrast_cityscapes_1024x512_60k.yml, configs/_base_/cityscapes.yml.
# The reproduction, justld/contrast_seg_paddle: configs/HRNet_W48_cityscapes_1024x512_60k.yml has the same values, but
# for a proj_dim of 256 that its projection head (720 -> 720) does not use.
PADDLESEG_CONTRAST: dict[str, Any] = {
    "batch_size": 2,
    "iters": 60000,
    **_cityscapes(
        [
            {"type": "ResizeStepScaling", "min_scale_factor": 0.5, "max_scale_factor": 2.0, "scale_step_size": 0.25},
            {"type": "RandomPaddingCrop", "crop_size": [1024, 512]},
            {"type": "RandomHorizontalFlip"},
            {"type": "RandomDistort", "brightness_range": 0.4, "contrast_range": 0.4, "saturation_range": 0.4},
            _normalize(HALF, HALF),
        ],
        [_normalize(HALF, HALF)],
    ),
    "model": {
        "type": Deviates("PixelContrastSegmentor", "HRNetW48Contrast, bb_channels 720: the same network"),
        "num_classes": 19,
        "proj_dim": 720,
        "drop_prob": 0.1,
        "align_corners": False,
        "pretrained": None,
        "backbone": {
            "type": "HRNet_W48",
            "align_corners": False,
            "pretrained": Deviates(None, "hrnet_w48_ssld, which the user passes"),
        },
    },
    "optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 2e-4},
    "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.01, "end_lr": 0, "power": 0.9},
    "loss": {
        "types": [
            {"type": "CrossEntropyLoss"},
            {
                "type": Deviates("PixelContrastLoss", "PixelContrastCrossEntropyLoss, of the same definition"),
                "temperature": 0.1,
                "base_temperature": 0.07,
                "max_samples": 1024,
                "max_views": 100,
            },
        ],
        "coef": [1, 0.1],
    },
}

_CE_WEIGHT = [0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023]
_CE_WEIGHT += [0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507]
_BGR = [{"type": "ToBGR"}, _normalize(IMAGENET_MEAN, IMAGENET_STD)]  # input_mode BGR, mean and std in this order

# tfzhou/ContrastiveSeg: configs/cityscapes/H_48_D_4_MEM.json; scripts/cityscapes/hrnet/run_h_48_d_4_contrast_mem.sh
# (batch 8, four GPUs); segmentor/tools/optim_scheduler.py (power 0.9); lib/models/nets/hrnet.py (dropout 0.10,
# align_corners True); lib/datasets/tools/cv2_aug_transforms.py (cubic interpolation).
PAPER_MEMORY: dict[str, Any] = {
    "batch_size": 8 // 4,
    "iters": 40000,
    **_cityscapes(
        [
            {"type": "RandomRescale", "scale_range": [0.5, 2.0], "aspect_range": [0.9, 1.1], "interp": "CUBIC"},
            {"type": "RandomPaddingCrop", "crop_size": [1024, 512]},
            {"type": "RandomHorizontalFlip"},  # ratio 0.5, which is PaddleSeg's default
            {"type": "RandomBrightnessShift", "max_shift": 10},
            *_BGR,
        ],
        _BGR,
    ),
    "model": {
        "type": Deviates("PixelContrastSegmentor", "hrnet_w48_mem"),
        "num_classes": 19,
        "proj_dim": 256,
        "drop_prob": 0.1,
        "align_corners": True,
        "pretrained": None,
        "backbone": {
            "type": "HRNet_W48",
            "align_corners": True,
            "pretrained": Deviates(None, "hrnetv2_w48_imagenet_pretrained.pth, which the user passes"),
        },
    },
    "optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 5e-4},
    "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.01, "end_lr": 0, "power": 0.9},
    "loss": {
        "types": [
            {"type": "CrossEntropyLoss", "weight": _CE_WEIGHT},
            {
                "type": "PixelContrastLoss",
                "temperature": 0.07,
                "base_temperature": 0.07,
                "max_samples": 1024,
                "max_views": 1,
                "warmup_iters": 5000,
                "memory_size": 5000,
                "pixel_update_freq": 10,
                "num_classes": 19,
                "proj_dim": 256,
            },
        ],
        "coef": [1, 1],  # contrast.loss_weight 1
    },
}


def ade20k(variant: str, drop_path_rate: float) -> dict[str, Any]:
    """MzeroMiko/vHeat: segmentation/configs/vheat/upernet_vheat_160k_ade20k_512x512_*.py, configs/_base_/models/
    upernet_swin.py; from mmsegmentation 1.x, which they inherit: configs/_base_/datasets/ade20k.py,
    configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py.
    """
    normalize = _normalize([n / 255 for n in (123.675, 116.28, 103.53)], [n / 255 for n in (58.395, 57.12, 57.375)])
    root = Deviates("data/ADEChallengeData2016", "their folder")
    contrast_range, saturation_range, hue_delta = (0.5, 1.5), (0.5, 1.5), 18
    distort = {
        "type": Deviates("RandomDistort", "PhotoMetricDistortion"),
        "brightness_range": Deviates(0.125, "an addition of up to 32 of 255"),
        "contrast_range": contrast_range[1] - 1,
        "saturation_range": saturation_range[1] - 1,
        "hue_range": hue_delta / 180 * 255,  # OpenCV's 180 steps in a turn, PIL's 255
        **{f"{name}_prob": 0.5 for name in ("brightness", "contrast", "saturation", "hue")},
    }
    train = [
        {"type": "RandomRescale", "fit": [2048, 512], "scale_range": [0.5, 2.0]},
        {"type": "RandomPaddingCrop", "crop_size": [512, 512], "category_max_ratio": 0.75},
        {"type": "RandomHorizontalFlip"},
        distort,
        normalize,
    ]
    val = [{"type": "Resize", "target_size": [2048, 512], "keep_ratio": True}, normalize]
    return {
        "batch_size": Deviates(4, "2 on each of 8 GPUs; ours is for 4: 16 in all"),
        "iters": 160000,
        "train_dataset": {"type": "ADE20K", "dataset_root": root, "mode": "train", "transforms": train},
        "val_dataset": {"type": "ADE20K", "dataset_root": root, "mode": "val", "transforms": val},
        "test_config": {"is_slide": True, "crop_size": [512, 512], "stride": [341, 341]},
        "model": {
            "type": Deviates("UPerNetMMSeg", "EncoderDecoder with UPerHead and FCNHead"),
            "num_classes": 150,
            "channels": 512,
            "aux_channels": 256,
            "dropout": 0.1,
            "pretrained": None,
            "backbone": {
                "type": f"vHeat_{variant}",
                "img_size": 512,
                "drop_path_rate": drop_path_rate,
                "pretrained": Deviates(None, "ImageNet weights, which the user passes"),
            },
        },
        "optimizer": {
            "type": "AdamW",
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.01,
            "custom_cfg": Deviates(  # test_weight_decay compares what they come to
                [
                    {"name": "downsample.norm", "weight_decay_mult": 1.0},
                    {"name": "norm", "weight_decay_mult": 0.0},
                ],
                "custom_keys: norm has decay_mult 0",
            ),
        },
        "lr_scheduler": {
            "type": "PolynomialDecay",
            "learning_rate": 6e-5,
            "end_lr": 0,
            "power": 1.0,
            "warmup_iters": 1500,
            "warmup_start_lr": 6e-5 * 1e-6,
        },
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1.0, 0.4]},
    }


def _imagenet_data(part: str, batch_size: int, ops: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "dataset": {
            "name": "ImageNetDataset",
            "image_root": Deviates("dataset/ILSVRC2012", "their folder"),
            "cls_label_path": Deviates(f"dataset/ILSVRC2012/{part}_list.txt", NOT_GIVEN),
            "transform_ops": ops,
            **more,
        },
        "sampler": {
            "name": "DistributedBatchSampler",
            "batch_size": batch_size,
            "drop_last": part == "train",
            "shuffle": part == "train",
        },
        "loader": {"num_workers": Deviates(8 if part == "train" else 4, "8"), "use_shared_memory": True},
    }


def imagenet(variant: str) -> dict[str, Any]:
    """MzeroMiko/vHeat: classification/configs/vHeat/*.yaml, classification/utils/{config,optimizer}.py; what the
    augmentations with those arguments are is timm's.
    """
    total_batch = 2048
    scale = total_batch / 512  # the linear rule of their main.py
    decode = {"DecodeImage": {"to_rgb": True, "channel_first": False, "backend": "pil"}}
    pil = {"interpolation": "bicubic", "backend": "pil"}
    normalize = {"scale": "1.0/255.0", "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "order": ""}
    evaluation = [
        decode,
        {"ResizeImage": {"resize_short": int(256 / 224 * 224), **pil}},
        {"CropImage": {"size": 224}},
        {"NormalizeImage": normalize},
    ]
    erasing = {"EPSILON": 0.25, "mode": "pixel", "sl": 0.02, "sh": "1.0/3.0", "r1": 0.3, "attempt": 10}
    training = [
        decode,
        {"RandCropImage": {"size": 224, **pil}},
        {"RandFlipImage": {"flip_code": 1}},
        {
            "TimmAutoAugment": {
                "config_str": "rand-m9-mstd0.5-inc1",
                "interpolation": "bicubic",
                "img_size": 224,
            }
        },
        {"NormalizeImage": normalize},
        {"RandomErasing": {**erasing, "use_log_aspect": True}},
    ]
    mixing = {"MixupOperator": {"alpha": 0.8, "prob": 0.5}, "CutmixOperator": {"alpha": 1.0, "prob": 0.5}}
    accuracy = [{"TopkAcc": {"topk": [1, 5]}}]
    engine = {  # PaddleClas' engine reads these without asking whether they are there
        "checkpoints": None,
        "pretrained_model": None,
        "output_dir": "./output/",
        "device": "gpu",
        "eval_during_train": True,
        "print_batch_step": 10,
        "use_visualdl": False,
        "image_shape": [3, 224, 224],
        "save_inference_dir": "./inference",
        "to_static": False,
        "eval_interval": 1,
        "save_interval": 1,
    }
    infer = {  # PaddleClas' own, of SwinTransformer_tiny_patch4_window7_224.yaml
        "infer_imgs": "docs/images/inference_deployment/whl_demo.jpg",
        "batch_size": 10,
        "transforms": [*evaluation, {"ToCHWImage": None}],
        "PostProcess": {
            "name": "Topk",
            "topk": 5,
            "class_id_map_file": "ppcls/utils/imagenet1k_label_list.txt",
        },
    }
    return {
        "Global": {"epochs": 300, **{key: Deviates(value, NOT_GIVEN) for key, value in engine.items()}},
        "AMP": {"use_amp": True, "level": "O1", "scale_loss": 65536, "use_dynamic_loss_scaling": True},
        "EMA": {"decay": 0.9999},
        "Arch": {"name": f"vHeat_{variant}", "class_num": 1000, "pretrained": None},
        "Loss": {"Train": [{"CELoss": {"weight": 1.0, "epsilon": 0.1}}], "Eval": [{"CELoss": {"weight": 1.0}}]},
        "Optimizer": {
            "name": "AdamW",
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.08,
            "one_dim_param_no_weight_decay": True,
            "clip_norm": 5.0,
            "lr": {
                "name": "Cosine",
                "learning_rate": 5e-4 * scale,
                "eta_min": 5e-6 * scale,
                "warmup_epoch": 20,
                "warmup_start_lr": 5e-7 * scale,
            },
        },
        "DataLoader": {
            "Train": _imagenet_data("train", total_batch // 8, training, batch_transform_ops=[{"OpSampler": mixing}]),
            "Eval": _imagenet_data("val", 64, evaluation),
        },
        "Infer": Deviates(infer, NOT_GIVEN),
        "Metric": {"Train": accuracy, "Eval": accuracy},
    }
