"""Evaluation against plain loops, by-hand averages, and the reference's sliding window."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from paddle_vheat._paddle import F
from paddle_vheat.tasks.segmentation import config as schema
from paddle_vheat.tasks.segmentation.task import predict_logits
from tests.conftest import golden, paddle, relative_error, sample
from tests.engine import tiny
from tests.models.test_upernet import reference_model  # noqa: F401

# The same float32 model on the same input, with a few additions in another order.
SAME = 1e-5


def lively_task(config):
    task = tiny.make_task(config)
    tiny.lively(task.model)
    return task


def normalised(path) -> np.ndarray:
    """An image as the model takes it, (1, 3, H, W), without PaddleSeg."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255
    image = (image - np.float32(tiny.NORMALIZE["mean"])) / np.float32(tiny.NORMALIZE["std"])
    return image.transpose(2, 0, 1)[None]


@pytest.fixture(scope="module")
def task(lists):
    task = lively_task(tiny.lists_config(lists))
    # Whatever the random weights are (they differ between versions of Paddle), every class is the likeliest somewhere.
    task.model.eval()
    with paddle.no_grad():
        logits = [task.model(paddle.to_tensor(normalised(image)))[0] for image, _ in task.val_dataset.file_list]
    bias = task.model.decode_head.classifier.bias
    bias.set_value(bias - paddle.stack([one.mean(axis=[0, 2, 3]) for one in logits]).mean(axis=0))
    return task


def plain_matrix(model, files, num_classes, label_of=np.asarray) -> np.ndarray:
    """Confusion matrix by a loop over images and classes."""
    matrix = np.zeros((num_classes, num_classes), int)
    model.eval()
    for image, label in files:
        with paddle.no_grad():
            prediction = model(paddle.to_tensor(normalised(image)))[0].numpy()[0].argmax(axis=0)
        truth = label_of(Image.open(label)).astype(int)
        for row in range(num_classes):
            for column in range(num_classes):
                matrix[row, column] += ((truth == row) & (prediction == column)).sum()
    return matrix


def test_equals_a_plain_loop_over_images_of_different_sizes(task):
    files = task.val_dataset.file_list
    assert len({Image.open(image).size for image, _ in files}) == 3
    expected = plain_matrix(task.model, files, 3)
    result = task.evaluate(task.model)
    np.testing.assert_array_equal(result["confusion"], expected)
    assert (expected > 0).sum() > 3  # the test would show little of a model that predicts one class
    hit, union = np.diag(expected), expected.sum(0) + expected.sum(1) - np.diag(expected)
    assert result["score"] == pytest.approx((hit / union).mean(), abs=1e-12)
    assert result["report"]["mIoU"] == pytest.approx((hit / union).mean(), abs=1e-6)
    assert result["images"] == result["report"]["images"] == 3


def test_ade20k_counts_from_one_and_zero_is_ignored(ade20k):
    task = lively_task(tiny.ade20k_config(ade20k))
    files = task.val_dataset.file_list
    expected = plain_matrix(task.model, files, 150, lambda label: np.asarray(label).astype(int) - 1)
    result = task.evaluate(task.model)
    np.testing.assert_array_equal(result["confusion"], expected)
    ignored = sum((np.asarray(Image.open(label)) == 0).sum() for _, label in files)
    pixels = sum(np.asarray(Image.open(label)).size for _, label in files)
    assert expected.sum() == pixels - ignored
    assert ignored > 0


def test_workers_give_the_same(task):
    alone, shared = (task.evaluate(task.model, num_workers=workers) for workers in (0, 2))
    np.testing.assert_array_equal(alone["confusion"], shared["confusion"])
    assert alone["report"] == shared["report"]


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_restored(task, training):
    model = task.model
    model.train() if training else model.eval()
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    task.evaluate(model)
    assert model.training == training
    assert model.decode_head.dropout.training == training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_the_mode_is_restored_after_an_error(task):
    task.model.train()
    with pytest.raises(ValueError, match="at least 32 pixels"):
        task.evaluate(task.model, is_slide=True, crop_size=[16, 16], stride=[8, 8])
    assert task.model.training


