"""Strict loading: no missing keys and no unexpected ones but those that a caller allows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._files import no_such_file, write_atomically
from paddle_vheat._paddle import paddle
from paddle_vheat.errors import UserError
from paddle_vheat.models.classifier import VHeatClassifier
from paddle_vheat.models.mask_rcnn import MaskRCNN
from paddle_vheat.models.vheat import VHeat
from paddle_vheat.ops import resize_bicubic
from paddle_vheat.ops.dct import dtype_name
from paddle_vheat.weights.safe_pickle import UnsafeFileError, load_arrays

# paddle.save adds this table of internal names to every state dict.
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"
EMBEDDING_SUFFIX = ".frequency_embedding"


@dataclass
class LoadReport:
    """What a strict load did."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)  # frequency embeddings of another resolution
    newly_initialised: list[str] = field(default_factory=list)  # missing from the file, as the caller allows

    def __str__(self) -> str:
        text = f"{len(self.loaded)} arrays loaded"
        if self.resized:
            text += f", {len(self.resized)} frequency embeddings resized bicubically ({'; '.join(self.resized)})"
        if self.newly_initialised:
            names = self.newly_initialised
            if len(names) > 8:
                parts = [name.split(".")[0] for name in names]
                names = [f"{part}.* ({parts.count(part)})" for part in dict.fromkeys(parts)]
            text += f", {len(self.newly_initialised)} newly initialised ({', '.join(names)})"
        return text


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Names and arrays of a ``.pdparams`` or ``.safetensors`` file, read without running code from it.

    A published ``.pth`` is converted strictly by :mod:`paddle_vheat.weights.convert`, and has our names then.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    if Path(path).suffix == ".pth":
        from paddle_vheat.weights.convert import converted_arrays  # which loads, by what is here

        return converted_arrays(path)
    if Path(path).suffix == ".safetensors":
        return _read_safetensors(Path(path))
    content = load_arrays(path)
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{path}: expected a dict of arrays, got {type(content).__name__}")
    content.pop(_PADDLE_NAME_TABLE, None)
    wrong = [str(name) for name, value in content.items() if not isinstance(value, np.ndarray)]
    if wrong:
        raise UnsafeFileError(f"{path}: not a file of model weights; no arrays: {', '.join(wrong[:5])}")
    return content


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    if why := no_such_file(path):
        raise FileNotFoundError(why)
    try:
        return load_file(path)
    except Exception as error:  # its own exception type, and whatever NumPy makes of a damaged header
        raise UnsafeFileError(f"{path}: damaged, or not a safetensors file ({error})") from error


def save_weights(layer: Any, path: str | Path) -> None:
    """Write a layer's state dict as ``.pdparams``, or as ``.safetensors`` if the name ends so.

    By way of a temporary name, so that no half file remains.
    """
    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in layer.state_dict().items()}
        write_atomically(path, lambda temporary: save_file(arrays, temporary))
    else:
        write_atomically(path, lambda temporary: paddle.save(layer.state_dict(), temporary))


def live_tensors(layer: Any, prefix: str = "") -> dict[str, Any]:
    """The parameters and persistent buffers of a layer, under their names in ``state_dict()``.

    What ``state_dict()`` itself gives are copies if the layer was decorated for AMP O2 with a ``save_dtype``, and to
    write to them does nothing.
    """
    found = {}
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and name not in layer._non_persistable_buffer_names_set:
            found[prefix + name] = tensor
    for name, child in layer._sub_layers.items():
        if child is not None:
            found.update(live_tensors(child, f"{prefix}{name}."))
    return found


