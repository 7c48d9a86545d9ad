"""Mask R-CNN against the reference detector, at every station.

The bounds are those within which the reference itself stays when its weights are changed by their rounding: float32
through about 25 layers, with every discrete choice the same.
"""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat._paddle import paddle
from paddle_vheat.deploy.detection_ops import paste_mask
from paddle_vheat.models.mask_rcnn.roi_align import _by_operator, _by_products, box_levels
from paddle_vheat.weights.key_map import our_name
from tests.conftest import golden, relative_error, sample
from tests.models.mask_rcnn.micro import CASES, batch, every_nth, reference_detector, targets, unpack

MAPS = OUTPUTS = LOSSES = SCORES = 1e-4
BOXES = 1e-2  # pixels
GRADIENTS = 1e-3
MASK_BITS = 1e-3  # share of a mask's pixels, at its edge


@pytest.fixture(scope="module")
def data():
    return golden("maskrcnn_micro")


@pytest.fixture(scope="module")
def model(golden_checkpoint):
    return reference_detector(golden_checkpoint("maskrcnn_micro"))


@pytest.fixture(scope="module")
def pyramids(model, data):
    with paddle.no_grad():
        return {case: model.forward_features(batch(data, case)[0]) for case in CASES}


def close(ours, theirs, bound=OUTPUTS):
    ours = sample(ours.numpy(), 8192) if theirs.ndim == 1 else ours.numpy()
    assert relative_error(ours.reshape(theirs.shape), theirs) < bound


def by_image(rois, images):
    """Order of (n, 5) RoIs image by image, their boxes and counts."""
    order = np.argsort(rois[:, 0], kind="stable")
    counts = np.bincount(rois[:, 0].astype(int), minlength=images)
    return order, paddle.to_tensor(rois[order, 1:]), paddle.to_tensor(counts, "int32")


@pytest.mark.parametrize("case", CASES)
def test_inputs_are_those_of_the_reference(data, case):
    images = batch(data, case)[0].numpy().astype(np.float64)
    # sums of 1e5 values that differ by float32 rounding
    assert np.allclose([images.sum(), np.abs(images).sum()], data[f"{case}/batch_sum"], atol=0.05)


@pytest.mark.parametrize("case", CASES)
def test_pyramid_and_rpn(model, data, pyramids, case):
    with paddle.no_grad():
        for i, feature in enumerate(pyramids[case]):
            every_second = case == "b" and i == 0
            close(feature[:, ::2] if every_second else feature, data[f"{case}/fpn{i}"], MAPS)
        scores, deltas = model.rpn_head(pyramids[case])
        for i in range(5):
            close(scores[i], data[f"{case}/rpn_cls{i}"])
            close(deltas[i], data[f"{case}/rpn_reg{i}"])
        for i, boxes in enumerate(model.proposals(scores, deltas, batch(data, case)[1])):
            expected = data[f"{case}/proposals{i}"][:, :4]
            assert np.abs(boxes.numpy() - expected).max() < BOXES


@pytest.mark.parametrize("case", CASES)
def test_roi_heads(model, data, pyramids, case):
    rois, images = data[f"{case}/rois"], len(data[f"{case}/img_shape"])
    order, boxes, counts = by_image(rois, images)
    assert (order == np.arange(len(rois))).all()
    with paddle.no_grad():
        maps = pyramids[case][:4]
        for features in (_by_operator(maps, boxes, counts, 7), _by_products(maps, boxes.numpy(), counts.tolist(), 7)):
            close(features[:4], data[f"{case}/roi_feat_first"])
            close(features.mean(axis=[2, 3]), data[f"{case}/roi_feat_mean"])
        scores, deltas = model.roi_head.classify(pyramids[case], boxes, counts)
    close(scores, data[f"{case}/cls_score"])
    close(deltas, data[f"{case}/bbox_pred"])


@pytest.mark.parametrize("case", CASES)
def test_boxes_on_every_level_and_beyond_the_edges(model, data, pyramids, case):
    rois, images = data[f"{case}/fixed_rois"], len(data[f"{case}/img_shape"])
    order, boxes, counts = by_image(rois, images)
    assert (box_levels(boxes).numpy() == data[f"{case}/fixed_levels"][order]).all()
    labels = paddle.full([len(rois)], 2, "int64")
    with paddle.no_grad():
        maps = pyramids[case][:4]
        for features in (_by_operator(maps, boxes, counts, 7), _by_products(maps, boxes.numpy(), counts.tolist(), 7)):
            close(features[:, ::4], data[f"{case}/fixed_roi_feat"][order])
        scores, deltas = model.roi_head.classify(pyramids[case], boxes, counts)
        masks = model.roi_head.segment(pyramids[case], boxes, labels, counts)
    close(scores, data[f"{case}/fixed_cls_score"][order])
    close(deltas, data[f"{case}/fixed_bbox_pred"][order])
    close(masks, data[f"{case}/fixed_mask_logits_class2"][order])


@pytest.mark.parametrize("case", CASES)
def test_detections_in_order_and_pasted_masks(model, data, case):
    for i, found in enumerate(model.predict(*batch(data, case))):
        expected = {name: data[f"{case}/det{i}_{name}"] for name in ("boxes_net", "boxes", "scores", "labels")}
        assert np.array_equal(found["labels"].numpy(), expected["labels"])
        assert np.abs(found["scores"].numpy() - expected["scores"]).max() < SCORES
        assert np.abs(found["boxes"].numpy() - expected["boxes_net"]).max() < BOXES
        close(found["mask_logits"][:20], data[f"{case}/det{i}_mask_logits_first20"])
        height, width = (int(side) for side in data[f"{case}/ori_shape"][i])
        scale = np.asarray(data[f"{case}/img_shape"][i] / (height, width), np.float32)[[1, 0, 1, 0]]
        boxes = found["boxes"].numpy() / scale
        assert np.abs(boxes - expected["boxes"]).max() < BOXES
        theirs = unpack(data[f"{case}/det{i}_masks_packed"], width).astype(bool)
        for logits, box, mask in zip(found["mask_logits"].numpy(), boxes, theirs):
            assert (paste_mask(logits, box, (height, width)) != mask).sum() <= MASK_BITS * mask.size


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(golden_checkpoint, data, case):
    model = reference_detector(golden_checkpoint("maskrcnn_micro"))
    model.train()
    losses = model(batch(data, case)[0], targets=targets(data, case), sampler=every_nth)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(data[f"{case}/train/{name}"]), rel=LOSSES)
    sum(losses.values()).backward()
    names = [str(name) for name in data[f"{case}/train/grad_names"]]
    ours, parameters = {name: our_name(name) for name in names}, dict(model.named_parameters())
    assert set(ours.values()) == set(parameters)
    for name, norm in zip(names, data[f"{case}/train/grad_norms"]):
        gradient = parameters[ours[name]].grad.numpy().astype(np.float64)
        assert np.linalg.norm(gradient) == pytest.approx(float(norm), rel=GRADIENTS), name
