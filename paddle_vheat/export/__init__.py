"""Export to Paddle Inference and ONNX, proven equal to the trained model before it is called done. Names no task."""

from paddle_vheat.export.model import FORMATS, export_model, parse_input_shape
from paddle_vheat.export.parity import Difference
from paddle_vheat.export.program import inference_copy
from paddle_vheat.export.quantize import Quantization
from paddle_vheat.export.scores import scores_spec

__all__ = [
    "FORMATS",
    "Difference",
    "Quantization",
    "export_model",
    "inference_copy",
    "parse_input_shape",
    "scores_spec",
]
