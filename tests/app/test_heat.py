"""The heat that the page shows, against the equation computed apart by SciPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import fft

from paddle_vheat._paddle import nn, paddle
from paddle_vheat.analysis.conduction import mean_over_channels
from paddle_vheat.analysis.observe import input_shape
from paddle_vheat.app.heat import TIMES, HeatView
from paddle_vheat.errors import UserError
from paddle_vheat.models import VHeatClassifier, build_vheat_ir
from tests.app.test_session import decoded

MICRO = {"embed_dim": 8, "depths": (1, 2, 1, 1), "img_size": (64, 96)}


def warm(**ablation):
    """A classifier whose every k is 0.5 (as a constant, that of every mode)."""
    return VHeatClassifier(3, **MICRO, ablation={"k_fixed": 0.5, **ablation})


@pytest.fixture(scope="module")
def view():
    return HeatView(warm())


def expected(size, patch, k, time):
    """u_t of one channel of constant k, from SciPy's orthonormal DCT."""
    start = np.zeros(size)
    start[patch] = 1
    n, m = (np.arange(side) * math.pi / side for side in size)
    decay = np.exp(-k * time * (n[:, None] ** 2 + m[None, :] ** 2))
    return fft.idctn(fft.dctn(start, norm="ortho") * decay, norm="ortho")


def test_blocks_are_described_with_their_place_k_and_reach(view):
    facts = json.loads(json.dumps(view.describe(), allow_nan=False))
    assert (facts["size"], facts["times"]) == ([64, 96], list(TIMES))
    assert [(one["stage"], one["block"]) for one in facts["blocks"]] == [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)]
    first = facts["blocks"][0]
    assert (first["patches"], first["stride"]) == ([16, 24], 4)
    assert first["k"]["share_of_zeros"] == 0
    # k is float32, and the plane's edge is 7 sigma away from its centre.
    assert first["k"]["mean"] == pytest.approx(0.5, rel=1e-5)
    assert first["k"]["quantiles"] == pytest.approx([0.5] * 3, rel=1e-5)
    assert first["reach"] == pytest.approx(1.0, rel=1e-4)
    assert first["reach_pixels"] == pytest.approx(4.0, rel=1e-4)
    assert decoded(first["k"]["picture"]).shape == (16, 24, 3)


@pytest.mark.parametrize(("y", "x", "patch"), [(0, 0, (0, 0)), (0.5, 0.25, (8, 6)), (1, 1, (15, 23))])
@pytest.mark.parametrize("time", [0.0, 0.25, 1.0, 16.0])
def test_heat_spreads_by_the_equation(view, y, x, patch, time):
    answer = view.spread(0, y, x, time)
    heat = expected((16, 24), patch, 0.5, time)
    assert answer["patch"] == list(patch)
    # The decay is float32: 6e-8 of a unit in each mode.
    assert answer["sum"] == pytest.approx(1, abs=1e-5)
    assert answer["peak"] == pytest.approx(heat.max(), abs=1e-5)
    assert answer["minimum"] == pytest.approx(heat.min(), abs=1e-5)
    assert answer["largest"] == max(answer["peak"], -answer["minimum"])
    opacity = decoded(answer["picture"])[..., 3]
    shown = heat > heat.max() / 100  # there, 1e-6 of heat at a peak of 0.01 is 1 % of it, and 0.4 of 255
    assert shown.any()
    assert np.abs(opacity - 255 * (1 + np.log10(np.maximum(heat, 1e-9) / heat.max()) / 3))[shown].max() < 1
    assert opacity[patch] == 255


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ((5, 0.5, 0.5, 1), "block 5 does not exist; expected 0 to 4"),
        ((-1, 0.5, 0.5, 1), "block -1 does not exist; expected 0 to 4"),
        ((0, 1.5, 0.5, 1), "(y 1.5, x 0.5) is outside the picture; expected 0 to 1"),
        ((0, math.nan, 0.5, 1), "(y nan, x 0.5) is outside the picture; expected 0 to 1"),
        ((0, 0.5, 0.5, -1), "the time -1 is not possible; expected 0 to 64"),
        ((0, 0.5, 0.5, math.inf), "the time inf is not possible; expected 0 to 64"),
    ],
)
def test_questions_that_cannot_be_are_refused(view, question, text):
    with pytest.raises(UserError) as error:
        view.spread(*question)
    assert text in str(error.value)


def test_a_negative_filter_has_integer_times_only():
    model = VHeatClassifier(3, **MICRO, ablation={"dct_filter": True})
    for name, value in model.state_dict().items():
        if "filter" in name:
            value.set_value(paddle.full_like(value, -0.5))
    view = HeatView(model)
    assert view.describe()["blocks"][0]["k"] is None  # -log(E) / |w|^2 is not known
    assert view.spread(0, 0, 0, 2.0)["peak"] == pytest.approx(0.25, abs=1e-5)
    with pytest.raises(UserError, match=r"no time 0.25; expected 0, 1, 2"):
        view.spread(0, 0, 0, 0.25)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Conv2D(3, 4, 1), "holds no heat conduction operator"),
        (lambda: VHeatClassifier(3, **MICRO, ablation={"fft_filter": True}), "a filter of Fourier modes"),
    ],
    ids=["another network", "Fourier"],
)
def test_networks_without_decays_are_refused_by_what_they_are(make, text):
    with pytest.raises(ValueError, match=text):
        HeatView(make())


def test_the_input_is_what_a_network_is_made_for():
    assert input_shape(warm()) == (3, 64, 96)
    assert input_shape(build_vheat_ir(width=8, depths=(1,), in_channels=1, freq_size=16)) == (1, 128, 128)


def test_means_leave_out_what_is_not_known():
    values = np.array([[[1.0, 3.0], [np.nan, 2.0], [np.nan, np.nan]]])
    np.testing.assert_array_equal(mean_over_channels(values), [[2.0, 2.0, np.nan]])
