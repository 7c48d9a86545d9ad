"""vHeat as a PaddleClas architecture.

Every test that builds a model runs twice. Once on a stand-in for a source checkout, a small package ``ppcls`` that the
tests write themselves and that looks architectures up as PaddleClas does; this needs no PaddleClas and always runs.
And once on PaddleClas' wheel, as the tests marked ``needs_wheel`` do; these run where it is installed
(``make test-clas``), are reported as skipped elsewhere, and fail, rather than skip, if ``VHEAT_TEST_PADDLECLAS`` is
set in the environment and it is not there. The engine of a real checkout is run nowhere: the wheel does not hold it.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_vheat._paddle import paddle
from paddle_vheat.models import VARIANTS, VHeatClassifier
from paddle_vheat.models.vheat import Variant
from paddle_vheat.weights import download
from paddle_vheat.weights.loading import save_weights

OURS = "paddle_vheat.integrations.paddleclas"
REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ["vHeat_tiny", "vHeat_small", "vHeat_base"]
STAGES = [f"backbone.stages[{i}]" for i in range(4)]

_spec = importlib.util.find_spec("paddleclas")
HAS_WHEEL = _spec is not None and _spec.submodule_search_locations is not None
needs_wheel = pytest.mark.skipif(
    not HAS_WHEEL and not os.environ.get("VHEAT_TEST_PADDLECLAS"), reason="PaddleClas' wheel is not installed"
)

STUB_ARCH = """
import copy, sys


def build_model(config, mode="train"):
    settings = copy.deepcopy(config["Arch"])
    return getattr(sys.modules[__name__], settings.pop("name"))(**settings)


def SomeNet(**settings):
    return settings
