"""vHeat inside PaddleSeg: what is registered, PaddleSeg's own models on it, and a user's own project."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import paddle_vheat
from paddle_vheat._paddle import paddle
from paddle_vheat.models import VARIANTS, VHeat, VHeatClassifier
from paddle_vheat.weights import save_weights
from tests.conftest import relative_error

seg = importlib.import_module("paddle_vheat.integrations.paddleseg")
from paddleseg.cvlibs import Config, SegBuilder, manager  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
CLASSES = 5
TINY = {"embed_dim": 8, "depths": [1, 1, 1, 1], "img_size": 64, "drop_path_rate": 0.1}
BACKBONE = {"type": "vHeat", **TINY}
# PaddleSeg's own models, with as many coefficients as they have outputs in training.
MODELS = {
    "UPerNet": ({"type": "UPerNet", "backbone_indices": [0, 1, 2, 3], "channels": 16}, [1.0]),
    "UPerNet, auxiliary": (
        {"type": "UPerNet", "backbone_indices": [0, 1, 2, 3], "channels": 16, "enable_auxiliary_loss": True},
        [1.0, 0.4],
    ),
    "FCN": ({"type": "FCN", "backbone_indices": [-1]}, [1.0]),
    "DeepLabV3P": ({"type": "DeepLabV3P", "backbone_indices": [0, 3]}, [1.0]),
    "SegFormer": ({"type": "SegFormer", "embedding_dim": 16}, [1.0]),
    "UPerNetMMSeg": ({"type": "UPerNetMMSeg", "channels": 16, "aux_channels": 8}, [1.0, 0.4]),
}


def builder(model, coefficients=(1.0,), backbone=BACKBONE):
    values = {
        "batch_size": 2,
        "iters": 3,
        "train_dataset": {"type": "Dataset", "num_classes": CLASSES, "transforms": [], "dataset_root": "."},
        "model": {**model, "num_classes": CLASSES, "backbone": dict(backbone)},
        "optimizer": {"type": "AdamW", "weight_decay": 0.01},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.01},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": list(coefficients)},
    }
    return SegBuilder(_Read(values))


class _Read(Config):
    """PaddleSeg's configuration, of what is read already."""

    def __init__(self, values):
        self.dic = values
        self._build_default_checker().apply_all_rules(self)


def labels(batch, height, width):
    drawn = np.random.default_rng(0).integers(0, CLASSES, (batch, height, width))
    drawn[:, :2] = 255
    return paddle.to_tensor(drawn)


def state_of(layer):
    return {name: value.numpy().copy() for name, value in layer.state_dict().items()}


# --- Registration ---------------------------------------------------------------------------------


def test_everything_is_registered():
    for name in ("vHeat", "vHeat_tiny", "vHeat_small", "vHeat_base"):
        assert manager.BACKBONES[name] is getattr(seg, name)
        assert seg.registry()[name] is getattr(seg, name)
    assert manager.MODELS["UPerNetMMSeg"] is seg.UPerNetMMSeg
    assert {"vHeat", "UPerNetMMSeg", "CrossEntropyLoss"} <= set(seg.registry())
    assert {"img_size", "pretrained"} <= set(inspect.signature(seg.vHeat_tiny).parameters)


def test_what_other_packages_import():
    assert callable(seg.infer.inference)
    assert seg.infer.__name__ == "paddleseg.core.infer"
    assert seg.Compose is manager.TRANSFORMS["Compose"]
    assert len(seg.get_color_map_list(3)) >= 9
    assert seg.apply_patches() == seg.APPLIED_PATCHES
    assert {"Compose", "ResizeByShort"} <= set(seg.APPLIED_PATCHES)


@pytest.mark.parametrize("name", ["UPerNetMMSeg", "UPerNetContrast", "PixelContrastSegmentor"])
def test_models_take_the_arguments_of_their_parents_and_pretrained(name):
    model = getattr(seg, name)
    parent = {"UPerNetMMSeg": paddle_vheat.UPerNet}.get(name) or getattr(paddle_vheat.models, name)
    assert issubclass(model, parent)
    expected = list(inspect.signature(parent).parameters)
    assert list(inspect.signature(model).parameters) == [*expected, "pretrained"]  # a misspelt key is found by these
    with pytest.raises(TypeError, match="chanels"):
        model(CLASSES, VHeat(**TINY), chanels=8)


