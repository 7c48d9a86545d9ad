"""Exports for Paddle Inference: equal to the trained model, complete or not written."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import yaml

from paddle_vheat._paddle import PADDLE_2, F
from paddle_vheat.deploy import Predictor, read_description
from paddle_vheat.deploy.processor import make_processor
from paddle_vheat.errors import ExportError
from paddle_vheat.export import export_model, model, parity, parse_input_shape
from paddle_vheat.export.parity import ONEDNN, PADDLE, REDUCED, Difference, check_inputs, load_runtime, right_onednn
from paddle_vheat.export.scores import CHECKS
from tests.conftest import ONEDNN_HERE, paddle, relative_error
from tests.export import networks
from tests.export.networks import contents, description, inputs, logits_of, noise, quiet, segmentation

# float32 through about 30 layers of another graph (folded decay, fused operations), relative to the largest
# logit; the bound that the export itself sets is 1e-3.
CLOSE = 1e-5


def run(folder, x: np.ndarray, runtime: str = PADDLE) -> np.ndarray:
    """The one output of an export of scores."""
    described = read_description(folder)
    processor = make_processor(described)
    (output,) = processor.run(load_runtime(described, processor, runtime), x).values()
    return output


def compare(network, folder, x, output_op, runtime: str = PADDLE) -> None:
    output, logits = run(folder, x, runtime), logits_of(network, x)
    if output_op == "argmax":
        assert output.dtype == np.int32
        assert output.shape == (len(x), *x.shape[2:])
        chosen = np.take_along_axis(logits, output[:, None].astype(int), axis=1)[:, 0]
        # Of two classes that are nearly equally likely, rounding decides.
        assert (logits.max(axis=1) - chosen).max() <= CLOSE * np.abs(logits).max()
        assert len(np.unique(output)) > 2
        return
    expected = F.softmax(paddle.to_tensor(logits), axis=1).numpy() if output_op == "softmax" else logits
    assert output.dtype == np.float32
    assert relative_error(output, expected) < CLOSE


def check_deploy(folder) -> dict:
    """deploy.yaml names files that exist, and PaddleSeg's own deployment reads it."""
    from paddleseg.deploy.infer import DeployConfig

    config = DeployConfig(str(folder / "deploy.yaml"))
    assert os.path.isfile(config.model)
    assert os.path.isfile(config.params)
    image = np.zeros((40, 50, 3), np.float32)
    assert config.transforms({"img": image})["img"].shape == (3, 40, 50)
    return yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]


@pytest.fixture
def simple():
    """For what does not depend on the network."""
    return networks.pixelwise()


def test_dynamic_size(segmentor, tmp_path, picture):
    said = []
    differences = export_model(
        *segmentation(segmentor, None, "argmax", images=[picture])[:2], tmp_path / "out", parse_input_shape(None),
        said.append,
    )  # fmt: skip
    for size in ((1, 64, 128), (2, 33, 50), (1, 97, 32)):
        compare(segmentor, tmp_path / "out", inputs(*size), "argmax")
    plain = [d for d in differences if d.runtime == PADDLE]
    assert sorted(d.size for d in plain) == [(64, 128), (97, 203), (128, 160)]  # the first is the picture
    assert all(d.ok and d.output == "classes" for d in plain)
    assert sum(line.startswith(f"  {PADDLE} ") for line in said) >= len(plain)
    assert check_deploy(tmp_path / "out")["input_shape"] == [-1, 3, -1, -1]


def export(network, folder, shape, output_op="argmax", *transforms, model_format="paddle", say=quiet, **more):
    spec, task, shape = segmentation(network, shape, output_op, *transforms, **more)
    return export_model(spec, task, folder, shape, say, model_format)


@pytest.fixture(scope="module")
def fixed(segmentor, tmp_path_factory):
    """An export of 48 x 80 with the batch decided at run time, into a folder that is there and empty."""
    folder = tmp_path_factory.mktemp("fixed")
    before = {name: value.numpy() for name, value in segmentor.state_dict().items()}
    export(segmentor, folder, [-1, 3, 48, 80], "none")
    return folder, before


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_size(segmentor, fixed, batch):
    compare(segmentor, fixed[0], inputs(batch, 48, 80), "none")


def test_a_fixed_size_takes_no_other(fixed):
    with pytest.raises(ValueError, match=r"model\..*: Paddle Inference cannot run it on \[1, 3, 80, 80\]: "):
        run(fixed[0], inputs(1, 80, 80))


