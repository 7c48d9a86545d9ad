"""Fine-tuning: exactly what is new may be missing from a checkpoint, and it is reported."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat.models import UPerNet, VHeat, VHeatClassifier
from paddle_vheat.weights import save_weights
from paddle_vheat.weights.loading import load_classifier, load_segmentor

MICRO = {"embed_dim": 8, "depths": (1, 1, 1, 1), "img_size": 32, "drop_path_rate": 0.0}


def segmentor(num_classes=3):
    return UPerNet(num_classes, VHeat(**MICRO), channels=16, aux_channels=8)


def same(first, second, name):
    return np.array_equal(first.state_dict()[name].numpy(), second.state_dict()[name].numpy())


def test_segmentor_from_a_classifier(tmp_path):
    source, model = VHeatClassifier(num_classes=5, **MICRO), segmentor()
    save_weights(source, tmp_path / "cls.pdparams")
    report = load_segmentor(model, tmp_path / "cls.pdparams")
    decoder = {n for n in model.state_dict() if n.startswith(("decode_head.", "auxiliary_head.", "backbone.outnorm"))}
    assert set(report.newly_initialised) == decoder
    assert set(report.loaded) == set(model.state_dict()) - decoder
    assert all(same(model, source, name) for name in report.loaded)
    assert "decode_head.* (" in str(report)


def test_segmentor_of_another_number_of_classes(tmp_path):
    source, model = segmentor(7), segmentor(3)
    save_weights(source, tmp_path / "seg.pdparams")
    report = load_segmentor(model, tmp_path / "seg.pdparams")
    heads = ("decode_head", "auxiliary_head")
    assert set(report.newly_initialised) == {
        f"{head}.classifier.{kind}" for head in heads for kind in ("weight", "bias")
    }
    assert all(same(model, source, name) for name in report.loaded)


def test_segmentor_of_the_same_kind_is_loaded_whole(tmp_path):
    source, model = segmentor(), segmentor()
    save_weights(source, tmp_path / "seg.pdparams")
    report = load_segmentor(model, tmp_path / "seg.pdparams")
    assert report.newly_initialised == []
    assert all(same(model, source, name) for name in model.state_dict())


def test_classifier_of_another_number_of_classes(tmp_path):
    source, model = VHeatClassifier(num_classes=5, **MICRO), VHeatClassifier(num_classes=2, **MICRO)
    save_weights(source, tmp_path / "cls.pdparams")
    report = load_classifier(model, tmp_path / "cls.pdparams")
    assert report.newly_initialised == ["head.weight", "head.bias"]
    assert all(same(model, source, name) for name in report.loaded)


@pytest.mark.parametrize("load", [load_segmentor, load_classifier])
def test_anything_else_that_is_missing_is_an_error(tmp_path, load):
    source = VHeatClassifier(num_classes=5, **{**MICRO, "depths": (1, 1, 2, 1)})
    model = segmentor() if load is load_segmentor else VHeatClassifier(num_classes=2, **MICRO)
    save_weights(source, tmp_path / "cls.pdparams")
    with pytest.raises(ValueError, match=r"stages\.2\.blocks\.1"):
        load(model, tmp_path / "cls.pdparams")
