"""Every restoration configuration is built at its published size and takes a step with its own optimizer."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_vheat.config import load_config
from paddle_vheat.engine.optim import build_optimizer, build_scheduler
from tests.configs.published_restoration import RUNS
from tests.configs.test_one_step import CONFIGS, make_task
from tests.conftest import paddle

# Millions of parameters: SwinIR's as counted from its release; of vHeatIR 11.527 (gray) and 11.533 (colour) without the
# six embeddings of patch x patch x 180.
COUNTS = {
    "vheat_ir_gray_dn25": 11_526_841 + 6 * 128**2 * 180,
    "vheat_ir_color_dn15": 11_533_323 + 6 * 128**2 * 180,
    "vheat_ir_jpeg10": 11_526_841 + 6 * 126**2 * 180,
    "swin_ir_gray_dn15": 11_497_681,
}


@pytest.mark.parametrize("name", COUNTS)
def test_one_step(name):
    config = load_config(CONFIGS / f"{name}.yml")
    task = make_task(config, name)
    model = task.build_model()
    assert sum(p.size for p in model.parameters()) == COUNTS[name]
    rates = [block.drop_path.rate for group in model.groups for block in group.blocks]
    assert np.allclose(rates, np.linspace(0, 0.1, 36))
    scheduler = build_scheduler(task.recipe, "lr")
    assert scheduler() == (1e-4 if RUNS[name]["lr_scheduler"]["learning_rate"] == 1e-4 else 2e-4)
    optimizer = build_optimizer(task.recipe, model, scheduler, task.parameter_factors(model), "optimizer")
    before = model.conv_last.bias.numpy().copy()
    image = paddle.rand([1, task.in_channels, 16, 16])
    task.losses(model, {"input": image, "target": image * 0.5})["loss"].backward()
    optimizer.step()
    # Adam's first step is the rate itself, whatever the gradient.
    assert np.allclose(np.abs(model.conv_last.bias.numpy() - before), scheduler(), rtol=1e-3)


def test_halved_runs_halve_the_schedule():
    whole, half = (make_task(load_config(CONFIGS / f"vheat_ir_gray_dn{s}.yml"), "x").recipe for s in (15, 50))
    for step, factor in ((0, 1), (399_999, 1), (400_000, 0.5), (600_000, 0.25), (700_000, 0.125), (799_999, 0.0625)):
        rates = []
        for recipe, at in ((whole, 2 * step), (half, step)):
            scheduler = build_scheduler(recipe, "lr")
            scheduler.step(at)
            rates.append(scheduler())
        assert rates == pytest.approx([2e-4 * factor, 1e-4 * factor], rel=1e-12)
