"""From pictures to classes with an exported model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.deploy import runtimes
from paddle_vheat.deploy.description import Description, read_description
from paddle_vheat.deploy.transforms import ClassificationInput, SegmentationInput, Undo, resize

RUNTIMES = ("auto", "paddle", "onnx")
TOP = 5


class Predictor:
    """An exported model with its transforms.

    Calls from several threads are safe and wait for each other; for work side by side, make one for each thread.

    Args:
        folder: what ``export.py`` wrote.
        runtime: "paddle", "onnx", or "auto": ONNX Runtime if the folder has ``model.onnx`` and it is installed, else
            Paddle Inference. With Paddle on a CPU, oneDNN, full or reduced, is used only if the export was checked with
            it, on the version of Paddle that is installed, and found right.
        threads: of the CPU for one call; default all cores.
        device: "cpu", "gpu" or "gpu:1". GPUs were not run by us.
        precision: "fp32" or, on a GPU, "fp16".
        tensorrt: True, or a dict of options, as the runtime documents them; GPU only.
        resize: what an export of fixed size does with an image that has another size after the transforms: True
            resizes it (bilinearly, its shape is not kept) and the result back, False makes it an error.

    Attributes:
        description: the contents of ``deploy.yaml``.
        runtime: what runs: "Paddle Inference", "Paddle Inference oneDNN", "Paddle Inference oneDNN reduced" or "ONNX
            Runtime".

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ConfigError: if ``deploy.yaml`` is not valid, or has transforms that are not known here.
        ValueError: for options that cannot be, or a runtime that is not there.
    """

    def __init__(
        self,
        folder: str | Path,
        runtime: str = "auto",
        threads: int | None = None,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        tensorrt: bool | dict[str, Any] = False,
        resize: bool = True,
    ) -> None:
        runtimes.check_options(device, precision, tensorrt, threads)
        self.description = read_description(folder)
        self._resize = resize
        source = f"{self.description.folder / 'deploy.yaml'}: 'Deploy.transforms'"
        prepare = SegmentationInput if self.description.task == "segmentation" else ClassificationInput
        self._prepare = prepare(self.description.transforms, self.description.input_shape[1], source)
        options: dict[str, Any] = {"device": device, "precision": precision, "tensorrt": tensorrt, "threads": threads}
        self._lock = threading.Lock()
        if choose_runtime(self.description, runtime, device) == "onnx":
            self.runtime = "ONNX Runtime"
            assert self.description.onnx is not None
            self._run = runtimes.load_onnx(self.description.folder / self.description.onnx, **options)
            return
        onednn = safe_onednn(self.description) if device == "cpu" else "off"
        self.runtime = runtimes.ONEDNN_NAMES[onednn]
        assert self.description.model is not None
        assert self.description.params is not None
        files = [self.description.folder / name for name in (self.description.model, self.description.params)]
        self._run = runtimes.load_paddle(*files, onednn=onednn, **options)

    def predict(self, image: Any) -> Any:
        """Predict one image or a list of them.

        Args:
            image: a file's name, or an array (H, W, C), BGR if C is 3, uint8 or (segmentation only) floating-point
                values from 0 to 255; or a list of these, which after the transforms must be of one size.

        Returns:
            Segmentation: class of every pixel at the size of the image, int32 (H, W). Where images are resized, an
            export of ``argmax`` resizes classes to the nearest; those of ``softmax`` and ``none`` resize the scores and
            then choose, and with ``none`` the result is the evaluation's.
            Classification: the five likeliest classes, best first, each {"class": index, "name": its name, "score":
            probability}; with an export of ``argmax``, the best one alone, its score None.
            For a list, a list of these.

        Raises:
            ValueError: for an image that cannot be decoded or taken.
        """
        if not isinstance(image, (list, tuple)):
            return self.predict([image])[0]
        if not image:
            return []
        inputs, undos = zip(*(self._fit(*self._prepare(item)) for item in image))
        sizes = sorted({array.shape[1:] for array in inputs})
        if len(sizes) > 1:
            found = ", ".join(f"{h} x {w}" for h, w in sizes)
            raise ValueError(
                f"images of one call must have one size after the transforms, got {found} (height x width)"
            )
        outputs = self._run_batches(np.stack(inputs))
        if self.description.task == "segmentation":
            return [self._class_map(output, undo) for output, undo in zip(outputs, undos)]
        return [self._top(output) for output in outputs]

    def _fit(self, array: np.ndarray, undo: Undo) -> tuple[np.ndarray, Undo]:
        """The input (C, h, w) at a size that the model takes."""
        size, given = self.description.size, (int(array.shape[1]), int(array.shape[2]))
        if size is None:
            least = self.description.min_size
            if min(given) < least:
                raise ValueError(f"the model needs at least {least} pixels a side, got {given[0]} x {given[1]}")
            return array, undo
        if given == size:
            return array, undo
        if not self._resize:
            raise ValueError(
                f"the model was exported for {size[0]} x {size[1]} (height x width), the image has {given[0]} x "
                f"{given[1]} after the transforms, and resize is False"
            )
        fitted = np.stack([resize(plane, *size) for plane in array])
        return fitted, [*undo, ("resize", given)]

    def _run_batches(self, batch: np.ndarray) -> np.ndarray:
        """Run the model; where its batch size is fixed, in batches of that size, the last one filled up."""
        fixed = self.description.input_shape[0]
        with self._lock:
            if fixed < 0:
                return self._run(batch)
            outputs = []
            for start in range(0, len(batch), fixed):
                part = batch[start : start + fixed]
                filled = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
                outputs.append(self._run(filled)[: len(part)])
        return np.concatenate(outputs)

    def _class_map(self, output: np.ndarray, undo: Undo) -> np.ndarray:
        """Class of every pixel of the original image from the model's (h, w) or (classes, h, w)."""
        if output.ndim == 2:
            return restore(output.astype(np.int32), undo, "NEAREST")
        # Class by class, so that the scores of all classes at the size of a large image need not be held at once.
        best = restore(output[0], undo, "LINEAR").copy()
        classes = np.zeros(best.shape, np.int32)
        for i, plane in enumerate(output[1:], start=1):
            scores = restore(plane, undo, "LINEAR")
            better = scores > best
            classes[better] = i
            np.maximum(best, scores, out=best)
        return classes

    def _top(self, output: np.ndarray) -> list[dict[str, Any]]:
        names = self.description.class_names
        if output.ndim == 0:
            return [{"class": int(output), "name": names[int(output)], "score": None}]
        if len(output) != len(names):
            raise ValueError(f"the model gives {len(output)} classes, 'Deploy.class_names' has {len(names)}")
        scores = output
        if self.description.output_op == "none":
            shifted = np.exp(output - output.max())
            scores = shifted / shifted.sum()
        best = np.argsort(-scores, kind="stable")[:TOP]
        return [{"class": int(i), "name": names[i], "score": float(scores[i])} for i in best]