def _nearest(name: str, candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"{name} (nearest: {near[0]})" if near else name


def _in_dtype_of(parameter: Any, array: np.ndarray) -> np.ndarray | None:
    """The array in a parameter's precision; None if one is of floating-point numbers and the other is not.

    Paddle's files hold bfloat16 as uint16, which NumPy takes for integers.
    """
    bfloat16 = parameter.dtype == paddle.bfloat16
    if array.dtype == np.uint16:
        if bfloat16:
            return array
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if (array.dtype.kind == "f") != parameter.is_floating_point():
        return None
    if bfloat16:
        return paddle.to_tensor(array.astype(np.float32)).astype("bfloat16").numpy()
    return array.astype(str(parameter.dtype).rsplit(".", maxsplit=1)[-1], copy=False)


def _resize_embedding(array: np.ndarray, shape: list[int]) -> np.ndarray:
    """Bicubic resize of a frequency embedding (H, W, C) to ``shape``, in float32."""
    if array.dtype == np.uint16:  # bfloat16
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with paddle.no_grad():
        return resize_bicubic(paddle.to_tensor(array.astype(np.float32)), shape[0], shape[1]).numpy()


def load_state(
    layer: Any,
    state: Mapping[str, np.ndarray],
    source: str,
    optional_prefixes: tuple[str, ...] = (),
    unused_prefixes: tuple[str, ...] = (),
) -> LoadReport:
    """Fill a layer from named arrays, strictly.

    Args:
        layer: the model.
        state: names and arrays.
        source: what to call the arrays in an error.
        optional_prefixes: keys of the model under these prefixes may be missing (a new decoder).
        unused_prefixes: keys of ``state`` under these prefixes are ignored if the model has none (an old head).

    Raises:
        ValueError: listing missing and unexpected keys, and those of another shape or dtype. The model is then
            unchanged. (Floating-point numbers of another precision are converted; integers are no weights.)
    """
    report, values = fitted_values(layer, state, source, optional_prefixes, unused_prefixes)
    target = live_tensors(layer)
    for name, array in values.items():
        target[name].set_value(np.ascontiguousarray(array))
    return report


def fitted_values(
    layer: Any,
    state: Mapping[str, np.ndarray],
    source: str,
    optional_prefixes: tuple[str, ...] = (),
    unused_prefixes: tuple[str, ...] = (),
) -> tuple[LoadReport, dict[str, np.ndarray]]:
    """What :func:`load_state` would put into the layer; raises as it does, and changes nothing."""
    target = live_tensors(layer)
    missing = [name for name in target if name not in state]
    allowed = [name for name in missing if name.startswith(optional_prefixes)]
    missing = [name for name in missing if not name.startswith(optional_prefixes)]
    unexpected = [name for name in state if name not in target and not name.startswith(unused_prefixes)]
    report = LoadReport(newly_initialised=allowed)
    values: dict[str, np.ndarray] = {}
    misshaped = []
    for name, parameter in target.items():
        if name not in state:
            continue
        array, shape = state[name], list(parameter.shape)
        if list(array.shape) != shape:
            is_embedding = name.endswith(EMBEDDING_SUFFIX) or name == EMBEDDING_SUFFIX[1:]
            if is_embedding and array.ndim == 3 and array.shape[2] == shape[2] and array.size:
                report.resized.append(f"{name} {array.shape[0]}x{array.shape[1]} -> {shape[0]}x{shape[1]}")
                array = _resize_embedding(array, shape)
            else:
                misshaped.append(f"{name}: the file has {list(array.shape)}, the model {shape}")
                continue
        value = _in_dtype_of(parameter, array)
        if value is None:
            misshaped.append(f"{name}: the file has {array.dtype}, the model {dtype_name(parameter.dtype)}")
            continue
        values[name] = value
        report.loaded.append(name)
    if missing or unexpected or misshaped:
        problems = _other_classes(layer, state)
        if missing:
            problems.append("missing keys: " + ", ".join(_nearest(n, unexpected) for n in missing[:10]))
        if unexpected:
            problems.append("unexpected keys: " + ", ".join(_nearest(n, missing) for n in unexpected[:10]))
        if misshaped:
            problems.append("of another shape or dtype: " + "; ".join(misshaped[:10]))
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshaped)} of another shape or dtype"
        raise UserError(f"{source} does not fit {type(layer).__name__} ({counts}):\n  " + "\n  ".join(problems))
    return report, values


def _other_classes(layer: Any, state: Mapping[str, np.ndarray]) -> list[str]:
    """A message if the last layers of the arrays are of another number of classes than the layer's."""
    ours = getattr(layer, "num_classes", None)
    target = live_tensors(layer)
    theirs = {
        state[name].shape[0]
        for name, parameter in target.items()
        if name.endswith("bias") and name in state and state[name].ndim == 1
        if list(parameter.shape) == [ours] and state[name].shape[0] != ours
    }
    if len(theirs) != 1:
        return []
    return [f"the file is of a model with {theirs.pop()} classes, and this model has {ours} (num_classes)"]


def load_weights(
    layer: Any,
    path: str | Path,
    optional_prefixes: tuple[str, ...] = (),
    unused_prefixes: tuple[str, ...] = (),
) -> LoadReport:
    """Fill a layer from a ``.pdparams`` or ``.safetensors`` file, strictly; see :func:`load_state`."""
    return load_state(layer, read_weights(path), str(path), optional_prefixes, unused_prefixes)


def load_pretrained(model: Any, path: str | Path, new_head: bool = False) -> LoadReport:
    """Fill a model strictly from a file of its kind, a backbone also by :func:`load_backbone`, and a classifier without
    a head (``num_classes`` 0) also from one with a head; with ``new_head`` by :func:`load_classifier` or
    :func:`load_detector`."""
    if isinstance(model, VHeat):
        return load_backbone(model, path)
    if new_head and isinstance(model, MaskRCNN):
        return load_detector(model, path)
    if new_head and isinstance(model, VHeatClassifier) and model.num_classes:
        return load_classifier(model, path)
    headless = isinstance(model, VHeatClassifier) and model.num_classes == 0
    return load_weights(model, path, unused_prefixes=("head.",) if headless else ())


