"""Mask R-CNN as a model: odd batches, exports, weights, variants."""

from __future__ import annotations

import copy
import importlib

import numpy as np
import pytest

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.deploy import detection_ops
from paddle_vheat.models import create_model
from paddle_vheat.models.mask_rcnn import MODELS, MaskRCNN, build_mask_rcnn, random_sampler
from paddle_vheat.models.mask_rcnn.rpn import select_proposals
from paddle_vheat.weights.key_map import convert_state, our_name
from paddle_vheat.weights.torch_file import read_torch_file
from tests.conftest import golden
from tests.models.mask_rcnn.micro import CASES, batch, every_nth, micro_detector, reference_detector, targets

CLOSE = 1e-3  # pixels, probabilities and logits: float32 through 25 layers, in another order


@pytest.fixture(scope="module")
def model(golden_checkpoint):
    return reference_detector(golden_checkpoint("maskrcnn_micro"))


def of_first(data, case):
    images, sizes = batch(data, case)
    return images[:1], sizes[:1]


def without_objects(target):
    empty = {name: target[name][:0] for name in ("boxes", "labels", "masks")}
    return {**target, **empty}


@pytest.mark.parametrize("empty", [[0], [1], [0, 1]])
def test_images_without_objects_train(model, empty):
    data = golden("maskrcnn_micro")
    network = copy.deepcopy(model)
    network.train()
    truths = [without_objects(t) if i in empty else t for i, t in enumerate(targets(data, "b"))]
    losses = network.losses(batch(data, "b")[0], truths, random_sampler(np.random.default_rng(0)))
    assert all(loss.shape == [] and np.isfinite(float(loss)) for loss in losses.values())
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(np.isfinite(g.numpy()).all() for g in gradients.values() if g is not None)
    needed = ("rpn_head.scores.weight", "roi_head.box_head.scores.weight", "backbone.stem.conv1.weight")
    assert all(np.abs(gradients[name].numpy()).max() > 0 for name in needed)
    none = {name for name, gradient in gradients.items() if gradient is None}
    masks = {name for name in gradients if name.startswith("roi_head.mask_head.")}
    assert none == (masks if empty == [0, 1] else set())
    if empty == [0, 1]:
        assert [float(losses[name]) for name in ("loss_rpn_bbox", "loss_bbox", "loss_mask")] == [0, 0, 0]


def test_losses_are_the_same_with_the_same_generator(model):
    data = golden("maskrcnn_micro")
    arguments = batch(data, "a")[0], targets(data, "a")
    runs = [model.losses(*arguments, random_sampler(np.random.default_rng(seed))) for seed in (1, 1, 2)]
    first, same, other = ([float(value) for value in run.values()] for run in runs)
    assert first == same != other


def test_images_without_detections(golden_checkpoint):
    model = reference_detector(golden_checkpoint("maskrcnn_micro"), score_threshold=0.9999)
    images, sizes = batch(golden("maskrcnn_micro"), "b")
    for found in model.predict(images, sizes):
        shapes = {name: value.shape for name, value in found.items()}
        assert shapes == {"boxes": [0, 4], "scores": [0], "labels": [0], "mask_logits": [0, 28, 28]}
    with paddle.no_grad():
        boxes, scores, labels, masks = model(images[:1], sizes[:1])
    assert [t.shape for t in (boxes, scores, labels, masks)] == [[1, 4], [1], [1], [1, 28, 28]]
    assert float(scores) == 0


def test_proposals_without_area_are_left_out():
    scores, deltas = paddle.zeros([1, 3, 2, 2]), paddle.zeros([1, 12, 2, 2])
    scores[0, 1] = 1.0
    deltas[0, 0::4] = 99.0  # beyond the right edge, but for the anchors of the second ratio
    deltas[0, 4] = 0.0
    boxes = select_proposals([scores], [deltas], paddle.to_tensor([[64.0, 64.0]]), 100, 100)[0].numpy()
    assert len(boxes)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    deltas[0, 4] = 99.0
    boxes = select_proposals([scores], [deltas], paddle.to_tensor([[64.0, 64.0]]), 100, 100)[0]
    assert boxes.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("case", CASES)