"""
# As in a checkout: importable by that name from the root, and broken outside of its package.
STUB_ROOT_FILE = "from .ppcls import arch\n"
STUB_TRAIN = """
import os, sys
sys.path.append(os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")))
from ppcls.arch import build_model
config = {"Arch": {"name": "vHeat_tiny", "class_num": int(sys.argv[1]), "img_size": 32}}
print("built", build_model(config).num_classes, "classes as", __name__)
"""


PACKAGES = ("ppcls", "paddleclas", OURS)
PUBLISHED = VARIANTS["vheat_tiny"]
WIDTHS = [8, 16, 32, 64]  # of the small network that stands for vHeat_tiny in most of these tests


def loaded(*packages):
    return [name for name in sys.modules if name.startswith(tuple(f"{p}." for p in packages)) or name in packages]


def forget(*packages):
    """Have the next import of these packages read them anew; undone after the test."""
    for name in loaded(*packages):
        del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _wheel_is_loaded_once():
    if HAS_WHEEL:
        importlib.import_module("paddleclas.ppcls.arch")


@pytest.fixture(autouse=True)
def _modules_as_before(_wheel_is_loaded_once):
    before = {name: sys.modules[name] for name in loaded(*PACKAGES)}
    yield
    forget(*PACKAGES)
    sys.modules.update(before)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(VARIANTS, "vheat_tiny", Variant(WIDTHS[0], (1, 1, 2, 1), False, None, 0.1))


def run(*command, cwd):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """The root of a stand-in for a PaddleClas source checkout."""
    root = tmp_path / "PaddleClas"
    (root / "ppcls" / "arch").mkdir(parents=True)
    (root / "tools").mkdir()
    (root / "ppcls" / "__init__.py").write_text("")
    (root / "ppcls" / "arch" / "__init__.py").write_text(STUB_ARCH)
    (root / "paddleclas.py").write_text(STUB_ROOT_FILE)
    (root / "tools" / "train.py").write_text(STUB_TRAIN)
    return root


@pytest.fixture
def on_checkout(checkout, monkeypatch):
    """A process that has the checkout on its path, and no wheel."""
    forget(OURS, "ppcls", "paddleclas")
    monkeypatch.syspath_prepend(checkout)
    return checkout


@pytest.fixture(params=["checkout", pytest.param("wheel", marks=needs_wheel)])
def arch(request, monkeypatch):
    """PaddleClas' module of architectures, with ours in it."""
    if request.param == "checkout":
        request.getfixturevalue("on_checkout")
        importlib.import_module(OURS)
        return importlib.import_module("ppcls.arch")
    forget(OURS)
    monkeypatch.setitem(sys.modules, "ppcls", None)
    importlib.import_module(OURS)
    return importlib.import_module("paddleclas.ppcls.arch")


def build(arch, name="vHeat_tiny", **settings):
    return arch.build_model({"Arch": {"name": name, "class_num": 4, "img_size": 64, **settings}})


def classifier():
    """Our own model of what :func:`build` builds."""
    return VHeatClassifier(4, **dataclasses.asdict(VARIANTS["vheat_tiny"]), img_size=64)


def images(size=64, channels=3):
    return paddle.rand([2, channels, size, size])


# --- registration ---------------------------------------------------------------------------------


def test_registers_in_a_checkout(on_checkout):
    ours = importlib.import_module(OURS)
    arch = importlib.import_module("ppcls.arch")
    # The file paddleclas.py in the checkout's root is not taken for the wheel.
    assert ours.REGISTERED_IN == ["ppcls.arch"]
    assert [getattr(arch, name) for name in NAMES] == [getattr(ours, name) for name in NAMES]
    assert arch.SomeNet(a=1) == {"a": 1}


def test_registering_again_changes_nothing(on_checkout):
    ours = importlib.import_module(OURS)
    before = dict(vars(importlib.import_module("ppcls.arch")))
    assert ours.register() == ["ppcls.arch"]
    assert vars(importlib.import_module("ppcls.arch")) == before
    importlib.reload(ours)
    assert importlib.import_module("ppcls.arch").vHeat_tiny is ours.vHeat_tiny


def test_leaves_a_taken_name_to_its_owner(on_checkout):
    arch = importlib.import_module("ppcls.arch")
    arch.vHeat_base = theirs = arch.SomeNet
    with pytest.raises(RuntimeError, match=r"ppcls\.arch already has .* 'vHeat_base', from ppcls\.arch"):
        importlib.import_module(OURS)
    assert arch.vHeat_base is theirs
    assert not hasattr(arch, "vHeat_tiny")


def test_needs_a_paddleclas(monkeypatch):
    forget(OURS)
    monkeypatch.setitem(sys.modules, "paddleclas", None)
    monkeypatch.setitem(sys.modules, "ppcls", None)
    with pytest.raises(ImportError, match=r"PaddleClas is needed: the wheel .* a source checkout .* Here is neither"):
        importlib.import_module(OURS)


def test_says_why_a_paddleclas_cannot_be_imported(on_checkout):
    (on_checkout / "ppcls" / "arch" / "__init__.py").write_text("import numpy\nnumpy.no_such_type\n")
    with pytest.raises(ImportError, match=r"ppcls\.arch cannot be imported \(AttributeError: .*no_such_type") as caught:
        importlib.import_module(OURS)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_broken_paddleclas_beside_a_sound_one_is_a_warning(on_checkout, monkeypatch):
    package = on_checkout.parent / "site" / "paddleclas"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(package.parent)
    with pytest.warns(RuntimeWarning, match=r"in ppcls\.arch only: paddleclas.*no_such_module"):
        ours = importlib.import_module(OURS)
    assert ours.REGISTERED_IN == ["ppcls.arch"]


def test_registers_in_both(on_checkout, monkeypatch):
    package = on_checkout.parent / "site" / "paddleclas"
    (package / "ppcls" / "arch").mkdir(parents=True)
    for folder in (package, package / "ppcls"):
        (folder / "__init__.py").write_text("")
    (package / "ppcls" / "arch" / "__init__.py").write_text(STUB_ARCH)
    monkeypatch.syspath_prepend(package.parent)
    assert importlib.import_module(OURS).REGISTERED_IN == ["paddleclas.ppcls.arch", "ppcls.arch"]
    for name in ("paddleclas.ppcls.arch", "ppcls.arch"):
        assert build(importlib.import_module(name)).num_classes == 4


def test_register_finds_a_checkout_that_came_later(on_checkout, monkeypatch):
    stand_in = on_checkout.parent / "site" / "paddleclas"
    (stand_in / "ppcls" / "arch").mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    (stand_in / "ppcls" / "__init__.py").write_text("")
    (stand_in / "ppcls" / "arch" / "__init__.py").write_text(STUB_ARCH)
    monkeypatch.syspath_prepend(stand_in.parent)
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "ppcls", None)
        ours = importlib.import_module(OURS)
        assert ours.REGISTERED_IN == ["paddleclas.ppcls.arch"]
    assert ours.register() == ["paddleclas.ppcls.arch", "ppcls.arch"]


