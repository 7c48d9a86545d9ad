"""What is observed in networks, against the operator's definition computed apart in NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.analysis import count, diffusivity_of, observe, reach
from paddle_vheat.analysis.observe import stage_maps
from paddle_vheat.models import UPerNet, VHeat, VHeatClassifier, build_vheat_ir, create_model
from paddle_vheat.ops import HeatConduction2D, fold

MICRO = {"embed_dim": 8, "depths": (1, 1, 2, 1), "img_size": 64}


def classifier(**options):
    return VHeatClassifier(5, **{**MICRO, **options})


def image(size=64, channels=3):
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((1, channels, size, size)).astype(np.float32))


@pytest.mark.parametrize(
    ("make", "stages", "blocks"),
    [
        (classifier, 4, 5),
        (lambda: UPerNet(3, VHeat(**MICRO), channels=8, aux_channels=8), 4, 5),
        (lambda: create_model("mask_rcnn_vheat_tiny", num_classes=2, img_size=64), 4, 12),
        (lambda: build_vheat_ir(width=8, depths=(2, 3), in_channels=3, freq_size=16), 2, 5),
        (lambda: nn.Sequential(nn.Conv2D(3, 4, 1), HeatConduction2D(4, 16)), 1, 1),
    ],
    ids=["classifier", "segmentor", "detector", "restoration", "own network"],
)
def test_every_operator_of_every_kind_of_network_is_seen(make, stages, blocks):
    model = make()
    seen = observe(model, image())
    assert len(seen) == blocks
    assert sorted({one.stage for one in seen}) == list(range(stages))
    assert [one.block for one in seen if one.stage == 0] == list(range(sum(one.stage == 0 for one in seen)))
    assert all(one.stride * one.size[0] == 64 for one in seen)
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model.sublayers())


def test_quantities_are_those_of_the_definition():
    model = classifier()
    for stage in model.backbone.stages:
        stage.frequency_embedding.set_value(paddle.randn(stage.frequency_embedding.shape) * 5)
    first = observe(model, image())[0]
    hco, stage = model.backbone.stages[0].blocks[0].hco, model.backbone.stages[0]
    embedding = stage.frequency_embedding.numpy().astype(np.float64)
    k = np.maximum(embedding @ hco.to_k.weight.numpy() + hco.to_k.bias.numpy(), 0)
    np.testing.assert_allclose(first.k, k, atol=1e-6)  # a float32 product of 8 terms of about 0.1
    w = [np.pi * np.arange(16) / 16] * 2
    np.testing.assert_allclose(first.decay, np.exp(-k * (w[0][:, None] ** 2 + w[1] ** 2)[..., None]), atol=1e-5)
    with paddle.no_grad():
        block = model.backbone.stages[0].blocks[0]
        x = block.norm1(model.backbone.stem(image()))
        both = hco.linear(hco.dwconv(x.transpose([0, 3, 1, 2])).transpose([0, 2, 3, 1]))[0].numpy().astype(np.float64)
    heat, gate = both[..., :8], both[..., 8:]
    modes = fft.dctn(heat, axes=(0, 1), norm="ortho")
    after = fft.idctn(modes * first.decay, axes=(0, 1), norm="ortho")
    np.testing.assert_allclose(first.heat_before, np.sqrt((heat**2).mean(-1)), rtol=1e-4)
    np.testing.assert_allclose(first.heat_after, np.sqrt((after**2).mean(-1)), rtol=1e-3)
    np.testing.assert_allclose(first.gate, (gate / (1 + np.exp(-gate))).mean(-1), atol=1e-6)
    kept = ((first.decay * modes) ** 2).sum() / (modes**2).sum()
    assert first.energy_kept == pytest.approx(kept, rel=1e-4)


def test_a_folded_model_tells_the_same():
    model = classifier()
    # k of about 1, which decays can tell
    for stage in model.backbone.stages:
        stage.frequency_embedding.set_value(paddle.randn(stage.frequency_embedding.shape) * 20)
    for one, other in zip(observe(model, image()), observe(fold(model, 64), image())):
        np.testing.assert_allclose(one.decay, other.decay, atol=1e-6)
        known = ~np.isnan(other.k)
        assert known.mean() > 0.5
        np.testing.assert_allclose(other.k[known], diffusivity_of(one.decay)[known], atol=1e-2)
        np.testing.assert_allclose(one.heat_after, other.heat_after, atol=1e-5)


def test_at_another_size_the_embedding_is_resized():
    seen = observe(classifier(), image(96))
    assert [one.size for one in seen] == [(24, 24), (12, 12), (6, 6), (6, 6), (3, 3)]


def test_conduction_starts_as_the_identity():
    """Before training k is 0 for half of the entries, 0.0016 to 0.0044 on average in stages 1 to 4, E about 1."""
    seen = observe(create_model("vheat_tiny", num_classes=0), image(224))
    stages = [[one for one in seen if one.stage == i] for i in range(4)]
    assert np.mean([(one.k == 0).mean() for one in seen]) == pytest.approx(0.5, abs=0.02)
    means = [np.mean([one.k.mean() for one in stage]) for stage in stages]
    assert means == pytest.approx([0.0016, 0.0022, 0.0031, 0.0044], rel=0.1)
    assert all(0.97 < np.mean([one.decay.mean() for one in stage]) < 0.995 for stage in stages)
    assert all(0.04 < reach(one.decay) < 0.12 for one in seen)


def test_maps_of_the_stages_are_the_norms_of_their_outputs():
    model = classifier()
    model.eval()
    with paddle.no_grad():
        expected = [
            np.sqrt((m.numpy().astype(np.float64) ** 2).sum(axis=1))[0] for m in model.forward_features(image())
        ]
    for ours, theirs in zip(stage_maps(model, image()), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_networks_without_operators_and_batches_are_refused():
    with pytest.raises(ValueError, match="Linear holds no heat conduction operator"):
        observe(nn.Linear(2, 2), image())
    with pytest.raises(ValueError, match=r"one image \(1, C, H, W\), got \[2, 3, 64, 64\]"):
        observe(classifier(), paddle.zeros([2, 3, 64, 64]))


def test_cost_of_an_operator_in_a_network_of_ones_own():
    costs = count(nn.Sequential(nn.Conv2D(3, 4, 1), HeatConduction2D(4, 16)), 16)
    products = 16 * 16 * (12 + 9 * 4 + 4 * 8 + 4 * 4 + 4 * 4) + 2 * 16 * 16 * 4 * 32 + 16 * 16 * 4 + 5 * 16 * 16 * 4
    assert sum(cost.multiply_adds for cost in costs.values()) == products
