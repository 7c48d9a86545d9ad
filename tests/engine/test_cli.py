"""The four commands, end to end and with a user's mistakes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from paddle_vheat import cli
from paddle_vheat.engine.checkpoint import list_checkpoints, read_checkpoint
from paddle_vheat.weights.loading import read_weights
from tests.conftest import paddle
from tests.engine import tiny

COMMANDS = ("train", "val", "predict", "export")


@pytest.fixture(scope="module")
def project(cityscapes, tmp_path_factory) -> Path:
    """A folder with a configuration, and a model trained by train.py with PaddleSeg's abbreviations."""
    folder = tmp_path_factory.mktemp("project")
    config = tiny.cityscapes_config(cityscapes)
    tiny.write_config(folder / "tiny.yml", config)
    options = ["--do_eval", "--use_vdl", "--use_ema", "--iters", 4, "--batch_size", 1, "--learning_rate", 0.002]
    options += ["--save_inter", 2, "--log_iter", 1, "--keep_checkpoint_max", 1]
    options += ["--opts", "optimizer.weight_decay=0.02"]
    finished = tiny.run(["train.py", "--config", folder / "tiny.yml", "--save_dir", folder / "output", *options])
    assert finished.returncode == 0, finished.stderr
    (folder / "train.out").write_text(finished.stdout, encoding="utf-8")
    return folder


def checked(command: list) -> str:
    """The output of a command that must succeed without a complaint."""
    finished = tiny.run(command)
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stdout


def test_train(project):
    said = (project / "train.out").read_text(encoding="utf-8")
    assert said.startswith("CPU: ")
    for i in range(1, 5):
        assert f"[TRAIN] iter {i}/4, loss" in said
    assert "[EVAL] iter 2, model: mIoU" in said
    assert "[EVAL] iter 4, ema: mIoU" in said
    output = project / "output"
    assert [path.name for path in list_checkpoints(output)] == ["iter_4"]
    assert (output / "best_model" / "model.pdparams").is_file()
    assert (output / "ema_best_model" / "ema_model.pdparams").is_file()
    assert len(list(output.glob("vdlrecords.*.log"))) == 1
    state, _ = read_checkpoint(output / "iter_4")
    assert [state["options"][name] for name in ("batch_size", "iters", "learning_rate")] == [1, 4, 0.002]
    assert state["config"]["batch_size"] == 2  # as the file says: a configuration is not changed
    assert state["config"]["optimizer"]["weight_decay"] == 0.02


def test_train_resumes(project, tmp_path):
    shutil.copytree(project / "output", tmp_path / "output")
    options = ["--iters", "5", "--use_ema", "--resume_model", tmp_path / "output" / "iter_4"]
    said = checked(["train.py", "--config", project / "tiny.yml", "--save_dir", tmp_path / "output", *options])
    assert "at iteration 4" in said
    assert [path.name for path in list_checkpoints(tmp_path / "output")] == ["iter_4", "iter_5"]


def test_val(project):
    model = project / "output" / "best_model" / "model.pdparams"
    out = project / "scores.json"
    said = checked(["val.py", "--config", project / "tiny.yml", "--model_path", model, "--json", out])
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["images"] == tiny.VAL_SCENES
    assert report["config"] == str(project / "tiny.yml")
    assert report["model_path"] == str(model)
    assert [entry["name"] for entry in report["classes"]][:2] == ["road", "sidewalk"]
    assert len(report["classes"]) == 19
    assert f"mIoU {100 * report['mIoU']:.2f}  accuracy {100 * report['Acc']:.2f}" in said
    # The same model on the same images, by the training's own evaluation.
    metrics = json.loads((model.parent / "metrics.json").read_text(encoding="utf-8"))
    assert {key: report[key] for key in ("mIoU", "Acc", "Kappa", "mDice")} == {
        key: metrics[key] for key in ("mIoU", "Acc", "Kappa", "mDice")
    }


def test_val_with_flips_and_windows(project):
    slide = ["--is_slide", "--crop_size", "64", "48", "--stride", "42", "32"]
    options = ["--aug_eval", "--scales", "0.75", "1.0", "--flip_horizontal", *slide, "--num_workers", "2"]
    model = project / "output" / "iter_4"  # a folder will do
    said = checked(["val.py", "--config", project / "tiny.yml", "--model_path", model, *options])
    assert f"{tiny.VAL_SCENES} images" in said
    assert "mIoU" in said


