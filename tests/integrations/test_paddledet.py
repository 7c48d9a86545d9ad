"""vHeat in PaddleDetection.

Most tests run on a stand-in, a package ``ppdet`` with what the integration imports, which the tests write themselves.
Those marked ``needs_wheel`` run on PaddleDetection's wheel where it is installed (``make test-det``), are reported as
skipped elsewhere, and fail, rather than skip, if ``VHEAT_TEST_PADDLEDET`` is set and it is not there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types

import numpy as np
import pytest

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.integrations import run
from paddle_vheat.models import VARIANTS, VHeatClassifier
from paddle_vheat.models.vheat import Variant
from paddle_vheat.weights import download
from paddle_vheat.weights.loading import save_weights
from tests.conftest import golden
from tests.models.mask_rcnn.micro import CASES, batch, micro_detector, reference_detector, targets

OURS = "paddle_vheat.integrations.paddledet"
HAS_WHEEL = importlib.util.find_spec("ppdet") is not None
needs_wheel = pytest.mark.skipif(
    not HAS_WHEEL and not os.environ.get("VHEAT_TEST_PADDLEDET"), reason="PaddleDetection's wheel is not installed"
)
MICRO = {"embed_dim": 8, "depths": (1, 1, 1, 1), "img_size": 64}


# As in a checkout: modules that import Paddle, a registry, and a script in tools/ that puts the root on the path.
CHECKOUT = {
    "ppdet/__init__.py": "",
    "ppdet/core/__init__.py": "",
    "ppdet/core/workspace.py": """
global_config = {}


def register(cls):
    global_config[cls.__name__] = cls
    return cls


def serializable(cls):
    return cls
""",
    "ppdet/modeling/__init__.py": "",
    "ppdet/modeling/post_process.py": "import paddle",
    "ppdet/modeling/shape_spec.py": "class ShapeSpec: pass",
    "ppdet/modeling/proposal_generator/__init__.py": "",
    "ppdet/modeling/proposal_generator/rpn_head.py": "import paddle",
    "ppdet/modeling/proposal_generator/target.py": "import paddle",
    "tools/train.py": """
import os, sys
sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..")))
import ppdet
from ppdet.core.workspace import global_config
print(__name__, sys.argv[1:], sorted(global_config), os.path.dirname(ppdet.__file__))
""",
}


def module(name, **contents):
    found = types.ModuleType(name)
    vars(found).update(contents)
    return found


@pytest.fixture
def stand_in(monkeypatch):
    """The integration, imported on a stand-in; ``registered`` has what was registered, by name."""
    registered = {}

    def register(cls):
        registered[cls.__name__] = cls
        return cls

    for name in [n for n in sys.modules if n.split(".")[0] == "ppdet" or n == OURS]:
        monkeypatch.delitem(sys.modules, name)
    parts = {n: module(f"ppdet.modeling.{n}", paddle=paddle) for n in ("post_process",)}
    generators = {n: module(f"ppdet.modeling.proposal_generator.{n}", paddle=paddle) for n in ("rpn_head", "target")}
    shape = module("ppdet.modeling.shape_spec", ShapeSpec=lambda **values: types.SimpleNamespace(**values))
    modules = [
        module("ppdet"),
        module("ppdet.core"),
        module("ppdet.core.workspace", register=register, serializable=lambda cls: cls),
        module("ppdet.modeling", **parts),
        module("ppdet.modeling.proposal_generator", **generators),
        shape,
        *parts.values(),
        *generators.values(),
    ]
    for one in modules:
        monkeypatch.setitem(sys.modules, one.__name__, one)
    found = importlib.import_module(OURS)
    yield types.SimpleNamespace(ours=found, registered=registered, modules=[*parts.values(), *generators.values()])
    sys.modules.pop(OURS, None)


def test_backbones_are_registered(stand_in):
    assert sorted(stand_in.registered) == ["vHeat", "vHeat_base", "vHeat_small", "vHeat_tiny"]
    backbone = stand_in.registered["vHeat"](**MICRO)
    assert [(s.channels, s.stride) for s in backbone.out_shape] == [(8, 4), (16, 8), (32, 16), (64, 32)]
    maps = backbone({"image": paddle.rand([1, 3, 64, 96])})
    assert [m.shape for m in maps] == [[1, 8 * 2**i, 16 // 2**i, 24 // 2**i] for i in range(4)]
    tiny = stand_in.registered["vHeat_tiny"](img_size=224, drop_path_rate=0.2)
    assert tiny.feat_channels == [96, 192, 384, 768]


def test_pretrained_weights_are_loaded_strictly(stand_in, tmp_path, capsys):
    options = {**MICRO, "drop_path_rate": 0.0}
    save_weights(VHeatClassifier(num_classes=2, **options), tmp_path / "cls.pdparams")
    # of a classifier only the backbone, whose output norms are new
    backbone = stand_in.registered["vHeat"](**options, pretrained=str(tmp_path / "cls.pdparams"))
    assert len(backbone.load_report.newly_initialised) == 8
    assert "arrays loaded" in capsys.readouterr().out
    save_weights(VHeatClassifier(num_classes=2, **{**options, "embed_dim": 16}), tmp_path / "wide.pdparams")
    with pytest.raises(ValueError, match="of another shape or dtype"):
        stand_in.registered["vHeat"](**options, pretrained=str(tmp_path / "wide.pdparams"))


def test_pretrained_takes_names_and_addresses(stand_in, tmp_path, monkeypatch):
    variant = Variant(8, (1, 1, 1, 1), False, None, 0.1)
    monkeypatch.setitem(VARIANTS, "vheat_tiny", variant)
    classifier = VHeatClassifier(num_classes=2, **MICRO)
    save_weights(classifier, tmp_path / "cls.pdparams")
    asked = []
    monkeypatch.setattr(download, "fetch", lambda address: asked.append(address) or tmp_path / "cls.pdparams")
    address = "https://example.org/mine.pdparams"
    for pretrained in (True, "imagenet", "vheat_tiny", address):
        backbone = stand_in.registered["vHeat_tiny"](img_size=64, pretrained=pretrained)
        assert np.array_equal(backbone.stem.conv1.weight.numpy(), classifier.backbone.stem.conv1.weight.numpy())
    stand_in.registered["vHeat"](**MICRO, pretrained="vheat_tiny")
    assert asked == [*[download.ADDRESSES["vheat_tiny"]] * 3, address, download.ADDRESSES["vheat_tiny"]]
    with pytest.raises(ValueError, match=r"pretrained: True: unknown released checkpoint 'vheat'; did you mean"):
        stand_in.registered["vHeat"](**MICRO, pretrained=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The root of a stand-in for a source checkout, with what the integration imports."""
    root = tmp_path / "PaddleDetection"
    for name, text in CHECKOUT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield root
    for name in [n for n in sys.modules if n.split(".")[0] == "ppdet" or n == OURS]:
        del sys.modules[name]


