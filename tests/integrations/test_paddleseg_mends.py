"""Each mend: that PaddleSeg still needs it, and that what replaces the original gives the right numbers.

The references are written in float64 NumPy from the definitions; the gradients they are asked for are
central differences.  Losses are computed in float32, so values are compared to 1e-5 and gradients,
which differences of 1e-5 give to about 1e-9, to 1e-4 of the largest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
import warnings
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_vheat._paddle import PADDLE_2
from paddle_vheat.integrations import _paddleseg_mends as mends

NAMES = [mend.name for mend in mends.MENDS]
# These are wrong on Paddle 3.x only; the others on 2.6 too.
ON_3_ONLY = {"OhemCrossEntropyLoss", "OhemEdgeAttentionLoss", "RMILoss", "DualTaskLoss"}
IGNORE = 255
WEIGHT = [1.0, 2.0, 0.5, 3.0]


@pytest.fixture(scope="module", autouse=True)
def _mended(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # PaddleSeg makes folders below it as it is imported, by default in the user's home.
        patch.setenv("SEG_HOME", str(tmp_path_factory.mktemp("seg_home")))
        pytest.importorskip("paddleseg")
        mends.apply_mends()
        yield


@pytest.fixture
def unmended():
    """PaddleSeg as installed, for the length of a test."""
    saved = []
    for mend in mends.MENDS:
        if mend.original is not None:
            owner, attribute = mend.find()
            saved.append((mend, owner, attribute, mend.original, mend.replacement))
            setattr(owner, attribute, mend.original)
    yield
    for mend, owner, attribute, original, replacement in saved:
        setattr(owner, attribute, replacement)
        mend.original, mend.replacement = original, replacement


def _named(name):
    return next(mend for mend in mends.MENDS if mend.name == name)


# --- The machinery --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_original_still_fails(name, unmended):
    """When this fails, upstream (or Paddle) has mended it: the entry can go."""
    mend = _named(name)
    owner, _ = mend.find()
    if PADDLE_2 and name in ON_3_ONLY:
        assert not mend.is_needed(owner)
        return
    assert mend.is_needed(owner)
    with pytest.raises(mend.symptom, match=mend.message):
        mend.probe(owner)


def test_applying_twice_changes_nothing():
    applied = mends.apply_mends()
    held = [getattr(*mend.find()) for mend in mends.MENDS]
    assert mends.apply_mends() == applied
    assert all(getattr(*mend.find()) is now for mend, now in zip(mends.MENDS, held))
    for mend in mends.MENDS:  # what is in force passes its own probe
        mend.probe(mend.find()[0])


def test_probing_is_quick_quiet_and_leaves_no_trace(unmended, capfd):
    loss_class = _losses().CrossEntropyLoss
    number = int(loss_class().full_name().rsplit("_", 1)[1])
    states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mends.apply_mends()
    assert time.perf_counter() - start < 1.0
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1]))
    drawn = paddle.rand([4]).numpy()
    paddle.set_rng_state(states[2])
    assert np.array_equal(drawn, paddle.rand([4]).numpy())
    assert int(loss_class().full_name().rsplit("_", 1)[1]) == number + 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "where",
    ["paddleseg.no_such_module:f", "paddleseg.utils.metrics:no_such", "paddleseg.utils.metrics:No.such"],
)
def test_what_this_paddleseg_does_not_have_is_skipped(where):
    mend = mends.Mend("x", where, "", pytest.fail, TypeError, "", pytest.fail)
    assert mend.find() is None
    assert mend.apply() is False


@pytest.mark.parametrize("error", [TypeError("takes 2 arguments"), KeyError("different data type")])
def test_an_unknown_fault_is_not_hidden(error):
    def probe(_):
        raise error

    where = "paddleseg.utils.metrics:calculate_area"
    mend = mends.Mend("x", where, "", probe, TypeError, "different data type", pytest.fail)
    with pytest.raises(RuntimeError, match="unknown fault") as caught:
        mend.apply()
    assert caught.value.__cause__ is error


def test_a_missing_dependency_is_not_taken_for_a_missing_module(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(mends.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        _named("RMILoss").find()


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


def test_top_k_without_weights_keeps_the_originals_numbers(unmended):
    """That case works unmended, even where the worst pixels include unlabelled ones."""
    logit, label = _batch()
    label[:, 2:] = IGNORE
    x, y = paddle.to_tensor(logit), paddle.to_tensor(label)
    loss = _losses().CrossEntropyLoss(top_k_percent_pixels=0.5)
    original = float(loss(x, y))
    mends.apply_mends()
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


@pytest.mark.parametrize("top_k", [1.0, 0.3])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_point_cross_entropy(weight, top_k):
    _, label = _batch()
    rng = np.random.default_rng(3)
    rows, columns = rng.integers(0, 16, (2, 2, 30))
    points = np.stack([(columns + 0.5) / 16, (rows + 0.5) / 16], -1).astype("float32")
    at_points = np.stack([label[i, rows[i], columns[i]] for i in range(2)])
    assert (at_points == IGNORE).any()
    logit = rng.normal(size=(2, 4, 30)).astype("float32")
    loss = _losses().PointCrossEntropyLoss(weight, top_k_percent_pixels=top_k)
    reference = _cross_entropy_reference(at_points, weight, top_k)
    _check(lambda x, p, y: loss([x, p], y), reference, logit, points, label)


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


@pytest.mark.parametrize(("thresh", "min_kept"), [(0.7, 10), (0.05, 50), (0.7, 10000)])
def test_ohem_edge(thresh, min_kept):
    logit, label = _batch()
    edge = np.random.default_rng(4).normal(size=(2, 1, 16, 16)).astype("float32")
    loss = _losses().OhemEdgeAttentionLoss(0.2, thresh, min_kept)
    reference = _ohem_reference(np.where(edge[:, 0] > 0.2, label, IGNORE), thresh, min_kept, 1e-10)
    _check(lambda x, e, y: loss([x, e], y), reference, logit, edge, label)
    with pytest.raises(ValueError, match="shape"):
        loss([paddle.to_tensor(logit), paddle.to_tensor(edge[..., :8])], paddle.to_tensor(label))


def test_rmi():
    """The lower bound of the mutual information of 3 x 3 neighbourhoods, without pooling."""
    logit, label = _batch()
    known = (label != IGNORE)[:, None]
    one_hot = (label[:, None] == np.arange(4)[:, None, None]) * known

    def neighbours(x):
        shifted = [x[..., i : i + 14, j : j + 14] for i in range(3) for j in range(3)]
        vectors = np.stack(shifted, 2).reshape(2, 4, 9, -1)
        return vectors - vectors.mean(-1, keepdims=True)

    def reference(x):
        la, pr = neighbours(one_hot.astype("float64")), neighbours(known / (1 + np.exp(-x)))
        la_t, pr_t, small = la.swapaxes(2, 3), pr.swapaxes(2, 3), 5e-4 * np.eye(9)
        cross = la @ pr_t
        rest = la @ la_t - cross @ np.linalg.inv(pr @ pr_t + small) @ cross.swapaxes(2, 3)
        return (0.5 * np.linalg.slogdet(rest + small)[1] / 9).mean(0).sum()

    loss = _losses().RMILoss(num_classes=4, rmi_pool_size=1, rmi_pool_stride=1)
    _check(loss, reference, logit, label, tol=1e-4)
    for way in range(3):  # the poolings are upstream's own
        pooled = _losses().RMILoss(num_classes=4, rmi_pool_way=way)
        assert np.isfinite(float(pooled(paddle.to_tensor(logit), paddle.to_tensor(label))))


def test_dual_task(monkeypatch):
    logit, label = _batch()
    loss = _losses().DualTaskLoss()
    paddle.seed(0)
    assert np.isfinite(float(loss(paddle.to_tensor(logit), paddle.to_tensor(label))))
    # The noise and the edge filter are upstream's own; without them the rest has a closed form.
    monkeypatch.setattr(loss, "_gumbel_softmax_sample", lambda x, tau: F.softmax(x / tau, axis=1))
    monkeypatch.setattr(loss, "compute_grad_mag", lambda x: x)
    known = (label != IGNORE)[:, None]
    one_hot = np.where(known, label[:, None], 0) == np.arange(4)[:, None, None]

    def reference(x):
        difference = np.abs(_softmax(x * known / 0.5) - one_hot) * known
        return 0.5 * difference.mean() + 0.5 * difference[one_hot].mean()

    _check(loss, reference, logit, label)
    _check(loss, reference, logit, label[:, None])


def test_relax_boundary():
    """Near a boundary the classes of the whole 3 x 3 neighbourhood count as right."""
    logit, label = _batch(n=1)
    label[:, :8, :8] = IGNORE  # its inside has no class around
    padded = np.pad(label[0], 1, constant_values=IGNORE)
    around = np.stack([padded[i : i + 16, j : j + 16] for i in range(3) for j in range(3)])
    allowed = (around[:, None] == np.arange(4)[:, None, None]).any(0)[None]
    known = allowed.any(1)
    assert 0 < (~known).sum() < known.size

    def reference(x):
        right = np.where(known, (_softmax(x) * allowed).sum(1), 1.0)
        return -np.log(right).sum() / (known.sum() + 1)

    _check(_losses().RelaxBoundaryLoss(), reference, logit, label)


# --- Training and evaluation ----------------------------------------------------------------------


def test_loss_list_keeps_values_and_gradients():
    from paddleseg.models import maskformer

    core_train = importlib.import_module("paddleseg.core.train")
    losses = {"types": [lambda x, y: (x * y).mean(), lambda x, y: (x * y).sum([0], keepdim=True)]}
    losses["coef"] = [2.0, 3.0]
    y = paddle.to_tensor([1.0, 2.0])
    for compute in (
        lambda x: core_train.loss_computation([x, x], y, None, losses),
        lambda x: maskformer.MaskFormer.loss_computation(None, [x, x], losses, {"instances": y}),
    ):
        x = paddle.to_tensor([3.0, 5.0], stop_gradient=False)
        found = compute(x)
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


def test_profiler_options(tmp_path, monkeypatch, capfd):
    from paddleseg.utils import train_profiler

    monkeypatch.setattr(mends, "_profile", {"step": 0})
    monkeypatch.chdir(tmp_path)
    options = f"batch_range=[1, 2]; sorted_key=max; profile_path={tmp_path}/trace.json"
    train_profiler.add_profiler_step(None)
    train_profiler.add_profiler_step(options)
    train_profiler.add_profiler_step(options)
    paddle.ones([2, 2]) @ paddle.ones([2, 2])
    with pytest.raises(SystemExit) as stopped:
        train_profiler.add_profiler_step(options)
    assert stopped.value.code == 0
    assert os.listdir(tmp_path) == ["trace.json"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert "matmul" in capfd.readouterr().out


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


def test_crop_without_a_ratio_is_the_originals(unmended):
    from paddleseg.transforms import RandomPaddingCrop

    label = np.random.default_rng(0).integers(0, 3, (40, 60)).astype("uint8")

    def crops():
        np.random.seed(0)
        return np.stack([RandomPaddingCrop((16, 12))(_scene(label))["img"] for _ in range(10)])

    original = crops()
    mends.apply_mends()
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


def test_unreadable_files_are_named(tmp_path):
    import cv2
    from paddleseg.transforms import Compose

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype="uint8")
    image, label = str(tmp_path / "image.png"), str(tmp_path / "label.png")
    cv2.imwrite(image, pixels)
    cv2.imwrite(label, pixels[..., 0])
    data = Compose([])({"img": image, "label": label})
    assert np.array_equal(data["img"], pixels[..., ::-1].transpose(2, 0, 1).astype("float32"))
    assert np.array_equal(data["label"], pixels[..., 0])

    whole = (tmp_path / "label.png").read_bytes()
    (tmp_path / "label.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"label .*label\.png: it cannot be decoded"):
        Compose([])({"img": image, "label": label})
    (tmp_path / "image.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image .*image\.png: it cannot be decoded"):
        Compose([])({"img": image, "label": label})
    with pytest.raises(ValueError, match=r"gone\.png: there is no such file"):
        Compose([])({"img": str(tmp_path / "gone.png")})


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

    mend = _named("train")
    monkeypatch.setattr(*mend.find(), mend.original)
    options = {"iters": 1, "log_iters": 1, "losses": setting.losses}
    with pytest.raises(IndexError, match=mend.message):
        train(setting.model, setting.train, None, setting.optimizer, str(setting.folder), **options)
