"""From pictures to predictions with an exported model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from paddle_vheat.deploy import runtimes
from paddle_vheat.deploy.description import Description, read_description
from paddle_vheat.deploy.images import is_video, read_frames
from paddle_vheat.deploy.processor import Outputs, Prediction, Processor, make_processor
from paddle_vheat.deploy.writing import list_images
from paddle_vheat.errors import UserError

RUNTIMES = ("auto", "paddle", "onnx", "openvino")


class Predictor:
    """An exported model with its transforms.

    Calls from several threads are safe and wait for each other; for work side by side, make one for each thread.

    Args:
        folder: what ``export.py`` wrote.
        runtime: "paddle", "onnx", "openvino" (for an ONNX model that was checked with it when it was exported), or
            "auto": ONNX Runtime if the folder has an ONNX model and it is installed, else Paddle Inference. With Paddle
            on a CPU, oneDNN, full or reduced, is used only if the export was checked with it, on the version of Paddle
            that is installed, and found right.
        threads: of the CPU for one call; default all cores.
        device: "cpu", "gpu" or "gpu:1". GPUs were not run by us.
        precision: "fp32"; on a GPU "fp16"; on the CPU "int8" (ONNX Runtime or OpenVINO, of an export with a quantised
            model) or "bf16" (OpenVINO). All but "fp32" change the results.
        tensorrt: True, or a dict of options, as the runtime documents them; GPU only.
        resize: what an export of fixed size does with an image that has another size after the transforms: True
            brings it to that size, as the task does it, and the result back, False makes it an error.

    Attributes:
        description: the contents of ``deploy.yaml``.
        programs: what runs, by name: functions from arrays to arrays by name.
        runtime: what runs: "Paddle Inference", "Paddle Inference oneDNN", "Paddle Inference oneDNN reduced", "ONNX
            Runtime" or "OpenVINO", and the precision if it is not "fp32".

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ConfigError: if ``deploy.yaml`` is not valid, or has transforms that are not known here.
        ValueError: for options that cannot be, a runtime that is not there, and files that are not what ``deploy.yaml``
            says.
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
        options = runtimes.Options(threads, device, precision, tensorrt)
        self.description = read_description(folder)
        self._resize = resize
        self._processor = make_processor(self.description)
        self._lock = threading.Lock()
        chosen = choose_runtime(self.description, runtime, device, precision)
        onednn = safe_onednn(self.description) if chosen == "paddle" and device == "cpu" else "off"
        self.runtime = runtimes.NAMES[chosen, onednn] + (f" {precision}" if precision != "fp32" else "")
        options = replace(options, onednn=onednn)
        self.programs = runtimes.load_programs(self.description, self._processor.programs, chosen, options)

    def predict(self, image: Any) -> Any:
        """Predict one image or a list of them.

        Args:
            image: a file's name, or an array (H, W, C), BGR if C is 3, uint8 or (segmentation only) floating-point
                values from 0 to 255; or a list of these, which after the transforms must be of one size; or a folder
                of images or a video file, as of :meth:`stream`.

        Returns:
            Segmentation: class of every pixel at the size of the image, int32 (H, W). Where images are resized, an
            export of ``argmax`` resizes classes to the nearest; those of ``softmax`` and ``none`` resize the scores and
            then choose, and with ``none`` the result is the evaluation's.
            Classification: the five likeliest classes, best first, each {"class": index, "name": its name, "score":
            probability}; with an export of ``argmax``, the best one alone, its score None.
            Another task: the ``value`` of its predictions. For a list, a list of these; for a folder or a video, an
            iterator of these, which predicts as it goes.

        Raises:
            ValueError: for an image that cannot be decoded or taken.
        """
        if isinstance(image, (list, tuple)):
            return [prediction.value for prediction in self.predictions(image)]
        if isinstance(image, (str, Path)) and (is_video(image) or Path(image).is_dir()):
            return (prediction.value for _, prediction in self.stream(image))
        return self.predictions([image])[0].value

    def predictions(self, images: Sequence[Any]) -> list[Prediction]:
        """As :meth:`predict` for a list, with what can be drawn or written of each (``value``, ``draw``, ...)."""
        found = self._outputs([self._processor.prepare(image) for image in images])
        return [self._processor.finish(output, context) for output, context in found]

    def outputs(self, images: Sequence[Any], prepared: bool = False) -> list[Outputs]:
        """What the model itself gives for each image: arrays without batch axis, by the output's name.

        Args:
            images: as for :meth:`predict`; or, ``prepared``, the model's inputs, float32 (C, h, w).
        """
        inputs = [(image, None) if prepared else self._processor.prepare(image) for image in images]
        return [output for output, _ in self._outputs(inputs)]

    def stream(self, source: str | Path, progress: bool = True) -> Iterator[tuple[Path | int, Prediction]]:
        """Predict the images of a folder or list file, or the frames of a video, one after another.

        Args:
            source: as for ``predict.py --image_path``, or a video file (``deploy.images.VIDEO_SUFFIXES``).
            progress: show a progress bar, where the output is a terminal.

        Yields:
            The image's path, or the frame's number from 0, and its prediction.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for a video or an image that cannot be decoded.
        """
        items: Any
        if is_video(source):
            items, total = read_frames(source)
        else:
            pairs = [(path, path) for path, _ in list_images(source)]
            items, total = pairs, len(pairs)
        shown = None if progress else True
        for name, image in tqdm(items, total=total, desc="predicting", unit="img", disable=shown):
            yield name, self.predictions([image])[0]

    def run(self, batch: np.ndarray) -> Outputs:
        """The outputs for prepared inputs, float32 (N, C, H, W), as the model takes them."""
        return self._processor.run(self.programs, batch)

    def _outputs(self, prepared: Sequence[tuple[np.ndarray, Any]]) -> list[tuple[Outputs, Any]]:
        if not prepared:
            return []
        description, processor = self.description, self._processor
        inputs, contexts = zip(*(fitted(*one, description, processor, self._resize) for one in prepared))
        sizes = sorted({array.shape[1:] for array in inputs})
        if len(sizes) > 1:
            found = ", ".join(f"{h} x {w}" for h, w in sizes)
            raise UserError(f"images of one call must have one size after the transforms, got {found} (height x width)")
        with self._lock:
            outputs = list(self._run(np.stack(inputs)))
        return list(zip(outputs, contexts))

    def _run(self, batch: np.ndarray) -> Iterator[Outputs]:
        """The outputs for each image; a model of fixed batch size runs in such batches, the last one filled up."""
        size = self.description.input_shape[0] or len(batch)
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            outputs = self.run(filled)
            yield from ({name: output[i] for name, output in outputs.items()} for i in range(len(part)))


