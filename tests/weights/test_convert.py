"""Conversion of the published checkpoints, through the command line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.models import VARIANTS, UPerNet, VHeat, VHeatClassifier, create_model
from paddle_vheat.ops import fold
from paddle_vheat.weights.convert import convert, read_published
from paddle_vheat.weights.loading import load_backbone, load_weights, read_weights
from paddle_vheat.weights.torch_file import read_torch_file
from tests.conftest import golden, relative_error, sample
from tests.models.mask_rcnn.micro import reference_detector
from tests.models.test_upernet import micro_upernet
from tests.models.test_vheat import MICRO
from tests.weights.published import published_shapes, random_state, write_torch_file
from tools.convert_weights import main

SMALL = {"width": 16, "depths": (1, 1, 2, 1), "size": 64, "classes": 10}


def micro(**changes):
    return VHeatClassifier(num_classes=10, **{**MICRO, **changes})


@pytest.mark.parametrize("suffix", [".pdparams", ".safetensors"])
def test_classifier_reference_by_the_command_line(golden_checkpoint, tmp_path, capsys, suffix):
    target = tmp_path / f"micro{suffix}"
    assert main([str(golden_checkpoint("vheat_micro_pre")), str(target), "--check"]) == 0
    text = capsys.readouterr().out
    for expected in ("classification, custom, 10 classes", "64x64 pixels", "optimizer", "training state"):
        assert expected in text
    model = micro()
    model.eval()
    report = load_weights(model, target)
    assert report.newly_initialised == report.resized == []
    data = golden("vheat_micro_pre")
    # float32 through 5 blocks; the reference is float32 as well
    assert relative_error(model(paddle.to_tensor(data["x"])).numpy(), data["logits"]) < 3e-5
    folded = model.fold(64)
    assert relative_error(folded(paddle.to_tensor(data["x"])).numpy(), data["logits_folded"]) < 3e-5


def test_segmentor_reference_by_the_command_line(golden_checkpoint, tmp_path, capsys):
    target = tmp_path / "upernet.pdparams"
    assert main([str(golden_checkpoint("upernet_micro")), str(target)]) == 0
    text = capsys.readouterr().out
    assert "segmentation, custom, 7 classes" in text
    assert "num_batches_tracked" in text
    model = micro_upernet()
    model.eval()
    load_weights(model, target)
    data = golden("upernet_micro")
    logits = model.decode_head(model.backbone(paddle.to_tensor(data["72x100/x"])))
    assert relative_error(sample(logits.numpy(), 6000), data["72x100/decode"].reshape(-1)) < 1e-4


@pytest.mark.parametrize("name", list(VARIANTS))
def test_full_size_checkpoints_convert_strictly(name, tmp_path, capsys):
    variant = VARIANTS[name]
    state = random_state(published_shapes(variant.embed_dim, variant.depths, variant.post_norm))
    source, target = tmp_path / f"{name}.pth", tmp_path / f"{name}.pdparams"
    write_torch_file(source, {"model": state, "epoch": 299})
    assert main([str(source), str(target)]) == 0
    text = capsys.readouterr().out
    assert f"classification, {name}, 1000 classes" in text
    converted = read_weights(target)
    assert sum(v.size for v in converted.values()) == sum(v.size for v in state.values())
    model = create_model(name, pretrained=target)
    assert np.array_equal(model.head.weight.numpy(), state["classifier.3.weight"].T)


def test_memory_is_at_most_twice_the_file(tmp_path):
    variant = VARIANTS["vheat_base"]
    state = random_state(published_shapes(variant.embed_dim, variant.depths, variant.post_norm))
    source = tmp_path / "base.pth"
    write_torch_file(source, {"model": state})
    script = (
        "import resource, sys\n"
        "from paddle_vheat.weights import convert\n"
        "from tools.convert_weights import main\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(peak() - before)\n"
    )
    words = [sys.executable, "-c", script, str(source), str(tmp_path / "base.pdparams")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    # a tenth more for the allocator and for what Paddle loads on first use
    assert int(done.stdout.splitlines()[-1]) < 2.1 * source.stat().st_size


def test_average_and_data_parallel_prefix(tmp_path):
    shapes = published_shapes(**SMALL, post_norm=True)
    first, second = random_state(shapes, 1), random_state(shapes, 2)
    source = tmp_path / "train.pth"
    write_torch_file(source, {"model": first, "model_ema": {f"module.{k}": v for k, v in second.items()}})
    for options, state in (([], first), (["--ema"], second)):
        target = tmp_path / "out.pdparams"
        assert main([str(source), str(target), *options]) == 0
        assert np.array_equal(read_weights(target)["head.bias"], state["classifier.3.bias"])


def test_folded_checkpoint(tmp_path, capsys):
    state = random_state(published_shapes(**SMALL, post_norm=False, folded=True))
    source, target = tmp_path / "folded.pth", tmp_path / "folded.pdparams"
    write_torch_file(source, {"model": state})
    assert main([str(source), str(target), "--check"]) == 0
    assert "folded" in capsys.readouterr().out
    model = fold(micro(), 64)
    load_weights(model, target)
    assert np.array_equal(model.backbone.stages[2].blocks[1].hco.decay.numpy(), state["layers.2.1.op.k_exp"])
    assert main([str(source), str(target), "--img_size", "128"]) == 2
    assert "cannot be resized" in capsys.readouterr().err


@pytest.mark.parametrize("average", [False, True])
def test_detector_reference_by_the_command_line(golden_checkpoint, tmp_path, capsys, average):
    """All of it, into the same detections (tests/tasks/detection); trained weights, or the average of a checkpoint."""
    source, target = golden_checkpoint("maskrcnn_micro"), tmp_path / "det.pdparams"
    state = read_torch_file(source)["state_dict"]
    options = ["--check"]
    if average:
        source, options = tmp_path / "train.pth", ["--ema"]
        shifted = {f"module.{name}": value + 1 for name, value in state.items()}
        content = {"meta": {}, "state_dict": state, "ema_state_dict": {**shifted, "steps": np.zeros(1, np.int64)}}
        write_torch_file(source, content)
    assert main([str(source), str(target), *options]) == 0
    text = capsys.readouterr().out
    for expected in ("detection, custom, 5 classes", "64x64 pixels", "143 arrays, every one of the model's"):
        assert expected in text
    expected = reference_detector(golden_checkpoint("maskrcnn_micro")).state_dict()
    found = read_weights(target)
    assert found.keys() == expected.keys()
    # Shifted in float32, of values that are small.
    assert all(np.abs(found[name] - average - expected[name].numpy()).max() < 1e-6 for name in found)
    if not average:
        differences = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("check")]
        assert len(differences) == 5
        assert max(differences) < 1e-4


def test_part_of_a_detector_is_refused(golden_checkpoint, tmp_path, capsys):
    state = dict(read_torch_file(golden_checkpoint("maskrcnn_micro"))["state_dict"])
    for name, message in (
        ("roi_head.mask_head.conv_logits.bias", "no whole Mask R-CNN: roi_head.mask_head.conv_logits.bias is missing"),
        ("neck.fpn_convs.1.conv.weight", "missing keys: neck.outputs.1.weight"),
        ("backbone.outnorm2.bias", "missing keys: backbone.outnorm2.bias"),
    ):
        rest = {key: value for key, value in state.items() if key != name}
        write_torch_file(tmp_path / "part.pth", {"state_dict": rest})
        assert main([str(tmp_path / "part.pth"), str(tmp_path / "out.pdparams")]) == 2
        assert message in capsys.readouterr().err
    write_torch_file(tmp_path / "more.pth", {"state_dict": {**state, "rpn_head.extra.weight": np.zeros(3, np.float32)}})
    assert main([str(tmp_path / "more.pth"), str(tmp_path / "out.pdparams")]) == 2
    assert "more.pth: unexpected keys (1): rpn_head.extra.weight" in capsys.readouterr().err
    assert not (tmp_path / "out.pdparams").exists()


def test_backbone_of_a_converted_detector(golden_checkpoint, tmp_path):
    main([str(golden_checkpoint("maskrcnn_micro")), str(tmp_path / "det.pdparams")])
    backbone = VHeat(embed_dim=16, depths=(1, 1, 1, 1), img_size=64)
    report = load_backbone(backbone, tmp_path / "det.pdparams")
    assert set(report.loaded) == set(backbone.state_dict())


@pytest.mark.parametrize("rule", ["bicubic", "zero_pad"])
def test_resizing(tmp_path, capsys, rule):
    state = random_state(published_shapes(**SMALL, post_norm=False))
    source, target = tmp_path / "a.pth", tmp_path / "a.pdparams"
    write_torch_file(source, {"model": state})
    assert main([str(source), str(target), "--img_size", "96", "--resize", rule]) == 0
    assert "96x96" in capsys.readouterr().out
    embedding = read_weights(target)["backbone.stages.0.frequency_embedding"]
    original = state["freq_embed.0"]
    assert embedding.shape == (24, 24, 16)
    if rule == "zero_pad":
        assert np.array_equal(embedding[:16, :16], original)
        assert not embedding[16:].any()
        assert not embedding[:, 16:].any()
    else:
        # a resize keeps a constant: the kernel's weights sum to 1 (float32)
        assert abs(embedding.mean() - original.mean()) < 0.05 * original.std()
        assert not np.array_equal(embedding[:16, :16], original)
    if rule == "zero_pad":
        assert main([str(source), str(target), "--img_size", "32", "--resize", rule]) == 2
        assert "larger sizes" in capsys.readouterr().err


def damaged(change):
    state = random_state(published_shapes(**SMALL, post_norm=False))
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda s: s.pop("layers.2.1.op.linear.bias"), ["1 missing", "stages.2.blocks.1.hco.linear.bias"]),
        (
            lambda s: s.update({"layers.0.0.op.extra.weight": np.ones(3, np.float32)}),
            ["hco.extra.weight", "unexpected keys"],
        ),
        (
            lambda s: s.update({"something.else": np.ones(3, np.float32)}),
            ["unexpected keys (1)", "something.else"],
        ),
        (lambda s: s.update({"classifier.0.bias": np.ones(7, np.float32)}), ["norm.bias", "[7]", "[128]"]),
        (lambda s: s.pop("patch_embed.conv2.weight"), ["no vHeat checkpoint", "patch_embed.conv2.weight"]),
        (lambda s: s.pop("freq_embed.0"), ["neither the training form"]),
    ],
)
def test_no_missing_and_no_unexpected_keys(tmp_path, capsys, change, messages):
    source, target = tmp_path / "a.pth", tmp_path / "a.pdparams"
    write_torch_file(source, {"model": damaged(change)})
    assert main([str(source), str(target)]) == 2
    error = capsys.readouterr().err
    for message in messages:
        assert message in error
    assert not target.exists()


def test_what_is_no_checkpoint(tmp_path, capsys):
    source = tmp_path / "a.pth"
    write_torch_file(source, {"epoch": 3, "args": {"lr": 1.0}})
    assert main([str(source), str(tmp_path / "a.pdparams")]) == 2
    assert "no weights under model or state_dict; it holds epoch, args" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "a.onnx")]) == 2
    assert ".pdparams or .safetensors" in capsys.readouterr().err
    assert main([str(tmp_path / "none.pth"), str(tmp_path / "a.pdparams")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_half_precision_source(tmp_path):
    state = random_state(published_shapes(**SMALL, post_norm=False))
    source = tmp_path / "half.pth"
    write_torch_file(source, {"model": {k: v.astype(np.float16) for k, v in state.items()}})
    model, _ = convert(read_published(source))
    assert model.head.bias.dtype == paddle.float32
    assert np.array_equal(model.head.bias.numpy(), state["classifier.3.bias"].astype(np.float16).astype(np.float32))


def test_writer_and_reader_agree(tmp_path):
    state = random_state({"a": (3, 4), "b": (2,)})
    write_torch_file(tmp_path / "a.pth", {"model": state, "n": np.arange(3)})
    content = read_torch_file(tmp_path / "a.pth")
    assert all(np.array_equal(content["model"][k], v) for k, v in state.items())
    assert content["n"].dtype == np.int64


def test_segmentor_without_auxiliary_head_is_recognised(golden_checkpoint, tmp_path):
    state = read_torch_file(golden_checkpoint("upernet_micro"))["state_dict"]
    kept = {name: value for name, value in state.items() if not name.startswith("auxiliary_head")}
    write_torch_file(tmp_path / "a.pth", {"state_dict": {k: np.asarray(v) for k, v in kept.items()}})
    model, _ = convert(read_published(tmp_path / "a.pth"))
    assert isinstance(model, UPerNet)
    assert model.auxiliary_head is None