def test_the_launcher(checkout):
    """Around an unchanged tools/train.py, from anywhere."""
    launcher = ("-m", "paddle_vheat.integrations.run", "paddleclas")
    for cwd, script in ((checkout, "tools/train.py"), (checkout.parent, "PaddleClas/tools/train.py")):
        assert "built 7 classes as __main__" in run(*launcher, script, 7, cwd=cwd)


def test_our_configuration_is_whole():
    """PaddleClas knows no inheritance, and its engine reads these keys without asking whether they are there."""
    config = yaml.safe_load((REPOSITORY / "configs" / "vheat_imagenet.yml").read_text())
    assert "_base_" not in config
    assert {"Arch", "Loss", "Optimizer", "DataLoader", "Metric", "EMA", "AMP"} <= set(config)
    assert {
        "checkpoints", "pretrained_model", "output_dir", "device", "save_interval", "eval_during_train",
        "eval_interval", "epochs", "print_batch_step", "use_visualdl", "image_shape", "save_inference_dir",
    } <= set(config["Global"])  # fmt: skip
    assert {"infer_imgs", "batch_size", "transforms", "PostProcess"} <= set(config["Infer"])
    assert config["Arch"]["name"] in NAMES


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_builds_the_variants(arch, name, monkeypatch):
    monkeypatch.setitem(VARIANTS, "vheat_tiny", PUBLISHED)
    model = build(arch, name)
    variant = VARIANTS[name.lower()]
    assert [len(stage.blocks) for stage in model.backbone.stages] == list(variant.depths)
    last = model.backbone.stages[-1].blocks[-1]
    assert last.drop_path.rate == pytest.approx(variant.drop_path_rate)
    assert (last.post_norm, last.has_layer_scale) == (variant.post_norm, variant.layer_scale is not None)
    model.eval()
    assert model(images()).shape == [2, 4]


def test_equals_our_own_model(arch):
    ours = classifier()
    theirs = build(arch)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.set_state_dict(ours.state_dict())
    ours.eval()
    theirs.eval()
    x = images()
    np.testing.assert_array_equal(theirs(x).numpy(), ours(x).numpy())


def test_arguments(arch):
    model = build(arch, class_num=7, img_size=[64, 96], drop_path_rate=0.0, in_channels=2, recompute=True)
    assert model.backbone.img_size == (64, 96)
    assert model.backbone.stages[-1].blocks[-1].drop_path.rate == 0.0
    logits = model(paddle.rand([1, 2, 64, 96]))
    assert logits.shape == [1, 7]
    logits.sum().backward()
    assert model.backbone.stem.conv1.weight.grad is not None
    # The defaults, as a configuration that names nothing gets them.
    assert arch.vHeat_tiny().num_classes == 1000
    assert build(arch, img_size=None).backbone.img_size == (224, 224)


def test_an_unknown_argument_is_an_error(arch):
    with pytest.raises(TypeError, match=r"vHeat_tiny: unknown argument 'clas_num'; did you mean 'class_num'\?"):
        build(arch, clas_num=4)


def test_what_is_no_checkpoint(arch):
    with pytest.raises(ValueError, match=r"pretrained must be .*path of a checkpoint, got 1$"):
        build(arch, pretrained=1)


