"""OpenVINO: the ONNX exports that were checked with it, in float32 unless bfloat16 is asked for."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddle_vheat.deploy import Predictor, runtimes
from paddle_vheat.deploy.runtimes import load_openvino
from paddle_vheat.export import export_model
from paddle_vheat.export.parity import ONNX, OPENVINO
from tests.conftest import needs_onnx, relative_error
from tests.export import networks
from tests.export.networks import inputs, logits_of, noise
from tests.export.test_model import CLOSE, changed, export, replaced, run

pytestmark = [
    needs_onnx,
    pytest.mark.skipif(
        importlib.util.find_spec("openvino") is None, reason="OpenVINO is optional; requirements-dev.txt has it"
    ),
]


def deploy_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]


def test_any_size(segmentor, tmp_path):
    differences = export(segmentor, tmp_path / "out", None, "none", model_format="onnx")
    assert [d.runtime for d in differences if d.ok] == [ONNX, ONNX, OPENVINO, OPENVINO]
    predict = Predictor(tmp_path / "out", "openvino", threads=1)
    assert predict.runtime == "OpenVINO"
    for size in ((1, 64, 96), (2, 97, 80)):  # not those of the check
        x = inputs(*size)
        # Also shows that it is not bfloat16, which is off by 1e-3 and more where the processor has it.
        assert relative_error(run(tmp_path / "out", x, OPENVINO), logits_of(segmentor, x)) < CLOSE
    image = noise(35, 50)
    assert networks.agree(predict.predict(image), networks.classes_of(segmentor, image))


def test_it_is_asked_for_and_never_chosen(segmentor, exported_onnx, files):
    assert set(deploy_of(exported_onnx)["checked_on"]) == {"paddle", "onnxruntime", "openvino"}
    assert Predictor(exported_onnx).runtime == "ONNX Runtime"
    predict = Predictor(exported_onnx, "openvino", precision="bf16")
    assert predict.runtime == "OpenVINO bf16"
    expected = Predictor(exported_onnx, "openvino").predict(list(map(str, files)))
    found = predict.predict(list(map(str, files)))  # three, of a batch of two
    # bfloat16 has 8 bits: of 19 classes with random weights, some pixels change theirs.
    assert np.mean([(a == b).mean() for a, b in zip(found, expected)]) > 0.9


def test_what_was_not_checked_or_was_wrong_is_not_run(tmp_path, monkeypatch):
    said: list[str] = []
    with monkeypatch.context() as patched:
        change = {OPENVINO: 1.01}
        replaced(patched, lambda name, load: changed(load(), lambda logits: logits * change.get(name, 1)))
        export(networks.pixelwise(), tmp_path / "out", [1, 3, 32, 64], "none", model_format="onnx", say=said.append)
    assert any("OpenVINO is not safe for this model" in line for line in said)
    assert "openvino" not in deploy_of(tmp_path / "out")["checked_on"]
    assert Predictor(tmp_path / "out").predict(noise(32, 64)).shape == (32, 64)
    with pytest.raises(ValueError, match=r"out: was not checked with OpenVINO, or found wrong; install openvino and"):
        Predictor(tmp_path / "out", "openvino")


def test_several_outputs(tmp_path):
    """The tensor of the labels has a second name, that of its node."""
    spec, task, shape = networks.toy(networks.Toy(), [1, 3, 32, 32])
    differences = export_model(spec, task, tmp_path / "out", shape, networks.quiet, "onnx")
    assert {d.output for d in differences if d.runtime == OPENVINO and d.ok} == {"labels", "scores"}


def test_mistakes(exported, exported_onnx, tmp_path):
    for folder, options, message in [
        (exported, {}, "holds no onnx model, only paddle; export with --format onnx or both"),
        (exported_onnx, {"device": "gpu"}, "device 'gpu': with runtime 'openvino' expected 'cpu'"),
        (exported_onnx, {"precision": "fp16"}, "'fp16' are for GPUs; give device='gpu' as well"),
        (exported_onnx, {"precision": "int8"}, "holds no int8 model; export with --format onnx --quantize int8"),
    ]:
        with pytest.raises(ValueError, match=message):
            Predictor(folder, "openvino", **options)
    folder = Path(shutil.copytree(exported_onnx, tmp_path / "x"))
    (folder / "model.onnx").write_bytes((exported_onnx / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.onnx: OpenVINO cannot load it: "):
        Predictor(folder, "openvino")


def test_another_model_than_deploy_yamls(exported_onnx):
    description = Predictor(exported_onnx).description
    other = networks.toy_programs((2, 3, 64, 128))["model"]
    with pytest.raises(ValueError, match=r"and deploy\.yaml means labels int32"):
        load_openvino(exported_onnx / description.onnx["model"], other)


def test_it_is_told_the_threads(exported_onnx, monkeypatch):
    import openvino

    seen: list[dict] = []
    compile_model = openvino.Core.compile_model

    def record(core, model, device, config):
        seen.append(config)
        return compile_model(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", record)
    monkeypatch.setattr(runtimes, "count_cores", lambda: 3)
    Predictor(exported_onnx, "openvino")
    Predictor(exported_onnx, "openvino", threads=1)
    assert [config["INFERENCE_NUM_THREADS"] for config in seen] == [3, 1]
