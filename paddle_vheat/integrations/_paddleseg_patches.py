"""Compatibility patches for PaddleSeg, whose newest release (2.8.0) is older than Paddle 3 and breaks on it.

Two changes in Paddle did most of the damage: an integer or boolean tensor no longer mixes with a floating-point one,
and a full reduction now has shape [] instead of [1]. The other entries are faults of PaddleSeg on any Paddle.

Each entry of ``PATCHES`` first runs PaddleSeg's own code on a minimal input, and replaces it only if it shows the known
fault. So an entry steps aside by itself where upstream is fixed. Where upstream's definition is odd but works, the
replacement keeps its numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from paddle_vheat._paddle import F, paddle
from paddle_vheat.data.image_file import ORIENTATION, read_label
from paddle_vheat.integrations._paddleseg_reading import read_files


class WrongResult(Exception):
    """Raised by a probe whose subject gives a wrong result without raising anything itself."""


class UnknownFault(Exception):
    """A probe met another fault than the known one."""


@dataclass
class Patch:
    """One fault of PaddleSeg: how to see it, and what to put in its place.

    Attributes:
        name: what users know it by.
        where: "module:Class.attribute".
        probe: is given what holds the attribute (a class or module), and raises if the fault is there.
        fault: the exception that the fault raises, and a pattern of its text.
        replace: original -> replacement.
    """

    name: str
    where: str
    probe: Callable[[Any], object]
    fault: tuple[type[Exception] | tuple[type[Exception], ...], str]
    replace: Callable[[Any], Any]
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
        """Whether the fault is there; the probe's output and warnings are dropped."""
        kinds, pattern = self.fault
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
                warnings.simplefilter("ignore")
                with contextlib.redirect_stderr(said):
                    self.probe(owner)
        except Exception as error:
            if isinstance(error, kinds) and re.search(pattern, str(error)):
                return True
            raise UnknownFault(f"{self.name}: {type(error).__name__}: {error}") from error
        return False

    def apply(self) -> bool:
        """Replace the faulty attribute; True if the replacement is in force afterwards."""
        found = self.find()
        if found is None:
            return False
        owner, attribute = found
        current = getattr(owner, attribute)
        if self.replacement is not None and current is self.replacement:
            return True
        if not self.is_needed(owner):
            return False
        self.original, self.replacement = current, self.replace(current)
        setattr(owner, attribute, self.replacement)
        return True


@contextlib.contextmanager
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


def apply_patches() -> list[str]:
    """Replace what is faulty in the installed PaddleSeg; returns the names of the patches that are in force.

    A part of PaddleSeg that fails in an unknown way is left as it is, with a RuntimeWarning that names it.

    Imports PaddleSeg, which makes its folders in ~/.paddleseg, or in SEG_HOME where that is set.
    """
    importlib.import_module("paddleseg")  # its absence is an error, not a reason to skip everything
    applied, unknown = [], []
    with _undisturbed():
        for patch in PATCHES:
            try:
                if patch.apply():
                    applied.append(patch.name)
            except UnknownFault as fault:
                unknown.append(str(fault))
    for text in unknown:
        warnings.warn(f"PaddleSeg fails in an unknown way, left as it is: {text}", RuntimeWarning, stacklevel=2)
    return applied


# --- Losses ---------------------------------------------------------------------------------------


def _cross_entropy(self: Any, logit: Any, label: Any, semantic_weights: Any, loss: Any) -> Any:
    """Mean of the pixels' losses over the mean of their class weights, of all or of the worst pixels."""
    if loss.ndim > label.ndim:
        loss = loss.squeeze(-1)
    counted = (label != self.ignore_index).astype(loss.dtype)
    if not self.avg_non_ignore:
        counted = paddle.ones_like(counted)
    loss = loss * counted
    if semantic_weights is not None:
        loss = loss * semantic_weights.astype(loss.dtype)
    coef = paddle.ones_like(loss)
    if self.weight is not None:
        # Unlabelled pixels take the weight of class 0, as upstream has it; it shows only where they
        # count at all: avg_non_ignore=False, or among the worst pixels of a scarcely labelled batch.
        index = paddle.where(label != self.ignore_index, label, paddle.zeros_like(label))
        index = index.flatten().astype("int64")
        coef = paddle.gather(self.weight, index).reshape(label.shape).astype(loss.dtype)
    if self.top_k_percent_pixels == 1.0:
        return loss.mean() / ((counted * coef).mean() + self.EPS)
    pixels = max(1, int(self.top_k_percent_pixels * int(loss.numel())))
    loss, worst = paddle.topk(loss.flatten(), pixels)
    return loss.mean() / (paddle.gather(coef.flatten(), worst).mean() + self.EPS)


def _ohem(self: Any, logit: Any, label: Any) -> Any:
    """Cross entropy over the pixels whose own class got a probability below the threshold."""
    n, c, h, w = logit.shape
    label = label.astype("int64").flatten()
    kept = label != self.ignore_index
    # Upstream keeps every pixel when min_kept is 0, and so does this.
    if 0 < self.min_kept < int(kept.sum()):
        prob = F.softmax(logit.detach(), axis=1).transpose([0, 2, 3, 1]).reshape([-1, c])
        own_class = paddle.where(kept, label, paddle.zeros_like(label)).unsqueeze(1)
        prob = paddle.take_along_axis(prob, own_class, 1).squeeze(1)
        prob = paddle.where(kept, prob, paddle.full_like(prob, 2.0))  # unlabelled pixels sort last
        kth = paddle.kthvalue(prob, self.min_kept)[0]
        kept = paddle.logical_and(kept, prob < paddle.clip(kth, min=self.thresh))
    label = paddle.where(kept, label, paddle.full_like(label, self.ignore_index)).reshape([n, 1, h, w])
    loss = F.cross_entropy(logit, label, ignore_index=self.ignore_index, axis=1, reduction="none")
    weight = kept.reshape([n, 1, h, w]).astype(loss.dtype)
    return (loss * weight).mean() / (weight.mean() + self.EPS)


