"""What a user's ``pip install`` gives; run by ``make test-install`` in environments that pip's resolver has filled.

python -I tests/check_installed.py seg|cpu|deploy
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path


def seg() -> None:
    import cv2
    import paddleseg

    import paddle_vheat
    from paddle_vheat._paddle import paddle
    from paddle_vheat.integrations import paddleseg as integration

    names = [dist.metadata["Name"] for dist in importlib.metadata.distributions()]
    assert [name for name in names if name.startswith("opencv")] == ["opencv-python"], names
    image = paddle.rand([1, 3, 64, 96])
    model = paddle_vheat.create_model("vheat_tiny", num_classes=10, img_size=64)
    assert model(image).shape == [1, 10]
    backbone = {"type": "vHeat", "embed_dim": 8, "depths": [1, 1, 1, 1], "img_size": 64}
    block = {"type": "UPerNetMMSeg", "num_classes": 19, "channels": 16, "aux_channels": 8, "backbone": backbone}
    segmentor = integration.assemble(block, integration.registry(), "model")
    segmentor.eval()
    assert segmentor(image)[0].shape == [1, 19, 64, 96]
    print(f"paddle {paddle.__version__}, paddleseg {paddleseg.__version__}, cv2 {cv2.__version__}")


def cpu() -> None:
    import paddle_vheat
    from paddle_vheat import doctor

    assert doctor.main() == 0  # before anything imports Paddle, as a command
    from paddle_vheat._paddle import paddle
    from paddle_vheat.ops import HeatConduction2D

    assert importlib.util.find_spec("paddleseg") is None
    model = paddle_vheat.create_model("vheat_tiny", num_classes=10, img_size=64)
    assert model(paddle.rand([1, 3, 64, 96])).shape == [1, 10]
    assert HeatConduction2D(8, size=(8, 8))(paddle.rand([1, 8, 5, 7])).shape == [1, 8, 5, 7]


def deploy() -> None:
    import cv2
    import onnxruntime

    import paddle_vheat.deploy

    assert importlib.util.find_spec("paddle") is None
    assert paddle_vheat.deploy.Predictor is not None
    print(f"onnxruntime {onnxruntime.__version__}, cv2 {cv2.__version__}, no paddle")


if __name__ == "__main__":
    import paddle_vheat

    assert Path(sys.prefix) in Path(paddle_vheat.__file__).parents, f"{paddle_vheat.__file__} is not the installed one"
    {"seg": seg, "cpu": cpu, "deploy": deploy}[sys.argv[1]]()
