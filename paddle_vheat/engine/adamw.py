"""AdamW whose step is taken by all threads of a CPU, where there are kernels for it."""

from __future__ import annotations

import math
from typing import Any

from paddle_vheat._paddle import paddle
from paddle_vheat.ops import native


class AdamW(paddle.optimizer.AdamW):
    """Paddle's AdamW, equal up to rounding, and its state.

    Paddle's own CPU kernel works in one thread. What the kernel of ``native.c`` does not do (other devices and
    precisions, sparse gradients, AMSGrad, a ratio of the learning rate by layer) is left to Paddle.
    """

    def _append_optimize_op(self, block: Any, param_and_grad: Any) -> Any:
        if isinstance(param_and_grad, dict):  # of a parameter group, whose settings this takes over
            param_and_grad = self._update_param_group(param_and_grad)
        parameter, gradient = param_and_grad
        rate = self._create_param_lr(param_and_grad)
        if not (native.usable(parameter, gradient, rate) and parameter.is_contiguous() and self._is_plain(gradient)):
            return super()._append_optimize_op(block, param_and_grad)
        # The state of a float32 parameter is float32 too, and on its device.
        names = self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str, self._beta2_pow_acc_str
        state = [self._get_accumulator_master(name, parameter) for name in names]
        spared = self._apply_decay_param_fun is not None and not self._apply_decay_param_fun(parameter.name)
        sizes = math.prod(parameter.shape), self._beta1, self._beta2, self._epsilon
        native.run("adamw", parameter, gradient, rate, *state, *sizes, 0.0 if spared else float(self._weight_decay))
        parameter._bump_inplace_version()
        return None

    def _is_plain(self, gradient: Any) -> bool:
        return (
            gradient.is_dense()
            and self._lr_ratio is None
            and not getattr(self, "_amsgrad", False)  # Paddle 2.6 has none
            and all(isinstance(value, float) for value in (self._beta1, self._beta2, self._epsilon))
        )
