"""Mends for PaddleSeg, whose newest release (2.8.0) predates Paddle 3.x and breaks on it.

Two changes in Paddle did most of the damage: an integer or boolean tensor no longer mixes with a
floating-point one, and a full reduction now has shape [] instead of [1].  A few entries are plain
bugs of that release, whatever the Paddle.

Each entry of ``MENDS`` first runs PaddleSeg's own code on a minimal input and replaces it in place
only if it shows the known fault, so an entry steps aside by itself once upstream is mended.  Where
upstream's definition is odd but works, the replacement keeps its numbers.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddle_vheat._paddle import paddle
from paddle_vheat.data.image_file import read_bgr, read_label
from paddle_vheat.integrations._paddleseg_losses import (
    _cross_entropy,
    _dual_task,
    _logit,
    _logit_and_edge,
    _logit_and_points,
    _ohem,
    _ohem_edge,
    _point_cross_entropy,
    _relax_boundary,
    _rmi,
    _try_loss,
    _try_relax_boundary,
)


class WrongResult(Exception):
    """Raised by a probe whose subject gives a wrong result without raising anything itself."""


@dataclass
class Mend:
    """One fault of PaddleSeg: how to see it, and what to put in its place."""

    name: str
    where: str  # "module:Class.attribute"
    wrong: str
    probe: Callable[[Any], object]  # gets what holds the attribute (class or module); raises if broken
    symptom: type[Exception] | tuple[type[Exception], ...]
    message: str  # pattern of the symptom's text; whatever else a probe raises is no known fault
    mend: Callable[[Any], Callable[..., Any]]  # original -> replacement
    original: Any = None
    replacement: Any = None

    def find(self) -> tuple[Any, str] | None:
        """What holds the attribute, and the attribute's name; None if this PaddleSeg has no such thing."""
        module_name, path = self.where.split(":")
        try:
            owner: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name + ".").startswith(error.name + "."):
                return None
            raise  # something PaddleSeg needs is not installed
        *parents, attribute = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        return (owner, attribute) if hasattr(owner, attribute) else None

    def is_needed(self, owner: Any) -> bool:
        try:
            self.probe(owner)
        except Exception as error:
            if isinstance(error, self.symptom) and re.search(self.message, str(error)):
                return True
            raise RuntimeError(f"probing PaddleSeg for {self.name!r} met an unknown fault") from error
        return False

    def apply(self) -> bool:
        """Replace the broken function; True if the replacement is in force afterwards."""
        found = self.find()
        if found is None:
            return False
        owner, attribute = found
        current = getattr(owner, attribute)
        if self.replacement is not None and current is self.replacement:
            return True
        if not self.is_needed(owner):
            return False
        self.original, self.replacement = current, self.mend(current)
        setattr(owner, attribute, self.replacement)
        return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave random states, parameter names and the device as they were; probes run on the CPU."""
    device = paddle.get_device()
    # Probing on the default device would open a GPU context before the caller has chosen its GPU.
    paddle.set_device("cpu")
    states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
    try:
        with paddle.utils.unique_name.guard():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        paddle.set_rng_state(states[2])
        if device != "cpu":
            paddle.set_device(device)


def apply_mends() -> list[str]:
    """Mend what is broken in the installed PaddleSeg; returns the names of the mends now in force.

    Imports PaddleSeg, which makes its folders in ~/.paddleseg, or in SEG_HOME where that is set.
    """
    importlib.import_module("paddleseg")  # its absence is an error, not a reason to skip everything
    with _undisturbed():
        return [mend.name for mend in MENDS if mend.apply()]


# --- Training and evaluation ----------------------------------------------------------------------


def _loss_list(original: Any) -> Callable[..., Any]:
    def loss_computation(*args: Any, **kwargs: Any) -> list[Any]:
        return [loss.reshape([1]) if loss.ndim == 0 else loss for loss in original(*args, **kwargs)]

    return loss_computation


def _try_loss_list(*before: Any, after: tuple[Any, ...]) -> Callable[[Any], object]:
    def probe(owner: Any) -> None:
        # What breaks is train(), too big to be run here; one that no longer indexes needs no help.
        with suppress(OSError):  # installed without its source
            if "l[0]" not in inspect.getsource(importlib.import_module("paddleseg.core.train").train):
                return
        owner.loss_computation(*before, [paddle.zeros([1])], *after)[0].numpy()[0]

    return probe


_MEAN = {"types": [lambda logit, label: logit.mean()], "coef": [1.0]}


def _area(pred: Any, label: Any, num_classes: int, ignore_index: int = 255) -> tuple[Any, Any, Any]:
    pred, label = (x.squeeze(1) if x.ndim == 4 else x for x in (pred, label))
    if list(pred.shape) != list(label.shape):
        raise ValueError(f"prediction {list(pred.shape)} and label {list(label.shape)} differ in shape")
    pred, label = pred.astype("int64").flatten(), label.astype("int64").flatten()
    labelled = label != ignore_index
    valid_label = paddle.logical_and(label >= 0, label < num_classes)
    wrong = paddle.logical_and(labelled, paddle.logical_not(valid_label))
    if bool(wrong.any()):
        values = np.unique(label.numpy()[wrong.numpy()]).tolist()
        raise ValueError(
            f"the label has the value(s) {values[:5]}, outside 0 to {num_classes - 1}, "
            f"and only {ignore_index} is ignored"
        )
    valid_pred = paddle.logical_and(labelled, paddle.logical_and(pred >= 0, pred < num_classes))
    spare = paddle.full_like(label, num_classes)  # one bin more, for what is not counted

    def count(values: Any, keep: Any) -> Any:
        return paddle.bincount(paddle.where(keep, values, spare), minlength=num_classes + 1)[:num_classes]

    hit = paddle.logical_and(valid_pred, pred == label)
    return count(label, hit), count(pred, valid_pred), count(label, valid_label)


def _try_area(metrics: Any) -> object:
    pixels = paddle.zeros([1, 1, 2, 2], dtype="int64")
    return metrics.calculate_area(pixels, pixels, 2)


# One profiler per process, as upstream has it.
_profile: dict[str, Any] = {"step": 0}


def _profiler_step(options_str: str | None = None) -> None:
    if options_str is None:
        return
    from paddle import profiler
    from paddleseg.utils.train_profiler import ProfilerOptions

    options = _profile.setdefault("options", ProfilerOptions(options_str))
    step = _profile["step"]
    _profile["step"] += 1
    if step == options["batch_range"][0]:
        targets = [profiler.ProfilerTarget.CPU]
        if options["state"] != "CPU" and paddle.is_compiled_with_cuda():
            targets.append(profiler.ProfilerTarget.GPU)
        # Without a handler of ours it would also write into the working directory.
        _profile["profiler"] = profiler.Profiler(targets=targets, on_trace_ready=lambda _: None)
        _profile["profiler"].start()
    elif step == options["batch_range"][1]:
        _profile["profiler"].stop()
        _profile["profiler"].export(options["profile_path"], format="json")
        # Paddle 3.x cannot sort by the number of calls.
        key = {"max": "CPUMax", "min": "CPUMin", "ave": "CPUAvg"}.get(options["sorted_key"], "CPUTotal")
        _profile["profiler"].summary(sorted_by=getattr(profiler.SortedKeys, key))
        if options["exit_on_finished"]:
            sys.exit(0)


def _try_profiler(train_profiler: Any) -> object:
    # Not run: where it works, it would start Paddle's profiler.
    if "start_profiler" not in train_profiler.add_profiler_step.__code__.co_names:
        return None
    return train_profiler.paddle.utils.profiler


# --- Data -----------------------------------------------------------------------------------------


def _crop(self: Any, data: dict[str, Any]) -> dict[str, Any]:
    if tuple(data["img"].shape[:2]) == tuple(self.crop_size):
        return data
    data = self._padding(data)
    size, fields = data["img"].shape[:2], data.get("gt_fields", [])
    x1, y1, x2, y2 = self._get_crop_coordinates(size)
    if self.category_max_ratio < 1.0 and "label" in fields:
        # If none of the attempts is varied enough, the crop after them is taken unjudged.
        for _ in range(self.loop_times):
            classes, counts = np.unique(data["label"][y1:y2, x1:x2], return_counts=True)
            counts = counts[classes != self.ignore_index]
            if len(counts) > 1 and counts.max() / counts.sum() < self.category_max_ratio:
                break
            x1, y1, x2, y2 = self._get_crop_coordinates(size)
    for key in ("img", *fields):
        data[key] = data[key][y1:y2, x1:x2]
    return data


def _try_crop(transform: Any) -> None:
    label = np.arange(16).reshape(4, 4)
    data = {"img": np.zeros((4, 4, 3), "float32"), "label": label, "gt_fields": ["label"]}
    if transform(crop_size=(2, 2), category_max_ratio=0.9)(data)["img"].shape != (2, 2, 3):
        raise WrongResult("the image is not cropped")


def _resize_short(original: Any) -> Callable[..., Any]:
    def __call__(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        short_size = self.short_size
        try:
            return original(self, data)
        finally:
            self.short_size = short_size

    return __call__


def _try_resize_short(transform: Any) -> None:
    resize = transform(short_size=4, max_size=4)
    resize({"img": np.zeros((2, 4, 3), "float32"), "trans_info": []})
    if resize.short_size != 4:
        raise WrongResult("the size was changed for all later images")


def _read(original: Any) -> Callable[..., Any]:
    def __call__(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        if isinstance(data.get("img"), str):
            data["img"] = read_bgr(data["img"], self.read_flag).astype("float32")
        if isinstance(data.get("label"), str):
            data["label"] = read_label(data["label"])
        return original(self, data)

    return __call__


def _try_read(compose: Any) -> None:
    # The null device opens and holds no image; for a missing file OpenCV would print a warning.
    with suppress(ValueError, OSError):
        compose([])({"img": os.devnull})


# --- The list -------------------------------------------------------------------------------------


def _loss(where: str, probe: Callable[[Any], object], mend: Callable[[Any], Callable[..., Any]]) -> Mend:
    """An entry for a loss that mixes integer or boolean tensors with floating-point ones.

    Paddle 3 refuses to. Paddle 2.6 does as the first of the two is, which makes some of them one-hot encode a label
    that is no class, or compute a wrong value.
    """
    name = where.split(":")[1].split(".")[0]
    where = "paddleseg.models.losses." + where
    known = "different data type|Illegal index value"
    return Mend(name, where, "mixes types", probe, (TypeError, ValueError), known, mend)


_WEIGHT = {"weight": [1.0, 1.0]}

MENDS: tuple[Mend, ...] = (
    # DistillCrossEntropyLoss inherits the next one, MixedLoss is mostly made of it.
    _loss(
        "cross_entropy_loss:CrossEntropyLoss._post_process_loss",
        _try_loss(_logit, {}, _WEIGHT, {**_WEIGHT, "avg_non_ignore": False}),
        lambda _: _cross_entropy,
    ),
    _loss(
        "point_cross_entropy_loss:PointCrossEntropyLoss.forward",
        _try_loss(_logit_and_points, {}, _WEIGHT),
        lambda _: _point_cross_entropy,
    ),
    # These two break only when a batch has more than min_kept labelled pixels.
    _loss(
        "ohem_cross_entropy_loss:OhemCrossEntropyLoss.forward",
        _try_loss(_logit, {"min_kept": 5}),
        lambda _: _ohem,
    ),
    _loss(
        "ohem_edge_attention_loss:OhemEdgeAttentionLoss.forward",
        _try_loss(_logit_and_edge, {"min_kept": 5}),
        lambda _: _ohem_edge,
    ),
    _loss("rmi_loss:RMILoss.forward_sigmoid", _try_loss(_logit, {"num_classes": 2}), lambda _: _rmi),
    _loss("gscnn_dual_task_loss:DualTaskLoss.forward", _try_loss(_logit, {}), lambda _: _dual_task),
    _loss(
        "decoupledsegnet_relax_boundary_loss:RelaxBoundaryLoss.relax_onehot",
        _try_relax_boundary,
        _relax_boundary,
    ),
    Mend(
        "train",
        "paddleseg.core.train:loss_computation",
        "train() indexes losses of shape []",
        _try_loss_list(after=(None, None, _MEAN)),
        IndexError,
        "too many indices",
        _loss_list,
    ),
    Mend(
        "train MaskFormer",
        "paddleseg.models.maskformer:MaskFormer.loss_computation",
        "train() indexes losses of shape []",
        _try_loss_list(None, after=(_MEAN, {"instances": None})),
        IndexError,
        "too many indices",
        _loss_list,
    ),
    Mend(
        "calculate_area",
        "paddleseg.utils.metrics:calculate_area",
        "concatenates tensors of shape []; ignores labels that are no class without a word",
        _try_area,
        ValueError,
        "axis is expected to be in range",
        lambda _: _area,
    ),
    Mend(
        "profiler_options",
        "paddleseg.utils.train_profiler:add_profiler_step",
        "needs paddle.utils.profiler, which is gone",
        _try_profiler,
        AttributeError,
        "profiler",
        lambda _: _profiler_step,
    ),
    Mend(
        "RandomPaddingCrop",
        "paddleseg.transforms.transforms:RandomPaddingCrop.__call__",
        "with category_max_ratio < 1 puts the label's crop in the image's place, or leaves the image whole",
        _try_crop,
        WrongResult,
        "not cropped",
        lambda _: _crop,
    ),
    Mend(
        "ResizeByShort",
        "paddleseg.transforms.transforms:ResizeByShort.__call__",
        "keeps the smaller size that one long image needed for all later images",
        _try_resize_short,
        WrongResult,
        "was changed",
        _resize_short,
    ),
    Mend(
        "Compose",
        "paddleseg.transforms.transforms:Compose.__call__",
        "does not say which image cannot be read",
        _try_read,
        AttributeError,
        "astype",
        _read,
    ),
)
