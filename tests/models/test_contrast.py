"""The segmentors with a projection head, on backbones of one and of several maps."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import F, nn
from paddle_vheat.models import PixelContrastSegmentor, ProjectionHead, UPerNet, UPerNetContrast, VHeat
from tests.conftest import paddle, relative_error

MICRO = {"embed_dim": 8, "depths": (1, 1, 1, 1), "img_size": 64, "drop_path_rate": 0.0}


class Pyramid(nn.Layer):
    """A backbone of convolutions whose maps have the given widths, each half the size of the one before."""

    def __init__(self, *widths):
        super().__init__()
        self.feat_channels = list(widths)
        self.convs = nn.LayerList([nn.Conv2D(a, b, 3, stride=2, padding=1) for a, b in zip((3, *widths[:-1]), widths)])

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps


def upernet(cls=UPerNetContrast, **options):
    return cls(5, VHeat(**MICRO), channels=16, aux_channels=8, dropout=0.0, **options)


def check_outputs(model, outputs, size, small_size, proj_dim):
    logits, pair = outputs[:2]
    assert logits.shape == [2, 5, *size]
    assert set(pair) == {"seg", "embed"}
    assert pair["seg"].shape == [2, 5, *small_size]
    assert pair["embed"].shape == [2, proj_dim, *small_size]
    assert pair["embed"].dtype == paddle.float32
    lengths = pair["embed"].square().sum(axis=1).numpy()
    assert np.abs(lengths - 1).max() < 1e-5
    # The full-size logits are the small ones, resized.
    resized = F.interpolate(pair["seg"], size, mode="bilinear", align_corners=getattr(model, "align_corners", False))
    assert relative_error(logits.numpy(), resized.numpy()) < 1e-5


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("widths", "indices", "channels", "small"),
    [((16,), None, 16, (24, 30)), ((8, 16, 8), None, 32, (24, 30)), ((6, 16, 8), [1, 2], 24, (12, 15))],
)
def test_outputs_on_any_backbone(widths, indices, channels, small, align_corners):
    model = PixelContrastSegmentor(
        5, Pyramid(*widths), proj_dim=7, backbone_indices=indices, align_corners=align_corners
    )
    x = paddle.randn([2, 3, 48, 60])
    check_outputs(model, model(x), (48, 60), small, 7)
    assert model.forward_features(x).shape == [2, channels, *small]
    model.eval()
    (logits,) = model(x)
    assert logits.shape == [2, 5, 48, 60]


def test_concatenated_maps():
    """Resized to the first of those chosen, in their order."""
    backbone = Pyramid(6, 4, 8)
    model = PixelContrastSegmentor(5, backbone, backbone_indices=(0, 2))
    x = paddle.randn([1, 3, 33, 47])
    maps = backbone(x)
    features = model.forward_features(x).numpy()
    assert np.array_equal(features[:, :6], maps[0].numpy())
    resized = F.interpolate(maps[2], maps[0].shape[2:], mode="bilinear")
    assert relative_error(features[:, 6:], resized.numpy()) < 1e-6


@pytest.mark.parametrize("size", [(64, 64), (70, 101)])
def test_outputs_of_upernet(size):
    model = upernet(proj_dim=7)
    outputs = model(paddle.randn([2, 3, *size]))
    check_outputs(model, outputs, size, tuple(-(-side // 4) for side in size), 7)
    assert outputs[2].shape == [2, 5, *size]  # auxiliary
    without = UPerNetContrast(5, VHeat(**MICRO), channels=16, aux_channels=0, proj_dim=7)
    assert len(without(paddle.randn([2, 3, 64, 64]))) == 2


def test_upernet_with_a_projection_head_is_upernet():
    """Same logits, main and auxiliary, in training and evaluation."""
    contrast, plain = upernet(), upernet(UPerNet)
    state = {name: value for name, value in contrast.state_dict().items() if not name.startswith("proj_head.")}
    plain.set_state_dict(state)
    assert set(plain.state_dict()) == set(state)
    x = paddle.randn([2, 3, 64, 64])
    ours, theirs = contrast(x), plain(x)
    assert relative_error(ours[0].numpy(), theirs[0].numpy()) < 1e-5
    assert relative_error(ours[2].numpy(), theirs[1].numpy()) < 1e-5
    contrast.eval()
    plain.eval()
    assert len(contrast(x)) == 1
    assert relative_error(contrast(x)[0].numpy(), plain(x)[0].numpy()) < 1e-5
    folded = contrast.fold(64)
    assert relative_error(folded(x)[0].numpy(), plain(x)[0].numpy()) < 1e-4


def make(kind):
    return upernet() if kind == "upernet" else PixelContrastSegmentor(5, Pyramid(6, 4), proj_dim=7)


@pytest.mark.parametrize("kind", ["upernet", "backbone"])
def test_evaluation_does_not_run_the_projection_head(kind):
    model = make(kind)

    def fail(*_):
        raise AssertionError("the projection head ran")

    model.proj_head.forward = fail
    with pytest.raises(AssertionError, match="projection head ran"):
        model(paddle.randn([2, 3, 64, 64]))
    model.eval()
    model(paddle.randn([2, 3, 64, 64]))


@pytest.mark.parametrize("kind", ["upernet", "backbone"])
def test_every_parameter_gets_a_gradient(kind):
    model = make(kind)
    outputs = model(paddle.randn([2, 3, 64, 64]))
    total = sum(o.square().sum() for o in outputs if not isinstance(o, dict))
    weights = paddle.randn(outputs[1]["embed"].shape)  # the squares of an embedding always add up to 1
    (total + (outputs[1]["embed"] * weights).sum()).backward()
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            assert parameter.grad is not None, name
            # A convolution's bias before a BatchNorm changes nothing.
            if not name.endswith("_conv.bias"):
                assert np.abs(parameter.grad.numpy()).max() > 0, name


def test_names_are_those_of_paddlesegs_checkpoints():
    names = {name for name in make("backbone").state_dict() if not name.startswith("backbone.")}
    bn = {"weight", "bias", "_mean", "_variance"}
    assert names == (
        {f"{head}.0._conv.{name}" for head in ("cls_head", "proj_head.proj") for name in ("weight", "bias")}
        | {f"{head}.0._batch_norm.{name}" for head in ("cls_head", "proj_head.proj") for name in bn}
        | {"cls_head.2.weight", "proj_head.proj.1.weight", "proj_head.proj.1.bias"}
    )


def test_large_half_precision_projections_are_normalised():
    """The squares of numbers of 1e3 overflow float16."""

    class Large(nn.Layer):
        def forward(self, x):
            return x.astype("float16")

    head = ProjectionHead(4, 4)
    head.proj = Large()
    x = 1000 + paddle.rand([1, 4, 3, 3])
    lengths = head(x).square().sum(axis=1).numpy()
    assert np.abs(lengths - 1).max() < 1e-5


def test_a_backbone_that_gives_fewer_maps_than_it_names():
    backbone = Pyramid(16, 8)
    backbone.feat_channels = [16, 8, 8]
    with pytest.raises(ValueError, match="names 3 or more maps in its feat_channels and gives 2"):
        PixelContrastSegmentor(5, backbone)(paddle.randn([2, 3, 48, 60]))


@pytest.mark.parametrize("proj_dim", [0, 64.5, True])
def test_wrong_widths(proj_dim):
    with pytest.raises(ValueError, match=f"proj_dim must be .*of at least 1, got {proj_dim}"):
        ProjectionHead(4, proj_dim)


@pytest.mark.parametrize("indices", [[3], [-1], [], ["0"]])
def test_wrong_maps(indices):
    with pytest.raises(ValueError, match="the backbone has maps 0 to 2"):
        PixelContrastSegmentor(5, Pyramid(6, 4, 8), backbone_indices=indices)