def test_numpy_equals_paddle_between_the_networks(model, case):
    data = golden("maskrcnn_micro")
    images, sizes = of_first(data, case)
    expected = model.predict(images, sizes)[0]
    with paddle.no_grad():
        pyramid = model.forward_features(images)
        scores, deltas = model.rpn_head(pyramid)
        proposals = model.proposals(scores, deltas, sizes)[0].numpy()
        size = tuple(sizes.tolist()[0])
        levels = [[level[0].numpy() for level in outputs] for outputs in (scores, deltas)]
        boxes, probabilities = detection_ops.select_proposals(*levels, size, 200, 60)
        assert np.abs(boxes - proposals).max() < 1e-3  # float32 pixels
        assert np.abs(probabilities - data[f"{case}/proposals0"][:, 4]).max() < 1e-4
        said = [tensor.numpy() for tensor in model.roi_head.classify(pyramid, paddle.to_tensor(boxes))]
    for found, name in zip(detection_ops.select_detections(boxes, *said, size), ("boxes", "scores", "labels")):
        assert found.shape == tuple(expected[name].shape)
        assert found.dtype == expected[name].numpy().dtype
        assert np.abs(found - expected[name].numpy()).max() < 1e-3


def test_numpy_suppression_equals_paddle_on_many_boxes():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (1500, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 120, (1500, 2))], axis=1).astype(np.float32)
    boxes[::50, 2] = boxes[::50, 0]  # without area
    scores, groups = rng.permutation(1500).astype(np.float32), rng.integers(0, 3, 1500)
    ours = detection_ops.grouped_nms(boxes, scores, groups, 0.4, 10**6)
    moved = paddle.to_tensor(boxes + groups[:, None].astype(np.float32) * (boxes.max() + 1))
    theirs = paddle.vision.ops.nms(moved, 0.4, paddle.to_tensor(scores)).numpy()
    assert np.array_equal(ours, theirs)
    assert np.array_equal(detection_ops.grouped_nms(boxes, scores, groups, 0.4, 200), theirs[:200])
    assert detection_ops.grouped_nms(boxes[:0], scores[:0], groups[:0], 0.4, 5).tolist() == []


@pytest.mark.parametrize(
    "box", [(3, 4, 60, 50), (-9.5, 10.2, 30.7, 90), (20, 20, 20.4, 20.3), (5, 5, 5, 40), (70, 9, 99, 30)]
)
def test_pasting_equals_grid_sampling(box):
    logits = np.random.default_rng(1).standard_normal((28, 28)).astype(np.float32) * 200  # so that exp overflows
    x1, y1, x2, y2 = box
    ours = detection_ops.paste_mask(logits, np.asarray(box, np.float32), (64, 80))
    if x2 == x1:
        assert not ours.any()
        return
    x, y = ((np.arange(80) + 0.5 - x1) / (x2 - x1) * 2 - 1, (np.arange(64) + 0.5 - y1) / (y2 - y1) * 2 - 1)
    grid = np.stack(np.meshgrid(x, y), axis=2)[None].astype(np.float32)
    probabilities = paddle.nn.functional.sigmoid(paddle.to_tensor(logits[None, None]))
    values = paddle.nn.functional.grid_sample(probabilities, paddle.to_tensor(grid), align_corners=False).numpy()[0, 0]
    sure = np.abs(values - 0.5) > 1e-4  # float32
    assert np.array_equal(ours[sure], (values >= 0.5)[sure])


def exported(network, folder, height=None, width=None):
    class Exported(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images, sizes):
            return self.network(images, sizes)

    spec = [
        paddle.static.InputSpec([1, 3, height, width], "float32", "images"),
        paddle.static.InputSpec([1, 2], "int64", "sizes"),
    ]
    layer = Exported()
    layer.eval()
    paddle.jit.save(paddle.jit.to_static(layer, input_spec=spec, full_graph=True), str(folder / "model"))
    inference = importlib.import_module("paddle.inference")  # not loaded with Paddle itself
    config = inference.Config(
        str(folder / ("model.pdmodel" if PADDLE_2 else "model.json")), str(folder / "model.pdiparams")
    )
    config.disable_glog_info()
    if hasattr(config, "disable_mkldnn"):
        config.disable_mkldnn()
    predictor = inference.create_predictor(config)

    def run(*arrays):
        for name, array in zip(predictor.get_input_names(), arrays):
            predictor.get_input_handle(name).copy_from_cpu(array)
        predictor.run()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]

    return run