def test_deploy_yaml(fixed):
    deploy = check_deploy(fixed[0])
    names = [deploy["model"], deploy["params"], "deploy.yaml"]
    if PADDLE_2:  # whose paddle.jit.load reads the names of the parameters from it
        names.append("model.pdiparams.info")
    assert sorted(os.listdir(fixed[0])) == sorted(names)
    assert deploy["model"] == ("model.pdmodel" if PADDLE_2 else "model.json")
    assert (deploy["onednn"], deploy["checked_on"]) == (ONEDNN_HERE, {"paddle": paddle.__version__})
    assert (deploy["task"], deploy["min_size"], deploy["input_shape"]) == ("segmentation", 32, [-1, 3, 48, 80])
    assert deploy["transforms"] == [networks.NORMALIZE]
    options = {"output_op": "none", "num_classes": 19, "class_names": networks.NAMES, "palette": networks.PALETTE}
    assert deploy["options"] == options
    assert deploy["programs"] == {"model": "x float32 [batch, 3, 48, 80] -> logits float32 [batch, 19, 48, 80]"}


def test_the_model_is_unchanged(segmentor, fixed):
    after = {name: value.numpy() for name, value in segmentor.state_dict().items()}
    assert sorted(fixed[1]) == sorted(after)
    for name, value in fixed[1].items():
        np.testing.assert_array_equal(after[name], value)


def test_fixed_size_and_batch_with_argmax(segmentor, simple, tmp_path):
    export(segmentor, tmp_path / "out", [1, 3, 48, 80])
    compare(segmentor, tmp_path / "out", inputs(1, 48, 80), "argmax")
    deploy = check_deploy(tmp_path / "out")
    assert deploy["input_shape"] == [1, 3, 48, 80]
    assert deploy["programs"]["model"].endswith("-> classes int32 [1, 48, 80]")
    # Exporting again replaces.
    export(simple, tmp_path / "out", [1, 3, 64, 64], "none")
    assert check_deploy(tmp_path / "out")["input_shape"] == [1, 3, 64, 64]
    assert os.listdir(tmp_path) == ["out"]


