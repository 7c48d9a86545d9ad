"""Every detection configuration: read without mistakes, and the model that it describes."""

from __future__ import annotations

import pytest

from paddle_vheat.config import load_config
from paddle_vheat.tasks.detection import config as schema
from tests.configs.test_one_step import ALL, make_task

OURS = {"demo_detection", "mask_rcnn_vheat_micro_nuts"}
FILES = [path for path in ALL if load_config(path).get("task") == "detection"]


def test_all_of_them_are_there():
    published = {f"mask_rcnn_vheat_{v}_1x_coco" for v in ("tiny", "small", "base")}
    published |= {f"mask_rcnn_vheat_{v}_3x_coco" for v in ("tiny", "small")}
    assert {path.stem for path in FILES} == published | OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_read(path):
    task = make_task(load_config(path), path.name)
    assert task.recipe.optimizer == "AdamW"
    assert task.recipe.clip_norm == (10.0 if path.stem in OURS else None)


# Of the published table, in millions. The tiny 3x is published as 53M, with embeddings for 512 pixels.
@pytest.mark.parametrize(
    ("name", "millions", "rate"),
    [
        ("tiny_1x", 52.74, 0.1),
        pytest.param("small_1x", 74.11, 0.3, marks=pytest.mark.slow),
        pytest.param("base_1x", 114.69, 0.5, marks=pytest.mark.slow),
        ("tiny_3x", 50.36, 0.2),
        pytest.param("small_3x", 74.11, 0.4, marks=pytest.mark.slow),
    ],
)
def test_sizes_are_the_published_ones(name, millions, rate):
    (path,) = [path for path in FILES if path.stem == f"mask_rcnn_vheat_{name}_coco"]
    model = schema.build(schema.read(load_config(path))[0].model)
    assert round(sum(parameter.size for parameter in model.parameters()) / 1e6, 2) == millions
    assert model.backbone.stages[-1].blocks[-1].drop_path.rate == pytest.approx(rate)
