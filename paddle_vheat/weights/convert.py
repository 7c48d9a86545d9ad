"""The authors' PyTorch checkpoints, turned into ours: recognised, converted, strictly checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.errors import UserError
from paddle_vheat.models.classifier import VHeatClassifier
from paddle_vheat.models.mask_rcnn import MaskRCNN
from paddle_vheat.models.upernet import UPerNet
from paddle_vheat.models.vheat import VARIANTS, VHeat, stage_sizes
from paddle_vheat.ops import fold
from paddle_vheat.weights.key_map import convert_state, is_state
from paddle_vheat.weights.loading import EMBEDDING_SUFFIX, LoadReport, load_state
from paddle_vheat.weights.torch_file import read_torch_file

RESIZE_RULES = ("bicubic", "zero_pad")
_HIDDEN = "roi_head.bbox_head.shared_fcs.0.bias"


class ConversionError(UserError):
    """A checkpoint that is not one of the published layouts, or does not fit them exactly."""


@dataclass
class Published:
    """A published checkpoint, recognised."""

    path: Path
    kind: str  # "classification", "segmentation" or "detection"
    variant: str  # name in VARIANTS, or "custom"
    folded: bool
    weights: str  # which weights of the file: "model", "model_ema", "state_dict", ...
    state: dict[str, np.ndarray]  # published names, without prefixes that mean nothing
    dropped: dict[str, str] = field(default_factory=dict)  # what was not converted, and why
    backbone: dict[str, Any] = field(default_factory=dict)  # arguments of VHeat
    num_classes: int | None = None

    @property
    def img_size(self) -> tuple[int, int]:
        return self.backbone["img_size"]


def _pick_state(content: Any, ema: bool, path: Path) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    """The weights in a checkpoint, and what else it holds."""
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: expected a dict, got {type(content).__name__}")
    if is_state(content):
        if ema:
            raise ConversionError(f"{path}: holds one set of weights only; there is no average (--ema) in it")
        return "plain", dict(content), {}
    found = {key: value for key, value in content.items() if is_state(value)}
    order = ("model_ema", "ema_state_dict") if ema else ("model", "state_dict")
    for key in order:
        if key in found:
            others = {
                str(k): "the other set of weights" if k in found else "training state or description"
                for k in content
                if k != key
            }
            return key, dict(found[key]), others
    near = f"; it holds {', '.join(map(str, content))}" if content else ""
    raise ConversionError(f"{path}: no weights under {' or '.join(order)}{near}")


def _strip(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefix that data-parallel training and averaging put before every name, and the average's counter."""
    state = {name: value for name, value in state.items() if name != "steps"}
    if all(name.startswith("module.") for name in state):
        return {name[len("module.") :]: value for name, value in state.items()}
    return state


def _describe_backbone(state: Mapping[str, np.ndarray], prefix: str, path: Path) -> tuple[dict[str, Any], bool]:
    """Arguments of VHeat that the names and shapes stand for, and whether the form is folded."""
    names = [name[len(prefix) :] for name in state if name.startswith(prefix)]
    try:
        embed_dim = int(state[f"{prefix}patch_embed.conv2.weight"].shape[0])
        in_channels = int(state[f"{prefix}patch_embed.conv1.weight"].shape[1])
    except KeyError as error:
        raise ConversionError(f"{path}: no vHeat checkpoint: {error.args[0]} is missing") from error
    found = [re.fullmatch(r"layers\.(\d)\.(\d+)\.norm1\.weight", name) for name in names]
    blocks = [(int(m[1]), int(m[2])) for m in found if m]
    depths = tuple(1 + max((b for s, b in blocks if s == stage), default=-1) for stage in range(4))
    if min(depths) < 1 or len(blocks) != sum(depths):  # a gap: a name alone must not ask for a million blocks
        raise ConversionError(f"{path}: no vHeat checkpoint: blocks are missing, the last of the stages are {depths}")
    folded = "layers.0.0.op.k_exp" in names
    first = "layers.0.0.op.k_exp" if folded else "freq_embed.0"
    if f"{prefix}{first}" not in state:
        raise ConversionError(f"{path}: neither the training form (freq_embed) nor the folded one (k_exp)")
    height, width = state[f"{prefix}{first}"].shape[:2]
    post_norm = "layers.0.0.gamma1" in names
    backbone = {
        "embed_dim": embed_dim,
        "depths": depths,
        "post_norm": post_norm,
        "layer_scale": 1e-5 if post_norm else None,
        "img_size": (4 * int(height), 4 * int(width)),
        "in_channels": in_channels,
        "drop_path_rate": 0.0,
    }
    return backbone, folded


def _variant_name(backbone: Mapping[str, Any]) -> str:
    for name, variant in VARIANTS.items():
        if (variant.embed_dim, variant.depths, variant.post_norm) == (
            backbone["embed_dim"],
            backbone["depths"],
            backbone["post_norm"],
        ):
            return name
    return "custom"


