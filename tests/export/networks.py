"""Small networks, and what they should predict: computed by Paddle and PaddleSeg's own transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, nn
from paddle_vheat.deploy.description import Description, Signature, Tensors
from paddle_vheat.deploy.images import read_image, resize_planes
from paddle_vheat.deploy.processor import register_processor
from paddle_vheat.engine.task import Check, ExportSpec, Program
from paddle_vheat.export import inference_copy, parse_input_shape, scores_spec
from paddle_vheat.models import UPerNet, VHeat, VHeatClassifier
from tests.conftest import paddle

CLASSES = 19
NAMES = [f"class {i}" for i in range(CLASSES)]
PALETTE = np.random.default_rng(2).integers(0, 256, (CLASSES, 3)).tolist()
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
DIGIT_OPS = [
    {"ResizeImage": {"resize_short": 40}},
    {"CropImage": {"size": 32}},
    {"NormalizeImage": {"order": ""}},
    {"ToCHWImage": None},
]


def quiet(text: str) -> None:
    """For ``say``."""


def noise(*size: int, seed: int = 0) -> np.ndarray:
    """An image, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def inputs(*size: int) -> np.ndarray:
    """Float32 (N, 3, H, W)."""
    return np.random.default_rng(3).standard_normal((size[0], 3, *size[1:])).astype(np.float32)


def lively(model: Any) -> Any:
    """Give a segmentor weights with which its predictions are varied (fresh ones predict one class nearly all over)."""
    rng = np.random.default_rng(1)
    for name, value in model.state_dict().items():
        if name.endswith("classifier.weight"):
            value.set_value(rng.standard_normal(value.shape).astype(np.float32))
        elif name.endswith("_mean"):
            value.set_value(0.1 * rng.standard_normal(value.shape).astype(np.float32))
    model.eval()
    return model


def backbone() -> VHeat:
    return VHeat(embed_dim=8, depths=(1, 1, 1, 1), img_size=(32, 64))


def segmentor() -> Any:
    paddle.seed(0)
    return lively(UPerNet(CLASSES, backbone(), channels=16, aux_channels=8))


class Pixelwise(nn.Layer):
    """Logits of every pixel by two convolutions: exported in a tenth of the time that :func:`segmentor` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, CLASSES, 1)

    def forward(self, x: Any) -> Any:
        return self.classifier(F.gelu(self.conv(x)))


class Average(nn.Layer):
    """A classifier of the kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2D(3, 8, 3), nn.Linear(8, 7)

    def forward(self, x: Any) -> Any:
        return self.head(F.gelu(self.conv(x)).mean(axis=[2, 3]))


def pixelwise() -> Pixelwise:
    paddle.seed(0)
    return lively(Pixelwise())


def classifier() -> Any:
    paddle.seed(0)
    model = VHeatClassifier(7, embed_dim=8, depths=(1, 1, 1, 1), img_size=32)
    model.head.weight.set_value(paddle.randn(model.head.weight.shape) * 3)
    model.eval()
    return model


def segmentation(model: Any, shape: Any = None, output_op: str = "argmax", *transforms: dict, **more: Any) -> tuple:
    """The first arguments of ``export_model`` but for the folder."""
    shape = parse_input_shape(shape)
    more = {"class_names": NAMES, "palette": PALETTE, "transforms": [*transforms, NORMALIZE], "min_size": 32, **more}
    return scores_spec(model, shape, output_op, CLASSES, per_pixel=True, **more), "segmentation", shape


def classification(model: Any, shape: Any = None, output_op: str = "softmax", **more: Any) -> tuple:
    shape = parse_input_shape(shape)
    more = {"class_names": [f"digit {i}" for i in range(7)], "transforms": DIGIT_OPS, "min_size": 32, **more}
    return scores_spec(model, shape, output_op, 7, per_pixel=False, **more), "classification", shape


def description(task: str, shape: Any, options: Any, transforms: Any = (), **more: Any) -> Description:
    """As of ``deploy.yaml``, without a file."""
    values = {"path": Path("x/deploy.yaml"), "options_at": "Deploy.options", "min_size": 32, "onednn": "off",
              "model": {}, "params": {}, "onnx": {}, "int8": {}, "programs": {}, "checked_on": {}, **more}  # fmt: skip
    return Description(task=task, transforms=list(transforms), input_shape=shape, options=dict(options), **values)


