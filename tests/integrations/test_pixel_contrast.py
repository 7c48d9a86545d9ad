"""The pixel contrast's model, head and loss inside PaddleSeg."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import yaml

from paddle_vheat.config import ConfigError
from paddle_vheat.integrations import paddleseg as seg
from paddle_vheat.weights.loading import load_weights
from tests.conftest import paddle, relative_error
from tests.engine import tiny


def lively(layer, seed=0):
    """Weights of another size than fresh ones, and running statistics that are not 0 and 1."""
    rng = np.random.default_rng(seed)
    for name, value in layer.state_dict().items():
        array = rng.standard_normal(value.shape).astype(np.float32)
        if name.endswith("_variance"):
            array = 0.5 + np.abs(array)
        elif value.ndim == 4:
            array /= np.sqrt(np.prod(value.shape[1:]))
        elif name.endswith("weight"):
            array = 1 + 0.1 * array
        else:
            array *= 0.1
        value.set_value(array)
    return layer


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """PaddleSeg's HRNetW48Contrast with random weights, and its checkpoint."""
    backbone = seg.registry()["HRNet_W48"]()
    model = lively(seg.registry()["HRNetW48Contrast"](720, 19, backbone, drop_prob=0.0, proj_dim=720))
    path = tmp_path_factory.mktemp("published") / "model.pdparams"
    paddle.save(model.state_dict(), str(path))
    return model, path


def test_a_checkpoint_of_paddleseg_gives_the_same_results(published):
    """Strictly loaded; logits in evaluation, and all three outputs in training."""
    theirs, path = published
    ours = seg.PixelContrastSegmentor(19, seg.registry()["HRNet_W48"](), proj_dim=720, drop_prob=0.0)
    report = load_weights(ours, path)
    assert len(report.loaded) == len(theirs.state_dict())
    x = paddle.randn([1, 3, 64, 96])
    theirs.eval()
    ours.eval()
    with paddle.no_grad():
        expected = theirs(x)[0].numpy()
        assert np.abs(expected).max() > 0.1
        # The same kernels in the same order, but for the place of one reshape.
        assert relative_error(ours(x)[0].numpy(), expected) < 1e-6
        theirs.train()
        ours.train()
        (logits, pair), (full, both) = theirs(x), ours(x)
        assert relative_error(full.numpy(), logits.numpy()) < 1e-6
        for name in ("seg", "embed"):
            assert relative_error(both[name].numpy(), pair[name].numpy()) < 1e-5


def test_a_checkpoint_that_does_not_fit(published, tmp_path):
    model, path = published
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    state["proj_head.proj.2.weight"] = state.pop("proj_head.proj.1.weight")
    paddle.save(state, str(tmp_path / "wrong.pdparams"))
    with pytest.raises(ValueError, match=r"proj_head\.proj\.1\.weight \(nearest: proj_head\.proj\.2\.weight\)"):
        seg.PixelContrastSegmentor(
            19, seg.registry()["HRNet_W48"](), proj_dim=720, pretrained=str(tmp_path / "wrong.pdparams")
        )
    with pytest.raises(ValueError, match="of another shape"):
        load_weights(seg.PixelContrastSegmentor(19, seg.registry()["HRNet_W48"](), proj_dim=256), path)


@pytest.mark.parametrize(
    ("name", "indices"),
    [("HRNet_W18", None), ("ResNet50_vd", [0, 1]), ("ResNet18_vd", None), ("MixVisionTransformer_B0", None),
     ("STDC1", [2, 3, 4]), ("MobileNetV3_small_x1_0", None), ("SwinTransformer_tiny_patch4_window7_224", [0, 3]),
     ("vHeat_tiny", None)],
)  # fmt: skip
def test_on_backbones_of_paddleseg(name, indices):
    backbone = seg.registry()[name](**({"img_size": 64, "drop_path_rate": 0.0} if name == "vHeat_tiny" else {}))
    model = seg.PixelContrastSegmentor(5, backbone, proj_dim=16, backbone_indices=indices)
    x = paddle.randn([2, 3, 64, 96])
    logits, pair = model(x)
    assert logits.shape == [2, 5, 64, 96]
    assert pair["embed"].shape == [2, 16, *pair["seg"].shape[2:]]
    loss = seg.registry()["PixelContrastLoss"](max_views=2)
    labels = paddle.to_tensor(np.random.default_rng(0).integers(0, 5, (2, 64, 96)))
    (logits.mean() + loss(pair, labels)).backward()
    touched = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any(name.startswith("backbone.") for name in touched)
    assert any(name.startswith("proj_head.") for name in touched)


