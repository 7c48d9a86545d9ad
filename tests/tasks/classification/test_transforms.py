"""The image operations against computations of their own, their randomness, and what they refuse."""

from __future__ import annotations

import io
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter

from paddle_vheat.tasks.classification.augment import RandCropImage, RandFlipImage, RandomErasing, TimmAutoAugment
from paddle_vheat.tasks.classification.transforms import (
    CropImage,
    DecodeImage,
    NormalizeImage,
    ResizeImage,
    ToCHWImage,
    build_ops,
    pipeline,
)
from tests.tasks.classification.bounds import within

# As PaddleClas' own ImageNet configurations write the recipe.
RECIPE = yaml.safe_load("""
train:
  - DecodeImage:
      to_rgb: True
      channel_first: False
  - RandCropImage:
      size: 224
      interpolation: bicubic
      backend: pil
  - RandFlipImage:
      flip_code: 1
  - TimmAutoAugment:
      config_str: rand-m9-mstd0.5-inc1
      interpolation: bicubic
      img_size: 224
  - NormalizeImage: &normalize
      scale: 1.0/255.0
      mean: [0.485, 0.456, 0.406]
      std: [0.229, 0.224, 0.225]
      order: ''
  - RandomErasing:
      EPSILON: 0.25
      sl: 0.02
      sh: 1.0/3.0
      r1: 0.3
      attempt: 10
      use_log_aspect: True
      mode: pixel
eval:
  - DecodeImage: {to_rgb: True, channel_first: False}
  - ResizeImage: {resize_short: 256, interpolation: bicubic, backend: pil}
  - CropImage: {size: 224}
  - NormalizeImage: *normalize
  - ToCHWImage:
""")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_decoding_gives_the_pixels():
    image = picture(30, 20)
    decoded = DecodeImage()(encoded(image))
    assert (decoded.mode, decoded.size) == ("RGB", (30, 20))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(DecodeImage(to_rgb=False)(encoded(image))), np.asarray(image)[..., ::-1])
    jpeg = encoded(image, "JPEG", quality=90)
    np.testing.assert_array_equal(np.asarray(DecodeImage()(jpeg)), np.asarray(Image.open(io.BytesIO(jpeg))))
    assert DecodeImage()(image) is image
    given = pipeline(build_ops([{"DecodeImage": None}]), takes="image")(np.asarray(image))
    np.testing.assert_array_equal(given, np.asarray(image).transpose(2, 0, 1))
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter: not followed, as in the published recipe
    np.testing.assert_array_equal(np.asarray(DecodeImage()(encoded(image, exif=turned))), np.asarray(image))


def test_decoding_makes_rgb_of_other_kinds():
    grey = picture(30, 20).convert("L")
    levels = np.asarray(grey)
    wide = Image.fromarray(levels.astype(np.uint16) * 256 + 7)
    for data in (encoded(grey), encoded(wide)):
        np.testing.assert_array_equal(np.asarray(DecodeImage()(data)), np.repeat(levels[..., None], 3, -1))
    transparent = picture(30, 20)
    transparent.putalpha(0)
    for data in (
        encoded(transparent),
        encoded(picture(30, 20).quantize(16)),
        encoded(grey.convert("1")),
        encoded(picture(30, 20).convert("CMYK"), "JPEG"),
    ):
        result = DecodeImage()(data)
        assert (result.mode, result.size) == ("RGB", (30, 20))
    np.testing.assert_array_equal(np.asarray(DecodeImage()(encoded(transparent))), np.asarray(picture(30, 20)))