def test_predict(project, cityscapes, tmp_path):
    model = project / "output" / "best_model" / "model.pdparams"
    images = cityscapes / "leftImg8bit" / "val"
    command = ["predict.py", "--config", project / "tiny.yml", "--model_path", model, "--image_path", images]
    said = checked([*command, "--save_dir", tmp_path / "result"])
    assert f"{tiny.VAL_SCENES} images" in said
    expected = {path.relative_to(images).with_suffix(".png") for path in images.rglob("*.png")}
    for kind, mode in (("pseudo_color_prediction", "P"), ("added_prediction", "RGB")):
        folder = tmp_path / "result" / kind
        found = {path.relative_to(folder) for path in folder.rglob("*.png")}
        assert found == expected
        for name in found:
            picture = Image.open(folder / name)
            assert (picture.mode, picture.size) == (mode, tiny.SCENE_SIZE[::-1])


def test_export(project, tmp_path):
    from paddle_vheat.deploy.description import read_description
    from paddle_vheat.deploy.processor import make_processor
    from paddle_vheat.deploy.runtimes import load_programs

    model = project / "output" / "best_model" / "model.pdparams"
    command = ["export.py", "--config", project / "tiny.yml", "--model_path", model, "--save_dir", tmp_path / "out"]
    said = checked([*command, "--input_shape", "1", "3", "48", "64", "--output_op", "none"])
    assert "written and checked" in said
    assert "Paddle Inference" in said
    deploy = yaml.safe_load((tmp_path / "out" / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert (tmp_path / "out" / deploy["model"]).is_file()
    assert (tmp_path / "out" / deploy["params"]).is_file()
    task = tiny.make_task(yaml.safe_load((project / "tiny.yml").read_text(encoding="utf-8")))
    task.load(task.model, model)
    task.model.eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 48, 64)).astype(np.float32)
    with paddle.no_grad():
        expected = task.model(paddle.to_tensor(x))[0].numpy()
    description = read_description(tmp_path / "out")
    run = load_programs(description, make_processor(description).programs, "paddle")["model"]
    # float32, in another order; see tests/export
    assert np.abs(run(x)["logits"] - expected).max() < 1e-5 * np.abs(expected).max()


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.fixture
def call(project, capsys):
    """Run a command in this process; gives its exit code and what it wrote to stderr."""

    def run(command: str, *options, config: str | Path | None = None) -> tuple[int, str]:
        capsys.readouterr()
        arguments = ["--config", str(config or project / "tiny.yml"), "--device", "cpu", *map(str, options)]
        try:
            code = getattr(cli, command)(arguments)
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err

    return run


def one_error(code: int, err: str) -> str:
    """The text of the only error; more of it may follow on indented lines."""
    assert code == 2, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == 1, err
    return err[err.index(lines[0]) :]


@pytest.fixture
def changed(project, tmp_path):
    """The path of a configuration that is changed by a function."""

    def write(change) -> Path:
        config = yaml.safe_load((project / "tiny.yml").read_text(encoding="utf-8"))
        change(config)
        return tiny.write_config(tmp_path / "changed.yml", config)

    return write


def test_a_misspelt_configuration(call, project):
    error = one_error(*call("train", config=project / "tinny.yml"))
    assert "no such configuration" in error
    assert "did you mean" in error
    assert "tiny.yml" in error


def test_an_unknown_key(call, changed):
    error = one_error(*call("train", config=changed(lambda c: c.update(iterz=3))))
    assert "unknown key 'iterz'; did you mean 'iters'?" in error


def test_a_misspelt_component(call, changed):
    def change(config):
        config["model"]["backbone"]["type"] = "vHeat_tinny"
        config["train_dataset"]["transforms"][0]["type"] = "RandomHorizontalFlop"
        config["optimizer"]["weight_decai"] = 1

    error = one_error(*call("train", config=changed(change)))
    assert "'model.backbone': nothing is called 'vHeat_tinny'; did you mean 'vHeat_tiny'?" in error
    assert "nothing is called 'RandomHorizontalFlop'; did you mean 'RandomHorizontalFlip'?" in error
    assert "unknown key 'optimizer.weight_decai'; did you mean 'weight_decay'?" in error


