"""Every ablation: parameters as computed by hand, definitions in NumPy and SciPy, folding, loading, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import fft

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.analysis import count, observe, total
from paddle_vheat.config import load_config
from paddle_vheat.models import VHeat, VHeatClassifier, create_model
from paddle_vheat.models.ablation import AblatedHeat, Ablation, read_ablation
from paddle_vheat.ops import fold
from paddle_vheat.tasks.classification.task import ClassificationTask
from paddle_vheat.weights.convert import ConversionError, read_published
from paddle_vheat.weights.loading import load_pretrained, save_weights
from tests.conftest import relative_error

MICRO = {"embed_dim": 8, "depths": (1, 1, 2, 1), "img_size": 64}
SPECTRA = [{"k_fixed": 5}, "k_scalar", "k_channel", "k_mode", "k_content", "dct_filter", "fft_filter"]
OTHERS = ["no_gate", "no_dwconv", {"alignment": "zero_pad"}, {"alignment": "k_bicubic"}, {"alignment": "k_zero_pad"}]
NAMES = [str(one) for one in (*SPECTRA, *OTHERS)]


def image(size=64, batch=2):
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32))


def size_of(model):
    return sum(math.prod(parameter.shape) for parameter in model.parameters())


# tiny at 224: sums over stages of depth x C, and of H x W x C
BLOCKS = [(2, 96, 56), (2, 192, 28), (6, 384, 14), (2, 768, 7)]
CHANNELS = sum(depth * c for depth, c, _ in BLOCKS)
TO_K = sum(depth * (c * c + c) for depth, c, _ in BLOCKS)
FVE = sum(c * side * side for _, c, side in BLOCKS)
MODES = sum(depth * c * side * side for depth, c, side in BLOCKS)
HALF = sum(depth * c * side * (side // 2 + 1) for depth, c, side in BLOCKS)


@pytest.mark.parametrize(
    ("ablation", "added", "millions"),
    [
        (None, 0, 30.9),
        ({"k_fixed": 5}, -FVE - TO_K, 28.2),
        ("k_scalar", -FVE - TO_K + 12, 28.2),
        ("k_channel", -FVE - TO_K + CHANNELS, 28.2),
        ("k_mode", -FVE - TO_K + MODES, 29.6),
        ("k_content", -FVE, 30.3),
        ("dct_filter", -FVE - TO_K + MODES, 29.6),
        ("fft_filter", -FVE - TO_K + 2 * HALF, 29.7),
        ("no_gate", -TO_K, 28.7),
        ("no_dwconv", -10 * CHANNELS, 30.9),
        ({"alignment": "zero_pad"}, 0, 30.9),
    ],
)
def test_parameters_of_the_tiny_variant(ablation, added, millions):
    assert (CHANNELS, TO_K, FVE, 2 * HALF) == (4416, 2160960, 564480, 1548288)
    with paddle.LazyGuard():  # shapes without memory
        found = size_of(create_model("vheat_tiny", ablation=ablation))
        assert found == size_of(create_model("vheat_tiny")) + added
    assert found / 1e6 == pytest.approx(
        millions, abs=0.1
    )  # of the published table, which has one decimal and subtracts rounded numbers


@pytest.mark.parametrize("ablation", [*SPECTRA, *OTHERS], ids=NAMES)
def test_every_ablation_trains_and_takes_other_sizes(ablation):
    model = VHeatClassifier(5, **MICRO, ablation=ablation)
    assert all(isinstance(block.hco, AblatedHeat) for stage in model.backbone.stages for block in stage.blocks)
    model(image()).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert np.isfinite(parameter.grad.numpy()).all(), name
    model.eval()
    with paddle.no_grad():
        assert np.isfinite(model(image(96)).numpy()).all()
        # An image's result does not depend on the others of its batch.
        together, alone = model(image()).numpy(), model(image()[1:]).numpy()
    assert relative_error(together[1:], alone) < 1e-5


@pytest.mark.parametrize("ablation", [*SPECTRA, *OTHERS], ids=NAMES)
@pytest.mark.parametrize("size", [64, 96])
def test_folding_gives_equal_outputs_where_the_decay_is_a_constant(ablation, size):
    model = VHeatClassifier(5, **MICRO, ablation=ablation)
    for name, parameter in model.named_parameters():  # far from the identity
        if name.endswith(("frequency_embedding", "k_mode", "dct_filter")):
            parameter.set_value(paddle.randn(parameter.shape) * 5)
    model.eval()
    with paddle.no_grad():
        expected = model(image(size)).numpy()
        assert relative_error(fold(model)(image(size)).numpy(), expected) < 1e-5
        if ablation in ("k_content", "fft_filter"):
            with pytest.raises(ValueError, match=f"{ablation} cannot be folded: "):
                fold(model, size)
        else:
            folded = fold(model, size)
            assert relative_error(folded(image(size)).numpy(), expected) < 1e-5
            assert not any("to_k" in name or "frequency_embedding" in name for name in folded.state_dict())


def operator(ablation, size=(6, 8), channels=4):
    hco = AblatedHeat(channels, size, read_ablation(ablation))
    hco.eval()
    return hco


def w_squared(height, width):
    return ((np.pi * np.arange(height) / height)[:, None] ** 2 + (np.pi * np.arange(width) / width) ** 2)[..., None]


def heat(size=(6, 8), batch=1):
    return np.random.default_rng(1).standard_normal((batch, *size, 4)).astype(np.float32)


def propagated(hco, values, embedding=None):
    with paddle.no_grad():
        x = paddle.to_tensor(values)
        return hco._propagate(x, hco.decay_for(x, embedding)).numpy()


def by_scipy(values, decay):
    return fft.idctn(fft.dctn(values, axes=(1, 2), norm="ortho") * decay, axes=(1, 2), norm="ortho")


def test_constant_diffusivities_are_what_their_names_say():
    for value in (0, 1, 5):
        found = propagated(operator({"k_fixed": value}), heat())
        np.testing.assert_allclose(found, by_scipy(heat(), np.exp(-value * w_squared(6, 8))), atol=1e-5)
    for name, shape in (("k_scalar", [1]), ("k_channel", [4])):
        hco = operator(name)
        p = getattr(hco, name)
        k = np.log1p(np.exp(p.numpy().astype(np.float64)))
        assert p.shape == shape
        # It begins between 0.5 and 5: with much less it would be the identity, and hardly learn.
        assert (k > 0.499).all()
        assert (k < 5.001).all()
        np.testing.assert_allclose(propagated(hco, heat()), by_scipy(heat(), np.exp(-k * w_squared(6, 8))), atol=1e-5)


def test_k_of_modes_and_free_filters():
    hco = operator("k_mode")
    hco.k_mode.set_value(paddle.randn([6, 8, 4]))
    decay = np.exp(-np.maximum(hco.k_mode.numpy(), 0) * w_squared(6, 8))
    np.testing.assert_allclose(propagated(hco, heat()), by_scipy(heat(), decay), atol=1e-5)
    hco = operator("dct_filter")
    np.testing.assert_allclose(propagated(hco, heat()), heat(), atol=1e-5)  # begins as the identity
    hco.dct_filter.set_value(paddle.randn([6, 8, 4]))  # may amplify and turn signs
    np.testing.assert_allclose(propagated(hco, heat()), by_scipy(heat(), hco.dct_filter.numpy()), atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_fourier_filter_equals_numpys(size):
    hco = operator("fft_filter", size)
    parts = hco.fft_filter.numpy().astype(np.float64)
    modes = np.fft.rfft2(heat(size), axes=(1, 2), norm="ortho") * (parts[..., :4] + 1j * parts[..., 4:])
    expected = np.fft.irfft2(modes, s=size, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(propagated(hco, heat(size)), expected, atol=1e-6)
    # Periodic edges: a shift of the map shifts the result, which insulated edges do not allow.
    shifted = propagated(hco, np.roll(heat(size), (2, 3), (1, 2)))
    np.testing.assert_allclose(shifted, np.roll(expected, (2, 3), (1, 2)), atol=1e-6)


def test_k_of_the_content_is_each_images_own():
    hco = operator("k_content")
    hco.to_k.weight.set_value(paddle.randn([4, 4]) * 5)
    found, values = propagated(hco, heat(batch=3)), heat(batch=3)
    k = np.maximum(values.mean(axis=(1, 2)) @ hco.to_k.weight.numpy() + hco.to_k.bias.numpy(), 0)
    for one, given, diffusivity in zip(found, values, k):
        np.testing.assert_allclose(one[None], by_scipy(given[None], np.exp(-diffusivity * w_squared(6, 8))), atol=1e-5)


def test_alignment_pads_the_embedding_or_k_itself():
    """Zeros of the embedding give k = ReLU(bias) at new modes, zeros of k give no damping there: not the same."""
    embedding = paddle.randn([6, 8, 4])
    x = paddle.zeros([1, 9, 10, 4])
    found = {}
    for name in ("bicubic", "zero_pad", "k_bicubic", "k_zero_pad"):
        paddle.seed(3)
        hco = operator({"alignment": name})
        hco.to_k.bias.set_value(paddle.full([4], 0.3))
        with paddle.no_grad():
            found[name] = hco.diffusivity_for(x, embedding).numpy()
            native = hco.diffusivity_for(paddle.zeros([1, 6, 8, 4]), embedding).numpy()
            smaller = hco.diffusivity_for(paddle.zeros([1, 5, 5, 4]), embedding).numpy()
        np.testing.assert_array_equal(native, hco.thermal_diffusivity(embedding).numpy())
        if name.endswith("zero_pad"):
            np.testing.assert_array_equal(smaller, native[:5, :5])
            np.testing.assert_array_equal(found[name][:6, :8], native)
    assert (found["zero_pad"][6:] == np.float32(0.3)).all()
    assert (found["k_zero_pad"][6:] == 0).all()
    assert (found["k_bicubic"] >= 0).all()
    assert np.abs(found["k_bicubic"] - found["bicubic"]).max() > 1e-3


def test_without_gate_and_convolution():
    hco = operator({"no_gate": True, "no_dwconv": True, "k_fixed": 2})
    x = paddle.to_tensor(heat())
    with paddle.no_grad():
        found = hco(x).numpy()
        conducted = by_scipy(hco.linear(x).numpy(), np.exp(-2 * w_squared(6, 8))).astype(np.float32)
        expected = hco.out_linear(hco.out_norm(paddle.to_tensor(conducted)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_full_is_the_published_operator():
    for given in ("full", {}, {"no_gate": False}, {"alignment": "bicubic"}):
        model = VHeat(**MICRO, ablation=given)
        assert not any(isinstance(layer, AblatedHeat) for layer in model.sublayers())
        assert model.state_dict().keys() == VHeat(**MICRO).state_dict().keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("k_fix", "unknown name 'k_fix'; did you mean 'k_fixed'?"),
        ("k_fixed", "k_fixed must be a number of at least 0, got True"),
        ({"k_fixed": -1}, "k_fixed must be a number of at least 0, got -1"),
        ({"k_fixed": math.nan}, "k_fixed must be a number"),
        ({"no_gate": 1}, "no_gate must be True or False, got 1"),
        ({"alignment": "pad"}, "alignment must be one of bicubic, zero_pad, k_bicubic, k_zero_pad, got 'pad'"),
        ({"k_fixed": 0, "k_mode": True}, "k_fixed and k_mode exclude each other"),
        ({"k_mode": True, "alignment": "zero_pad"}, "alignment 'zero_pad' is of the full operator, not of k_mode"),
        (5, "expected a name or names with values, got 5"),
    ],
)
def test_ablations_are_read_strictly(given, message):
    with pytest.raises(ValueError, match=f"ablation: {message}".replace("?", r"\?")):
        read_ablation(given)
    assert read_ablation({"k_fixed": 0, "no_gate": True}) == Ablation("k_fixed", 0.0, gate=False)


def test_a_configuration_names_its_ablation_and_a_mistake_in_it():
    def task(ablation):
        config = load_config("configs/demo_digits.yml")
        config["Arch"] = {"name": "vHeat_tiny", "class_num": 10, "img_size": 32, "ablation": ablation}
        return ClassificationTask(config, "demo.yml")

    assert task({"k_fixed": 5}).build_model().backbone.stages[0].blocks[0].hco.ablation == Ablation("k_fixed", 5.0)
    with pytest.raises(ValueError, match=r"demo.yml: Arch: ablation: unknown name 'no_gat'; did you mean 'no_gate'\?"):
        task("no_gat").build_model()


def test_weights_of_another_operator_are_refused(tmp_path):
    full, path = VHeatClassifier(5, **MICRO), tmp_path / "full.pdparams"
    save_weights(full, path)
    for ablation in (*SPECTRA, "no_gate", "no_dwconv"):
        model = VHeatClassifier(5, **MICRO, ablation=ablation)
        with pytest.raises(ValueError, match=r"full\.pdparams"):
            load_pretrained(model, path)
        own = tmp_path / "own.pdparams"
        save_weights(model, own)
        with pytest.raises(ValueError, match=r"own\.pdparams"):
            load_pretrained(full, own)
        load_pretrained(VHeatClassifier(5, **MICRO, ablation=ablation), own)


def test_a_checkpoint_of_a_fixed_k_brings_it(tmp_path):
    one, other = (VHeatClassifier(5, **MICRO, ablation={"k_fixed": k}) for k in (1, 5))
    save_weights(one, tmp_path / "w.pdparams")
    load_pretrained(other, tmp_path / "w.pdparams")
    one.eval()
    other.eval()
    np.testing.assert_array_equal(one(image()).numpy(), other(image()).numpy())


def test_the_converter_refuses_a_checkpoint_without_the_full_operator(tmp_path, golden_checkpoint, monkeypatch):
    """Published weights are of the full operator; a file of another one is none of them."""
    from paddle_vheat.weights import convert

    path = golden_checkpoint("vheat_micro_pre")
    content = convert.read_torch_file(path)
    state = content.get("model", content)
    for name in [name for name in state if name.startswith("freq_embed") or ".to_k." in name]:
        del state[name]
    monkeypatch.setattr(convert, "read_torch_file", lambda path: content)
    with pytest.raises(ConversionError, match="neither the training form"):
        read_published(path)


def test_what_is_observed_and_counted_of_ablations():
    seen = observe(VHeatClassifier(5, **MICRO, ablation={"k_fixed": 5, "no_gate": True}), image(batch=1))
    assert [one.k.min() for one in seen] == [one.k.max() for one in seen] == [5.0] * 5
    assert seen[0].gate is None
    assert observe(VHeatClassifier(5, **MICRO, ablation="fft_filter"), image(batch=1)) == []
    costs = {str(a): total(count(VHeatClassifier(5, **MICRO, ablation=a), 64)).multiply_adds for a in (None, *SPECTRA)}
    to_k = sum(n * side * side * c * c for n, c, side in ((1, 8, 16), (1, 16, 8), (2, 32, 4), (1, 64, 2)))
    assert costs["None"] - costs["k_mode"] == costs["None"] - costs["dct_filter"] == to_k
    assert costs["k_content"] - costs["k_mode"] == sum(n * c * c for n, c in ((1, 8), (1, 16), (2, 32), (1, 64)))


@pytest.mark.skipif(PADDLE_2, reason="Paddle 2.6 has no such guard")
def test_lazy_parameters_are_counted_as_real_ones():
    with paddle.LazyGuard():
        lazy = size_of(VHeat(**MICRO))
    assert lazy == size_of(VHeat(**MICRO))