def test_the_launcher(checkout, monkeypatch, capsys):
    """Around an unchanged tools/train.py, from anywhere; the checkout goes before an installed wheel."""
    for name in [n for n in sys.modules if n.split(".")[0] == "ppdet" or n == OURS]:
        monkeypatch.delitem(sys.modules, name)
    assert run.main(["paddledet", str(checkout / "tools" / "train.py"), "-c", "my.yml"]) == 0
    assert capsys.readouterr().out == (
        f"__main__ ['-c', 'my.yml'] ['vHeat', 'vHeat_base', 'vHeat_small', 'vHeat_tiny'] {checkout / 'ppdet'}\n"
    )
    assert run.main(["paddledetection", "tools/train.py"]) == 2
    assert "no integration for 'paddledetection'; did you mean 'paddledet'?" in capsys.readouterr().err


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2 has no scalars of zero dimensions to concatenate")
def test_scalars_are_concatenated_where_paddledetection_does_so(stand_in):
    scalars = [paddle.to_tensor(3), paddle.to_tensor(5)]
    with pytest.raises(ValueError, match="axis"):
        paddle.concat(scalars)  # when this no longer fails, the patch can go
    for one in stand_in.modules:
        assert one.paddle.concat(scalars).tolist() == [3, 5]
        assert one.paddle.concat([paddle.ones([2, 1]), paddle.zeros([2, 2])], axis=1).shape == [2, 3]
        assert one.paddle.topk is paddle.topk


def test_every_parameter_has_one_name_there(stand_in):
    state = micro_detector().state_dict()
    theirs = stand_in.ours.to_paddledet(state)
    assert len(theirs) == len(state)
    assert theirs["neck.fpn_inner_res5_sum.weight"] is state["neck.laterals.3.weight"]
    assert theirs["neck.fpn_inner_res2_sum_lateral.weight"] is state["neck.laterals.0.weight"]
    assert theirs["mask_head.head.upsample.mask_inter_feat_4.bias"] is state["roi_head.mask_head.convs.3.bias"]
    with pytest.raises(ValueError, match=r"no parameter of a Mask R-CNN is called 'neck\.extra\.weight'"):
        stand_in.ours.to_paddledet({"neck.extra.weight": None})


