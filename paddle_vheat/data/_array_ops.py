"""The operations on normalised images: arrays instead of pictures. Use them through ``image_ops``."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from paddle_vheat.data._op_arguments import flag, fraction, numbers, probability, size_pair, value_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class NormalizeImage:
    """(value * scale - mean) / std by channel, float32.

    Args:
        scale: a number or a fraction such as "1.0/255.0"; 1/255 by default.
        mean, std: three numbers; ImageNet's by default.
        order: '' or 'hwc' for images and (H, W, 3); 'chw' (PaddleClas' default) after ToCHWImage.
    """

    def __init__(self, scale: Any = None, mean: Any = None, std: Any = None, order: str = "chw") -> None:
        self.scale = np.float32(1 / 255 if scale is None else fraction(scale, "scale"))
        self.mean = np.asarray(numbers(IMAGENET_MEAN if mean is None else mean, "mean", 3), np.float32)
        self.std = np.asarray(numbers(IMAGENET_STD if std is None else std, "std", 3), np.float32)
        if (self.std <= 0).any():
            raise ValueError(f"std: expected positive numbers, got {std!r}")
        if order not in ("", "hwc", "chw"):
            raise ValueError(f"order: expected '' or 'hwc', or 'chw' after ToCHWImage, got {order!r}")
        self.takes: tuple[str, ...] = ("chw",) if order == "chw" else ("image", "hwc")
        self.gives = "chw" if order == "chw" else "hwc"

    def __call__(self, image: Any) -> np.ndarray:
        array = np.asarray(image)
        planes = array if self.gives == "chw" else np.moveaxis(array, -1, 0)
        # Written plane by plane: three times as fast as broadcasting along an axis of three, and the
        # transposition at the end of a pipeline is then only a change of view.
        result = np.empty(planes.shape, np.float32)
        for plane, out, mean, std in zip(planes, result, self.mean, self.std):
            np.multiply(plane, self.scale, out=out, dtype=np.float32, casting="same_kind")
            out -= mean
            out /= std
        return result if self.gives == "chw" else np.moveaxis(result, 0, -1)


class RandomErasing:
    """Overwrite a random rectangle of a normalised image (Zhong et al., https://arxiv.org/abs/1708.04896).

    Args:
        EPSILON: probability.
        sl, sh: range of the rectangle's area, as a share of the image's.
        r1: the aspect ratio, height / width, is drawn from r1 to 1 / r1.
        mean: colour for mode "const".
        attempt: how often to draw until the rectangle is smaller than the image on both sides.
        use_log_aspect: draw the aspect ratio on a logarithmic scale, as the published recipe does.
        mode: "const"; "rand" (one normally distributed colour) or "pixel" (one for each pixel).

    The first four may be fractions such as "1.0/3.0".
    """

    takes, gives = ("hwc",), "hwc"

    def __init__(
        self,
        EPSILON: Any = 0.5,
        sl: Any = 0.02,
        sh: Any = 0.4,
        r1: Any = 0.3,
        mean: Any = (0.0, 0.0, 0.0),
        attempt: int = 100,
        use_log_aspect: bool = False,
        mode: str = "const",
    ) -> None:
        self.prob = probability(EPSILON, "EPSILON")
        self.area = value_range((sl, sh), "[sl, sh]", 1.0)
        r1 = fraction(r1, "r1")
        if not 0 < r1 <= 1:
            raise ValueError(f"r1: expected a number above 0 and up to 1, got {r1!r}")
        self.log = flag(use_log_aspect, "use_log_aspect")
        self.aspect = (math.log(r1), -math.log(r1)) if self.log else (r1, 1 / r1)
        self.mean = np.asarray(numbers(mean, "mean", 3), np.float32)
        self.attempt = size_pair(attempt, "attempt")[0]
        if mode not in ("const", "rand", "pixel"):
            raise ValueError(f"mode: expected const, rand or pixel, got {mode!r}")
        self.mode = mode

    def draw(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """The rectangle to erase, (top, left, height, width), or None if no attempt fits."""
        for _ in range(self.attempt):
            area = random.uniform(*self.area) * height * width
            aspect = random.uniform(*self.aspect)
            aspect = math.exp(aspect) if self.log else aspect
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        return None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Float32 (H, W, 3) -> the same, or a copy with a rectangle erased."""
        if random.random() >= self.prob:
            return image
        box = self.draw(*image.shape[:2])
        if box is None:
            return image
        top, left, h, w = box
        filling: Any = self.mean
        if self.mode != "const":
            noise = np.random.Generator(np.random.SFC64(random.getrandbits(64)))
            filling = noise.standard_normal((h, w, 3) if self.mode == "pixel" else (1, 1, 3), np.float32)
        image = image.copy(order="K")
        image[top : top + h, left : left + w] = filling
        return image


class ToCHWImage:
    """(H, W, 3) -> (3, H, W). A pipeline ends with this in any case."""

    takes, gives = ("image", "hwc"), "chw"

    def __call__(self, image: Any) -> np.ndarray:
        return np.moveaxis(np.asarray(image), -1, 0)
