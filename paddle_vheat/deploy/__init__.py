"""Using exported models. With ONNX Runtime this needs NumPy, Pillow, PyYAML and OpenCV, and no Paddle."""

from paddle_vheat.deploy.description import Description, read_description
from paddle_vheat.deploy.predictor import Predictor
from paddle_vheat.deploy.processor import register_processor

__all__ = ["Description", "Predictor", "read_description", "register_processor"]
