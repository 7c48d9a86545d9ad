"""Each patch: that PaddleSeg still needs it, and that what replaces the original gives the right numbers.

The references are written in float64 NumPy from the definitions; the gradients they are asked for are
central differences.  Losses are computed in float32, so values are compared to 1e-5 and gradients,
which differences of 1e-5 give to about 1e-9, to 1e-4 of the largest.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import warnings
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.integrations import _paddleseg_patches as patches

NAMES = [patch.name for patch in patches.PATCHES]
ON_3_ONLY = {"OhemCrossEntropyLoss"}  # wrong on Paddle 3 only; the others on 2.6 too
IGNORE = 255
WEIGHT = [1.0, 2.0, 0.5, 3.0]


@pytest.fixture(scope="module", autouse=True)
def _patched(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # PaddleSeg makes folders below it as it is imported, by default in the user's home.
        patch.setenv("SEG_HOME", str(tmp_path_factory.mktemp("seg_home")))
        patches.apply_patches()
        yield


@pytest.fixture
def unpatched():
    """PaddleSeg as installed, for the length of a test."""
    saved = []
    for patch in patches.PATCHES:
        if patch.original is not None:
            owner, attribute = patch.find()
            saved.append((patch, owner, attribute, patch.original, patch.replacement))
            setattr(owner, attribute, patch.original)
    yield
    for patch, owner, attribute, original, replacement in saved:
        setattr(owner, attribute, replacement)
        patch.original, patch.replacement = original, replacement


def _named(name):
    return next(patch for patch in patches.PATCHES if patch.name == name)


# --- The machinery --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_original_still_fails(name, unpatched):
    """When this fails, upstream (or Paddle) has fixed it: the entry can go. Newer PaddleSegs need fewer entries."""
    if version("paddleseg") != "2.8.0":
        pytest.skip("of PaddleSeg 2.8.0")
    patch = _named(name)
    owner, _ = patch.find()
    if PADDLE_2 and name in ON_3_ONLY:
        assert not patch.is_needed(owner)
        return
    assert patch.is_needed(owner)
    with pytest.raises(patch.fault[0], match=patch.fault[1]):
        patch.probe(owner)


def test_applying_twice_changes_nothing():
    applied = patches.apply_patches()
    held = [getattr(*patch.find()) for patch in patches.PATCHES]
    assert patches.apply_patches() == applied
    assert all(getattr(*patch.find()) is now for patch, now in zip(patches.PATCHES, held))
    for patch in patches.PATCHES:  # what is in force passes its own probe
        patch.probe(patch.find()[0])


def test_probing_is_quiet_and_leaves_no_trace(unpatched, capfd):
    loss_class = _losses().CrossEntropyLoss
    number = int(loss_class().full_name().rsplit("_", 1)[1])
    states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patches.apply_patches()
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1]))
    drawn = paddle.rand([4]).numpy()
    paddle.set_rng_state(states[2])
    assert np.array_equal(drawn, paddle.rand([4]).numpy())
    assert int(loss_class().full_name().rsplit("_", 1)[1]) == number + 1
    assert capfd.readouterr() == ("", "")


AREA = "paddleseg.utils.metrics:calculate_area"


def test_what_a_probe_prints_and_warns_of_is_dropped(capfd):
    def probe(_):
        print("printed")
        print("printed", file=sys.stderr)
        warnings.warn("ragged", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not patches.Patch("x", AREA, probe, (TypeError, ""), pytest.fail).apply()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "where",
    ["paddleseg.no_such_module:f", "paddleseg.utils.metrics:no_such", "paddleseg.utils.metrics:No.such"],
)
def test_what_this_paddleseg_does_not_have_is_skipped(where):
    patch = patches.Patch("x", where, pytest.fail, (TypeError, ""), pytest.fail)
    assert patch.find() is None
    assert patch.apply() is False


@pytest.mark.parametrize("error", [TypeError("takes 2 arguments"), KeyError("different data type")])
def test_an_unknown_fault_is_reported_and_changes_nothing(error, monkeypatch):
    """And the patches after it are still applied."""

    def probe(_):
        raise error

    unknown = patches.Patch("odd", AREA, probe, (TypeError, "different data type"), pytest.fail)
    before = getattr(*unknown.find())
    monkeypatch.setattr(patches, "PATCHES", (unknown, _named("ResizeByShort")))
    with pytest.warns(RuntimeWarning, match=rf"odd: {type(error).__name__}: .*{error.args[0]}"):
        assert patches.apply_patches() == ["ResizeByShort"]
    assert getattr(*unknown.find()) is before


def test_a_missing_dependency_is_not_taken_for_a_missing_module(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(patches.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        _named("train").find()


# --- Losses ---------------------------------------------------------------------------------------


def _losses():
    from paddleseg.models import losses

    return losses


def _batch(seed=0, classes=4, size=16, n=2):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (n, size, size))
    label[:, :3, :5] = IGNORE
    return rng.normal(size=(n, classes, size, size)).astype("float32"), label


def _softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _own(prob, label):
    """Probability of each pixel's own class; 1 at unlabelled pixels."""
    index = np.where(label == IGNORE, 0, label)
    return np.where(label == IGNORE, 1.0, np.take_along_axis(prob, index[:, None], 1)[:, 0])


