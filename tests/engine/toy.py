"""The smallest legal task: one number for each picture. ``paddle_vheat/engine/task.py`` says what a task is."""

import sys

from paddle_vheat._paddle import paddle
from paddle_vheat.deploy.processor import register_processor
from paddle_vheat.engine.loader import stack
from paddle_vheat.engine.optim import Recipe, Schedule
from paddle_vheat.engine.task import Check, ExportSpec, Metric, Program
from paddle_vheat.export import inference_copy
from paddle_vheat.tasks import register_task
from tests.engine.toy_parts import SIGNATURE, Brightness, MeanError, Pictures, ToyProcessor, Value, picture


class ToyTask:
    name, metric, broken = "toy", Metric("error", higher_is_better=False, decimals=3), frozenset()

    def __init__(self, config, source="toy.yml", flags=None, problems=None):
        self.config, self.source = config, source
        schedule = Schedule(config.get("lr", 0.01))
        self.recipe = Recipe(schedule, iters=config.get("iters", 4), batch_size=2, optimizer="SGD", save_interval=2)

    def build_model(self, pretrained=True):
        return Brightness()

    def dataset(self, split):
        return Pictures(8 if split == "train" else 3)

    def losses(self, model, batch):
        return {"loss": paddle.nn.functional.mse_loss(model(batch["img"]), batch["value"])}

    def infer(self, model, batch):
        return model(batch["img"])

    def evaluator(self):
        return MeanError()

    def predict(self, model, path):
        model.eval()
        return Value(float(model(paddle.to_tensor(picture(path)[None]))))

    def load(self, model, path):
        return model.set_state_dict(paddle.load(path))

    def export_spec(self, model, input_shape, flags):
        program = Program(inference_copy(model, None), *SIGNATURE)
        reference = lambda array: {"value": model(paddle.to_tensor(array)).numpy()}  # noqa: E731
        return ExportSpec(model, lambda kind: {"model": program}, {"value": Check(1e-5)}, reference, sizes=[(8, 8)])

    collate = staticmethod(stack)
    prepare = staticmethod(lambda batch, seed: batch)
    parameter_factors = staticmethod(lambda model: {})
    loss_layers = trial_batch = staticmethod(lambda: None)
    preview = staticmethod(lambda model, count: [])
    eval_batches = staticmethod(lambda dataset, indices: [[i] for i in indices])


claims, add_flags, make_task = lambda config: False, lambda command, flags: None, ToyTask
register_task("toy", sys.modules[__name__])
register_processor("toy", ToyProcessor)
