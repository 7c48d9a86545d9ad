"""Counted parameters and multiply-adds against closed forms and the published figures."""

from __future__ import annotations

import pytest

from paddle_vheat.analysis.cost import PUBLISHED, count, total
from paddle_vheat.models import VARIANTS, create_model
from paddle_vheat.ops import fold
from tools import analyze_model


def closed_form(width, depths, classes=1000, size=224):
    """Multiply-adds of the folded classifier by hand, from the architecture's definition."""
    stem = (size // 2) ** 2 * 27 * (width // 2) + (size // 4) ** 2 * 9 * (width // 2) * width
    norms = 5 * ((size // 2) ** 2 * (width // 2) + (size // 4) ** 2 * width)
    side, channels, sums = size // 4, width, stem + norms
    for stage, depth in enumerate(depths):
        positions = side * side
        block = positions * channels * 9  # depthwise
        block += positions * (3 + 8) * channels**2  # linear, out_linear, MLP
        block += 2 * positions * channels * 2 * side  # DCT and inverse, rows and columns
        block += positions * channels  # decay
        block += 3 * 5 * positions * channels  # norms
        sums += depth * block
        if stage < 3:
            side //= 2
            sums += side * side * (9 * channels * 2 * channels + 5 * 2 * channels)
            channels *= 2
    return sums + side * side * 5 * channels + channels * classes


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_counts_equal_the_closed_form_and_round_to_the_published(name):
    model = create_model(name)
    folded = total(count(fold(model, 224), 224))
    variant = VARIANTS[name]
    assert folded.multiply_adds == closed_form(variant.embed_dim, variant.depths)
    millions, billions = PUBLISHED[name]
    assert int(folded.parameters / 1e6) == millions
    assert round(folded.multiply_adds / 1e9, 1) == billions
    assert folded.parameters == sum(p.size for p in fold(model, 224).parameters())


def test_training_form_adds_exactly_the_products_for_k():
    model = create_model("vheat_tiny")
    difference = total(count(model, 224)).multiply_adds - total(count(fold(model, 224), 224)).multiply_adds
    sides, depths = (56, 28, 14, 7), VARIANTS["vheat_tiny"].depths
    assert difference == sum(d * s * s * (96 * 2**i) ** 2 for i, (s, d) in enumerate(zip(sides, depths)))


def test_counting_leaves_the_model_as_it_was():
    model = create_model("vheat_tiny", num_classes=3)
    count(model, 64)
    assert model.training
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


def test_command_prints_both_forms_beside_the_published_figures(capsys):
    assert analyze_model.main(["--model", "vheat_base", "--size", "224"]) == 0
    text = capsys.readouterr().out
    assert "92,132,328" in text
    assert "87,498,984" in text
    assert "87M parameters, 14.9G" in text
    assert "68M" in text


def test_command_names_a_misspelt_model(capsys):
    assert analyze_model.main(["--model", "vheat_tinny"]) == 2
    assert "did you mean 'vheat_tiny'" in capsys.readouterr().err