def _check(loss, reference, logit, *others, tol=1e-5):
    """Value of loss(logit, *others), and its gradient at some pixels, against the reference's."""
    x = paddle.to_tensor(logit, stop_gradient=False)
    value = loss(x, *(paddle.to_tensor(other) for other in others))
    value.sum().backward()
    assert float(value) == pytest.approx(reference(logit.astype("float64")), rel=tol, abs=tol)
    gradient, rng, step = x.grad.numpy(), np.random.default_rng(1), 1e-5
    expected, found = [], []
    for flat in [*rng.choice(logit.size, 25, replace=False), np.abs(gradient).argmax()]:
        at = np.unravel_index(flat, logit.shape)
        up, down = logit.astype("float64"), logit.astype("float64")
        up[at] += step
        down[at] -= step
        expected.append((reference(up) - reference(down)) / (2 * step))
        found.append(gradient[at])
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * tol * np.abs(expected).max())


def _cross_entropy_reference(label, weight=None, top_k=1.0, avg_non_ignore=True, semantic=None):
    def reference(logit):
        labelled = label != IGNORE
        weights = np.ones(4) if weight is None else np.asarray(weight)
        coef = weights[np.where(labelled, label, 0)]  # unlabelled pixels: as class 0
        loss = -np.log(_own(_softmax(logit), label)) * coef
        if semantic is not None:
            loss = loss * semantic
        counted = labelled if avg_non_ignore else np.ones_like(labelled)
        if top_k == 1.0:
            return loss.mean() / ((counted * coef).mean() + 1e-8)
        worst = np.argsort(-loss.ravel(), kind="stable")[: int(top_k * loss.size)]
        return loss.ravel()[worst].mean() / (coef.ravel()[worst].mean() + 1e-8)

    return reference