@pytest.mark.parametrize("pretrained", [True, "imagenet", "vheat_tiny"])
def test_names_of_releases(arch, checkpoint, monkeypatch, pretrained):
    asked = []
    monkeypatch.setattr(download, "fetch", lambda address: asked.append(address) or checkpoint[1])
    assert build(arch, pretrained=pretrained).load_report is not None
    assert asked == [download.ADDRESSES["vheat_tiny"]]


def test_ssld_is_an_error(arch):
    with pytest.raises(ValueError, match="use_ssld must be False"):
        build(arch, use_ssld=True)


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A classifier of 4 classes, made for 64 pixels, in a file."""
    model = classifier()
    path = tmp_path / "classifier.pdparams"
    save_weights(model, path)
    model.eval()
    return model, path


@pytest.mark.parametrize("nothing", [False, None])
def test_without_a_checkpoint(arch, nothing):
    assert build(arch, pretrained=nothing).load_report is None


def test_loads_a_checkpoint(arch, checkpoint):
    trained, path = checkpoint
    model = build(arch, pretrained=str(path))
    assert set(model.load_report.loaded) == set(model.state_dict())
    model.eval()
    x = images()
    np.testing.assert_array_equal(model(x).numpy(), trained(x).numpy())


def test_loads_for_another_resolution(arch, checkpoint):
    _, path = checkpoint
    assert len(build(arch, pretrained=path, img_size=96).load_report.resized) == 4


def test_with_another_number_of_classes_exactly_the_head_is_newly_initialised(arch, checkpoint, caplog, monkeypatch):
    trained, path = checkpoint
    monkeypatch.setattr(logging.getLogger("ppcls"), "propagate", True)  # PaddleClas' own set-up switches it off
    model = build(arch, pretrained=path, class_num=9)
    state = model.state_dict()
    assert set(state) - set(model.load_report.loaded) == {"head.weight", "head.bias"}
    assert "is not of 9 classes, so the head is newly initialised" in caplog.text
    for name, value in trained.state_dict().items():
        if not name.startswith("head."):
            np.testing.assert_array_equal(state[name].numpy(), value.numpy())


def test_the_default_number_of_classes_does_not_replace_a_head(arch, checkpoint):
    _, path = checkpoint
    with pytest.raises(ValueError, match=r"head\.weight: the file has \[64, 4\], the model \[64, 1000\]"):
        build(arch, class_num=None, pretrained=path)


@pytest.mark.parametrize("shape", [(32, 9), (64, 5)], ids=["width", "bias"])
def test_a_damaged_head_is_an_error(arch, checkpoint, tmp_path, shape):
    trained, _ = checkpoint
    state = {name: value.numpy() for name, value in trained.state_dict().items()}
    state["head.weight"] = np.zeros(shape, "float32")
    state["head.bias"] = np.zeros(9, "float32")
    path = tmp_path / "damaged.pdparams"
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(path))
    expected = rf"head\.weight: the file has \[{shape[0]}, {shape[1]}\], the model \[64, 4\]"
    with pytest.raises(ValueError, match=expected):
        build(arch, pretrained=path)


@pytest.mark.parametrize("class_num", [4, 9])
def test_loading_is_strict(arch, checkpoint, tmp_path, class_num):
    trained, _ = checkpoint
    state = trained.state_dict()
    state["backbone.stem.conv9.weight"] = state.pop("backbone.stem.conv1.weight")
    path = tmp_path / "renamed.pdparams"
    paddle.save(state, str(path))
    with pytest.raises(ValueError, match=r"\(1 missing, 1 unexpected, 0 of another shape"):
        build(arch, pretrained=path, class_num=class_num)


def test_a_headless_checkpoint_is_an_error(arch, checkpoint, tmp_path):
    trained, _ = checkpoint
    path = tmp_path / "headless.pdparams"
    paddle.save({n: v for n, v in trained.state_dict().items() if not n.startswith("head.")}, str(path))
    with pytest.raises(ValueError, match=r"missing keys: head\.weight, head\.bias"):
        build(arch, pretrained=path, class_num=9)


def test_a_missing_checkpoint_is_an_error(arch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pdparams"):
        build(arch, pretrained=str(tmp_path / "nowhere.pdparams"))


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "indices"), [(True, [0, 1, 2, 3]), (2, [2]), (0, [0]), ([0, 3], [0, 3]), (False, None), (None, None)]
)
def test_return_stages(arch, stages, indices):
    model = build(arch, return_stages=stages)
    model.eval()
    x = images()
    output, maps = model(x), model.forward_features(x)
    if indices is None:
        assert output.shape == [2, 4]
        return
    assert list(output) == ["logits"] + [STAGES[i] for i in indices]
    assert output["logits"].shape == [2, 4]
    for i in indices:
        assert output[STAGES[i]].shape == [2, WIDTHS[i], 16 // 2**i, 16 // 2**i]
        np.testing.assert_array_equal(output[STAGES[i]].numpy(), maps[i].numpy())


@pytest.mark.parametrize("stages", [4, -1, [0, 4], ["1"], [True]])
def test_wrong_return_stages(arch, stages):
    with pytest.raises(ValueError, match="return_stages: expected True, or indices from 0 to 3"):
        build(arch, return_stages=stages)


def test_return_patterns(arch):
    names = ["backbone.stem", "backbone.stages[2].blocks[1].mlp.fc1", "backbone.stages[1]"]
    model = build(arch, return_patterns=names)
    model.eval()
    output = model(images())
    assert list(output) == ["logits", *names]
    assert [output[name].shape for name in names] == [[2, 16, 16, 8], [2, 4, 4, 128], [2, 16, 8, 8]]
    assert list(build(arch, return_patterns="norm")(images())) == ["logits", "norm"]


def test_wrong_return_patterns(arch):
    with pytest.raises(ValueError, match=r"unknown layer 'backbone\.stages\[4\]'; did you mean '.*stages\[\d\]'"):
        build(arch, return_patterns=["backbone.stages[4]"])
    with pytest.raises(ValueError, match="cannot both be given"):
        build(arch, return_patterns=["norm"], return_stages=[0])
    with pytest.raises(ValueError, match="with recompute"):
        build(arch, return_patterns=["backbone.stages[0].blocks[0]"], recompute=True)
    with pytest.raises(RuntimeError, match=r"no call of backbone\.stages in forward"):
        build(arch, return_patterns=["backbone.stages"])(images())


def test_gradients_reach_the_backbone_through_returned_stages(arch):
    model = build(arch, return_stages=[1], recompute=True, drop_path_rate=0.0)
    model(images())[STAGES[1]].sum().backward()
    assert float(model.backbone.stem.conv1.weight.grad.abs().sum()) > 0
    assert model.head.weight.grad is None


def test_copies_keep_their_own_outputs(arch):
    """PaddleClas' EMA is of a deep copy, and our folding makes one."""
    model = build(arch, return_stages=True)
    model.eval()
    other = copy.deepcopy(model)
    with paddle.no_grad():
        for parameter in other.parameters():
            parameter.set_value(parameter * 0.5)
    x = images()
    first, second, folded = model(x), other(x), model.fold(64)(x)
    for name in first:
        assert not np.array_equal(first[name].numpy(), second[name].numpy())
        np.testing.assert_allclose(folded[name].numpy(), first[name].numpy(), atol=1e-5)


