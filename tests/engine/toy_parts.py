"""What the toy task is made of: data, model, evaluator and processor."""

from __future__ import annotations

import numpy as np

from paddle_vheat._paddle import nn
from paddle_vheat.deploy.description import Signature, Tensors
from paddle_vheat.engine.task import Scores

IMAGE = Tensors("x", (None, 3, None, None), ("batch", "channels", "height", "width"))
SIGNATURE = Signature((IMAGE,), (Tensors("value", (None,), ("batch",)),))


class Pictures:
    """Random 8 x 8 pictures; the value is their mean."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        image = np.random.default_rng(index).random((3, 8, 8), np.float32)
        return {"img": image, "value": image.mean(dtype=np.float32)}


class Brightness(nn.Layer):
    """(N, 3, 8, 8) -> (N,)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 1, 8)

    def forward(self, x):
        return self.conv(x).flatten(1).squeeze(1)


class MeanError:
    """Mean absolute error."""

    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, outputs, batch) -> None:
        self.errors += np.abs(outputs.numpy() - batch["value"].numpy()).tolist()

    def state(self):
        return self.errors

    def merge(self, states) -> None:
        self.errors = [error for state in states for error in state]

    def summarize(self) -> Scores:
        value = float(np.mean(self.errors))
        return Scores({"error": value}, f"error {value:.3f}", {"error": value}, len(self.errors))


class Value:
    """A prediction: a number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def draw(self, image):
        return {}

    def to_json(self):
        return self.value

    def line(self) -> str:
        return f"{self.value:.3f}"


def picture(path) -> np.ndarray:
    from paddle_vheat.data.image_file import read_bgr

    return read_bgr(path).transpose(2, 0, 1)[:, :8, :8].astype(np.float32) / 255


class ToyProcessor:
    def __init__(self, description) -> None:
        self.programs = {"model": SIGNATURE}

    def prepare(self, image):
        return picture(image), None

    def fit(self, array, size, context):
        return array, context

    def run(self, programs, batch):
        return programs["model"](batch)

    def finish(self, outputs, context):
        return Value(float(outputs["value"]))