@pytest.mark.parametrize("avg_non_ignore", [True, False])
@pytest.mark.parametrize("top_k", [1.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy(weight, top_k, avg_non_ignore):
    logit, label = _batch()
    loss = _losses().CrossEntropyLoss(weight, top_k_percent_pixels=top_k, avg_non_ignore=avg_non_ignore)
    _check(loss, _cross_entropy_reference(label, weight, top_k, avg_non_ignore), logit, label)


def test_cross_entropy_with_pixel_weights_and_channels_last():
    logit, label = _batch()
    semantic = np.random.default_rng(2).uniform(0, 2, label.shape).astype("float32")
    reference = _cross_entropy_reference(label, semantic=semantic)
    _check(_losses().CrossEntropyLoss(), reference, logit, label, semantic)
    loss = _losses().CrossEntropyLoss(data_format="NHWC")
    _check(lambda x, y, s: loss(x.transpose([0, 2, 3, 1]), y, s), reference, logit, label, semantic)


def test_cross_entropy_of_a_batch_without_labels_is_zero():
    logit, label = _batch()
    loss = _losses().CrossEntropyLoss(WEIGHT)(paddle.to_tensor(logit), paddle.full(label.shape, IGNORE, "int64"))
    assert float(loss) == 0.0


def test_top_k_without_weights_keeps_the_originals_numbers(unpatched):
    """That case works unpatched, even where the worst pixels include unlabelled ones."""
    logit, label = _batch()
    label[:, 2:] = IGNORE
    x, y = paddle.to_tensor(logit), paddle.to_tensor(label)
    loss = _losses().CrossEntropyLoss(top_k_percent_pixels=0.5)
    original = float(loss(x, y))
    patches.apply_patches()
    assert float(loss(x, y)) == pytest.approx(original, rel=1e-6)


@pytest.mark.parametrize("top_k", [1.0, 0.3])
def test_distilled_and_mixed_losses_inherit_it(top_k):
    logit, label = _batch()
    teacher, _ = _batch(seed=5)
    labelled = label != IGNORE

    def distilled(x):
        loss = -(_softmax(teacher.astype("float64")) * np.log(_softmax(x))).sum(1) * labelled
        if top_k == 1.0:
            return loss.mean() / (labelled.mean() + 1e-8)
        return np.sort(loss.ravel())[::-1][: int(top_k * loss.size)].mean() / (1 + 1e-8)

    loss = _losses().DistillCrossEntropyLoss(top_k_percent_pixels=top_k)
    _check(loss, distilled, logit, teacher, label)

    entropy = _losses().CrossEntropyLoss(top_k_percent_pixels=top_k)
    mixed = _losses().MixedLoss([entropy, entropy], [0.75, 0.5])
    plain = _cross_entropy_reference(label, top_k=top_k)
    _check(lambda x, y: sum(mixed(x, y)), lambda x: 1.25 * plain(x), logit, label)


def _ohem_reference(label, thresh, min_kept, eps):
    def reference(logit):
        own, kept = _own(_softmax(logit), label), label != IGNORE
        if 0 < min_kept < kept.sum():
            kept = kept & (own < max(thresh, np.sort(own[kept])[min_kept - 1]))
        return (-np.log(own) * kept).mean() / (kept.mean() + eps)

    return reference


@pytest.mark.parametrize(("thresh", "min_kept"), [(0.7, 0), (0.7, 10), (0.05, 100), (0.7, 10000)])
def test_ohem(thresh, min_kept):
    logit, label = _batch()
    loss = _losses().OhemCrossEntropyLoss(thresh, min_kept)
    _check(loss, _ohem_reference(label, thresh, min_kept, 1e-5), logit, label)


# --- Training and evaluation ----------------------------------------------------------------------


def test_loss_list_keeps_values_and_gradients():
    core_train = importlib.import_module("paddleseg.core.train")
    losses = {"types": [lambda x, y: (x * y).mean(), lambda x, y: (x * y).sum([0], keepdim=True)]}
    losses["coef"] = [2.0, 3.0]
    x = paddle.to_tensor([3.0, 5.0], stop_gradient=False)
    found = core_train.loss_computation([x, x], paddle.to_tensor([1.0, 2.0]), None, losses)
    assert [list(loss.shape) for loss in found] == [[1], [1]]
    assert [float(loss) for loss in found] == [13.0, 39.0]
    sum(found).backward()
    assert x.grad.tolist() == [4.0, 8.0]


def _area(pred, label, classes, ignore=IGNORE):
    from paddleseg.utils import metrics

    pred, label = paddle.to_tensor(pred), paddle.to_tensor(label)
    areas = metrics.calculate_area(pred, label, classes, ignore)
    assert all(area.dtype == paddle.int64 and list(area.shape) == [classes] for area in areas)
    return [area.tolist() for area in areas]


@pytest.mark.parametrize("ignore", [IGNORE, -1, 2])
def test_calculate_area(ignore):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (2, 1, 9, 7))
    label[:, :, :2] = ignore
    pred = rng.integers(0, 6, label.shape).astype("int32")  # 5 is no class: nowhere counted
    labelled, classes = label != ignore, range(5)
    expected = [
        [int(((pred == c) & (label == c) & labelled).sum()) for c in classes],
        [int(((pred == c) & labelled).sum()) for c in classes],
        [int((label == c).sum()) for c in classes],  # upstream counts here a class that is ignored
    ]
    assert _area(pred, label, 5, ignore) == expected
    assert _area(pred[:, 0], label, 5, ignore) == expected
    assert _area(pred, np.full_like(label, IGNORE), 5) == [[0] * 5] * 3


def test_calculate_area_refuses_labels_that_are_no_class():
    for value in (7, -3):
        label = np.zeros((1, 1, 4, 4), "int64")
        label[..., 1] = value
        with pytest.raises(ValueError, match=rf"\[{value}\].*0 to 4.*255"):
            _area(np.zeros_like(label), label, 5)
    with pytest.raises(ValueError, match="shape"):
        _area(np.zeros((1, 1, 4, 4), "int64"), np.zeros((1, 1, 4, 5), "int64"), 5)


# --- Data -----------------------------------------------------------------------------------------


def _scene(label):
    """An image that says of each pixel where it comes from, to be cropped together with its label."""
    rows, columns = np.indices(label.shape)
    image = np.stack([rows, columns, label], -1).astype("float32")
    return {"img": image, "label": label, "gt_fields": ["label"]}


def _largest_share(label):
    counts = np.unique(label[label != IGNORE], return_counts=True)[1]
    return counts.max() / counts.sum() if len(counts) > 1 else 1.0


def test_crop_takes_varied_windows_of_image_and_label_alike():
    from paddleseg.transforms import RandomPaddingCrop

    label = np.zeros((40, 60), "uint8")
    label[:, 24:36] = 1
    label[:6] = IGNORE
    np.random.seed(0)
    crop = RandomPaddingCrop((16, 12), category_max_ratio=0.75, loop_times=200)
    windows = set()
    for _ in range(50):
        data = crop(_scene(label))
        assert data["img"].shape == (12, 16, 3)
        assert np.array_equal(data["img"][..., 2], data["label"])
        assert _largest_share(data["label"]) < 0.75
        windows.add(tuple(data["img"][0, 0]))
    assert len(windows) > 25
    once = RandomPaddingCrop((16, 12), category_max_ratio=0.75, loop_times=1)
    shares = [_largest_share(once(_scene(label))["label"]) for _ in range(50)]
    assert max(shares) == 1.0  # at most one window is judged, the next is taken as it is


@pytest.mark.parametrize("size", [(40, 60), (8, 60), (8, 10), (12, 16)])
def test_crop_pads_and_gives_up_where_no_window_is_varied(size):
    from paddleseg.transforms import RandomPaddingCrop

    data = RandomPaddingCrop((16, 12), category_max_ratio=0.75)(_scene(np.ones(size, "uint8")))
    assert data["img"].shape == (12, 16, 3)
    expected = np.full((12, 16), IGNORE)
    expected[: size[0], : size[1]] = 1
    assert np.array_equal(data["label"], expected)
    assert np.array_equal(data["img"][..., 2], np.where(expected == 1, 1.0, 127.5))
    unlabelled = np.full(size, IGNORE, "uint8")
    assert (RandomPaddingCrop((16, 12), category_max_ratio=0.75)(_scene(unlabelled))["label"] == IGNORE).all()


def test_crop_without_a_ratio_is_the_originals(unpatched):
    from paddleseg.transforms import RandomPaddingCrop

    label = np.random.default_rng(0).integers(0, 3, (40, 60)).astype("uint8")

    def crops():
        np.random.seed(0)
        return np.stack([RandomPaddingCrop((16, 12))(_scene(label))["img"] for _ in range(10)])

    original = crops()
    patches.apply_patches()
    assert np.array_equal(original, crops())


def test_a_long_image_does_not_change_how_later_ones_are_resized():
    """Beside a transform made anew for every image."""
    from paddleseg.transforms import ResizeByShort

    resize = ResizeByShort(32, max_size=64)
    rng = np.random.default_rng(0)
    for height, width in ((40, 48), (16, 90), (40, 48), (90, 16), (64, 64)):
        image = rng.random((height, width, 3)).astype(np.float32)
        label = rng.integers(0, 5, (height, width)).astype(np.uint8)
        results = []
        for transform in (resize, ResizeByShort(32, max_size=64)):
            data = {"img": image.copy(), "label": label.copy(), "gt_fields": ["label"], "trans_info": []}
            results.append(transform(data))
        assert max(results[0]["img"].shape) <= 64
        for key in ("img", "label"):
            assert np.array_equal(results[0][key], results[1][key])
        assert results[0]["trans_info"] == [("resize", (height, width))]


def test_ade20k_labels(tmp_path):
    """Its dataset opens labels itself, and takes 1 from them in their own type: 0, not labelled, shall become 255."""
    from paddleseg.datasets import ADE20K

    for kind, folder, array in (
        ("jpg", "images", np.zeros((6, 8, 3), np.uint8)),
        ("png", "annotations", np.arange(48, dtype=np.uint16).reshape(6, 8)),
    ):
        place = tmp_path / folder / "validation"
        place.mkdir(parents=True)
        Image.fromarray(array).save(place / f"a.{kind}")
    label = ADE20K([], str(tmp_path), mode="val")[0]["label"]
    assert label.dtype == np.uint8
    assert label.ravel().tolist() == [255, *range(47)]
    (place / "a.png").write_bytes((place / "a.png").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read the label .*a\.png: .* truncated"):
        ADE20K([], str(tmp_path), mode="val")[0]


# --- All of it together ---------------------------------------------------------------------------


@pytest.fixture
def setting(tmp_path):
    """A tiny data set of type Dataset, and one of PaddleSeg's light models."""
    import cv2
    import paddleseg.transforms as T
    from paddleseg.datasets import Dataset
    from paddleseg.models import BiSeNetV2

    rng = np.random.default_rng(0)
    for i in range(4):
        label = np.kron(rng.integers(0, 3, (9 + i, 10)), np.ones((8, 8))).astype("uint8")
        label[:4] = IGNORE
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), rng.integers(0, 255, (*label.shape, 3), dtype="uint8"))
        cv2.imwrite(str(tmp_path / f"{i}.png"), label)
    files = tmp_path / "files.txt"
    files.write_text("".join(f"{i}.jpg {i}.png\n" for i in range(4)))
    steps = [T.RandomPaddingCrop((64, 64), category_max_ratio=0.75), T.RandomHorizontalFlip(), T.Normalize()]
    paddle.seed(0)
    np.random.seed(0)
    model = BiSeNetV2(3, lambd=0.25)
    entropy = _losses().CrossEntropyLoss()
    return SimpleNamespace(
        train=Dataset("train", str(tmp_path), steps, 3, train_path=str(files)),
        val=Dataset("val", str(tmp_path), [T.Normalize()], 3, val_path=str(files)),
        model=model,
        optimizer=paddle.optimizer.Momentum(0.01, parameters=model.parameters()),
        losses={"types": [entropy] * 5, "coef": [1.0] * 5},
        folder=tmp_path / "run",
    )