def test_converted_to_a_static_graph(arch, monkeypatch):
    """As PaddleClas' ``Global.to_static`` does it; Paddle's bytecode tracing cannot follow ``super()``."""
    monkeypatch.setitem(VARIANTS, "vheat_tiny", PUBLISHED)
    model = build(arch, drop_path_rate=0.0)
    x = images()
    expected = model(x)
    logits = paddle.jit.to_static(model)(x)
    # The same kernels; fused ones may add in another order.
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    logits.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert len(gradients) == 241
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients)


def test_stop_after(arch):
    model = build(arch)
    model.eval()
    x = images()
    maps = model.forward_features(x)
    pooled = model.norm(maps[3].transpose([0, 2, 3, 1])).mean(axis=[1, 2])
    assert model.stop_after("norm") is True
    np.testing.assert_array_equal(model(x).numpy(), pooled.numpy())
    for name, i in (("backbone", 3), ("backbone.stages[2]", 2), ("backbone.stages[0]", 0), ("backbone", 0)):
        assert model.stop_after(name) is True
        np.testing.assert_array_equal(model(x).numpy(), maps[i].numpy())
    # Nothing is left that would get no gradient.
    model(x).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    for gone in ("norm", "backbone.stages[1]", "flatten"):
        with pytest.raises(ValueError, match=re.escape(f"unknown layer {gone!r}")):
            model.stop_after(gone)


