"""Official SwinIR checkpoints: every name has one place, under whichever key the weights are."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.errors import UserError
from paddle_vheat.models import create_model
from paddle_vheat.models.restoration import build_swin_ir, build_vheat_ir
from paddle_vheat.weights.loading import load_weights, read_weights
from paddle_vheat.weights.swinir_keys import convert_state, load_swinir, our_name, read_swinir
from paddle_vheat.weights.torch_file import read_torch_file
from tests.conftest import golden, relative_error
from tests.weights.published import write_torch_file
from tools.convert_weights import main

GRAY = {"in_channels": 1, "width": 12, "depths": [2, 2], "heads": 3, "window": 4, "mlp_ratio": 2.0, "img_range": 1.0}
COLOR = {**GRAY, "in_channels": 3, "depths": [2], "window": 3}


@pytest.fixture
def published(golden_checkpoint):
    return read_torch_file(golden_checkpoint("swinir_micro"))["params"]


@pytest.mark.parametrize(("name", "options"), [("swinir_micro", GRAY), ("swinir_micro_color", COLOR)])
def test_every_name_has_one_place_and_every_place_a_name(golden_checkpoint, name, options):
    path = golden_checkpoint(name)
    found, state = read_swinir(path)
    assert found == options
    published = read_torch_file(path)["params"]
    buffers = [key for key in published if key.endswith(("attn_mask", "relative_position_index"))]
    blocks = sum(options["depths"])
    assert len(buffers) == blocks + blocks // 2  # a mask in every second block
    assert all(our_name(key) is None for key in buffers)
    assert len(state) == len(published) - len(buffers)
    model = build_swin_ir(**found)
    assert {key: list(value.shape) for key, value in state.items()} == {
        key: list(value.shape) for key, value in model.state_dict().items()
    }
    turned = 0
    for key, value in published.items():
        if key in buffers:
            continue
        ours = state[our_name(key)]
        transposed = value.ndim == 2 and "bias_table" not in key
        assert np.array_equal(ours, value.T if transposed else value)
        turned += transposed
    assert turned == 4 * blocks  # qkv, proj, fc1, fc2


def test_names_of_heat_conduction():
    """Those of the vHeat release in the place of attention."""
    names = {key[len("gray.param.") :] for key in golden("vheatir_micro") if key.startswith("gray.param.")}
    model = build_vheat_ir(width=12, depths=(2, 2), freq_size=16)
    assert sorted(map(our_name, names)) == sorted(model.state_dict())


@pytest.mark.parametrize("wrap", ["params", "params_ema", "both", "bare"])
def test_the_weights_are_found_under_every_key(tmp_path, published, wrap):
    other = {key: np.zeros_like(value) for key, value in published.items()}
    content = {"both": {"params_ema": other, "params": published}, "bare": published}.get(wrap, {wrap: published})
    path = tmp_path / "model.pth"
    write_torch_file(path, content)
    model = build_swin_ir(**GRAY)
    report = load_swinir(model, path)
    assert report.newly_initialised == report.resized == []
    model.eval()
    data = golden("swinir_micro")
    # float32 through four blocks
    assert relative_error(model(paddle.to_tensor(data["gray.1.x"])).numpy(), data["gray.1.y"]) < 4e-6


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
@pytest.mark.parametrize("wrap", ["params", "params_ema", "bare"])
def test_the_command_line(tmp_path, published, capsys, suffix, wrap):
    """The file that it writes gives the reference's outputs in a model of the options that it names."""
    path, target = tmp_path / "model.pth", tmp_path / f"model{suffix}"
    write_torch_file(path, published if wrap == "bare" else {wrap: published})
    assert main([str(path), str(target), "--check"]) == 0
    said = capsys.readouterr().out
    assert "restoration, SwinIR" in said
    assert "in_channels: 1, width: 12, depths: [2, 2], heads: 3, window: 4, mlp_ratio: 2.0, img_range: 1.0" in said
    assert float(said[said.index("evaluation: ") + 12 :].split()[0]) < 4e-6
    model = create_model("swin_ir", **GRAY)
    report = load_weights(model, target)
    assert len(report.loaded) == len(model.state_dict())
    model.eval()
    data = golden("swinir_micro")
    for i in range(3):
        x, expected = (data[f"gray.{i}.{name}"] for name in "xy")
        assert relative_error(model(paddle.to_tensor(x)).numpy(), expected) < 4e-6


def test_the_average_is_taken_where_it_is_asked_for(tmp_path, published, capsys):
    path, target = tmp_path / "model.pth", tmp_path / "model.pdparams"
    doubled = {name: 2 * value for name, value in published.items()}
    write_torch_file(path, {"params": published, "params_ema": doubled})
    for options, factor in (([], 1), (["--ema"], 2)):
        assert main([str(path), str(target), *options]) == 0
        found = read_weights(target)["conv_last.weight"]
        assert np.array_equal(found, factor * published["conv_last.weight"])
    write_torch_file(path, published)
    assert main([str(path), str(target), "--ema"]) == 2
    assert main([str(path), str(target), "--img_size", "64"]) == 2
    said = capsys.readouterr().err
    assert "no averaged weights (--ema) under 'params_ema'" in said
    assert "has no frequency embeddings to resize" in said


def test_a_range_for_the_jpeg_models(tmp_path):
    """Window 7 is what tells them from the others."""
    state = {f"layers.0.residual_group.blocks.0.{name}": array for name, array in BLOCK.items()}
    state["conv_first.weight"] = np.zeros((12, 1, 3, 3), np.float32)
    path = tmp_path / "jpeg.pth"
    write_torch_file(path, {"params": state})
    options, _ = read_swinir(path)
    assert (options["window"], options["img_range"]) == (7, 255.0)


BLOCK = {
    "norm1.weight": np.zeros(12, np.float32),
    "attn.relative_position_bias_table": np.zeros((169, 3), np.float32),
    "mlp.fc1.weight": np.zeros((24, 12), np.float32),
}


def test_unexpected_missing_and_misshaped_parameters_are_named(tmp_path, published):
    with pytest.raises(UserError, match=r"some.pth: unexpected keys \(2\): upsample.0.weight, layers.0.x"):
        convert_state({**published, "upsample.0.weight": published["norm.bias"], "layers.0.x": 0}, "some.pth")
    path = tmp_path / "model.pth"
    write_torch_file(path, {key: value for key, value in published.items() if key != "norm.bias"})
    model = build_swin_ir(**GRAY)
    before = model.conv_first.weight.numpy()
    with pytest.raises(ValueError, match=r"model.pth(.|\n)*missing(.|\n)*norm.bias"):
        load_swinir(model, path)
    with pytest.raises(ValueError, match=r"bias_table: the file has \[49, 3\], the model \[225, 3\]"):
        load_swinir(build_swin_ir(**{**GRAY, "window": 8}), path)
    assert np.array_equal(model.conv_first.weight.numpy(), before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no weights under 'params' or 'params_ema', and no bare state dict; it holds epoch"),
        ([1, 2], "it holds a list"),
        ({"conv_first.weight": np.zeros((12, 1, 3, 3), np.float32)}, "no SwinIR checkpoint of denoising or JPEG"),
        ({f"layers.999.residual_group.blocks.0.{name}": array for name, array in BLOCK.items()}, "no SwinIR"),
    ],
)
def test_another_file_is_reported(tmp_path, content, message):
    path = tmp_path / "model.pth"
    write_torch_file(path, content)
    with pytest.raises(UserError, match=message):
        read_swinir(path)
