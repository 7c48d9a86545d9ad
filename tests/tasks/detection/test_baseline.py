"""The baseline that the demonstration's figures stand beside."""

from __future__ import annotations

from tests.engine import tiny
from tests.tasks.detection import small
from tools.detection_baseline import copied_objects, main


def test_a_training_image_finds_its_own_objects(coco, capsys):
    task = small.make_task(coco, data__val={"image_dir": str(coco / "train"), "annotations": str(coco / "train.json")})
    train, val = task.dataset("train"), task.dataset("val")
    evaluator = task.evaluator()
    evaluator.results = copied_objects(train, val)
    evaluator.images = [image["id"] for image in train.images]  # without the one that has none
    scores = evaluator.summarize()
    assert (scores.values["bbox_AP"], scores.values["segm_AP"]) == (1, 1)


def test_the_command_line(coco, tmp_path, capsys):
    path = tiny.write_config(tmp_path / "small.yml", small.config(coco))
    assert main(["--config", str(path)]) == 0
    assert capsys.readouterr().out.split()[:2] == ["AP", "AP50"]
    assert main(["--config", str(path), "--opts", "data.val.image_dir=/no/such"]) == 2
    assert "no such folder of images: /no/such" in capsys.readouterr().err