@pytest.mark.filterwarnings("ignore:Value do not have 'place'", "ignore:The Attr")
@pytest.mark.parametrize("folded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_program_for_paddle_inference(model, tmp_path, folded):
    data = golden("maskrcnn_micro")
    expected = {case: model.predict(*of_first(data, case))[0] for case in CASES}
    size = (160, 224) if folded else (None, None)
    # Tracing leaves a model's layers converted on Paddle 2.6.
    run = exported(model.fold(size) if folded else copy.deepcopy(model), tmp_path, *size)
    for case in CASES[1:] if folded else CASES:  # of two sizes
        images, sizes = of_first(data, case)
        for found, name in zip(run(images.numpy(), sizes.numpy()), ("boxes", "scores", "labels", "mask_logits")):
            reference = expected[case][name].numpy()
            assert found.shape == reference.shape
            assert np.abs(found.astype(np.float64) - reference).max() < CLOSE
    if not folded:  # an image of nothing, of a third size, with fewer than 100 detections: the last row is void
        boxes, scores, _, masks = run(np.zeros((1, 3, 96, 64), np.float32), np.asarray([[96, 64]]))
        assert len(boxes) == len(masks) < 100
        assert scores[-1] == 0 < 0.05 < scores[:-1].min()


def test_published_weights_convert_strictly(golden_checkpoint):
    state = read_torch_file(golden_checkpoint("maskrcnn_micro"))["state_dict"]
    ours = convert_state(state)
    assert {name: list(array.shape) for name, array in ours.items()} == {
        name: list(parameter.shape) for name, parameter in micro_detector().state_dict().items()
    }
    for name, array in state.items():
        turned = array.ndim == 2 or (".mlp.fc" in name and array.ndim == 4)  # those were 1x1 convolutions
        expected = array.reshape(array.shape[:2]).T if turned else array
        assert np.array_equal(ours[our_name(name)], expected)
    with pytest.raises(ValueError, match=r"unexpected keys \(1\): neck\.lateral_convs\.0\.bn\.weight"):
        convert_state({**state, "neck.lateral_convs.0.bn.weight": np.ones(1)})
    with pytest.raises(ValueError, match=r"two published parameters stand for 'backbone\.stages\.0\.downsample"):
        convert_state({**state, "backbone.layers.0.7.0.weight": np.ones(1)})


def test_weight_decay_follows_the_published_names(golden_checkpoint):
    names = read_torch_file(golden_checkpoint("maskrcnn_micro"))["state_dict"]
    assert micro_detector().no_weight_decay() == {our_name(name) for name in names if "norm" in name}


# From the published table: 52.74M, 74.11M and 114.69M parameters, 287 and 551 tensors.
@pytest.mark.parametrize(
    ("name", "millions", "tensors"),
    [
        ("mask_rcnn_vheat_tiny", 52.74, 287),
        ("mask_rcnn_vheat_small", 74.11, 551),
        pytest.param("mask_rcnn_vheat_base", 114.69, 551, marks=pytest.mark.slow),
    ],
)
def test_variants(name, millions, tensors):
    model = create_model(name)
    assert name in MODELS
    assert len(model.state_dict()) == tensors
    assert round(sum(parameter.size for parameter in model.parameters()) / 1e6, 2) == millions


def test_initial_weights():
    model = micro_detector()
    # (parameter, standard deviation): over 288 to 75,264 values, hence a fifth
    expected = {
        "neck.laterals.0.weight": (2 / (16 + 32)) ** 0.5,  # Xavier uniform
        "rpn_head.conv.weight": 0.01,
        "roi_head.box_head.fc1.weight": (2 / (32 * 49 + 48)) ** 0.5,
        "roi_head.box_head.scores.weight": 0.01,
        "roi_head.box_head.deltas.weight": 0.001,
        "roi_head.mask_head.convs.0.weight": (2 / (9 * 32)) ** 0.5,
        "roi_head.mask_head.upsample.weight": (2 / (4 * 32)) ** 0.5,
    }
    state = model.state_dict()
    for name, deviation in expected.items():
        assert float(state[name].std()) == pytest.approx(deviation, rel=0.2), name
    heads = [name for name in state if name.endswith("bias") and not name.startswith("backbone.")]
    assert all(float(state[name].abs().sum()) == 0 for name in heads)


def test_bad_arguments():
    with pytest.raises(ValueError, match="did you mean 'mask_rcnn_vheat_tiny'"):
        build_mask_rcnn("mask_rcnn_vheat_tinny")
    with pytest.raises(ValueError, match="expected num_classes, channels and fc_channels of at least 1, got 0"):
        MaskRCNN(0, micro_detector().backbone)


def test_training_learns(model):
    data = golden("maskrcnn_micro")
    network = copy.deepcopy(model)
    network.train()
    images, truths = batch(data, "a")[0], targets(data, "a")
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=network.parameters())
    totals = []
    for _ in range(8):
        total = sum(network(images, targets=truths, sampler=every_nth).values())
        total.backward()
        optimizer.step()
        optimizer.clear_grad()
        totals.append(float(total))
    assert totals[-1] < 0.6 * totals[0]