@pytest.mark.parametrize("command", ["train", "val"])
def test_a_missing_data_set(call, project, command):
    key = f"{command}_dataset.dataset_root"
    options = ["--model_path", project / "output" / "iter_4"] if command == "val" else []
    error = one_error(*call(command, *options, "--opts", f"{key}=/no/such/folder"))
    assert f"'{key}' is '/no/such/folder', and there is no such folder" in error


def test_a_missing_validation_set_is_noticed_before_training(call, tmp_path):
    options = ["--do_eval", "--save_dir", tmp_path / "out", "--opts", "val_dataset.dataset_root=/no/such/folder"]
    assert "'val_dataset.dataset_root' is '/no/such/folder'" in one_error(*call("train", *options))
    assert not (tmp_path / "out").exists()


def needed(command: str, tmp_path: Path) -> list:
    return {"val": [], "predict": ["--image_path", tmp_path], "export": ["--save_dir", tmp_path / "out"]}[command]


@pytest.mark.parametrize("command", ["val", "predict", "export"])
def test_no_model_path(call, cityscapes, tmp_path, command):
    shutil.copy(next(cityscapes.rglob("*_leftImg8bit.png")), tmp_path)
    assert "--model_path is needed" in one_error(*call(command, *needed(command, tmp_path)))


@pytest.mark.parametrize("command", ["val", "predict", "export"])
def test_a_model_path_that_is_not_there(call, cityscapes, tmp_path, command):
    shutil.copy(next(cityscapes.rglob("*_leftImg8bit.png")), tmp_path)
    for path, message in (("absent.pdparams", "no such file"), ("", "is a folder without model.pdparams")):
        options = ["--model_path", tmp_path / path, *needed(command, tmp_path)]
        assert message in one_error(*call(command, *options))


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "another model"])
def test_a_damaged_model(call, project, tmp_path, how):
    content = (project / "output" / "iter_4" / "model.pdparams").read_bytes()
    broken = tmp_path / "broken.pdparams"
    if how == "another model":
        paddle.save({"fc.weight": paddle.zeros([2])}, str(broken))
    else:
        broken.write_bytes({"truncated": content[:1000], "empty": b"", "text": b"<html>not found</html>"}[how])
    error = one_error(*call("val", "--model_path", broken))
    assert str(broken) in error
    expected = {"truncated": "damaged or truncated", "empty": "is empty", "text": "not a file of Paddle weights"}
    assert expected.get(how, "does not fit UPerNetMMSeg") in error


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("train", ["--precision", "fp8"], "invalid choice: 'fp8'"),
        ("train", ["--iters", "many"], "invalid int value: 'many'"),
        ("train", ["--learning_rat", "fast"], "invalid float value: 'fast'"),
        ("train", ["--device", "abacus"], "invalid choice: 'abacus'"),
        ("train", ["--do_evil"], "unrecognized arguments: --do_evil"),
        ("train", ["--iters", "0"], "'iters' must be an integer of at least 1"),
        ("train", ["--batch_size", "-2"], "'batch_size' must be an integer of at least 1"),
        ("train", ["--num_workers", "-1"], "num_workers must be"),
        ("train", ["--seed", "-3"], "'seed' must be"),
        ("train", ["--device", "gpu"], "this Paddle sees no GPU"),
        ("train", ["--opts", "model.backbone.typo.x=1"], "no key 'model.backbone.typo'; did you mean 'type'?"),
        ("train", ["--opts", "batch_size"], "expected key=value"),
        ("train", ["--resume_model", "/no/such/iter_3"], "no such checkpoint folder"),
        ("val", ["--flip_horizontal"], "are for --aug_eval, which is not given"),
        ("val", ["--is_slide"], "sliding windows need crop_size and stride"),
        (
            "val",
            ["--is_slide", "--crop_size", "64", "64", "--stride", "0", "0"],
            "'stride' must be a list of 2 integers of at least 1",
        ),
        ("val", ["--aug_eval", "--scales", "0"], "'scales' must be a list of numbers of above 0"),
        ("val", ["--crop_size", "64"], "expected 2 arguments"),
        ("predict", ["--image_path", "/no/such/image.png"], "no such image, folder or list"),
        ("export", ["--output_op", "sigmoid"], "invalid choice: 'sigmoid'"),
        ("export", ["--input_shape", "1", "3", "16", "16"], "H must be at least 32 pixels, got 16"),
        ("export", ["--input_shape", "1", "3", "64"], "expected 4 arguments"),
    ],
)
def test_options_that_cannot_be(call, project, tmp_path, command, options, message):
    fixed = ["--save_dir", tmp_path / "out"] if command in ("train", "export") else []
    if command != "train":
        fixed += ["--model_path", project / "output" / "iter_4"]
    error = one_error(*call(command, *fixed, *options))
    assert message in error
    assert not (tmp_path / "out" / "iter_4").exists()