def test_values_that_yaml_cannot_hold(simple, tmp_path):
    """A pair from --opts is a tuple; names and colours may be absent."""
    resize = {"type": "Resize", "target_size": (64, 48)}
    export(simple, tmp_path / "out", [1, 3, 48, 64], "none", resize, class_names=None, palette=None)
    deploy = yaml.safe_load((tmp_path / "out" / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert deploy["transforms"][0] == {"type": "Resize", "target_size": [64, 48]}
    assert deploy["options"]["class_names"] is None
    assert Predictor(tmp_path / "out").predict(noise(50, 90)).shape == (50, 90)


def test_what_an_export_is_tried_on(picture):
    def tried(shape, sizes=()):
        spec, task, shape = segmentation(None, shape, "none", images=[picture])
        described = description(task, shape, spec.options, spec.transforms)
        return check_inputs(dataclasses.replace(spec, sizes=sizes), described, make_processor(described))

    both = tried([2, 3, 48, 80])
    assert [x.shape for x in both] == [(2, 3, 48, 80)] * 2
    np.testing.assert_array_equal(both[1][0], both[1][1])
    dynamic = tried(None)
    # A batch that is free is tried with two images, so that no batch of one is built into the graph.
    assert [x.shape for x in dynamic] == [(2, 3, 128, 160), (2, 3, 97, 203), (1, 3, 64, 128)]
    image = noise(64, 128, seed=5)[..., ::-1]
    np.testing.assert_array_equal(dynamic[2], networks.paddlesegs(image, networks.NORMALIZE)[0])
    assert [x.shape for x in tried(None, [(32, 40)])] == [(2, 3, 32, 40), (1, 3, 64, 128)]


def test_one_softmax_is_not_another():
    """The comparison itself: each output operation against what it should be, and against what it should not."""
    logits = inputs(2, 5, 6)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = shifted / shifted.sum(axis=1, keepdims=True)
    argmax = logits.argmax(axis=1).astype(np.int32)

    def difference(output, op):
        return CHECKS[op].difference(output, logits)

    for op, right in (("none", logits), ("softmax", softmax), ("argmax", argmax)):
        assert difference(right, op) < 1e-6
    assert difference(softmax, "none") > 0.1
    assert difference(logits, "softmax") > 0.1
    wrong = argmax.copy()
    wrong[0, 0, 0] = logits[0, :, 0, 0].argmin()
    assert difference(wrong, "argmax") > 0.01
    assert difference(argmax[:, :4], "argmax") == float("inf")
    assert difference(np.full_like(argmax, 3), "argmax") == float("inf")
    assert difference(logits[:1], "none") == float("inf")
    assert not Difference("x", "y", (1, 1), float("nan"), 1.0).ok


@pytest.mark.parametrize("shape", [pytest.param(None, marks=pytest.mark.slow), (1, 3, 64, 128)])
def test_exports_have_no_projection_head(tmp_path, shape):
    """Byte for byte as large as the export of the same model without the head, and nothing of that name."""
    from paddle_vheat.models import UPerNet, UPerNetContrast

    with_head = UPerNetContrast(19, networks.backbone(), channels=16, aux_channels=8, proj_dim=8)
    plain = UPerNet(19, networks.backbone(), channels=16, aux_channels=8)
    state = with_head.state_dict()
    plain.set_state_dict({name: value for name, value in state.items() if not name.startswith("proj_head.")})
    for name, network in (("contrast", with_head), ("plain", plain)):
        export(network, tmp_path / name, shape)
    sizes = [(tmp_path / name / "model.pdiparams").stat().st_size for name in ("contrast", "plain")]
    assert sizes[0] == sizes[1]
    assert sum(value.size for value in state.values()) * 4 > sizes[0]
    for path in (tmp_path / "contrast").iterdir():
        # .info is where Paddle 2.6 lists the names of the layer's parameters, used or not
        assert path.suffix == ".info" or b"proj_head" not in path.read_bytes()


def test_a_model_on_a_gpu_is_compared_on_the_cpu(simple, tmp_path, monkeypatch):
    """By a stub: which device is current, and where the model is moved."""
    calls = []
    monkeypatch.setattr(model.paddle, "get_device", lambda: "gpu:1")
    monkeypatch.setattr(model.paddle, "set_device", lambda device: calls.append(("set", device)))
    monkeypatch.setattr(type(simple), "to", lambda self, device: calls.append(("to", device)))
    said = []
    export(simple, tmp_path / "out", [1, 3, 32, 64], say=lambda line: said.append(len(calls)))
    assert set(said) == {2}
    assert calls == [("to", "cpu"), ("set", "cpu"), ("set", "gpu:1"), ("to", "gpu:1")]


# --- what must not be written -----------------------------------------------------------------------


@pytest.mark.parametrize("output_op", ["none", "argmax"])
def test_a_wrong_export_is_not_written(simple, tmp_path, monkeypatch, output_op):
    """Exports get other weights than the model has."""
    simple.classifier.bias.set_value(np.random.default_rng(0).standard_normal(19).astype(np.float32) * 3)
    save = paddle.jit.save

    def spoilt(layer, path, **options):
        for value in layer.state_dict().values():
            if paddle.is_floating_point(value) and value.ndim == 4 and value.shape[0] == 19:
                value.set_value(value * 1.5)
        save(layer, path, **options)

    monkeypatch.setattr(paddle.jit, "save", spoilt)
    said = []
    with pytest.raises(ExportError, match="differ from the trained model's; nothing was written"):
        export(simple, tmp_path / "out", [1, 3, 32, 64], output_op, say=said.append)
    assert os.listdir(tmp_path) == []
    assert any("WRONG (bound 0.001)" in line for line in said)


def replaced(monkeypatch, make) -> list[str]:
    """Run something else for each runtime; the names of those that are run."""
    runtime, ran = parity.load_runtime, []

    def load(description, processor, name):
        ran.append(name)
        return make(name, lambda other=name: runtime(description, processor, other)["model"])

    monkeypatch.setattr(parity, "load_runtime", load)
    return ran


def changed(run, change):
    return {"model": lambda array: {name: change(value) for name, value in run(array).items()}}


def test_a_wrong_export_leaves_the_previous_one(simple, tmp_path, monkeypatch):
    export(simple, tmp_path / "out", [1, 3, 32, 64])
    before = contents(tmp_path / "out")
    replaced(monkeypatch, lambda name, load: changed(load(), lambda classes: (classes + 1) % 19))
    with pytest.raises(ExportError, match="nothing was written"):
        export(simple, tmp_path / "out", [1, 3, 64, 64])
    assert contents(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_an_export_that_does_not_run_is_not_written(simple, tmp_path, monkeypatch):
    def broken(name, load):
        raise RuntimeError("no such operator")

    replaced(monkeypatch, broken)
    with pytest.raises(ExportError, match="Paddle Inference does not run the exported model: no such operator"):
        export(simple, tmp_path / "out", [1, 3, 32, 64])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("full", "reduced", "written"),
    [
        ("right", "not run", "full"),
        ("wrong", "right", "reduced"),
        ("crash", "right", "reduced"),
        ("wrong", "wrong", "off"),
        ("crash", "crash", "off"),
    ],
)
def test_an_unsafe_onednn_is_told(simple, tmp_path, monkeypatch, full, reduced, written):
    hows = {PADDLE: "right", ONEDNN: full, REDUCED: reduced}

    def onednn_runtime(name, load):
        if hows[name] == "crash":
            raise RuntimeError("first line\nConvertPirAttribute2RuntimeAttribute")
        return changed(load(PADDLE), lambda logits: logits * 1.01 if hows[name] == "wrong" else logits)

    ran = replaced(monkeypatch, onednn_runtime)
    said = []
    differences = export(simple, tmp_path / "out", [1, 3, 32, 64], "none", say=said.append)
    assert check_deploy(tmp_path / "out")["onednn"] == right_onednn(differences) == written
    assert ran == [PADDLE, ONEDNN] if full == "right" else [PADDLE, ONEDNN, REDUCED]
    told = [line for line in said if "oneDNN is not safe" in line]
    ends = {"full": [], "reduced": ["Predictor uses the reduced one"], "off": ["Predictor keeps it off"]}[written]
    assert [line.split(" and ")[-1] for line in told] == ends
    verdicts = {
        "right": "ok",
        "wrong": "WRONG",
        "crash": "does not run this model: ConvertPirAttribute2RuntimeAttribute",
    }
    for name, how in ((ONEDNN, full), (REDUCED, reduced)):
        lines = [line for line in said if line.startswith(f"  {name:<31} ")]
        assert bool(lines) == (how != "not run")
        assert all(verdicts[how] in line for line in lines)


def test_paddlesegs_upernet_runs_by_the_reduced_onednn(tmp_path):
    """The full one is wrong for it on 3.2.2 without a word, and does not run it on 2.6.2 and 3.3.1."""
    network = paddlesegs_upernet()
    differences = export(network, tmp_path / "out", [1, 3, 64, 96], "none")
    full = [d for d in differences if d.runtime == ONEDNN]
    assert full
    assert not any(d.ok for d in full)
    assert check_deploy(tmp_path / "out")["onednn"] == "reduced"
    compare(network, tmp_path / "out", inputs(1, 64, 96), "none", REDUCED)


def paddlesegs_upernet():
    from paddleseg.models import UPerNet

    import paddle_vheat.integrations.paddleseg  # noqa: F401  its compatibility patches

    paddle.seed(0)
    network = UPerNet(19, networks.backbone(), backbone_indices=[0, 1, 2, 3], channels=16)
    network.eval()
    return network


@pytest.mark.parametrize("with_deploy", [False, True])
def test_a_folder_of_other_things_is_left_alone(simple, tmp_path, with_deploy):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work", encoding="utf-8")
    if with_deploy:
        (out / "deploy.yaml").write_text("Deploy: {programs: {thesis: {}}}", encoding="utf-8")
    before = contents(out)
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which is no part of an export"):
        export(simple, out, [1, 3, 32, 64])
    assert contents(out) == before


def test_a_file_is_no_folder(simple, tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        export(simple, tmp_path / "out", [1, 3, 32, 64])
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a file"


# --- arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "parsed"),
    [
        (None, (None, 3, None, None)),
        ([1, 3, 32, 64], (1, 3, 32, 64)),
        ([-1, 3, 64, 64], (None, 3, 64, 64)),
        ([4, 4, -1, -1], (4, 4, None, None)),
    ],
)
def test_input_shapes(shape, parsed):
    assert parse_input_shape(shape) == parsed


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 3, 64, -1], "H and W must both be fixed or both be -1"),
        ([1, -1, 64, 64], "the number of channels must be given"),
        ([0, 3, 64, 64], r"at least 1, or -1, got \[0, 3, 64, 64\]"),
        ([1, 3, -2, -2], r"at least 1, or -1"),
        ([3, 64, 64], r"expected N C H W, got \[3, 64, 64\]"),
        ([1, 3, 10**6, 10**6], r"is \[1, 3, 1000000, 1000000\]; at most 4096 images and channels and 134217728 pixels"),
        ([10**9, 3, -1, -1], "at most 4096 images"),
    ],
)
def test_input_shapes_that_cannot_be(shape, message):
    with pytest.raises(ValueError, match=message):
        parse_input_shape(shape)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 4, 64, 64], "C must be 3, the model's channels, got 4"),
        ([1, 3, 31, 64], "H must be at least 32 pixels, got 31"),
        ([1, 3, 64, 31], "W must be at least 32 pixels, got 31"),
    ],
)
def test_shapes_that_the_model_does_not_take(segmentor, tmp_path, shape, message):
    with pytest.raises(ValueError, match=message):
        export(segmentor, tmp_path / "out", shape)
    assert os.listdir(tmp_path) == []


def test_unknown_outputs_and_formats(simple, tmp_path):
    with pytest.raises(ValueError, match="expected one of argmax, softmax, none, got 'sigmoid'"):
        export(simple, tmp_path / "out", None, "sigmoid")
    with pytest.raises(ValueError, match="expected one of paddle, onnx, both, got 'torch'"):
        export(simple, tmp_path / "out", None, model_format="torch")
    assert os.listdir(tmp_path) == []