def restore(plane: np.ndarray, undo: Undo, interpolation: str) -> np.ndarray:
    """What the model gives for each position, (h, w), at the size of the image before the transforms."""
    for kind, (height, width) in reversed(undo):
        if kind == "padding":
            plane = plane[:height, :width]
        elif plane.shape != (height, width):
            plane = resize(np.ascontiguousarray(plane), height, width, interpolation)
    return plane


def choose_runtime(description: Description, wanted: str, device: str = "cpu") -> str:
    """ "paddle" or "onnx" for what is asked for, what is exported and what is installed."""
    if wanted not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {wanted!r}")
    exported = [n for n, file in (("onnx", description.onnx), ("paddle", description.model)) if file is not None]
    folder, packages = description.folder, {"onnx": "onnxruntime", "paddle": "paddle"}
    if wanted != "auto" and wanted not in exported:
        raise ValueError(
            f"{folder}: holds no {wanted} model, only {exported[0]}; export with --format {wanted} or both"
        )
    candidates = exported if wanted == "auto" else [wanted]
    installed = [name for name in candidates if runtimes.is_installed(packages[name])]
    if not installed:
        raise ValueError(f"{folder}: to run it, install {' or '.join(packages[name] for name in candidates)}")
    if installed == ["onnx", "paddle"] and device != "cpu" and not runtimes.onnx_sees_gpu():
        return "paddle"
    return installed[0]


def safe_onednn(description: Description) -> str:
    """How much of oneDNN was found right for this export by the Paddle that is installed."""
    # Not a matter of newer or older: passes that are wrong or crash came and went between 2.6, 3.2 and 3.3.
    return description.onednn if description.checked_on.get("paddle") == runtimes.paddle_version() else "off"