def _probe_loss(*options: dict[str, Any]) -> Callable[[Any], object]:
    """A probe that calls the loss with each of the options, on a partly labelled batch."""

    def probe(loss_class: Any) -> None:
        for option in options:
            label = paddle.zeros([1, 12, 12], dtype="int64")
            label[:, :1] = 255
            loss_class(**option)(paddle.zeros([1, 2, 12, 12]), label)

    return probe


# Paddle 3 refuses to mix types. Paddle 2.6 does as the first of the two is, and then one-hot encodes the ignored label.
_MIXED_TYPES = (TypeError, ValueError), "different data type|Illegal index value"


# --- Training and evaluation ----------------------------------------------------------------------


def _loss_list(original: Any) -> Callable[..., Any]:
    def loss_computation(*args: Any, **kwargs: Any) -> list[Any]:
        return [loss.reshape([1]) if loss.ndim == 0 else loss for loss in original(*args, **kwargs)]

    return loss_computation


def _probe_loss_list(core_train: Any) -> None:
    # What breaks is train(), too big to be run here; one that no longer indexes needs no help.
    with contextlib.suppress(OSError):  # installed without its source
        if "l[0]" not in inspect.getsource(core_train.train):
            return
    mean = {"types": [lambda logit, label: logit.mean()], "coef": [1.0]}
    core_train.loss_computation([paddle.zeros([1])], None, None, mean)[0].numpy()[0]


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


def _probe_area(metrics: Any) -> object:
    pixels = paddle.zeros([1, 1, 2, 2], dtype="int64")
    return metrics.calculate_area(pixels, pixels, 2)


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


def _probe_crop(transform: Any) -> None:
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


def _probe_resize_short(transform: Any) -> None:
    resize = transform(short_size=4, max_size=4)
    resize({"img": np.zeros((2, 4, 3), "float32"), "trans_info": []})
    if resize.short_size != 4:
        raise WrongResult("the size was changed for all later images")


def _reading(original: Any) -> Callable[..., Any]:
    def __call__(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        return original(self, read_files(data, getattr(self, "read_flag", None)))

    return __call__


@contextlib.contextmanager
def _label_of_16_bits() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "label.png")
        Image.fromarray(np.zeros((4, 2), np.uint16)).save(path)
        yield path


def _probe_reading(compose: Any) -> None:
    with _label_of_16_bits() as path:
        data = compose([])({"img": np.zeros((4, 2, 3), "float32"), "label": path})
        if data["label"].dtype == np.uint16:
            raise WrongResult("a label of 16 bits becomes uint16")
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        Image.new("RGB", (2, 4)).save(path, exif=exif)
        if compose([])({"img": path})["img"].shape != (3, 4, 2):
            raise WrongResult("an image is turned, and its label would not be")


class _LabelReader:
    """Pillow's module ``Image`` for a dataset that opens its labels itself."""

    open = staticmethod(read_label)

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _probe_label_reader(module: Any) -> None:
    with _label_of_16_bits() as path:
        if np.asarray(module.Image.open(path)).dtype == np.uint16:
            raise WrongResult("a label of 16 bits becomes uint16")


# --- The list -------------------------------------------------------------------------------------

_WEIGHT = {"weight": [1.0, 1.0]}
_LOSSES, _TRANSFORMS = "paddleseg.models.losses.", "paddleseg.transforms.transforms:"

PATCHES: tuple[Patch, ...] = (
    # DistillCrossEntropyLoss inherits the first one, MixedLoss is mostly made of it.
    Patch(
        "CrossEntropyLoss",
        _LOSSES + "cross_entropy_loss:CrossEntropyLoss._post_process_loss",
        _probe_loss({}, _WEIGHT, {**_WEIGHT, "avg_non_ignore": False}),
        _MIXED_TYPES,
        lambda _: _cross_entropy,
    ),
    # It breaks only when a batch has more than min_kept labelled pixels.
    Patch(
        "OhemCrossEntropyLoss",
        _LOSSES + "ohem_cross_entropy_loss:OhemCrossEntropyLoss.forward",
        _probe_loss({"min_kept": 5}),
        _MIXED_TYPES,
        lambda _: _ohem,
    ),
    Patch(
        "train",
        "paddleseg.core.train:loss_computation",
        _probe_loss_list,
        (IndexError, "too many indices"),
        _loss_list,
    ),
    Patch(
        "calculate_area",
        "paddleseg.utils.metrics:calculate_area",
        _probe_area,
        (ValueError, "axis is expected to be in range"),
        lambda _: _area,
    ),
    Patch(
        "RandomPaddingCrop",
        _TRANSFORMS + "RandomPaddingCrop.__call__",
        _probe_crop,
        (WrongResult, "not cropped"),
        lambda _: _crop,
    ),
    Patch(
        "ResizeByShort",
        _TRANSFORMS + "ResizeByShort.__call__",
        _probe_resize_short,
        (WrongResult, "was changed"),
        _resize_short,
    ),
    Patch("Compose", _TRANSFORMS + "Compose.__call__", _probe_reading, (WrongResult, "uint16|turned"), _reading),
    Patch("ADE20K", "paddleseg.datasets.ade:Image", _probe_label_reader, (WrongResult, "uint16"), _LabelReader),
)
