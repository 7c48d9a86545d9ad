"""COCO's figures, against the library called by hand and the reference detector's own detections."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from paddle_vheat import cli
from paddle_vheat.tasks.detection.evaluator import FIGURES, CocoEvaluator, evaluate_results
from paddle_vheat.tasks.detection.task import DetectionTask
from paddle_vheat.tasks.detection.transforms import normalise
from tests.conftest import paddle
from tests.engine import tiny
from tests.models.mask_rcnn.micro import MEAN, STD, unpack
from tests.tasks.detection import small


@pytest.fixture(scope="module")
def evaluated(reference, tmp_path_factory):
    """Report and result JSON of ``val.py`` on the reference's picture."""
    folder = tmp_path_factory.mktemp("evaluated")
    path = tiny.write_config(folder / "reference.yml", reference.config)
    options = [
        "--model_path",
        reference.weights,
        "--json",
        folder / "scores.json",
        "--save_json",
        folder / "found.json",
    ]
    assert cli.val([*map(str, ["--config", path, *options]), "--device", "cpu"]) == 0
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("scores", "found")]


def test_detections_are_the_references(evaluated, reference):
    """From a file to COCO's result JSON: the same boxes, scores, classes and masks, in the same order."""
    _, found = evaluated
    data = reference.data
    assert len(found) == len(data["a/det0_scores"]) == 100
    assert [one["category_id"] for one in found] == [2 * label for label in data["a/det0_labels"]]
    assert {one["image_id"] for one in found} == {1}
    boxes = np.asarray([one["bbox"] for one in found])
    boxes[:, 2:] += boxes[:, :2]
    assert np.abs(boxes - data["a/det0_boxes"]).max() < 1e-2  # the bounds of tests/models/mask_rcnn/test_golden.py
    assert np.abs(np.asarray([one["score"] for one in found]) - data["a/det0_scores"]).max() < 1e-4
    theirs = unpack(data["a/det0_masks_packed"], 160)
    for one, mask in zip(found, theirs):
        assert (mask_utils.decode(one["segmentation"]) != mask).sum() <= 1e-3 * mask.size


def by_hand(annotations, results, kind, tmp_path):
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(annotations), encoding="utf-8")
    if kind == "segm":  # so that areas are those of the masks
        results = [{key: value for key, value in one.items() if key != "bbox"} for one in results]
    found.write_text(json.dumps(results), encoding="utf-8")
    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(str(found)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_are_those_of_the_library(evaluated, reference, tmp_path, kind):
    scores, found = evaluated
    annotations = json.loads((reference.root / "val.json").read_text(encoding="utf-8"))
    expected = by_hand(annotations, found, kind, tmp_path)
    ours = [scores[f"{kind}_{name}"] for name in FIGURES]
    assert ours == [None if value < 0 else pytest.approx(value, abs=1e-12) for value in expected]
    assert None in ours  # no object of the reference is large


def perfect(annotations, rng):
    """Results that are the truths, but for some that are missing, moved or added."""
    results = []
    for one in annotations["annotations"]:
        if one["iscrowd"] or rng.random() < 0.2:
            continue
        image = next(image for image in annotations["images"] if image["id"] == one["image_id"])
        size = image["height"], image["width"]
        x, y, w, h = (int(n) for n in one["bbox"])
        x = min(x + int(rng.integers(0, 6)), size[1] - w)
        mask = np.zeros(size, np.uint8, order="F")
        mask[y : y + h, x : x + w] = 1
        rle = mask_utils.encode(mask)
        segmentation = {"size": list(size), "counts": rle["counts"].decode("ascii")}
        entry = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": [x, y, w, h]}
        results.append({**entry, "score": float(rng.random()), "segmentation": segmentation})
    return results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_crowds_sizes_and_shares_of_processes(coco, tmp_path, kind):
    task = small.make_task(coco)
    annotations = json.loads((coco / "train.json").read_text(encoding="utf-8"))
    before = copy.deepcopy(annotations)
    results = perfect(annotations, np.random.default_rng(0))
    images = [image["id"] for image in annotations["images"]]
    ours = evaluate_results(annotations, results, kind, images)
    assert annotations == before
    expected = [value if value >= 0 else math.nan for value in by_hand(annotations, results, kind, tmp_path)]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    assert 0.1 < ours[0] < 0.95
    evaluators = [CocoEvaluator(task.dataset("val")) for _ in range(3)]
    evaluators[0].dataset = type("Set", (), {"content": annotations})()
    for rank in (0, 1):
        mine = set(images[rank::2])
        evaluators[rank].results = [one for one in results if one["image_id"] in mine]
        evaluators[rank].images = sorted(mine)
    evaluators[0].merge([evaluators[0].state(), evaluators[1].state()])
    scores = evaluators[0].summarize()
    np.testing.assert_allclose([scores.values[f"{kind}_{name}"] for name in FIGURES], expected, rtol=0, atol=1e-12)
    assert scores.samples == len(images)


def test_no_detection_at_all(coco):
    task = small.make_task(coco)
    evaluator = task.evaluator()
    sample = task.collate([task.dataset("val")[0]])
    none = {
        "boxes": np.zeros((0, 4)),
        "scores": np.zeros(0),
        "labels": np.zeros(0),
        "mask_logits": np.zeros((0, 28, 28)),
    }
    evaluator.update([none], sample)
    scores = evaluator.summarize()
    assert (scores.values["bbox_AP"], scores.values["segm_AP"], scores.samples) == (0, 0, 1)
    assert scores.report["detections"] == 0
    json.dumps(scores.report, allow_nan=False)


def test_batches_of_several_images_give_the_boxes_of_each(reference):
    """Two images of different sizes in one batch: case b of the reference, whose originals have other sizes again."""
    task = DetectionTask(reference.config)
    model = task.build_model()
    task.load(model, str(reference.weights))
    model.eval()
    data, samples = reference.data, []
    for i, (shape, size) in enumerate(zip(data["b/img_shape"], data["b/ori_shape"])):
        array = normalise(data[f"b/image{i}_bgr"], MEAN, STD)
        meta = {"image_id": 1, "shape": tuple(shape), "size": tuple(int(n) for n in size)}
        samples.append({"img": array, "meta": meta})
    batch = task.collate(samples)
    evaluator = task.evaluator()
    with paddle.no_grad():
        evaluator.update(task.infer(model, {**batch, "img": paddle.to_tensor(batch["img"])}), batch)
    boxes = np.asarray([one["bbox"] for one in evaluator.results])
    boxes[:, 2:] += boxes[:, :2]
    assert np.abs(boxes - np.concatenate([data["b/det0_boxes"], data["b/det1_boxes"]])).max() < 1e-2
