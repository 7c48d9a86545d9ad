"""README and docs: Python blocks are run, YAML is read, and the words of a command are parsed by the command itself.

A Python block after a comment ``<!-- not run: why -->`` is only compiled.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tomllib
import yaml
from PIL import Image

import paddle_vheat
from paddle_vheat import cli
from paddle_vheat._paddle import paddle
from tests.deploy.handmade import write_export
from tests.export.networks import noise

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n+)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^ *```$", re.M | re.S
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
COMMANDS = ("train", "val", "predict", "export")


def blocks(page: Path, kind: str) -> list[tuple[str, str | None]]:
    """Texts of a page's blocks, and why they are not run (None: they are)."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [(re.sub(rf"^{m['indent']}", "", m["text"], flags=re.M), m["why"]) for m in found if m["kind"] == kind]


def with_blocks(kind: str) -> list:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, kind)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the examples find: an export, and a picture."""
    folder = tmp_path_factory.mktemp("docs")
    write_export(folder / "output" / "inference_model", (64, 128), "argmax")
    Image.fromarray(noise(64, 128)).save(folder / "street.png")
    (folder / "pictures").mkdir()
    Image.fromarray(noise(64, 128)).save(folder / "pictures" / "0.png")
    return folder


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    # What the surrounding text takes as given.
    names = {"__name__": "docs", "first": noise(64, 128), "second": noise(64, 128, seed=1)}
    for text, why in blocks(page, "python"):
        code = compile(text, f"{page.name}: {text.splitlines()[0]}", "exec")
        if why is None:
            exec(code, names)


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(text for text, _ in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] != "..."]


def parse(script: str, words: list[str]) -> None:
    """By the parser of train.py, ...; a configuration that the line names must be there."""
    parser = getattr(cli, f"{script}_parser")()
    cli.TaskFlags(parser, script)
    args = parser.parse_args(words)
    if args.config is not None:
        assert args.config == "my.yml" or (ROOT / args.config).is_file(), args.config


@pytest.mark.parametrize("page", with_blocks("bash"))
def test_commands_are_those_of_this_project(page):
    known = 0
    for words in commands(page):
        if words[0] == "make":
            assert all(re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.M) for word in words[1:]), words
        elif words[:3] == ["python", "-m", "paddle.distributed.launch"] and "train.py" in words:
            parse("train", words[words.index("train.py") + 1 :])
        elif words[0] == "python" and Path(words[1]).stem in COMMANDS:
            parse(Path(words[1]).stem, words[2:])
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
        elif words[:2] == ["python", "-m"] and words[2].startswith(("paddle_vheat", "examples")):
            assert importlib.util.find_spec(words[2]), words
        elif words[0] in ("pip", "docker"):
            for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
                assert set(extra.split(",")) <= set(EXTRAS), words
            files = [words[words.index(flag) + 1] for flag in ("-r", "-f") if flag in words]
            assert all((ROOT / file).is_file() for file in files), words
        else:
            continue
        known += 1
    assert known


@pytest.mark.parametrize("page", with_blocks("yaml"))
def test_yaml_blocks_can_be_read(page):
    for text, _ in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_u_net_learns(folder):
    """The example of docs/operator.md is a network that trains, and not only one that runs."""
    names: dict = {"__name__": "docs"}
    for text, _ in blocks(ROOT / "docs" / "operator.md", "python")[:2]:
        exec(text, names)
    paddle.seed(0)
    net = names["HeatUNet"](classes=2, width=8, size=(8, 8))
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
    labels = (images[:, 0] > 0).astype("int64")
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=net.parameters())
    losses = []
    for _ in range(15):
        loss = paddle.nn.functional.cross_entropy(net(images), labels, axis=1)
        loss.backward()
        assert net.mixer.frequency_embedding.grad is not None
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == paddle_vheat.__version__


def test_every_page_is_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert page.relative_to(ROOT / "docs").as_posix() in nav, page
