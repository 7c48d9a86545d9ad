"""Segment an image with an ONNX export. Needs NumPy, Pillow, PyYAML and ONNX Runtime, and nothing of this project.

python examples/onnx_only.py output/inference_model street.png classes.png

It takes exports whose only transform is Normalize, with any --output_op, and of any size: where the size is fixed, the
image is resized to it, and the classes are brought back.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml
from PIL import Image


def load(folder: Path) -> tuple[dict[str, Any], Any]:
    """The block of ``deploy.yaml``, and the model."""
    deploy = yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    if deploy["task"] != "segmentation" or [step["type"] for step in deploy["transforms"]] != ["Normalize"]:
        sys.exit(f"{folder}: no segmentation, or with transforms other than Normalize")
    return deploy, onnxruntime.InferenceSession(str(folder / deploy["onnx"]), providers=["CPUExecutionProvider"])


def prepare(image: Image.Image, deploy: dict[str, Any]) -> np.ndarray:
    """float32 (1, 3, H, W): RGB from 0 to 1, less the mean, over the standard deviation."""
    _, _, height, width = deploy["input_shape"]
    if height > 0 and image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    normalize = deploy["transforms"][0]
    mean, std = (np.float32(normalize.get(key, [0.5, 0.5, 0.5])) for key in ("mean", "std"))
    values = (np.asarray(image, np.float32) / 255 - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


def main(folder: str, source: str, target: str) -> None:
    deploy, session = load(Path(folder))
    image = Image.open(source).convert("RGB")
    x = prepare(image, deploy)
    # A batch of fixed size is filled up with copies.
    x = np.repeat(x, max(deploy["input_shape"][0], 1), axis=0)
    (output,) = session.run(None, {"x": x})
    classes = output[0] if deploy["options"]["output_op"] == "argmax" else output[0].argmax(axis=0)
    picture = Image.fromarray(classes.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    picture.putpalette(np.array(deploy["options"]["palette"], np.uint8).tobytes())
    picture.save(target)
    names = deploy["options"]["class_names"]
    for index, count in zip(*np.unique(np.asarray(picture), return_counts=True)):
        print(f"{names[index] if names else index}: {count / (image.width * image.height):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
