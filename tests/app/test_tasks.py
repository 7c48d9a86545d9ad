"""The page's session for a checkpoint of each task: what it predicts and shows."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("paddleseg")

from paddle_vheat._paddle import paddle
from paddle_vheat.app.__main__ import make_session, parse
from paddle_vheat.config import load_config
from paddle_vheat.tasks import find_task
from paddle_vheat.weights.loading import save_weights
from tests.app.test_session import decoded, png

SEGMENTATION = ["model.channels=16", "model.aux_channels=8", "model.backbone.embed_dim=8"]


def session(config, opts, folder):
    """Of random weights, by the command's own options."""
    paddle.seed(0)
    read = load_config(config, opts)
    task = find_task(read, config)[1].make_task(read, config, None, None)
    save_weights(task.build_model(pretrained=False), folder / "model.pdparams")
    given = ["--config", config, "--model_path", str(folder), *(["--opts", *opts] if opts else [])]
    return make_session(parse(given), str(folder))


@pytest.mark.parametrize(
    ("config", "opts", "stages", "captions"),
    [
        ("configs/demo_digits.yml", ["Arch.embed_dim=8"], 4, []),
        ("configs/demo.yml", SEGMENTATION, 4, ["classes over the picture", "classes"]),
        ("configs/demo_detection.yml", ["model.embed_dim=8"], 4, ["objects"]),
        (
            "configs/demo_restoration.yml",
            ["val.to_gray=luma"],
            None,
            ["restored", "before | after | difference, four times as strong"],
        ),
    ],
    ids=["classification", "segmentation", "detection", "restoration"],
)
def test_every_task_predicts_and_has_heat(config, opts, stages, captions, tmp_path):
    made = session(config, opts, tmp_path)
    facts = json.loads(json.dumps(made.describe(), allow_nan=False))
    assert facts["why_no_heat"] == ""
    assert {one["stage"] for one in facts["heat"]["blocks"]} >= set(range(1, (stages or 1) + 1))
    assert made.heat.spread(0, 0.5, 0.5, 1.0)["sum"] == pytest.approx(1, abs=1e-5)  # the decay is float32
    answer = json.loads(json.dumps(made.predict(png(60, 80)), allow_nan=False))
    assert [one["caption"] for one in answer["pictures"]] == captions
    assert (len(answer["classes"]) == 5) == (not captions)
    for one in answer["pictures"]:
        assert decoded(one["picture"]).shape[0] == 60
    if answer["legend"]:
        assert np.isclose(sum(one["share"] for one in answer["legend"]), 1)


def test_a_network_without_heat_predicts_and_says_so(tmp_path):
    opts = ["model.name=swin_ir_light", "val.to_gray=luma"]
    made = session("configs/demo_restoration.yml", opts, tmp_path)
    assert made.heat is None
    assert "holds no heat conduction operator" in made.describe()["why_no_heat"]
    assert made.predict(png(16, 16))["pictures"]