def test_registering_again_changes_nothing():
    before = dict(manager.BACKBONES.components_dict), dict(manager.MODELS.components_dict)
    for component in (seg.vHeat, seg.vHeat_tiny, seg.vHeat_small, seg.vHeat_base):
        seg.seg_transforms.register(manager.BACKBONES, component)
    seg.seg_transforms.register(manager.MODELS, seg.UPerNetMMSeg)
    assert (dict(manager.BACKBONES.components_dict), dict(manager.MODELS.components_dict)) == before


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_reloading_is_harmless(tmp_path):
    done = run(
        """
        import importlib, warnings
        import paddle_vheat.integrations.paddleseg as seg
        from paddleseg.cvlibs import manager
        count = len(manager.BACKBONES), len(manager.MODELS)
        importlib.reload(seg)
        assert (len(manager.BACKBONES), len(manager.MODELS)) == count
        """,
        SEG_HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("registry", "name"), [("BACKBONES", "vHeat_tiny"), ("MODELS", "UPerNetMMSeg")])
def test_a_name_that_somebody_else_has_taken_is_theirs(tmp_path, registry, name):
    done = run(
        f"""
        import paddle_vheat._paddle  # Paddle 2.6.2 dies where PaddleSeg comes first
        from paddleseg.cvlibs import manager

        class {name}:
            pass

        manager.{registry}.add_component({name})
        try:
            import paddle_vheat.integrations.paddleseg
        except RuntimeError as error:
            assert "already has a component {name!r}, from __main__" in str(error), error
            assert manager.{registry}[{name!r}] is {name}
            print("refused")
        """,
        SEG_HOME=str(tmp_path),
    )
    assert done.stdout.split()[-1:] == ["refused"], done.stderr


