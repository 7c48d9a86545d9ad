"""A small task that is scored by a script: quick, and told when to go wrong. And what many tests compare."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat._paddle import F, nn, paddle
from paddle_vheat.engine.checkpoint import read_checkpoint
from paddle_vheat.engine.loader import stack
from paddle_vheat.engine.optim import Recipe, Schedule, TrainOptions
from paddle_vheat.engine.task import Metric, Scores
from paddle_vheat.engine.trainer import Trainer


def parameters(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def assert_same(ours: dict, theirs: dict) -> None:
    """Bit for bit."""
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def assert_same_checkpoint(ours: Path, theirs: Path) -> None:
    state, arrays = read_checkpoint(ours)
    expected_state, expected = read_checkpoint(theirs)
    assert sorted(arrays) == sorted(expected)
    for file, content in expected.items():
        assert_same(arrays[file], content)
    for key in ("iteration", "best", "stale_intervals", "lr_scheduler", "evaluated"):
        assert state[key] == expected_state[key], key


def trainer(task: Any, save_dir: Path, **options: Any) -> Trainer:
    defaults = {"iters": 6, "batch_size": 2, "save_interval": 3, "log_iters": 1}
    return Trainer(task, TrainOptions(save_dir=str(save_dir), **{**defaults, **options}))


def train(task: Any, save_dir: Path, **options: Any) -> dict[str, Any]:
    return trainer(task, save_dir, **options).run()


class SmallData:
    """8 x 8 pictures of noise with three classes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        image = rng.standard_normal((3, 8, 8)).astype(np.float32)
        return {"img": image, "label": rng.integers(0, 3, (1, 8, 8))}


class SmallTask:
    """Two convolutions, without batch norm or dropout.

    Args:
        scores: what the evaluations find, one after the other.
        nan_at: the call of ``losses`` that gives NaN.
    """

    name, metric, broken, source = "small", Metric("mIoU", scale=100, unit="%"), frozenset(), "small.yml"
    config: dict[str, Any] = {"small": 1}
    data: Any = SmallData()

    def __init__(self, scores: Any = (), nan_at: int | None = None, lr: float = 0.1, clip: float | None = None) -> None:
        self.scores = list(scores)
        self.evaluations: list[dict[str, np.ndarray]] = []
        self.nan_at, self.calls = nan_at, 0
        self.recipe = self.make_recipe(lr, clip)

    def make_recipe(self, lr: float, clip: float | None) -> Recipe:
        return Recipe(Schedule(lr), optimizer="SGD", clip_norm=clip)

    @cached_property
    def model(self) -> Any:
        return nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), nn.GELU(), nn.Conv2D(4, 3, 1))

    def build_model(self, pretrained: bool = True) -> Any:
        return self.model

    def dataset(self, split: str) -> Any:
        return self.data if split == "train" else [self.data[0]]

    def losses(self, model: Any, batch: Any) -> dict[str, Any]:
        loss = F.cross_entropy(model(batch["img"]), batch["label"], axis=1)
        self.calls += 1
        return {"loss": loss * float("nan") if self.calls == self.nan_at else loss}

    def eval_batches(self, dataset: Any, indices: Any) -> list[list[int]]:
        return [list(indices)]

    def infer(self, model: Any, batch: Any) -> None:
        self.evaluations.append(parameters(model))

    def score(self) -> float:
        return self.scores[len(self.evaluations) - 1]

    def evaluator(self) -> Any:
        return Script(self)

    def preview(self, model: Any, count: int) -> list[np.ndarray]:
        return []

    collate = staticmethod(stack)

    def prepare(self, batch: Any, seed: int) -> Any:
        return batch

    def parameter_factors(self, model: Any) -> dict:
        return {}

    def loss_layers(self) -> None:
        return None

    def trial_batch(self) -> None:
        return None


class Script:
    """Finds what its task's script says."""

    def __init__(self, task: SmallTask) -> None:
        self.task = task

    def update(self, outputs: Any, batch: Any) -> None:
        pass

    def state(self) -> None:
        return None

    def merge(self, states: Any) -> None:
        pass

    def summarize(self) -> Scores:
        score = self.task.score()
        return Scores({"mIoU": score}, f"mIoU {score}", {"mIoU": score}, 1)


def gradients(task: Any, seed: int, images: list[int]) -> dict[str, np.ndarray]:
    """Gradients of the mean loss of these training images, by Paddle, without the trainer."""
    from paddle_vheat.engine.loader import derived_seed

    items = [task.dataset("train")[i] for i in images]
    batch = {k: paddle.to_tensor(np.stack([item[k] for item in items])) for k in ("img", "label")}
    batch["meta"] = [{} for _ in items]
    task.model.train()
    paddle.seed(derived_seed(seed, 0, 0))
    sum(task.losses(task.model, batch).values()).backward()
    found = {n: p.grad.numpy().copy() for n, p in task.model.named_parameters() if p.grad is not None}
    for p in task.model.parameters():
        p.clear_gradient(set_to_zero=False)
    return found