# --- the wheel ------------------------------------------------------------------------------------


@pytest.fixture
def wheel():
    forget(OURS)
    importlib.import_module(OURS)
    return importlib.import_module("paddleclas.ppcls.arch")


@needs_wheel
def test_wheel_its_own_architectures_stay(wheel):
    model = wheel.build_model({"Arch": {"name": "ResNet18", "class_num": 4}})
    model.eval()
    assert model(images(32)).shape == [2, 4]


@needs_wheel
def test_wheel_without_faiss(monkeypatch):
    """PaddleClas 2.6.0 cannot be imported without faiss, so we ask for it. Fails when it can."""
    forget(OURS, "paddleclas")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"paddleclas\.ppcls\.arch cannot be imported \(ModuleNotFoundError: .*faiss"):
        importlib.import_module(OURS)


@needs_wheel
def test_wheel_as_the_backbone_of_a_recognition_model(wheel):
    config = {
        "name": "RecModel",
        "Backbone": {"name": "vHeat_tiny", "img_size": 64},
        "BackboneStopLayer": {"name": "norm"},
        "Neck": {"name": "FC", "embedding_size": 64, "class_num": 16},
        "Head": {"name": "FC", "embedding_size": 16, "class_num": 4},
    }
    output = wheel.build_model({"Arch": config})(images())
    assert {name: value.shape for name, value in output.items()} == {
        "backbone": [2, 64],
        "neck": [2, 16],
        "features": [2, 16],
        "logits": [2, 4],
    }


@needs_wheel
def test_wheel_in_a_distillation_model(wheel):
    small = {"class_num": 4, "img_size": 32}
    models = [
        {"Teacher": {"name": "vHeat_tiny", "return_stages": [3], **small}},
        {"Student": {"name": "ResNet18", "class_num": 4}},
    ]
    config = {"name": "DistillationModel", "models": models, "freeze_params_list": [True, False]}
    output = wheel.build_model({"Arch": config})(images(32))
    assert output["Teacher"][STAGES[3]].shape == [2, 64, 1, 1]
    assert output["Student"].shape == [2, 4]


@needs_wheel
def test_wheel_cannot_load_the_weights_of_a_distillation_model(wheel, tmp_path):
    """Why the documentation says to put ``pretrained`` into each model's block. Fails when upstream mends it."""
    models = [{"Student": {"name": "vHeat_tiny", "class_num": 4, "img_size": 32}}]
    with pytest.raises(TypeError, match="unexpected keyword argument 'path'"):
        wheel.DistillationModel(models=models, pretrained_list=[str(tmp_path / "x")])


@needs_wheel
def test_wheel_ema(wheel):
    from paddleclas.ppcls.utils.ema import ExponentialMovingAverage

    model = build(wheel)
    average = ExponentialMovingAverage(model, decay=0.5)
    with paddle.no_grad():
        model.head.bias.set_value(paddle.ones([4]))
    average.update(model)
    np.testing.assert_allclose(average.module.head.bias.numpy(), 0.5)


@needs_wheel
def test_wheel_reads_our_configuration(wheel):
    """Its parser takes the YAML, and the ``Arch`` block builds; the rest is for a checkout's engine."""
    from paddleclas.ppcls.utils.config import get_config

    path = REPOSITORY / "configs" / "vheat_imagenet.yml"
    config = get_config(str(path), overrides=["Arch.class_num=4", "Arch.img_size=[64, 96]"])
    assert config.Optimizer.lr.warmup_start_lr == 2e-6
    model = wheel.build_model(config)
    assert (model.num_classes, model.backbone.img_size) == (4, (64, 96))