def logits_of(model: Any, x: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        output = model(paddle.to_tensor(x))
    return (output[0] if isinstance(output, list) else output).numpy()


def paddlesegs(image: np.ndarray, *transforms: dict) -> tuple[np.ndarray, list]:
    """The model's input (1, 3, h, w) by PaddleSeg's transforms, and what undoes them."""
    from paddleseg import transforms as theirs

    ops = [getattr(theirs, entry["type"])(**{k: v for k, v in entry.items() if k != "type"}) for entry in transforms]
    data = theirs.Compose(ops)({"img": image.astype(np.float32), "gt_fields": []})
    return data["img"][None], data["trans_info"]


def classes_of(model: Any, image: np.ndarray, *transforms: dict, output_op: str = "none") -> np.ndarray:
    """Class of every pixel of a BGR image, by the model and PaddleSeg; ``none`` as an evaluation does it."""
    from paddleseg.core.infer import reverse_transform

    x, undo = paddlesegs(image, *transforms, NORMALIZE)
    logits = paddle.to_tensor(logits_of(model, x))
    if output_op == "argmax":
        classes = logits.argmax(axis=1, keepdim=True).astype("int32")
        return reverse_transform(classes, undo, "nearest").numpy()[0, 0]
    scores = F.softmax(logits, axis=1) if output_op == "softmax" else logits
    return reverse_transform(scores, undo, "bilinear").numpy().argmax(1)[0]


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two class maps are equal, up to a few pixels where rounding decides between two classes."""
    assert ours.dtype == np.int32
    assert ours.shape == theirs.shape
    assert len(np.unique(theirs)) > 2
    return bool((ours != theirs).mean() < 1e-3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- a task of several outputs and programs -----------------------------------------------------------

AXES = ("batch", "channels", "height", "width")


class Features(nn.Layer):
    """(N, 3, H, W) -> (N, 4, H / 2, W / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 2, stride=2)

    def forward(self, x: Any) -> Any:
        return F.gelu(self.conv(x))


class Heads(nn.Layer):
    """(N, 4, h, w) and weights (N, 1, h, w) -> int32 (N, h, w), float32 (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, features: Any, weights: Any) -> Any:
        weighted = features * weights
        return weighted.argmax(axis=1, dtype="int32"), self.linear(weighted.mean(axis=[2, 3]))


class Toy(nn.Layer):
    """Labels and scores; between the two parts, what NumPy does in the ONNX export."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.heads = Features(), Heads()

    def forward(self, x: Any) -> Any:
        features = self.features(x)
        return self.heads(features, features.mean(axis=1, keepdim=True).abs())


def toy_programs(shape: Any) -> dict[str, Signature]:
    batch, _, height, width = shape
    half = (batch, None if height is None else height // 2, None if width is None else width // 2)
    x = Tensors("x", tuple(shape), AXES)
    features = Tensors("features", (batch, 4, *half[1:]), AXES)
    weights = Tensors("weights", (batch, 1, *half[1:]), AXES)
    results = (
        Tensors("labels", half, ("batch", "height", "width"), "int32"),
        Tensors("scores", (batch, 5), ("batch", "classes")),
    )
    return {
        "model": Signature((x,), results),
        "features": Signature((x,), (features,)),
        "heads": Signature((features, weights), results),
    }


class ToyPrediction:
    def __init__(self, value: Any) -> None:
        self.value = value


class ToyProcessor:
    def __init__(self, description: Description) -> None:
        self.gain = description.options["gain"]
        self.programs = toy_programs(description.input_shape)

    def prepare(self, image: Any) -> tuple[np.ndarray, None]:
        return np.float32(self.gain) * read_image(image).transpose(2, 0, 1).astype(np.float32), None

    def fit(self, array: np.ndarray, size: tuple[int, int], context: None) -> tuple[np.ndarray, None]:
        return resize_planes(array, size), None

    def run(self, programs: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
        if "model" in programs:
            return programs["model"](batch)
        features = programs["features"](batch)["features"]
        return programs["heads"](features, np.abs(features.mean(axis=1, keepdims=True)))

    def finish(self, outputs: dict[str, np.ndarray], context: None) -> ToyPrediction:
        return ToyPrediction((outputs["labels"], outputs["scores"]))


register_processor("toy_network", ToyProcessor)


def share_of_others(labels: np.ndarray, reference: np.ndarray) -> float:
    return float((labels != reference).mean())


def toy(model: Toy, shape: Any = None, **more: Any) -> tuple:
    shape = parse_input_shape(shape)
    takes = toy_programs(shape)

    def programs(model_format: str) -> dict[str, Program]:
        copied = inference_copy(model, None)
        if model_format == "paddle":
            return {"model": Program(copied, *takes["model"])}
        parts = {"features": copied.features, "heads": copied.heads}
        return {name: Program(part, *takes[name]) for name, part in parts.items()}

    def reference(x: np.ndarray) -> dict[str, np.ndarray]:
        with paddle.no_grad():
            return dict(zip(("labels", "scores"), (value.numpy() for value in model(paddle.to_tensor(x)))))

    # Where two channels are nearly equal, rounding decides between them.
    checks = {"labels": Check(1e-3, share_of_others, "the share of other labels"), "scores": Check(1e-5)}
    spec = ExportSpec(**{"model": model, "programs": programs, "checks": checks, "reference": reference,
                         "options": {"gain": 0.01}, **more})  # fmt: skip
    return spec, "toy_network", shape