def test_train_and_evaluate(setting):
    from paddleseg.core import evaluate, train

    train(
        setting.model,
        setting.train,
        setting.val,
        setting.optimizer,
        save_dir=str(setting.folder),
        iters=4,
        batch_size=2,
        save_interval=2,
        log_iters=1,
        use_vdl=importlib.util.find_spec("visualdl") is not None,
        use_ema=True,
        losses=setting.losses,
    )
    for name in ("iter_4/model.pdparams", "iter_4/ema_model.pdparams", "iter_4/model.pdopt"):
        assert (setting.folder / name).is_file()
    assert (setting.folder / "best_model/model.pdparams").is_file()
    numbers = evaluate(setting.model, setting.val, print_detail=False)
    assert all(np.isfinite(number).all() for number in numbers)
    assert 0 < numbers[0] < 1


def test_train_itself_still_needs_it(setting, monkeypatch):
    """The probe looks at loss_computation only; this is the fault itself."""
    from paddleseg.core import train

    patch = _named("train")
    monkeypatch.setattr(*patch.find(), patch.original)
    options = {"iters": 1, "log_iters": 1, "losses": setting.losses}
    with pytest.raises(IndexError, match=patch.fault[1]):
        train(setting.model, setting.train, None, setting.optimizer, str(setting.folder), **options)