def test_a_label_out_of_range_is_named(tmp_path):
    root = tiny.write_lists(tmp_path)
    tiny.spoil_label(root / "labels" / "val1.png", 77)
    task = tiny.make_task(tiny.lists_config(root))
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"val1\.png: label value 77 is outside 0 to 2 and is not 255"):
            task.evaluate(task.model, num_workers=workers)


def test_a_label_of_another_size_is_named(tmp_path):
    root = tiny.write_lists(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "labels" / "val2.png")
    task = tiny.make_task(tiny.lists_config(root))
    with pytest.raises(ValueError, match=r"val2\.png: .*\(9, 9\).*\(48, 48\)"):
        task.evaluate(task.model)


def test_an_image_that_is_too_small_is_named(tmp_path):
    root = tiny.write_lists(tmp_path)
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        Image.new(mode, (40, 20)).save(root / folder / "val1.png")
    task = tiny.make_task(tiny.lists_config(root))
    with pytest.raises(ValueError, match=r"val1\.png: .*at least 32 pixels.*20 x 40"):
        task.evaluate(task.model)


def test_the_transforms_are_undone(lists):
    """Scores are at the size of the label: logits of the resized image are resized back before the argmax."""
    config = tiny.lists_config(lists)
    config["val_dataset"]["transforms"] = [{"type": "Resize", "target_size": [80, 64]}, tiny.NORMALIZE]
    task = lively_task(config)
    matrix = np.zeros((3, 3), int)
    task.model.eval()
    for i, (_, label_path) in enumerate(task.val_dataset.file_list):
        label = np.asarray(Image.open(label_path)).astype(int)
        image = paddle.to_tensor(task.val_dataset[i]["img"][None])
        assert image.shape == [1, 3, 64, 80]
        with paddle.no_grad():
            logits = F.interpolate(task.model(image)[0], list(label.shape), mode="bilinear")
        prediction = logits.numpy()[0].argmax(0)
        kept = label < 3
        np.add.at(matrix, (label[kept], prediction[kept]), 1)
    np.testing.assert_array_equal(task.evaluate(task.model)["confusion"], matrix)


def test_test_config_is_the_default_and_options_replace_it(lists):
    windows = {"is_slide": True, "crop_size": [32, 32], "stride": [24, 24]}
    config = {**tiny.lists_config(lists), "test_config": windows}
    task = lively_task(config)
    plain = tiny.make_task(tiny.lists_config(lists))
    by_config = task.evaluate(task.model)["confusion"]
    by_option = plain.evaluate(task.model, **windows)["confusion"]
    whole = plain.evaluate(task.model)["confusion"]
    np.testing.assert_array_equal(by_config, by_option)
    assert not np.array_equal(by_config, whole)
    np.testing.assert_array_equal(task.evaluate(task.model, is_slide=False)["confusion"], whole)


# --- flips, scales, windows -------------------------------------------------------------------------


@pytest.fixture
def model(task):
    task.model.eval()
    return task.model


@pytest.fixture
def image():
    return paddle.randn([1, 3, 50, 71])


def logits_of(model, image, **options) -> np.ndarray:
    with paddle.no_grad():
        return predict_logits(model, image, [], schema.TestOptions(**options)).numpy()


def whole(model, array: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(np.ascontiguousarray(array)))[0].numpy()


def resized(array: np.ndarray, height: int, width: int) -> np.ndarray:
    return F.interpolate(paddle.to_tensor(array), [height, width], mode="bilinear").numpy()


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_flips_equal_the_average_by_hand(model, image, flips):
    axes = [()] + [(3,)] * flips[0] + [(2,)] * flips[1] + [(2, 3)] * (flips[0] and flips[1])
    x = image.numpy()
    expected = np.mean([np.flip(whole(model, np.flip(x, axis)), axis) for axis in axes], axis=0)
    ours = logits_of(model, image, aug_eval=True, flip_horizontal=flips[0], flip_vertical=flips[1])
    assert relative_error(ours, expected) < SAME
    if any(flips):
        assert relative_error(ours, whole(model, x)) > 100 * SAME