CONFIG = """
architecture: MaskRCNN
use_gpu: false
num_classes: 5
MaskRCNN: {backbone: vHeat, neck: FPN, rpn_head: RPNHead, bbox_head: BBoxHead, mask_head: MaskHead,
           bbox_post_process: BBoxPostProcess, mask_post_process: MaskPostProcess}
vHeat: {embed_dim: 16, depths: [1, 1, 1, 1], img_size: 64, drop_path_rate: 0.0}
FPN: {out_channel: 32}
RPNHead:
  anchor_generator:
    aspect_ratios: [0.5, 1.0, 2.0]
    anchor_sizes: [[32], [64], [128], [256], [512]]
    strides: [4, 8, 16, 32, 64]
  rpn_target_assign: {batch_size_per_im: 64, fg_fraction: 0.5, negative_overlap: 0.3, positive_overlap: 0.7}
  train_proposal: {min_size: 0.0, nms_thresh: 0.7, pre_nms_top_n: 200, post_nms_top_n: 60, topk_after_collect: True}
  test_proposal: {min_size: 0.0, nms_thresh: 0.7, pre_nms_top_n: 200, post_nms_top_n: 60}
BBoxHead:
  head: TwoFCHead
  roi_extractor: {resolution: 7, sampling_ratio: 0, aligned: True}
  bbox_assigner: BBoxAssigner
TwoFCHead: {out_channel: 48}
BBoxAssigner: {batch_size_per_im: 32, bg_thresh: 0.5, fg_thresh: 0.5, fg_fraction: 0.25}
BBoxPostProcess:
  decode: RCNNBox
  nms: {name: MultiClassNMS, keep_top_k: 100, score_threshold: 0.05, nms_threshold: 0.5}
MaskHead:
  head: MaskFeat
  roi_extractor: {resolution: 14, sampling_ratio: 0, aligned: True}
  mask_assigner: MaskAssigner
MaskFeat: {num_convs: 4, out_channel: 32}
MaskAssigner: {mask_resolution: 28}
MaskPostProcess: {binary_thresh: 0.5}
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, golden_checkpoint):
    """PaddleDetection's Mask R-CNN on our backbone, with the reference's weights."""
    ours = importlib.import_module(OURS)
    workspace = importlib.import_module("ppdet.core.workspace")
    path = tmp_path_factory.mktemp("ppdet") / "micro.yml"
    path.write_text(CONFIG, encoding="utf-8")
    workspace.load_config(str(path))
    model = workspace.create("MaskRCNN")
    state = ours.to_paddledet(reference_detector(golden_checkpoint("maskrcnn_micro")).state_dict())
    assert model.set_state_dict({name: value.numpy() for name, value in state.items()}) == ([], [])
    return model


def inputs(data, case):
    images, _ = batch(data, case)
    shape, size = (data[f"{case}/{name}_shape"].astype(np.float32) for name in ("img", "ori"))
    known = {"image": images, "im_shape": paddle.to_tensor(shape), "scale_factor": paddle.to_tensor(shape / size)}
    return {**known, "im_id": paddle.arange(len(shape))}


@needs_wheel
@pytest.mark.parametrize("case", CASES)
def test_converted_weights_give_the_references_detections(theirs, case):
    """All but 4 of 300: PaddleDetection drops boxes below one pixel, and one of them suppresses others."""
    data = golden("maskrcnn_micro")
    theirs.eval()
    with paddle.no_grad():
        found = theirs(inputs(data, case))
    start = 0
    for i, count in enumerate(found["bbox_num"].tolist()):
        rows = found["bbox"].numpy()[start : start + count]
        start += count
        parts = (data[f"{case}/det{i}_{name}"].reshape(100, -1) for name in ("labels", "scores", "boxes"))
        bounds = np.asarray([0.5, 1e-3, *4 * [0.1]])
        equal = [bool((np.abs(rows - one) < bounds).all(axis=1).any()) for one in np.concatenate([*parts], axis=1)]
        assert sum(equal) >= (96 if case == "a" else 100)


@needs_wheel
def test_a_step_of_its_training(theirs):
    data = golden("maskrcnn_micro")
    (truth,) = targets(data, "a")
    polygons = [[[b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3]]] for b in truth["boxes"]]
    labels = truth["labels"][:, None].astype(np.int32)
    objects = {"gt_bbox": [paddle.to_tensor(truth["boxes"])], "gt_class": [paddle.to_tensor(labels)]}
    objects["gt_poly"] = [[[np.asarray(part, np.float32) for part in one] for one in polygons]]
    objects["is_crowd"] = [paddle.zeros([3, 1], "int32")]
    theirs.train()
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=theirs.parameters())
    losses = theirs({**inputs(data, "a"), **objects})
    losses["loss"].backward()
    assert all(np.isfinite(float(loss)) for loss in losses.values())
    assert all(p.grad is not None for name, p in theirs.named_parameters() if name.startswith("backbone"))
    optimizer.step()
