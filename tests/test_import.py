"""What importing the package does and, above all, does not do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("paddle", "numpy", "paddleseg", "paddleclas", "yaml", "cv2", "scipy")


def run(code, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def loaded_by(code, *options):
    return run(f"{code}\nimport sys; print(*[n for n in {HEAVY} if n in sys.modules])", *options).split()


def test_the_package_is_quiet_and_light_with_warnings_as_errors():
    assert loaded_by("import paddle_vheat; assert dir(paddle_vheat); paddle_vheat.__version__", "-W", "error") == []


def test_the_models_need_paddle_and_numpy_alone():
    loaded = loaded_by("from paddle_vheat import create_model, list_models, ops\nlist_models(); ops.cosine_basis(3)")
    assert {"paddle", "numpy"} <= set(loaded)
    # Paddle itself imports SciPy and OpenCV where they are installed.
    assert not {"paddleseg", "paddleclas", "yaml"} & set(loaded)


def test_deployment_needs_no_paddle():
    loaded = loaded_by("from paddle_vheat.deploy import Predictor")
    assert not {"paddle", "paddleseg", "paddleclas", "cv2", "scipy"} & set(loaded)


def test_a_model_runs_quietly():
    code = (
        "from paddle_vheat import VHeat\nfrom paddle_vheat._paddle import paddle\n"
        "model = VHeat(embed_dim=8, depths=(1, 1, 1, 1), img_size=32)\n"
        "sum(m.sum() for m in model(paddle.rand([1, 3, 32, 40]))).backward()"
    )
    assert run(code) == ""


def test_what_paddle_says_otherwise_is_not_lost():
    code = (
        "import sys, types, importlib.abc, importlib.machinery\n"
        "class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'paddle':\n"
        "            return importlib.machinery.ModuleSpec(name, self, is_package=True)\n"
        "    def exec_module(self, module):\n"
        "        if module.__name__ == 'paddle':\n"
        "            print('WARNING: OMP_NUM_THREADS set to 2', file=sys.stderr)\n"
        "            print('the driver is too old', file=sys.stderr)\n"
        "            module.__version__ = '3.2.2'\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import contextlib, io\n"
        "said = io.StringIO()\n"
        "with contextlib.redirect_stderr(said):\n"
        "    import paddle_vheat._paddle\n"
        "print(said.getvalue(), end='')"
    )
    assert run(code) == "the driver is too old\n"


def test_public_names_resolve():
    import paddle_vheat
    from paddle_vheat import models, ops, weights

    for module in (paddle_vheat, ops, models, weights):
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert set(dir(paddle_vheat)) == set(paddle_vheat.__all__)
    assert paddle_vheat.create_model is models.create_model
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        paddle_vheat.creat_model  # noqa: B018


def test_version_is_the_packages():
    import paddle_vheat

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.+)"$', text, re.MULTILINE) == [paddle_vheat.__version__]