def test_scales_equal_the_average_by_hand(model, image):
    x, expected = image.numpy(), []
    for scale, height, width in ((0.75, 38, 53), (1.0, 50, 71), (1.5, 75, 107)):
        assert (height, width) == (int(50 * scale + 0.5), int(71 * scale + 0.5))
        for axis in ((), (3,)):
            scaled = np.flip(resized(x, height, width), axis)
            expected.append(resized(np.flip(whole(model, scaled), axis).copy(), 50, 71))
    ours = logits_of(model, image, aug_eval=True, scales=[0.75, 1.0, 1.5], flip_horizontal=True)
    assert relative_error(ours, np.mean(expected, axis=0)) < SAME
    one = logits_of(model, image, aug_eval=True, scales=[1.0])
    assert relative_error(one, whole(model, x)) < SAME


def window_starts(length: int, window: int, step: int) -> list[int]:
    """Starts at every step; the last window is moved back inside."""
    if length <= window:
        return [0]
    starts, start = [], 0
    while start + window < length:
        starts.append(start)
        start += step
    return [*starts, length - window]


def slide_by_hand(model, x: np.ndarray, crop, stride) -> np.ndarray:
    height, width = x.shape[2:]
    total, count = 0.0, np.zeros((height, width))
    for top in window_starts(height, crop[1], stride[1]):
        for left in window_starts(width, crop[0], stride[0]):
            window = np.s_[:, :, top : top + crop[1], left : left + crop[0]]
            logits = whole(model, x[window])
            if np.isscalar(total):
                total = np.zeros((1, logits.shape[1], height, width))
            total[window] += logits
            count[top : top + crop[1], left : left + crop[0]] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize(
    ("crop", "stride"),
    [
        ((32, 32), (21, 21)),
        ((40, 32), (40, 16)),  # width, height; windows that touch and windows that overlap
        ((64, 50), (7, 50)),
        ((71, 50), (10, 10)),  # the whole image
        ((128, 40), (64, 30)),  # wider than the image
        ((100, 100), (50, 50)),  # larger on both sides
    ],
)
def test_sliding_window_equals_the_average_by_hand(model, image, crop, stride):
    ours = logits_of(model, image, is_slide=True, crop_size=crop, stride=stride)
    assert ours.shape == (1, 3, 50, 71)
    assert relative_error(ours, slide_by_hand(model, image.numpy(), crop, stride)) < SAME


def test_flips_and_windows_together(model, image):
    x = image.numpy()
    windows = {"crop_size": [40, 32], "stride": [20, 20]}
    flipped = np.flip(slide_by_hand(model, np.flip(x, 3), (40, 32), (20, 20)), 3)
    expected = (slide_by_hand(model, x, (40, 32), (20, 20)) + flipped) / 2
    ours = logits_of(model, image, aug_eval=True, flip_horizontal=True, is_slide=True, **windows)
    assert relative_error(ours, expected) < SAME


def test_reference_sliding_window(reference_model):  # noqa: F811
    """Windows of 64 at stride 42 on 90 x 130."""
    data = golden("upernet_micro")
    x = paddle.to_tensor(data["slide90x130/x"])
    ours = logits_of(reference_model, x, is_slide=True, crop_size=[64, 64], stride=[42, 42])
    # float32 through about 20 layers, as the whole images of tests/models/test_upernet.py
    assert relative_error(sample(ours, 6000).reshape(-1), data["slide90x130/logits"]) < 1e-4


def test_autocast_is_entered_for_every_image(task):
    entered = []

    class Context:
        def __enter__(self):
            entered.append(1)

        def __exit__(self, *error):
            return False

    assert task.evaluate(task.model, autocast=Context)["images"] == len(entered) == 3