def drop(key):
    return lambda config: config.pop(key)


def put(path, value):
    def change(config):
        *parents, last = path.split(".")
        for name in parents:
            config = config[int(name)] if isinstance(config, list) else config[name]
        config[last] = value

    change.__name__ = f"{path}={value!r}"
    return change


REQUIRED = ("model", "train_dataset", "optimizer", "lr_scheduler", "loss")
CHANGES = [
    *[put(key, None) for key in REQUIRED],
    *[put(key, []) for key in REQUIRED],
    *[put(key, "x") for key in (*REQUIRED, "val_dataset", "test_config")],
    *[put(key, {}) for key in REQUIRED],
    put("iters", "many"),
    put("iters", None),
    put("batch_size", [2]),
    put("accumulation", "x"),
    put("train_dataset.transforms", None),
    put("train_dataset.transforms", [{"prob": 0.5}]),
    put("train_dataset.transforms", ["Normalize"]),
    put("train_dataset.dataset_root", None),
    put("train_dataset.dataset_root", 5),
    put("train_dataset.type", ["Cityscapes"]),
    put("model.backbone", "vHeat_tiny"),
    put("model.backbone", None),
    put("model.backbone.depths", 3),
    put("model.backbone.img_size", "x"),
    put("model.backbone.drop_path_rate", 2.0),
    put("model.num_classes", "x"),
    put("model.num_classes", 7),
    put("model.channels", -1),
    put("loss.types", "CrossEntropyLoss"),
    put("loss.types", [None]),
    put("loss.coef", 1.0),
    put("loss.coef", [1.0]),
    put("loss.coef", ["a", "b"]),
    put("optimizer.weight_decay", "x"),
    put("optimizer.grad_clip_cfg", {"name": "ClipGradByGlobalNorm"}),
    put("optimizer.grad_clip_cfg", 5),
    put("optimizer.custom_cfg", "norm"),
    put("optimizer.custom_cfg", [{"weight_decay_mult": 0.0}]),
    put("lr_scheduler.type", "PolynomialDecoy"),
    put("lr_scheduler.power", "x"),
    put("lr_scheduler.powr", 1.0),
    put("lr_scheduler.warmup_start_lr", 1.0),
    put("lr_scheduler.learning_rate", None),
    put("class_names", ["road"]),
    put("class_names", 3),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_configurations_that_cannot_be(call, changed, tmp_path, change):
    """Whatever is wrong with a configuration is said in one error, without a traceback."""
    code, err = call("train", "--save_dir", tmp_path / "out", "--do_eval", config=changed(change))
    assert len(one_error(code, err)) > len("error: ") + 10


@pytest.mark.parametrize("key", REQUIRED)
def test_a_block_that_is_missing(call, changed, tmp_path, key):
    assert key in one_error(*call("train", "--save_dir", tmp_path / "out", config=changed(drop(key))))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_out_of_range_names_the_file(call, cityscapes, tmp_path, workers):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    label = sorted(root.glob("gtFine/train/*/*.png"))[2]
    tiny.spoil_label(label, 33)
    options = ["--num_workers", workers, "--iters", "9", "--save_dir", tmp_path / "out"]
    error = one_error(*call("train", *options, "--opts", f"train_dataset.dataset_root={root}"))
    assert error.strip() == f"error: {label}: label value 33 is outside 0 to 18 and is not 255 (ignored)"


def test_an_image_that_cannot_be_read_is_named(call, cityscapes, tmp_path):
    root = tiny.copy_tree(cityscapes, tmp_path / "data")
    image = sorted(root.glob("leftImg8bit/train/*/*.png"))[1]
    image.write_bytes(image.read_bytes()[:40])
    options = ["--iters", "9", "--save_dir", tmp_path / "out", "--opts", f"train_dataset.dataset_root={root}"]
    assert f"cannot read the image {image}" in one_error(*call("train", *options))


def test_debug_shows_where_an_error_came_from(project):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        cli.train(["--config", str(project / "tiny.yml"), "--debug", "--opts", "train_dataset.dataset_root=/no/such"])


def test_a_mistake_in_a_process_of_its_own(project):
    finished = tiny.run(["train.py", "--config", project / "tiny.yml", "--opts", "modle.x=1"])
    assert finished.stdout.splitlines()[0].startswith("CPU: ")
    error = one_error(finished.returncode, finished.stderr)
    assert error == "error: --opts 'modle.x=1': no key 'modle'; did you mean 'model'?\n"


# --- before Paddle is imported ----------------------------------------------------------------------

HELP = """
import runpy, sys
sys.argv = ["{command}.py", "--help"]
try:
    runpy.run_path("{command}.py", run_name="__main__")
except SystemExit as stop:
    code = stop.code
heavy = {{"paddle", "paddleseg", "numpy", "cv2", "visualdl"}} & set(sys.modules)
print(f"imported: {{sorted(heavy)}}, code: {{code}}")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    finished = tiny.run(["-c", HELP.format(command=command)])
    assert finished.returncode == 0, finished.stderr
    assert "--config" in finished.stdout
    assert "--opts" in finished.stdout
    assert finished.stdout.splitlines()[-1] == "imported: [], code: 0"


THREADS = """
import os
from paddle_vheat import cli
cli.train(["--config", "no.yml", "--device", "cpu"])
print("OMP_NUM_THREADS is", os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.parametrize("chosen", ["1", "3", None])
def test_a_number_of_threads_that_the_user_has_set_is_left_alone(chosen):
    finished = tiny.run(["-c", THREADS], OMP_NUM_THREADS=chosen)
    assert finished.returncode == 0, finished.stderr
    first, *_, last = finished.stdout.splitlines()
    expected = chosen or str(len(os.sched_getaffinity(0)))
    assert last == f"OMP_NUM_THREADS is {expected}"
    assert first.startswith(f"CPU: {expected} threads")
    assert ("yours: OMP_NUM_THREADS" in first) == (chosen is not None)


@pytest.mark.parametrize(
    ("option", "name"),
    [("--save_inter", "save_interval"), ("--log_iter", "log_iters"), ("--keep_checkpoint", "keep_checkpoint_max")],
)
def test_abbreviations(option, name):
    args = cli.train_parser().parse_args(["--config", "x.yml", option, "7"])
    assert getattr(args, name) == 7


def test_paddleseg_s_options_are_there():
    """PaddleSeg's options, by the names that its users know."""
    wanted = {
        "train": "config do_eval use_vdl use_ema iters batch_size learning_rate save_interval save_dir resume_model "
        "log_iters num_workers keep_checkpoint_max seed precision amp_level device early_stop_intervals opts",
        "val": "config model_path aug_eval scales flip_horizontal flip_vertical is_slide crop_size stride num_workers "
        "json device opts",
        "predict": "config model_path image_path save_dir aug_eval scales is_slide crop_size stride device opts",
        "export": "config model_path save_dir input_shape output_op device opts",
    }
    for command, names in wanted.items():
        parser = getattr(cli, f"{command}_parser")()
        cli.TaskFlags(parser, command)
        known = {action.dest for action in parser._actions}
        assert set(names.split()) <= known, command


def test_best_model_is_of_the_weights_that_were_scored(project):
    best = read_weights(project / "output" / "best_model" / "model.pdparams")
    last = read_weights(project / "output" / "iter_4" / "model.pdparams")
    metrics = json.loads((project / "output" / "best_model" / "metrics.json").read_text(encoding="utf-8"))
    same = all(np.array_equal(best[name], last[name]) for name in last)
    assert same == (metrics["iteration"] == 4)