def read_published(path: str | Path, ema: bool = False, content: Any = None) -> Published:
    """Read and recognise a published checkpoint.

    Args:
        path: zip-format ``.pth``.
        ema: take the averaged weights of a training checkpoint.
        content: what :func:`read_torch_file` gave for the path; None to read it.

    Raises:
        FileNotFoundError, UnsafeFileError, ConversionError: naming the file and what is wrong.
    """
    path = Path(path)
    weights, state, dropped = _pick_state(read_torch_file(path) if content is None else content, ema, path)
    state = _strip(state)
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    backbone, folded = _describe_backbone(state, prefix, path)
    if any(name.startswith("decode_head.") for name in state):
        kind, num_classes = "segmentation", int(state["decode_head.conv_seg.weight"].shape[0])
    elif any(name.startswith(("neck.", "rpn_head.", "roi_head.")) for name in state):
        kind, num_classes = "detection", _width(state, "roi_head.mask_head.conv_logits.bias", path)
    elif "classifier.3.weight" in state:
        kind, num_classes = "classification", int(state["classifier.3.weight"].shape[0])
    else:
        raise ConversionError(f"{path}: a vHeat backbone, but neither a classifier, a segmentor nor a detector")
    counters = [name for name in state if name.endswith(".num_batches_tracked")]
    if counters:
        dropped[f"*.num_batches_tracked ({len(counters)} counters)"] = "no counterpart in Paddle"
    return Published(path, kind, _variant_name(backbone), folded, weights, state, dropped, backbone, num_classes)


def _width(state: Mapping[str, np.ndarray], name: str, path: Path) -> int:
    if name not in state or not state[name].ndim:
        raise ConversionError(f"{path}: no whole Mask R-CNN: {name} is missing")
    return int(state[name].shape[0])


def build_model(published: Published) -> Any:
    """The model of ours that a published checkpoint is for, with random weights."""
    state, backbone = published.state, published.backbone
    if published.kind == "classification":
        model: Any = VHeatClassifier(num_classes=published.num_classes or 0, **backbone)
    elif published.kind == "segmentation":
        auxiliary = state.get("auxiliary_head.conv_seg.weight")
        model = UPerNet(
            published.num_classes or 0,
            VHeat(**backbone),
            channels=int(state["decode_head.conv_seg.weight"].shape[1]),
            aux_channels=0 if auxiliary is None else int(auxiliary.shape[1]),
        )
    else:
        channels, hidden = (_width(state, name, published.path) for name in ("neck.lateral_convs.0.conv.bias", _HIDDEN))
        model = MaskRCNN(published.num_classes or 0, VHeat(**backbone, out_norms=True), channels, hidden)
    return fold(model, published.img_size) if published.folded else model


def zero_pad(embedding: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frequency embedding (H, W, C) for larger maps: zeros for the frequencies that are new."""
    if height < embedding.shape[0] or width < embedding.shape[1]:
        raise ConversionError(
            f"zero padding is for larger sizes: an embedding of {embedding.shape[0]} x {embedding.shape[1]} cannot "
            f"become {height} x {width}"
        )
    added = ((0, height - embedding.shape[0]), (0, width - embedding.shape[1]), (0, 0))
    return np.pad(embedding, added)


def convert(published: Published, img_size: int | None = None, resize: str = "bicubic") -> tuple[Any, LoadReport]:
    """Our model with a published checkpoint's weights; without missing or unexpected keys.

    Args:
        published: as from :func:`read_published`; its ``state`` is used up, so that the file's arrays and a
            second copy of the model (for saving it) are never in memory together.
        img_size: pixels a side that the frequency embeddings are to be made for; None keeps theirs.
        resize: "bicubic", or "zero_pad" (zeros at the high frequencies, the authors' rule for fine-tuning at
            a larger size).

    Raises:
        UserError: with the two lists and the nearest names, if the names or shapes do not fit exactly.
    """
    if resize not in RESIZE_RULES:
        raise ConversionError(f"resize: expected one of {', '.join(RESIZE_RULES)}, got {resize!r}")
    state = convert_state(published.state, str(published.path))
    if img_size is not None:
        if published.folded:
            raise ConversionError("a folded checkpoint cannot be resized; convert the training form")
        if resize == "zero_pad":
            for i, (height, width) in enumerate(stage_sizes(img_size)):
                for name in state:
                    if name.endswith(f"stages.{i}{EMBEDDING_SUFFIX}"):
                        state[name] = zero_pad(state[name], height, width)
        published.backbone["img_size"] = (img_size, img_size)
    model = build_model(published)
    report = load_state(model, state, str(published.path))
    published.state = {}
    return model, report


def converted_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """A published checkpoint's arrays under the names of our model's ``state_dict()``, converted strictly.

    Raises:
        FileNotFoundError, UserError: naming the file and what is wrong.
    """
    model, _ = convert(read_published(path))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def check(model: Any, size: tuple[int, int]) -> dict[str, float]:
    """Run the training form and the folded form on an image; largest differences relative to the largest value."""
    model.eval()
    folded = fold(model, size)
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32))
    with paddle.no_grad():
        forms = [form.forward_features if isinstance(form, MaskRCNN) else form for form in (model, folded)]
        ours, theirs = (form(x) for form in forms)
    if not isinstance(ours, list):
        ours, theirs = [ours], [theirs]
    differences = {}
    for i, (a, b) in enumerate(zip(ours, theirs)):
        a, b = a.numpy(), b.numpy()
        differences[f"output {i}"] = float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))
    return differences