# --- Backbones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rate"), [("vHeat_tiny", 0.3), ("vHeat_small", 0.4), ("vHeat_base", 0.5)])
def test_variants(name, rate):
    backbone = manager.BACKBONES[name](img_size=32)
    variant = VARIANTS[name.replace("vHeat", "vheat")]
    assert backbone.feat_channels == [variant.embed_dim * 2**i for i in range(4)]
    assert tuple(len(stage.blocks) for stage in backbone.stages) == variant.depths
    assert backbone.stages[3].blocks[-1].drop_path.rate == pytest.approx(rate)
    assert hasattr(backbone.stages[0].blocks[0], "gamma1") is (variant.layer_scale is not None)
    backbone.eval()
    with paddle.no_grad():
        maps = backbone(paddle.randn([1, 3, 64, 96]))
    assert [m.shape for m in maps] == [[1, variant.embed_dim * 2**i, 16 // 2**i, 24 // 2**i] for i in range(4)]


def test_four_channels_and_recompute():
    built = builder(MODELS["UPerNet"][0], backbone={**BACKBONE, "in_channels": 4, "recompute": True}).model
    assert all(stage.recompute for stage in built.backbone.stages)
    (logits,) = built(paddle.randn([2, 4, 64, 64]))
    logits.mean().backward()
    assert logits.shape == [2, CLASSES, 64, 64]
    assert float(built.backbone.stem.conv1.weight.grad.abs().sum()) > 0
    with pytest.raises(ValueError, match="expected 4 channels, got 3"):
        built(paddle.randn([2, 3, 64, 64]))


# --- PaddleSeg's own models ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_training_and_evaluation_in_paddlesegs_models(name):
    built = builder(*MODELS[name])
    model, losses = built.model, built.loss
    assert type(model).__module__.startswith("paddle_vheat" if "MMSeg" in name else "paddleseg.models")
    assert isinstance(model.backbone, VHeat)
    model.train()
    outputs = model(paddle.randn([2, 3, 64, 64]))
    assert [list(o.shape) for o in outputs] == [[2, CLASSES, 64, 64]] * len(losses["coef"])
    terms = [c * loss(o, labels(2, 64, 64)) for c, loss, o in zip(losses["coef"], losses["types"], outputs)]
    loss = sum(terms)
    # Five classes by chance cost log 5 = 1.6 each; fresh heads are within a few of that.
    assert 0 < float(loss) < 20
    loss.backward()
    used = {"FCN": [3], "DeepLabV3P": [0, 3]}.get(name, [0, 1, 2, 3])
    for parameter_name, parameter in model.backbone.named_parameters():
        if parameter_name.startswith("outnorm") and int(parameter_name[len("outnorm")]) not in used:
            assert parameter.grad is None, parameter_name  # of a map that this model does not look at
        else:
            assert np.isfinite(parameter.grad.numpy()).all(), parameter_name
    assert float(model.backbone.stages[0].frequency_embedding.grad.abs().sum()) > 0
    before = model.backbone.stem.conv1.weight.numpy().copy()
    built.optimizer.step()
    assert not np.array_equal(model.backbone.stem.conv1.weight.numpy(), before)
    model.eval()
    with paddle.no_grad():
        for size in ((96, 128), (75, 101)):
            logits = model(paddle.randn([1, 3, *size]))[0]
            assert logits.shape == [1, CLASSES, *size]
            assert np.isfinite(logits.numpy()).all()


def test_registered_upernet_is_ours():
    registered = builder(*MODELS["UPerNetMMSeg"]).model
    ours = paddle_vheat.UPerNet(CLASSES, VHeat(**TINY), channels=16, aux_channels=8)
    assert isinstance(registered, paddle_vheat.UPerNet)
    ours.set_state_dict(registered.state_dict())
    x = paddle.randn([1, 3, 64, 80])
    for model in (registered, ours):
        model.eval()
    assert np.array_equal(registered(x)[0].numpy(), ours(x)[0].numpy())


# --- Weights ----------------------------------------------------------------------------------------


def test_backbone_from_a_backbone_a_classifier_or_a_segmentor(tmp_path):
    plain = {**TINY, "drop_path_rate": 0.0}
    sources = {
        "backbone": VHeat(**plain),
        "classifier": VHeatClassifier(num_classes=7, **plain),
        "segmentor": paddle_vheat.UPerNet(3, VHeat(**plain), channels=8, aux_channels=0),
    }
    for kind, source in sources.items():
        path = tmp_path / f"{kind}.pdparams"
        save_weights(source, path)
        target = VHeat(**plain)
        initial = state_of(target)
        report = seg.load_backbone(target, path)
        expected = {n.replace("backbone.", "", 1): v for n, v in state_of(source).items()}
        fresh = (  # newly initialised
            {f"outnorm{i}.{part}" for i in range(4) for part in ("weight", "bias")} if kind == "classifier" else set()
        )
        assert set(report.loaded) == set(initial) - fresh
        assert report.resized == []
        for name, value in state_of(target).items():
            assert np.array_equal(value, initial[name] if name in fresh else expected[name]), (kind, name)
        built = builder(MODELS["FCN"][0], backbone={**BACKBONE, "pretrained": str(path)}).model
        assert np.array_equal(built.backbone.stem.conv1.weight.numpy(), state_of(target)["stem.conv1.weight"])


def test_resized_embeddings_are_reported(tmp_path):
    save_weights(VHeatClassifier(num_classes=7, **TINY), tmp_path / "x.pdparams")
    target = VHeat(**{**TINY, "img_size": (64, 128)})
    report = seg.load_backbone(target, tmp_path / "x.pdparams")
    assert report.resized[0] == "stages.0.frequency_embedding 16x16 -> 16x32"
    assert len(report.resized) == 4
    assert "resized bicubically" in str(report)


def test_loading_is_strict(tmp_path):
    path = tmp_path / "x.pdparams"
    source = VHeat(**TINY)
    state = source.state_dict()
    first = state.pop("stem.conv1.weight")
    paddle.save({**state, "stem.conv1.wieght": first}, str(path))
    with pytest.raises(ValueError, match=r"x\.pdparams does not fit VHeat \(1 missing, 1 unexpected"):
        seg.load_backbone(VHeat(**TINY), path)
    save_weights(VHeat(**{**TINY, "embed_dim": 16}), path)
    with pytest.raises(ValueError, match="of another shape"):
        seg.load_backbone(VHeat(**TINY), path)
    save_weights(source.fold(64), path)
    with pytest.raises(ValueError, match=r"hco\.decay"):
        seg.load_backbone(VHeat(**TINY), path)
    with pytest.raises(RuntimeError, match="no such file"):  # PaddleSeg's builder wraps what a component raises
        _ = builder(MODELS["FCN"][0], backbone={**BACKBONE, "pretrained": str(tmp_path / "no")}).model


def test_whole_model_from_a_checkpoint(tmp_path):
    source = builder(*MODELS["UPerNetMMSeg"]).model
    save_weights(source, tmp_path / "x.pdparams")
    model = {**MODELS["UPerNetMMSeg"][0], "pretrained": str(tmp_path / "x.pdparams")}
    target = builder(model, [1.0, 0.4]).model
    assert all(np.array_equal(a, b) for a, b in zip(state_of(source).values(), state_of(target).values()))


# --- A PaddleSeg project of somebody's own ----------------------------------------------------------

PROJECT = """
batch_size: 2
iters: 4
train_dataset:
  type: Dataset
  dataset_root: {root}
  train_path: {root}/list.txt
  num_classes: 3
  transforms:
    - type: RandomPaddingCrop
      crop_size: [64, 64]
    - type: RandomHorizontalFlip
    - type: Normalize
  mode: train
val_dataset:
  type: Dataset
  dataset_root: {root}
  val_path: {root}/list.txt
  num_classes: 3
  transforms:
    - type: Normalize
  mode: val
optimizer:
  type: AdamW
  weight_decay: 0.01
lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.005
  end_lr: 0
  power: 1.0
loss:
  types:
    - type: CrossEntropyLoss
  coef: [1]
model:
  type: UPerNet
  num_classes: 3
  channels: 16
  backbone_indices: [0, 1, 2, 3]
  backbone:
    type: vHeat
    embed_dim: 8
    depths: [1, 1, 1, 1]
    img_size: 64
"""

SCRIPT = """
import sys
import paddle_vheat.integrations.paddleseg
from paddleseg.core import evaluate, train
from paddleseg.cvlibs import Config, SegBuilder

folder = sys.argv[1]
config = Config(folder + "/own.yml")
builder = SegBuilder(config)
first = builder.model.backbone.stem.conv1.weight.numpy().copy()
train(
    builder.model,
    builder.train_dataset,
    val_dataset=builder.val_dataset,
    optimizer=builder.optimizer,
    save_dir=folder + "/output",
    iters=config.iters,
    batch_size=config.batch_size,
    save_interval=2,
    log_iters=1,
    losses=builder.loss,
)
assert abs(builder.model.backbone.stem.conv1.weight.numpy() - first).max() > 0
miou, accuracy, class_iou, _, kappa = evaluate(builder.model, builder.val_dataset, print_detail=False)
print("RESULT", float(miou), float(accuracy), len(class_iou), float(kappa))
"""


def test_a_project_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(4):
        label = np.zeros((72, 90), np.uint8)
        label[20 + 5 * i :] = 1
        label[:, 60:] = 2
        image = (label[..., None] * 100 + rng.integers(0, 50, (72, 90, 3))).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"image{i}.png")
        Image.fromarray(label).save(tmp_path / f"label{i}.png")
        lines.append(f"image{i}.png label{i}.png\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "own.yml").write_text(PROJECT.format(root=tmp_path))
    (tmp_path / "project.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "project.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SEG_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "iter: 4/4" in done.stdout + done.stderr
    miou, accuracy, count, kappa = (float(x) for x in done.stdout.split("RESULT")[1].split())
    assert 0 < miou < 1
    assert 0 < accuracy < 1
    assert count == 3
    assert -1 < kappa < 1
    assert (tmp_path / "output" / "iter_4" / "model.pdparams").is_file()
    assert (tmp_path / "output" / "best_model" / "model.pdparams").is_file()
    # The checkpoint that PaddleSeg wrote is one that the backbone can be filled from, strictly.
    backbone = VHeat(**{**TINY, "img_size": 64})
    report = seg.load_backbone(backbone, tmp_path / "output" / "iter_4" / "model.pdparams")
    assert set(report.loaded) == set(backbone.state_dict())
    assert report.resized == []
    # PaddleSeg's own Config on the same file gives a model with equal outputs from that checkpoint.
    model = SegBuilder(Config(str(tmp_path / "own.yml"))).model
    model.set_state_dict(paddle.load(str(tmp_path / "output" / "iter_4" / "model.pdparams")))
    for layer in (model, backbone):
        layer.eval()
    x = paddle.randn([1, 3, 64, 64])
    for ours, theirs in zip(backbone(x), model.backbone(x)):
        assert relative_error(ours.numpy(), theirs.numpy()) < 1e-6  # the same operations
