"""UPerNet in the published layout against the reference segmentor."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.models import UPerNet, VHeat
from paddle_vheat.models.layers import ConvBNReLU, convolve_concatenated
from paddle_vheat.weights.key_map import convert_state
from paddle_vheat.weights.loading import load_state
from paddle_vheat.weights.torch_file import read_torch_file
from tests.conftest import golden, relative_error, sample


def micro_upernet():
    backbone = VHeat(
        embed_dim=16, depths=(1, 1, 2, 1), post_norm=True, layer_scale=1e-5, img_size=64, drop_path_rate=0.0
    )
    return UPerNet(7, backbone, channels=32, aux_channels=16)


@pytest.fixture
def reference_model(golden_checkpoint):
    model = micro_upernet()
    load_state(model, convert_state(read_torch_file(golden_checkpoint("upernet_micro"))["state_dict"]), "reference")
    model.eval()
    return model


@pytest.mark.parametrize("size", ["64x64", "72x100"])
def test_equals_the_reference(reference_model, size):
    data = golden("upernet_micro")
    with paddle.no_grad():
        maps = reference_model.backbone(paddle.to_tensor(data[f"{size}/x"]))
        # float32 through about 20 layers; the references are float32 as well
        for i, feature in enumerate(maps):
            assert relative_error(sample(feature.numpy(), 6000).reshape(-1), data[f"{size}/feat{i}"].reshape(-1)) < 1e-4
        logits = reference_model.decode_head(maps)
        assert relative_error(sample(logits.numpy(), 6000).reshape(-1), data[f"{size}/decode"].reshape(-1)) < 1e-4
        auxiliary = reference_model.auxiliary_head(maps[2])
        assert relative_error(auxiliary.numpy(), data[f"{size}/aux"]) < 1e-4


def test_outputs_in_training_and_evaluation():
    model = micro_upernet()
    x = paddle.randn([2, 3, 65, 97])
    assert [logit.shape for logit in model(x)] == [[2, 7, 65, 97]] * 2
    model.eval()
    assert [logit.shape for logit in model(x)] == [[2, 7, 65, 97]]


def test_fold_gives_equal_logits(reference_model):
    x = paddle.randn([1, 3, 72, 100])
    with paddle.no_grad():
        for folded in (reference_model.fold((72, 100)), reference_model.fold()):
            assert relative_error(folded(x)[0].numpy(), reference_model(x)[0].numpy()) < 1e-5


def test_every_parameter_gets_a_gradient():
    model = micro_upernet()
    sum((logit**2).mean() for logit in model(paddle.randn([2, 3, 64, 64]))).backward()
    assert [n for n, p in model.named_parameters() if not p.stop_gradient and p.grad is None] == []


def test_needs_four_maps():
    backbone = VHeat(embed_dim=16, depths=(1, 1, 1, 1), img_size=64)
    backbone.feat_channels = [16, 32]
    with pytest.raises(ValueError, match="must give four maps"):
        UPerNet(7, backbone)


def test_without_auxiliary_head():
    model = UPerNet(3, VHeat(embed_dim=8, depths=(1, 1, 1, 1), img_size=32), channels=16, aux_channels=0)
    assert len(model(paddle.randn([2, 3, 32, 32]))) == 1
    assert np.isfinite(model(paddle.randn([2, 3, 32, 32]))[0].numpy()).all()


def test_every_part_of_the_decoder_is_called_as_a_layer():
    model = UPerNet(5, VHeat(embed_dim=8, depths=(1, 1, 1, 1), img_size=64), channels=16, aux_channels=8)
    model.eval()
    called = []
    parts = [layer for layer in model.decode_head.sublayers() if isinstance(layer, ConvBNReLU)]
    for part in parts:
        part.register_forward_post_hook(lambda layer, *_: called.append(layer))
    with paddle.no_grad():
        model(paddle.randn([1, 3, 64, 64]))
    assert {id(part) for part in called} == {id(part) for part in parts}
    assert len(parts) == 4 + 1 + 3 + 3 + 1  # pooling, bottleneck, laterals, pyramid, fusion


def three_maps():
    maps = [paddle.randn([2, channels, 5, 6], "float64") for channels in (2, 3, 4)]
    for part in maps:
        part.stop_gradient = False
    return maps


def test_convolution_of_concatenated_maps_and_its_gradients(monkeypatch):
    layer, maps = nn.Conv2D(9, 4, 3, padding=1, bias_attr=False).to(dtype="float64"), three_maps()
    gradient = paddle.randn([2, 4, 5, 6], "float64")
    outputs = [layer(paddle.concat(maps, axis=1))]
    monkeypatch.setattr(paddle, "concat", None)  # map by map, so that all at once are nowhere
    outputs.append(convolve_concatenated(layer, maps))
    results = [[out, *paddle.grad([out], [layer.weight, *maps], [gradient])] for out in outputs]
    for expected, found in zip(*results):
        # sums of up to 100 float64 terms of order 1, taken in another order: 100 roundings of 1e-16 each
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-13)


class Doubled(nn.Conv2D):
    """A layer put in the place of another, as quantisation does."""

    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Doubled(9, 4, 3, padding=1, bias_attr=False),
        lambda: nn.Conv2D(9, 4, 3, padding=1),
        lambda: nn.Conv2D(9, 4, 3, padding=1, bias_attr=False, padding_mode="reflect"),
        lambda: nn.Conv2D(9, 9, 3, padding=1, bias_attr=False, groups=9),
    ],
    ids=["class", "bias", "padding", "groups"],
)
def test_other_convolutions_get_the_concatenated_maps(layer):
    layer, maps, seen = layer().to(dtype="float64"), three_maps(), []
    expected = layer(paddle.concat(maps, axis=1))
    np.testing.assert_array_equal(convolve_concatenated(layer, maps).numpy(), expected.numpy())
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    convolve_concatenated(layer, maps)
    assert seen == [[2, 9, 5, 6]]
