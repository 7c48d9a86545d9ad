"""The launcher of other people's scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_vheat.integrations import run

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from helper_beside import NAME
from helper_in_root import OTHER
from paddleseg.cvlibs import manager
print("RAN", __name__, NAME, OTHER, sys.argv[1:], "vHeat_tiny" in manager.BACKBONES.components_dict)
raise SystemExit(7)
"""


@pytest.fixture
def script(tmp_path):
    """A checkout with a script in tools/, which imports from beside itself and from the root."""
    tools = tmp_path / "checkout" / "tools"
    tools.mkdir(parents=True)
    (tools / "helper_beside.py").write_text("NAME = 'beside'\n")
    (tools.parent / "helper_in_root.py").write_text("OTHER = 'root'\n")
    (tools / "train.py").write_text(SCRIPT)
    return tools / "train.py"


@pytest.mark.parametrize("launcher", [["-m", "paddle_vheat.integrations.run"], [run.__file__]], ids=["module", "file"])
def test_a_script_runs_as_the_main_program(script, tmp_path, launcher):
    """By its file too, as paddle.distributed.launch does it; beside that lies a file paddleseg.py."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEG_HOME": str(tmp_path / "home")}
    command = [sys.executable, *launcher, "paddleseg", "checkout/tools/train.py", "--config", "a b.yml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "RAN __main__ beside root ['--config', 'a b.yml'] True" in done.stdout, done.stderr
    assert done.returncode == 7  # the script's own


def test_mistakes_are_one_line(script, capsys):
    for arguments, message in (
        (["padleseg", str(script)], "no integration for 'padleseg'; did you mean 'paddleseg'? (known: paddleclas, "),
        (["torchvision", str(script)], "no integration for 'torchvision' (known: "),
        (["paddleseg", str(script.parent / "tain.py")], f"no such script: '{script.parent / 'tain.py'}'"),
        (["paddleseg"], "no such script: ''; expected paddleseg SCRIPT"),
        ([], "no integration for ''"),
    ):
        assert run.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}")
        assert error.count("\n") == 1


def test_a_library_that_is_not_installed(script, capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'paddleseg'")

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(run.importlib, "import_module", missing)
    assert run.main(["paddleseg", str(script)]) == 2
    assert capsys.readouterr().err == "error: paddleseg cannot be imported: No module named 'paddleseg'\n"
