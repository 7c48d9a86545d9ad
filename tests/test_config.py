"""Configurations: inheritance, options, and the errors of a file that cannot be used."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_vheat.config import ConfigError, did_you_mean, load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yml"))


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_inherits_block_by_block_relative_to_the_file(write):
    write("shared/root.yml", "iters: 1\nmodel: {type: A, width: 8, head: {a: 1, b: 2}}\n")
    write("shared/middle.yml", "_base_: root.yml\nmodel: {width: 16}\n")
    path = write("own.yml", "_base_: shared/middle.yml\nmodel: {head: {b: 3}}\nnew: [1]\n")
    assert load_config(path) == {
        "iters": 1,
        "model": {"type": "A", "width": 16, "head": {"a": 1, "b": 3}},
        "new": [1],
    }


def test_a_list_replaces_a_list_and_a_block_a_value(write):
    write("base.yml", "coef: [1.0, 0.4]\nloss: null\nmodel: {a: 1}\n")
    path = write("own.yml", "_base_: base.yml\ncoef: [1.0]\nloss: {type: X}\nmodel: 3\n")
    assert load_config(path) == {"coef": [1.0], "loss": {"type": "X"}, "model": 3}


def test_inherited_false_replaces_a_block_and_leaves_no_marker(write):
    write("base.yml", "optimizer: {type: SGD, momentum: 0.9, inner: {a: 1}}\n")
    path = write(
        "own.yml",
        "_base_: base.yml\noptimizer: {_inherited_: False, type: Adam, inner: {_inherited_: False, b: 2}}\n"
        "fresh: {_inherited_: False, x: [{_inherited_: True, y: 1}]}\n",
    )
    assert load_config(path) == {"optimizer": {"type": "Adam", "inner": {"b": 2}}, "fresh": {"x": [{"y": 1}]}}


@pytest.mark.parametrize(
    "own",
    [
        "a: {own: 1}",
        "a: {_inherited_: False, own: 1}",
        "b: {_inherited_: False, own: 1}",
        "c: {_inherited_: False, own: 1}\nlist: [own]",
    ],
)
def test_several_bases_merge_as_in_paddleseg(write, own):
    from paddleseg.cvlibs.config import parse_from_yaml

    write("first.yml", "a: {x: first, f: 1}\nb: {x: first}\nlist: [first]\n")
    write("second.yml", "a: {x: second, s: 2}\nc: {x: second}\nlist: [second, 2]\n")
    path = write("own.yml", f"_base_: [first.yml, second.yml]\n{own}\n")
    assert load_config(path) == parse_from_yaml(str(path))
    assert load_config(path)["b"].get("x", "first") == "first"  # not of the last named


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_our_files_read_as_paddleseg_reads_them(path):
    from paddleseg.cvlibs.config import parse_from_yaml

    assert load_config(path) == parse_from_yaml(str(path))


def test_there_are_configurations():
    assert len(CONFIGS) >= 8


def test_an_exponent_makes_a_number(write):
    text = "a: 1e-4\nb: -2E+3\nc: 6.0e-5\nd: 1.e5\ne: 1e\nf: 12\ng: '1e-4'\nh: e5\n"
    config = load_config(write("own.yml", text))
    assert config == {"a": 1e-4, "b": -2000.0, "c": 6e-5, "d": 1e5, "e": "1e", "f": 12, "g": "1e-4", "h": "e5"}
    assert [type(config[key]) for key in "abcdf"] == [float] * 4 + [int]


def test_what_an_anchor_names_twice_is_changed_once(write):
    text = (
        "train: {t: &t [{type: A, n: 1}], b: &b {x: 1}}\n"
        "val: {t: *t, b: *b}\nown: {<<: *b, y: 2}\nsame: {<<: [*b, {z: 3}], x: 4}\n"
    )
    path = write("own.yml", text)
    config = load_config(path, ["train.t.0.n=5", "train.b.x=7"])
    assert config["train"] == {"t": [{"type": "A", "n": 5}], "b": {"x": 7}}
    assert config["val"] == {"t": [{"type": "A", "n": 1}], "b": {"x": 1}}
    assert config["own"] == {"x": 1, "y": 2}
    assert config["same"] == {"x": 4, "z": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("1e-4", 1e-4),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[512, 256]", [512, 256]),
        ("(1, 2)", (1, 2)),
        ("{'a': [1]}", {"a": [1]}),
        ("'12'", "12"),
        ("data/city scapes", "data/city scapes"),
        ("a=b", "a=b"),
        ("", ""),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("{[1]: 2}", "{[1]: 2}"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_options_of_every_type(write, text, value):
    config = load_config(write("own.yml", "model: {a: 1}\n"), [f"model.a={text}"])
    assert config == {"model": {"a": value}}
    assert type(config["model"]["a"]) is type(value)


def test_options_reach_into_lists_and_may_add_to_a_block(write):
    path = write("own.yml", "iters: 5\nset: {t: [{n: 1}, {n: 2}], c: [1.0, 0.4]}\n")
    config = load_config(path, ["set.t.1.n=9", "set.c.0=0.5", "set.new=1", "iters=7"])
    assert config == {"iters": 7, "set": {"t": [{"n": 1}, {"n": 9}], "c": [0.5, 0.4], "new": 1}}


def test_options_may_give_keys_that_the_file_leaves_out(write):
    """Such as ``accumulation``, or a whole block: the task knows which keys there are."""
    config = load_config(write("own.yml", "iters: 5\n"), ["accumulation=2", "test_config.aug_eval=True"])
    assert config == {"iters": 5, "accumulation": 2, "test_config": {"aug_eval": True}}


def test_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/me")
    config = load_config(write("own.yml", "root: ~/data\nset: [~/a, a~/b, '~']\n"), ["opened=~/x"])
    assert config == {"root": "/home/of/me/data", "set": ["/home/of/me/a", "a~/b", "~"], "opened": "/home/of/me/x"}


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
def test_numbers_that_are_not_finite(write, text):
    with pytest.raises(ConfigError, match=r"own.yml: 'a.b.1' must be a finite number, got (nan|-?inf)"):
        load_config(write("own.yml", f"a: {{b: [1, {text}]}}\n"))
    with pytest.raises(ConfigError, match=r"--opts a.b: 'a.b.0' must be a finite number, got inf"):
        load_config(write("own.yml", "a: {b: 1}\n"), ["a.b=[1e999]"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("iters", "expected key=value"),
        ("=3", "expected key=value"),
        ("itres=3", "no key 'itres'; did you mean 'iters'"),
        ("modle.a=3", "no key 'modle'; did you mean 'model'"),
        ("model.bakcbone.type=x", "no key 'model.bakcbone'; did you mean 'backbone'"),
        ("set.2.n=1", "'set.2' must be a position from 0 to 1"),
        ("set.first.n=1", "must be a position"),
        ("set.5=1", "must be a position from 0 to 1"),
        ("set.²=1", "must be a position"),
        ("iters.x=1", "'iters' is no block"),
        ("iters.x.y=1", "no key 'iters.x'"),
    ],
)
def test_an_option_that_leads_nowhere(write, option, message):
    path = write("own.yml", "iters: 5\nset: [{n: 1}, 2]\nmodel: {backbone: {type: v}}\n")
    with pytest.raises(ConfigError, match=message.replace("²", ".")):
        load_config(path, [option])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "own.yml: the key 'c' is given twice, the second time in line 2"),
        ("1: a\n1: b\n", "the key 1 is given twice"),
        ("? [1, 2]\n: 3\n", "a key must be a word or a number"),
        ("- 1\n- 2\n", "own.yml: expected keys and values, got list"),
        ("", "expected keys and values, got NoneType"),
        ("a: [1\n", "own.yml: not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
        ("_base_: own.yml\n", "inherits from itself by way of own.yml"),
        ("_base_: 3\n", "_base_ must be a file name or a list of them, got 3"),
        ("_base_: [3]\n", "_base_ must be a file name"),
        ("a: &a [*a]\n", "a YAML anchor within itself"),
    ],
)
def test_files_that_cannot_be_used(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write("own.yml", text))


def test_a_cycle_of_files_and_a_binary_file(write, tmp_path):
    write("one.yml", "_base_: two.yml\n")
    write("two.yml", "_base_: three.yml\n")
    path = write("three.yml", "_base_: one.yml\n")
    with pytest.raises(ConfigError, match=r"three.yml -> one.yml -> two.yml"):
        load_config(path)
    (tmp_path / "binary.yml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.yml: not a text file in UTF-8"):
        load_config(tmp_path / "binary.yml")


def test_missing_files_name_the_nearest(write, tmp_path):
    path = write("vheat_t_camvid.yml", "_base_: basis.yml\n")
    write("bases.yml", "a: 1\n")
    with pytest.raises(FileNotFoundError, match=r"vheat_t_camvit.yml; did you mean .*vheat_t_camvid.yml\?"):
        load_config(tmp_path / "vheat_t_camvit.yml")
    with pytest.raises(FileNotFoundError, match=r"basis.yml \(the _base_ of .*camvid.yml\); did you mean .*bases.yml"):
        load_config(path)
    with pytest.raises(FileNotFoundError, match="no such configuration"):
        load_config(tmp_path / "nowhere" / "own.yml")


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/tuple [1]", "!own {}"],
)
def test_tags_are_refused_and_not_run(write, monkeypatch, tag):
    def run(*_):
        pytest.fail("code from the file was run")

    monkeypatch.setattr(os, "system", run)
    monkeypatch.setattr(builtins, "eval", run)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write("own.yml", f"a: {tag}\n"))


def test_did_you_mean():
    assert did_you_mean("momentun", ["momentum", "type"]) == "; did you mean 'momentum'?"
    assert did_you_mean("zzz", ["momentum"]) == ""


# --- hostile files ----------------------------------------------------------------------------------

NAMES = "abcdefghij"
BOMBS = {
    "anchors": (
        "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]"]
                  + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip(NAMES, NAMES[1:])]),
        "more than 100000 values, once every YAML anchor is followed",
    ),
    "merges": (
        "\n".join(["a: &a {x: 1, y: 2}"]
                  + [f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}], k{b}: 1}}" for a, b in zip(NAMES, NAMES[1:])]),
        "'<<' makes a block of more than 1000 keys",
    ),
    "long merge": ("a: &a {x: 1}\nb: {<<: [" + "*a, " * 2000 + "*a]}", "'<<' merges more than 1000 blocks"),
    "depth": ("a: " + "[" * 20_000, "nested too deep"),
    "digits": ("a: " + "9" * 50_000, "holds a value that YAML cannot read"),
    "hexadecimal": ("a: 0x" + "f" * 5000, "holds an integer of more than 64 bits"),
    "date": ("a: 2020-99-99", "holds a value that YAML cannot read"),
    "sound date": ("a: 2020-09-09", "a date; expected words, numbers, lists and blocks"),
    "set": ("a: !!set {x}", "a set; expected words, numbers, lists and blocks"),
    "wrong tag": ("a: !!timestamp x", "holds a value that YAML cannot read"),
    "size": ("a: " + "x" * (1 << 20), "bytes; a configuration has at most 1048576"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(write, name):
    text, message = BOMBS[name]
    path = write("x.yml", text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert "x.yml" in str(error.value)


def test_bombs_take_little_memory(tmp_path):
    for i, (text, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{i}.yml").write_text(text, encoding="utf-8")
    code = (
        "import resource, sys, pathlib\n"
        "from paddle_vheat.config import load_config, ConfigError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: load_config(path)\n"
        "    except ConfigError: pass\n"
        "    else: raise SystemExit('was read')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60_000  # kilobytes; the largest file has a megabyte, its syntax tree some twenty


def test_options_are_bounded_as_files_are(write):
    path = write("x.yml", "a: 1")
    with pytest.raises(ConfigError, match="--opts a: holds an integer of more than 64 bits"):
        load_config(path, ["a=" + hex(2**70)])
    with pytest.raises(ConfigError, match=r"--opts a: holds .*, a set"):
        load_config(path, ["a={1, 2}"])