def load_backbone(backbone: VHeat, path: str | Path) -> LoadReport:
    """Fill a backbone strictly, from a checkpoint of the backbone, a classifier or a segmentor.

    The output norms may be missing (a classifier has none) and are then newly initialised; they are ignored where the
    backbone has none, and so is the rest of a classifier or segmentor.

    Raises:
        ValueError: for other missing or unexpected keys, and those of another shape or dtype.
    """
    state, prefix = read_weights(path), "backbone."
    if any(name.startswith(prefix) for name in state):
        state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    return load_state(backbone, state, str(path), ("outnorm",), () if backbone.out_norms else ("outnorm",))


def load_classifier(model: Any, path: str | Path) -> LoadReport:
    """Fill a classifier strictly, but for a head of another number of classes, which is newly initialised.

    Args:
        model: has ``head.weight`` (C, num_classes), ``head.bias``, and the attribute ``num_classes``.

    Returns:
        The report; ``newly_initialised`` names exactly the head if the file is of another number of classes, else
        nothing.

    Raises:
        ValueError: for other missing or unexpected keys, and those of another shape or dtype.
    """
    state = read_weights(path)
    head = {name: state[name].shape for name in ("head.weight", "head.bias") if name in state}
    # Only a head that is sound in itself is skipped; any other is for the strict loading to report.
    theirs = head["head.bias"][0] if len(head.get("head.bias", ())) == 1 else model.num_classes
    sound = {"head.weight": (model.head.weight.shape[0], theirs), "head.bias": (theirs,)}
    if theirs == model.num_classes or head != sound:
        return load_state(model, state, str(path))
    rest = {name: value for name, value in state.items() if name not in head}
    return load_state(model, rest, str(path), optional_prefixes=("head.",))


def load_segmentor(model: Any, path: str | Path) -> LoadReport:
    """Fill a segmentor with a vHeat backbone strictly, but for what fine-tuning initialises.

    From a classifier's checkpoint, the decoder, the auxiliary head and the backbone's output norms are newly
    initialised, and the classifier's own head is ignored. From a segmentor of another number of classes, exactly the
    pixel classifiers are newly initialised; so is a projection head, which only
    :class:`paddle_vheat.models.UPerNetContrast` has, if the file has none.

    Args:
        model: :class:`paddle_vheat.models.UPerNet` or ``UPerNetContrast``.

    Raises:
        ValueError: for other missing or unexpected keys, and those of another shape or dtype.
    """
    state = read_weights(path)
    new_head = () if any(name.startswith("proj_head.") for name in state) else ("proj_head.",)
    if "head.weight" in state and not any(name.startswith("decode_head.") for name in state):
        optional = ("decode_head.", "auxiliary_head.", "backbone.outnorm", *new_head)
        return load_state(model, state, str(path), optional, unused_prefixes=("norm.", "head."))
    classifiers = tuple(f"{head}.classifier." for head in ("decode_head", "auxiliary_head"))
    theirs = {len(v) for name, v in state.items() if name.startswith(classifiers) and name.endswith("bias")}
    if len(theirs) == 1 and theirs != {model.num_classes}:
        state = {name: value for name, value in state.items() if not name.startswith(classifiers)}
        return load_state(model, state, str(path), (*classifiers, *new_head))
    return load_state(model, state, str(path), new_head)


_CLASSES_OF_DETECTOR = ("roi_head.box_head.scores.", "roi_head.box_head.deltas.", "roi_head.mask_head.classifier.")


def load_detector(model: Any, path: str | Path) -> LoadReport:
    """Fill a detector strictly, but for what fine-tuning initialises.

    From a detector of another number of classes, the last layers of the two heads are newly initialised; from a
    checkpoint of a backbone, a classifier or a segmentor, everything but the backbone, and its output norms if the file
    has none.

    Args:
        model: :class:`paddle_vheat.models.mask_rcnn.MaskRCNN`.

    Raises:
        ValueError: for other missing or unexpected keys, and those of another shape or dtype.
    """
    state = read_weights(path)
    if any(name.startswith("roi_head.") for name in state):
        theirs = state.get("roi_head.mask_head.classifier.bias")
        if theirs is None or theirs.shape == (model.num_classes,):
            return load_state(model, state, str(path))
        state = {name: value for name, value in state.items() if not name.startswith(_CLASSES_OF_DETECTOR)}
        return load_state(model, state, str(path), _CLASSES_OF_DETECTOR)
    if not any(name.startswith("backbone.") for name in state):
        state = {f"backbone.{name}": value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name.startswith("backbone.")}
    return load_state(model, state, str(path), ("neck.", "rpn_head.", "roi_head.", "backbone.outnorm"))