# --- from YAML --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_cityscapes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.mark.parametrize("coef", [0.1, 1, 0, 2.5])
def test_the_loss_from_yaml_with_any_coefficient(root, tmp_path, coef):
    """In PaddleSeg's own builder and its own sum of losses, from a file."""
    from paddleseg.core.train import loss_computation
    from paddleseg.cvlibs import Config, SegBuilder

    path = tmp_path / "contrast.yml"
    path.write_text(yaml.safe_dump(tiny.contrast_config(root, coef)), encoding="utf-8")
    builder = SegBuilder(Config(str(path)))
    model, losses = builder.model, builder.loss
    assert losses["types"][1].ignore_index == 255
    item = builder.train_dataset[0]
    label = paddle.to_tensor(item["label"][None].astype("int64"))
    outputs = model(paddle.to_tensor(item["img"][None]))
    paddle.seed(1)
    parts = loss_computation(outputs, label, None, losses)
    paddle.seed(1)
    plain = losses["types"][1](outputs[1], label)
    assert float(plain) > 0
    assert float(parts[1]) == pytest.approx(coef * float(plain), rel=1e-6, abs=1e-9)
    sum(parts).backward()
    gradients = [p.grad for p in model.proj_head.parameters() if not p.stop_gradient]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients) == (coef != 0)


# --- in our task ------------------------------------------------------------------------------------


def batch_of(task):
    item = task.dataset("train")[0]
    return {name: paddle.to_tensor(item[name][None]) for name in ("img", "label")}


def test_in_our_task_it_is_the_second_part(root):
    task = tiny.make_task(tiny.contrast_config(root, 0.5))
    batch = batch_of(task)
    outputs = task.model(batch["img"])
    paddle.seed(1)
    parts = task.losses(lambda img: outputs, batch)
    assert list(parts) == ["loss_0", "loss_1", "loss_2"]
    paddle.seed(1)
    plain = task.criteria[0][1](outputs[1], batch["label"].astype("int64"))
    assert float(parts["loss_1"]) == pytest.approx(0.5 * float(plain), rel=1e-6)
    assert float(plain) > 0


def test_the_loss_at_the_wrong_position(root):
    config = tiny.contrast_config(root)
    config["loss"]["types"] = [{"type": "CrossEntropyLoss"}, {"type": "CrossEntropyLoss"}, config["loss"]["types"][1]]
    task = tiny.make_task(config)
    told = r"'loss.types.1' is CrossEntropyLoss, .* \{seg, embed\}, which PixelContrast"
    with pytest.raises(ConfigError, match=told):
        task.losses(task.model, batch_of(task))


@pytest.mark.parametrize(("key", "value"), [("proj_dim", 9), ("num_classes", 18)])
def test_a_bank_for_another_model(root, key, value):
    config = tiny.contrast_config(root, memory_size=5, **{"num_classes": 19, "proj_dim": 8, key: value})
    with pytest.raises(ConfigError, match=rf"'loss.types.1.{key}' is {value}, and 'model.{key}' is"):
        tiny.make_task(config)


def test_accumulation_is_told_to_the_warm_up(root):
    config = tiny.contrast_config(root, warmup_iters=3)
    config["accumulation"] = 4
    assert tiny.make_task(config).criteria[0][1].calls_per_iteration == 4


def test_the_models_own_names_stay_paddlesegs():
    """Both libraries have a contrast model and loss; neither replaces the other."""
    for name in ("HRNetW48Contrast", "PixelContrastCrossEntropyLoss"):
        assert seg.registry()[name].__module__.startswith("paddleseg.")
    for name in ("PixelContrastSegmentor", "UPerNetContrast", "PixelContrastLoss"):
        assert seg.registry()[name].__module__.startswith("paddle_vheat.")


# --- pretrained weights, strictly -------------------------------------------------------------------


def build(pretrained=None):
    backbone = {"type": "HRNet_W18_Small_V1", "pretrained": pretrained}
    block = {"type": "PixelContrastSegmentor", "num_classes": 19, "proj_dim": 8, "backbone": backbone}
    with seg.strict_pretraining():
        return seg.assemble(block, seg.registry(), "model")


def test_pretrained_backbones_are_loaded_strictly(tmp_path):
    """PaddleSeg would warn of what is missing, and train on from random weights."""
    backbone = lively(seg.registry()["HRNet_W18_Small_V1"]())
    state = {name: value.numpy() for name, value in backbone.state_dict().items()}
    whole = {**state, "classifier.weight": np.zeros((4, 4), np.float32)}
    paddle.save(whole, str(tmp_path / "whole.pdparams"))
    model = build(str(tmp_path / "whole.pdparams"))
    for name, value in model.backbone.state_dict().items():
        assert np.array_equal(value.numpy(), state[name]), name

    first = next(iter(state))
    cases = {
        "missing": ({name: value for name, value in state.items() if name != first}, "missing keys"),
        "shape": ({**state, first: state[first][:1]}, "of another shape"),
    }
    for case, (wrong, message) in cases.items():
        path = tmp_path / f"{case}.pdparams"
        paddle.save(copy.deepcopy(wrong), str(path))
        with pytest.raises(ValueError, match=message) as error:
            build(str(path))
        assert first in str(error.value)
    with pytest.raises((ValueError, OSError), match=r"none\.pdparams"):
        build(str(tmp_path / "none.pdparams"))


def test_paddlesegs_own_function_is_back_afterwards():
    from paddleseg.utils import utils

    before = utils.load_pretrained_model
    build()
    assert utils.load_pretrained_model is before
