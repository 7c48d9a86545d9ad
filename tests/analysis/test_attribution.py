"""Receptive fields of known extent, and Grad-CAM where it equals the class activation map."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.analysis import contribution_areas, grad_cam, receptive_field, score_of
from paddle_vheat.analysis.attribution import last_stage
from paddle_vheat.models import UPerNet, VHeat, VHeatClassifier, build_vheat_ir

MICRO = {"embed_dim": 8, "depths": (1, 1, 1, 1), "img_size": 64}


def images(count, size=33, channels=3):
    return np.random.default_rng(0).standard_normal((count, channels, size, size)).astype(np.float32)


@pytest.mark.parametrize("layers", [1, 4])
def test_a_stack_of_convolutions_stays_inside_its_square(layers):
    stack = nn.Sequential(nn.Conv2D(3, 6, 3, padding=1), *(nn.Conv2D(6, 6, 3, padding=1) for _ in range(layers - 1)))
    field = receptive_field(lambda x: stack(x).transpose([0, 2, 3, 1]), images(8)).field
    inside = np.zeros((33, 33), bool)
    inside[16 - layers : 17 + layers, 16 - layers : 17 + layers] = True
    assert (field[~inside] == 0).all()
    assert (field[inside] > 0).mean() > 0.9
    assert contribution_areas(field)[0.99][0] <= 2 * layers + 1


def test_the_field_is_the_mean_of_positive_gradients_by_hand():
    """A 1x1 convolution of a linear network: the gradient is its weights, where the ReLU of the map lets it pass."""
    weight = paddle.to_tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, 0.0]])  # (out, in)
    batch = images(5, size=4)
    found = receptive_field(lambda x: F.conv2d(x, weight.reshape([2, 3, 1, 1])).transpose([0, 2, 3, 1]), batch)
    w, expected = weight.numpy().astype(np.float64), np.zeros((4, 4))
    for image in batch.astype(np.float64):
        gradient = ((w @ image[:, 2, 2] > 0)[:, None] * w).sum(axis=0)
        expected[2, 2] += np.maximum(gradient, 0).sum() / 5
    np.testing.assert_allclose(found.field, expected, atol=1e-6)
    assert found[1:] == (5, 0)


def test_an_image_that_is_not_finite_is_skipped():
    batch = images(3, size=64)
    model = VHeatClassifier(3, **MICRO)
    clean = receptive_field(last_stage(model), batch[[0, 2]])
    batch[1, 0, 5, 5] = np.nan
    found = receptive_field(last_stage(model), batch)
    assert found[1:] == (2, 1)
    np.testing.assert_array_equal(found.field, clean.field)
    with pytest.raises(ValueError, match="no image with a finite gradient"):
        receptive_field(last_stage(model), batch[[1]])


def test_without_conduction_a_network_sees_through_its_convolutions_only():
    """Their radius is 1 + 2 (stem), and 3x3 at strides 4, 4, 8, 8, 16, 16, 32: 91 pixels. With a large k it is all."""
    outside = np.ones((256, 256), bool)
    outside[128 - 91 : 129 + 91, 128 - 91 : 129 + 91] = False
    shares = []
    for k in (0.0, 50.0):
        model = VHeatClassifier(3, **MICRO)
        for stage in model.backbone.stages:
            for block in stage.blocks:
                block.hco.to_k.weight.set_value(paddle.zeros_like(block.hco.to_k.weight))
                block.hco.to_k.bias.set_value(paddle.full_like(block.hco.to_k.bias, k))
        field = receptive_field(last_stage(model), images(1, size=256)).field
        shares.append(field[outside].sum() / field.sum())
    # The transform's products leave rounding errors in place of zeros.
    assert shares[0] < 1e-5  # measured 1e-8
    assert shares[1] > 1e-3


def test_areas_of_a_uniform_field_and_of_a_point():
    areas = contribution_areas(np.ones((21, 21)), (0.2, 0.5, 0.99))
    # the least odd side whose square exceeds t x 441
    assert areas == {t: (side, (side / 21) ** 2) for t, side in ((0.2, 11), (0.5, 15), (0.99, 21))}
    point = np.zeros((9, 12))
    point[4, 6] = 2
    assert contribution_areas(point, (0.99,)) == {0.99: (1, 1 / 108)}
    assert contribution_areas(np.eye(4), (0.99,)) == {0.99: None}


def test_cam_of_a_linear_head_on_pooled_features_is_the_class_weights_map():
    """There Grad-CAM is the class activation map (Zhou et al., 2016) over the number of positions."""
    features, head = paddle.rand([1, 5, 7, 6]), nn.Linear(6, 4)
    features.stop_gradient = False
    logits = head(features.mean(axis=[1, 2]))
    for label in range(4):
        score, chosen = score_of(logits, label)
        assert chosen == label
        expected = np.maximum(features.numpy()[0] @ head.weight.numpy()[:, label], 0) / 35
        np.testing.assert_allclose(grad_cam(features, score), expected, atol=1e-6)


def test_cam_of_a_segmentor_is_of_the_pixels_predicted_as_the_class():
    logits = paddle.to_tensor(np.zeros((1, 3, 2, 4), np.float32))
    logits[0, 1, :, :3] = 2.0
    logits[0, 2, 0, 3] = 5.0
    for label, expected in ((None, 12.0), (1, 12.0), (2, 5.0), (0, 0.0)):
        score, chosen = score_of([logits, None], label)
        assert float(score) == expected
        assert chosen == (1 if label is None else label)
    model = UPerNet(3, VHeat(**MICRO), channels=8, aux_channels=0)
    with pytest.raises(ValueError, match="no pixel is predicted as class 2"):
        score_of(paddle.to_tensor(np.eye(3, dtype=np.float32)[:2].T.reshape(1, 3, 2, 1)), 2)
    assert score_of(model(paddle.zeros([1, 3, 64, 64])))[0].ndim == 0


def test_outputs_without_class_scores_are_refused():
    with pytest.raises(ValueError, match="needs the class scores"):
        score_of({"boxes": 1})
    with pytest.raises(ValueError, match="class 9 does not exist; expected 0 to 3"):
        score_of(paddle.zeros([1, 4]), 9)
    assert last_stage(build_vheat_ir(width=8, depths=(1,), freq_size=16, in_channels=1))(
        paddle.zeros([1, 1, 32, 32])
    ).shape == [1, 32, 32, 8]