def fitted(
    array: np.ndarray, context: Any, description: Description, processor: Processor, resize: bool = True
) -> tuple[np.ndarray, Any]:
    """What the processor's ``prepare`` gave, at a size that the model takes: (C, h, w), and what ``finish`` needs.

    Raises:
        UserError: for an image that cannot be taken.
    """
    size, given = description.size, (int(array.shape[1]), int(array.shape[2]))
    if size is None:
        smallest = description.min_size
        if min(given) < smallest:
            raise UserError(f"the model needs at least {smallest} pixels a side, got {given[0]} x {given[1]}")
        return array, context
    if given == size:
        return array, context
    if not resize:
        raise UserError(
            f"the model was exported for {size[0]} x {size[1]} (height x width), the image has {given[0]} x "
            f"{given[1]} after the transforms, and resize is False"
        )
    return processor.fit(array, size, context)


def choose_runtime(description: Description, wanted: str, device: str = "cpu", precision: str = "fp32") -> str:
    """ "paddle", "onnx" or "openvino" for what is asked for, what is exported and what is installed."""
    if wanted not in RUNTIMES:
        raise UserError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {wanted!r}")
    exported = [name for name, files in (("onnx", description.onnx), ("paddle", description.model)) if files]
    folder = description.path.parent
    packages = {"onnx": "onnxruntime", "paddle": "paddle", "openvino": "openvino"}
    kind = "onnx" if wanted == "openvino" else wanted
    if wanted != "auto" and kind not in exported:
        raise UserError(f"{folder}: holds no {kind} model, only {exported[0]}; export with --format {kind} or both")
    if precision == "bf16" and wanted != "openvino":
        raise UserError(f"precision 'bf16': expected runtime='openvino' with it, got {wanted!r}")
    if precision == "int8":
        if wanted == "paddle":
            raise UserError("precision 'int8': expected runtime='onnx' or 'openvino' with it, got 'paddle'")
        if not description.int8:
            raise UserError(f"{folder}: holds no int8 model; export with --format onnx --quantize int8")
        exported = ["onnx"]
    if wanted == "openvino" and "openvino" not in description.checked_on:
        raise UserError(
            f"{folder}: was not checked with OpenVINO, or found wrong; install openvino and export again, or use "
            "runtime='onnx'"
        )
    candidates = exported if wanted == "auto" else [wanted]
    installed = [name for name in candidates if runtimes.is_installed(packages[name])]
    if not installed:
        raise UserError(f"{folder}: to run it, install {' or '.join(packages[name] for name in candidates)}")
    if installed == ["onnx", "paddle"] and device != "cpu" and not runtimes.onnx_sees_gpu():
        return "paddle"
    return installed[0]


def safe_onednn(description: Description) -> str:
    """How much of oneDNN was found right for this export by the Paddle that is installed."""
    # Not a matter of newer or older: passes that are wrong or crash came and went between 2.6, 3.2 and 3.3.
    return description.onednn if description.checked_on.get("paddle") == runtimes.paddle_version() else "off"
