"""Models by name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import paddle_vheat
from paddle_vheat._paddle import nn, paddle
from paddle_vheat.config import load_config
from paddle_vheat.models import registry
from paddle_vheat.tasks.classification.transforms import build_ops, pipeline
from paddle_vheat.weights import save_weights
from paddle_vheat.weights.loading import load_pretrained
from tests.conftest import relative_error

TINY = {"img_size": 32}


def test_list_and_unknown_names():
    assert paddle_vheat.list_models("vheat_[tsb]*") == ["vheat_tiny", "vheat_small", "vheat_base"]
    assert paddle_vheat.list_models("vheat_t*") == paddle_vheat.list_models(filter="vheat_t*") == ["vheat_tiny"]
    assert paddle_vheat.list_models("resnet*") == []
    with pytest.raises(ValueError, match="unknown model 'vheat_tinny'; did you mean 'vheat_tiny'"):
        paddle_vheat.create_model("vheat_tinny")
    with pytest.raises(ValueError, match=r"unknown model None \(known: vheat_tiny"):
        paddle_vheat.create_model(None)
    with pytest.raises(TypeError, match="unknown option 'in_chans'; did you mean 'in_channels'"):
        paddle_vheat.create_model("vheat_tiny", in_chans=1)


def test_models_of_other_families(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    def build(width=3, *, depth=2):
        return nn.Linear(width, depth)

    registry.register_model("linear_tiny", build)
    registry.register_model("linear_tiny", build)  # as when a file is imported twice
    assert paddle_vheat.list_models("linear*") == ["linear_tiny"]
    assert paddle_vheat.create_model("linear_tiny", depth=5).weight.shape == [3, 5]
    with pytest.raises(TypeError, match=r"unknown option 'widht'; did you mean 'width'\? \(known: width, depth\)"):
        paddle_vheat.create_model("linear_tiny", widht=5)
    with pytest.raises(ValueError, match="there is a model 'vheat_tiny' already"):
        registry.register_model("vheat_tiny", build)


def test_default_cfg_and_its_transform(tmp_path):
    """The evaluation that configs/vheat_imagenet.yml describes."""
    model = paddle_vheat.create_model("vheat_tiny", num_classes=0, **TINY)
    assert model.default_cfg["input_size"] == (3, 32, 32)
    cfg = paddle_vheat.create_model("vheat_tiny", features_only=True).default_cfg
    assert cfg["source"] is None
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(picture).save(path := tmp_path / "a.png")
    ops = load_config("configs/vheat_imagenet.yml")["DataLoader"]["Eval"]["dataset"]["transform_ops"]
    expected = pipeline(build_ops(ops))(path.read_bytes())
    transform = paddle_vheat.create_transform(cfg)
    for image in (path, str(path), path.read_bytes(), Image.open(path), picture):
        np.testing.assert_allclose(transform(image), expected, rtol=1e-6, atol=1e-6)  # scale 1/255, rounded


def test_no_weight_decay(classifier):
    model, _ = classifier
    names = model.no_weight_decay()
    assert names == {name for name, value in model.state_dict().items() if value.ndim == 1}
    assert {f"backbone.{name}" for name in model.backbone.no_weight_decay()} < names
    assert "head.bias" in names


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of five classes and its file."""
    model = paddle_vheat.create_model("vheat_tiny", num_classes=5, pretrained=False, **TINY)
    path = tmp_path_factory.mktemp("weights") / "tiny.pdparams"
    save_weights(model, path)
    model.eval()
    return model, path


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3), (0, 2)])
def test_features_only(classifier, indices):
    source, path = classifier
    model = paddle_vheat.create_model("vheat_tiny", features_only=True, out_indices=indices, pretrained=path, **TINY)
    model.eval()
    ran = []
    for i, stage in enumerate(model.stages):
        stage.register_forward_post_hook(lambda *_, i=i: ran.append(i))
    x = paddle.randn([2, 3, 64, 48])
    for form in (model, model.fold((64, 48))):
        maps = form(x)
        for info, found, i in zip(model.feature_info, maps, indices):
            assert info == {"num_chs": 96 * 2**i, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            assert found.shape == [2, info["num_chs"], 64 // info["reduction"], 48 // info["reduction"] + (i == 3)]
            # float32 through 12 blocks, sums in another order
            assert relative_error(found.numpy(), source.forward_features(x)[i].numpy()) < 1e-5
        assert len(maps) == len(indices)
    assert ran == 2 * list(range(indices[-1] + 1))
    assert model.feat_channels == [info["num_chs"] for info in model.feature_info]


def test_pooled_features_and_a_new_head(classifier):
    source, path = classifier
    model = paddle_vheat.create_model("vheat_tiny", num_classes=0, pretrained=path, **TINY)
    model.eval()
    x = paddle.randn([2, 3, 32, 32])
    assert model(x).shape == [2, 768]
    assert relative_error(source.head(model(x)).numpy(), source(x).numpy()) < 1e-5
    assert not any(name.startswith("head.") for name in model.state_dict())
    model.reset_classifier(7)
    assert (model.num_classes, model(x).shape) == (7, [2, 7])
    # 768 x 7 draws give the standard deviation to 1 %
    assert float(model.head.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert not model.head.bias.numpy().any()
    model.reset_classifier(0)
    assert model(x).shape == [2, 768]
    with pytest.raises(ValueError, match=r"num_classes must be .*of at least 0, got -1"):
        model.reset_classifier(-1)


def test_a_backbone_from_files_of_other_kinds(classifier, tmp_path):
    """From a segmentor, and with output norms from a classifier."""
    source, path = classifier
    normed = paddle_vheat.VHeat(**TINY)
    report = load_pretrained(normed, path)
    assert sorted(report.newly_initialised) == sorted(n for n in normed.state_dict() if n.startswith("outnorm"))
    segmentor = paddle_vheat.UPerNet(3, normed, channels=8, aux_channels=0)
    save_weights(segmentor, tmp_path / "seg.pdparams")
    bare = paddle_vheat.create_model(
        "vheat_tiny", features_only=True, pretrained=tmp_path / "seg.pdparams", **TINY
    ).state_dict()
    for name, value in source.backbone.state_dict().items():
        assert np.array_equal(bare[name].numpy(), value.numpy()), name
