"""The published parameter names: every one has a place, and only one."""

from __future__ import annotations

import re

import numpy as np
import pytest

from paddle_vheat.models import VHeatClassifier
from paddle_vheat.weights.key_map import convert_state, our_name
from paddle_vheat.weights.torch_file import read_torch_file
from tests.models.test_upernet import micro_upernet

MICRO = {"embed_dim": 16, "depths": (1, 1, 2, 1), "img_size": 64}


@pytest.fixture
def checkpoint(golden_checkpoint):
    def read(name):
        return read_torch_file(golden_checkpoint(name))["model" if "pre" in name else "state_dict"]

    return read


@pytest.mark.parametrize("name", ["vheat_micro_pre", "upernet_micro"])
def test_every_published_name_has_one_place_and_every_place_a_name(checkpoint, name):
    model = VHeatClassifier(num_classes=10, **MICRO) if "pre" in name else micro_upernet()
    published = checkpoint(name)
    names = [key for key in published if not key.endswith("num_batches_tracked")]
    assert len(names) < len(published) or "pre" in name
    ours = [our_name(key) for key in names]
    assert len(set(ours)) == len(ours)
    assert set(ours) == set(model.state_dict())
    converted = convert_state(published)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {key: list(value.shape) for key, value in converted.items()} == shapes


@pytest.mark.parametrize("name", ["vheat_micro_pre", "upernet_micro"])
def test_values_are_kept_and_linear_weights_transposed(checkpoint, name):
    published = checkpoint(name)
    converted = convert_state(published)
    turned = 0
    for key, value in published.items():
        ours = our_name(key)
        if key.endswith("num_batches_tracked"):
            assert ours is None
        elif value.ndim == 4 and converted[ours].ndim == 2:  # 1x1 convolutions of the MLP
            assert ours.split(".")[-2] in ("fc1", "fc2")
            assert np.array_equal(converted[ours], value[:, :, 0, 0].T)
            turned += 1
        elif value.ndim == 2:
            assert np.array_equal(converted[ours], value.T)
            turned += 1
        else:
            assert np.array_equal(converted[ours], value)
    # per block linear, to_k, out_linear, fc1, fc2; the classifier's head
    assert turned == 5 * 5 + ("pre" in name)


def test_the_folded_form(checkpoint):
    published = checkpoint("vheat_micro_pre")
    folded = {key: value for key, value in published.items() if "to_k" not in key and "freq_embed" not in key}
    folded.update({f"layers.{s}.{b}.op.k_exp": np.ones((4, 4, 16 * 2**s)) for s, b in enumerate_blocks()})
    model = VHeatClassifier(num_classes=10, **MICRO).fold(64)
    assert set(convert_state(folded)) == set(model.state_dict())


def enumerate_blocks():
    return [(s, b) for s, depth in enumerate(MICRO["depths"]) for b in range(depth)]


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("patch_embed.norm1.1.weight", "backbone.stem.norm1.weight"),
        ("freq_embed.3", "backbone.stages.3.frequency_embedding"),
        ("layers.2.17.op.to_k.0.bias", "backbone.stages.2.blocks.17.hco.to_k.bias"),
        ("layers.2.17.gamma2", "backbone.stages.2.blocks.17.gamma2"),
        ("layers.2.18.0.weight", "backbone.stages.2.downsample.conv.weight"),
        ("layers.2.18.1.bias", "backbone.stages.2.downsample.norm.bias"),
        ("layers.0.1.op.k_exp", "backbone.stages.0.blocks.1.hco.decay"),
        ("classifier.0.weight", "norm.weight"),
        ("classifier.3.bias", "head.bias"),
        ("backbone.outnorm2.bias", "backbone.outnorm2.bias"),
        ("decode_head.psp_modules.3.1.bn.running_var", "decode_head.pyramid.3.project.bn._variance"),
        ("auxiliary_head.convs.0.bn.running_mean", "auxiliary_head.conv.bn._mean"),
        ("decode_head.conv_seg.bias", "decode_head.classifier.bias"),
    ],
)
def test_names(published, ours):
    assert our_name(published) == ours


@pytest.mark.parametrize(
    "name",
    [
        "",
        "backbone.",
        "backbone.classifier.0.weight",
        "head.weight",
        "layers.0.0.op",
        "freq_embed.a",
        "neck.0.weight",
        "layers.0.0.norm3.weight",
        "xpatch_embed.conv1.weight",
        "patch_embed.conv1.weight.x",
        "outnorm4.weight",
    ],
)
def test_names_of_something_else(name):
    assert our_name(name) is None
    with pytest.raises(ValueError, match=rf"a\.pth: unexpected keys \(1\): {re.escape(name)}$"):
        convert_state({name: np.ones(1)}, "a.pth")


def test_two_names_for_one_place():
    state = {"freq_embed.0": np.ones((2, 2, 4)), "backbone.freq_embed.0": np.ones((2, 2, 4))}
    with pytest.raises(ValueError, match=r"two published parameters stand for .*; the second is 'backbone.freq_embed"):
        convert_state(state)
