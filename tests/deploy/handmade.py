"""An export that is written by hand, in no time: a 1x1 convolution to scores by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from tests.export.networks import CLASSES, NAMES, NORMALIZE, PALETTE


def write_export(folder: Path, size: tuple[int, int] | None, output_op: str) -> Path:
    """A segmentation for ONNX Runtime; ``size`` None for any, ``output_op`` none or argmax."""
    folder.mkdir(parents=True)
    weight = np.random.default_rng(0).standard_normal((CLASSES, 3, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "weight"], ["logits"])]
    axes: list[Any] = ["batch", "height", "width"] if size is None else ["batch", *size]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [axes[0], CLASSES, *axes[1:]])
    if output_op == "argmax":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["chosen"], axis=1, keepdims=0))
        nodes.append(helper.make_node("Cast", ["chosen"], ["classes"], to=TensorProto.INT32))
        output = helper.make_tensor_value_info("classes", TensorProto.INT32, axes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [axes[0], 3, *axes[1:]])
    graph = helper.make_graph(nodes, "handmade", [x], [output], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    options = {"output_op": output_op, "num_classes": CLASSES, "class_names": NAMES, "palette": PALETTE}
    block = {"task": "segmentation", "onnx": "model.onnx", "input_shape": [-1, 3, *(size or (-1, -1))],
             "transforms": [NORMALIZE], "options": options}  # fmt: skip
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": block}), encoding="utf-8")
    return folder