@pytest.mark.parametrize("fused", [False, True])
def test_unreadable_bytes_say_so(fused: bool):
    ops = [{"DecodeImage": None}, {"RandCropImage": {"size": 8}} if fused else {"CropImage": {"size": 8}}]
    run = pipeline(build_ops(ops))
    whole = encoded(picture(300, 300), "JPEG")
    for data, message in (
        (b"", "the file is empty"),
        (b"<html>not found</html>", "is no image that Pillow knows"),
        (whole[: len(whole) // 2], "the image is damaged: .*truncated"),
        (whole[:100], "is no image that Pillow knows, or the beginning of one"),
    ):
        with pytest.raises(ValueError, match=message):
            run(data)


def test_random_crop_is_the_drawn_part_resized():
    image = picture(160, 100)
    for interpolation, resample in (("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR), (None, Image.BICUBIC)):
        crop = RandCropImage(size=[48, 32], interpolation=interpolation, backend="pil")
        random.seed(3)
        left, top, right, bottom = crop.draw(160, 100)
        random.seed(3)
        part = Image.fromarray(np.asarray(image)[top:bottom, left:right])
        np.testing.assert_array_equal(np.asarray(crop(image)), np.asarray(part.resize((48, 32), resample)))


def test_random_crops_have_the_promised_area_shape_and_place():
    crop = RandCropImage(size=224)
    random.seed(0)
    width, height, trials = 2000, 1500, 4000
    boxes = np.array([crop.draw(width, height) for _ in range(trials)])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    # Both sides are rounded: half a pixel each, of at least 370.
    slack = 0.5 / w.min() + 0.5 / h.min()
    share, ratio = w * h / (width * height), w / h
    assert 0.08 * (1 - slack) <= share.min() < 0.1
    assert 0.9 < share.max() <= 1
    assert 0.75 * (1 - slack) <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 * (1 + slack)
    # Where every part fits, the area is uniform, and the ratio on a logarithmic scale: below 1 in half of the
    # cases (on a linear scale it would be 0.43, nine standard deviations away).
    small = RandCropImage(size=224, scale=[0.1, 0.5])
    boxes = np.array([small.draw(2000, 2000) for _ in range(trials)])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    assert within(int((w < h).sum()), trials, 0.5)
    for quantile in (0.25, 0.5, 0.75):
        assert within(int((w * h / 4e6 < 0.1 + 0.4 * quantile).sum()), trials, quantile)
        assert within(int((left < quantile * (2000 - w + 1)).sum()), trials, quantile)
        assert within(int((top < quantile * (2000 - h + 1)).sum()), trials, quantile)


def test_where_no_part_fits_it_is_the_largest_in_the_middle():
    # Areas above half of a very long image never have an allowed shape.
    crop = RandCropImage(size=8, scale=[0.5, 1])
    assert crop.draw(1200, 90) == (540, 0, 660, 90)
    assert crop.draw(90, 1200) == (0, 540, 90, 660)
    assert RandCropImage(size=8, scale=[1, 1], ratio=[1, 1]).draw(50, 50) == (0, 0, 50, 50)
    image = picture(50, 50)
    whole = RandCropImage(size=50, scale=[1, 1], ratio=[1, 1])(image)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(image))


def test_large_jpegs_are_decoded_small_with_almost_the_same_result():
    data = encoded(picture(1600, 1200).filter(ImageFilter.GaussianBlur(2)), "JPEG", quality=95)
    crop, decode = RandCropImage(size=64), DecodeImage()
    sizes = set()

    class Seen(DecodeImage):
        def finish(self, image: Image.Image) -> Image.Image:
            result = super().finish(image)
            sizes.add(result.size)
            return result

    for seed in range(10):
        random.seed(seed)
        plain = np.asarray(crop(decode(data))).astype(float)
        random.seed(seed)
        fused = np.asarray(crop.from_file(data, Seen())).astype(float)
        assert plain.shape == fused.shape == (64, 64, 3)
        # Two kinds of averaging over two pixels or more: about a grey level apart, where a crop one original
        # pixel off differs by several.
        assert np.abs(plain - fused).mean() < 1.0, seed
    assert (1600, 1200) not in sizes
    assert sizes & {(800, 600), (400, 300), (200, 150)}
    # Where it would cost resolution, and for other formats, the whole image is decoded: the same bits.
    for data in (encoded(picture(120, 100), "JPEG"), encoded(picture(640, 512))):
        random.seed(1)
        plain = crop(decode(data)).tobytes()
        random.seed(1)
        assert crop.from_file(data, decode).tobytes() == plain


def test_flips():
    image = picture(30, 20)
    pixels = np.asarray(image)
    for code, flipped in ((1, pixels[:, ::-1]), (0, pixels[::-1]), (-1, pixels[::-1, ::-1])):
        np.testing.assert_array_equal(np.asarray(RandFlipImage(code, prob=1)(image)), flipped)
    assert RandFlipImage(prob=0)(image) is image
    random.seed(0)
    for op, prob in ((RandFlipImage(), 0.5), (RandFlipImage(prob=0.2), 0.2)):
        assert within(sum(op(image) is not image for _ in range(2000)), 2000, prob)


def test_resizing_and_the_middle():
    image = picture(500, 375)
    # 256 / 375 * 500 = 341.33, and 256 / 300 * 333 = 284.16; 256 / 375 * 499 = 340.65 is rounded down.
    for size, wanted in (((500, 375), (341, 256)), ((300, 333), (256, 284)), ((499, 375), (340, 256))):
        resized = ResizeImage(resize_short=256, interpolation="bicubic", backend="pil")(picture(*size))
        assert resized.size == wanted
        np.testing.assert_array_equal(np.asarray(resized), np.asarray(picture(*size).resize(wanted, Image.BICUBIC)))
    assert ResizeImage(size=[40, 30])(image).size == (40, 30)
    assert ResizeImage(size=40)(image).size == (40, 40)
    assert ResizeImage(resize_short=375)(image) is image

    pixels = np.asarray(image)
    np.testing.assert_array_equal(np.asarray(CropImage(224)(image)), pixels[76:300, 138:362])  # 75.5 -> 76
    np.testing.assert_array_equal(np.asarray(CropImage([300, 100])(image)), pixels[138:238, 100:400])  # 137.5 -> 138
    np.testing.assert_array_equal(np.asarray(CropImage([500, 375])(image)), pixels)
    for width, left in ((375, 76), (373, 74)):  # 75.5 and 74.5: halves go to the even number
        cut = CropImage(224)(picture(width, 224))
        np.testing.assert_array_equal(np.asarray(cut), np.asarray(picture(width, 224))[:, left : left + 224])
    with pytest.raises(ValueError, match=r"500 x 375 \(width x height\), smaller than the 376 x 376"):
        CropImage(376)(image)


def test_normalising():
    image = picture(30, 20)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    wanted = (np.asarray(image).astype(np.float64) / 255 - mean) / std
    # float32: values up to 1 with two roundings of 6e-8 and the constants', divided by 0.22: below 2e-6.
    for op in (
        NormalizeImage(scale="1.0/255.0", mean=list(mean), std=list(std), order=""),
        NormalizeImage(order="hwc"),
    ):
        result = op(image)
        assert (result.dtype, result.shape) == (np.float32, (20, 30, 3))
        np.testing.assert_allclose(result, wanted, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(op(np.asarray(image)), result)
    chw = NormalizeImage()(ToCHWImage()(image))
    assert (chw.dtype, chw.shape) == (np.float32, (3, 20, 30))
    np.testing.assert_allclose(chw, wanted.transpose(2, 0, 1), rtol=0, atol=2e-6)
    plain = NormalizeImage(scale=1, mean=[0, 0, 0], std=[1, 1, 1], order="")(image)
    np.testing.assert_array_equal(plain, np.asarray(image))


def test_erasing_has_the_promised_probability_area_and_shape():
    image = np.zeros((224, 224, 3), np.float32)
    op = RandomErasing(EPSILON=0.25, sl=0.02, sh="1.0/3.0", r1=0.3, attempt=10, use_log_aspect=True, mode="pixel")
    random.seed(0)
    trials = 2000
    results = [op(image) for _ in range(trials)]
    assert within(sum(result is not image for result in results), trials, 0.25)
    assert not image.any()  # the input is not written to
    areas, heights, widths = [], [], []
    for result in results:
        if result is image:
            continue
        changed = result.any(-1)  # a normal number is never zero, and three of them surely not
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        h, w = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert changed.sum() == h * w  # one full rectangle
        areas.append(h * w)
        heights.append(h)
        widths.append(w)
    # Half a pixel of rounding on each side, of at least sqrt(0.02 * 0.3) * 224 = 17: below 6% together.
    share, ratio = np.array(areas) / 224**2, np.array(heights) / np.array(widths)
    assert 0.02 * 0.94 <= share.min() < 0.05
    assert 0.28 < share.max() <= 1 / 3 * 1.06
    assert 0.3 * 0.94 <= ratio.min() < 0.4
    assert 2.5 < ratio.max() <= 1 / 0.3 * 1.06
    assert within(int((ratio > 1).sum()), len(ratio), 0.5)  # logarithmic; on a linear scale it would be 0.77

    linear = RandomErasing(EPSILON=1, r1=0.3)
    boxes = np.array([linear.draw(224, 224) for _ in range(trials)])
    taller = (boxes[:, 2] > boxes[:, 3]).sum()
    # P = (1 / 0.3 - 1) / (1 / 0.3 - 0.3) = 0.769, less the few tall boxes that do not fit and are drawn again
    assert 0.7 < taller / trials < 0.8


def test_what_is_erased_is_filled_as_asked():
    image = np.full((64, 48, 3), 9, np.float32)
    random.seed(0)
    fixed = {"EPSILON": 1, "sl": 0.3, "sh": 0.3, "r1": 1}
    erased = RandomErasing(**fixed, mean=[1, 2, 3])(image)
    changed = (erased != 9).all(-1)
    assert changed.sum() == round(math.sqrt(0.3 * 64 * 48)) ** 2
    assert (erased[changed] == [1, 2, 3]).all()
    assert (erased[~changed] == 9).all()
    erased = RandomErasing(**fixed, mode="rand")(image)
    assert len(np.unique(erased[erased != 9])) == 3
    noise = np.concatenate([r[r != 9] for r in (RandomErasing(**fixed, mode="pixel")(image) for _ in range(2))])
    # 5,400 standard normal numbers: the mean within 5 / sqrt(n), the variance within 5 sqrt(2 / n).
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / noise.size)
    assert RandomErasing(EPSILON=0)(image) is image
    assert RandomErasing(EPSILON=1, sl=0.99, sh=0.99, r1=0.3, attempt=3)(np.zeros((8, 8, 3), np.float32)).sum() == 0


def test_the_recipe_gives_float_images_decided_by_the_seed():
    data = encoded(picture(500, 375), "JPEG")
    run = pipeline(build_ops(RECIPE["train"]))

    def images(seed: int) -> np.ndarray:
        random.seed(seed)
        np.random.seed(seed)
        return np.stack([run(data) for _ in range(8)])

    first = images(1)
    assert (first.dtype, first.shape) == (np.float32, (8, 3, 224, 224))
    assert run(data).flags.c_contiguous
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, images(1))
    assert len({image.tobytes() for image in np.concatenate([first, images(2)])}) == 16


def test_what_a_seed_draws_never_changes():
    """Else a checkpoint would not be continued with the images that it would have seen."""
    random.seed(20)
    assert [RandCropImage(size=224).draw(500, 375) for _ in range(3)] == [
        (33, 6, 464, 348), (38, 26, 243, 242), (297, 115, 487, 308),
    ]  # fmt: skip
    drawn = [TimmAutoAugment().draw() for _ in range(4)]
    assert [[(name, round(magnitude, 6)) for name, magnitude in ops] for ops in drawn] == [
        [], [], [("SolarizeAdd", 9.06235), ("Rotate", 9.199615)],
        [("ShearX", 8.226681), ("PosterizeIncreasing", 8.23675)],
    ]  # fmt: skip
    assert [RandomErasing(sh="1.0/3.0", attempt=10, use_log_aspect=log).draw(224, 224) for log in (True, False)] == [
        (73, 60, 103, 45), (76, 71, 72, 26),
    ]  # fmt: skip
    assert random.random() == 0.136872304192037


def test_the_recipe_s_evaluation_is_resize_crop_and_normalise():
    image = picture(500, 375)
    result = pipeline(build_ops(RECIPE["eval"]))(encoded(image))
    middle = np.asarray(image.resize((341, 256), Image.BICUBIC))[16:240, 58:282]
    wanted = (middle.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(result, wanted.transpose(2, 0, 1), rtol=0, atol=2e-6)
    without = pipeline(build_ops(RECIPE["eval"][:-1]))(encoded(image))  # the channels come first in any case
    np.testing.assert_array_equal(result, without)
    decoded = pipeline(build_ops([{"DecodeImage": None}]))(encoded(image))
    np.testing.assert_array_equal(decoded, np.asarray(image).transpose(2, 0, 1))
    assert decoded.dtype == np.float32


def test_transforms_and_data_need_no_paddle():
    """An exported model is used without it; tests/test_import.py looks at the rest of deployment."""
    package = "paddle_vheat.tasks.classification"
    code = f"import sys, {package}.transforms, {package}.data, {package}.digits; print('paddle' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
