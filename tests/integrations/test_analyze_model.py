"""Counting what a PaddleSeg configuration describes (PaddleSeg is needed, unlike in tests/models)."""

from __future__ import annotations

from tools import analyze_model


def test_command_counts_a_configuration(capsys):
    assert analyze_model.main(["--config", "configs/demo.yml", "--size", "128", "256"]) == 0
    assert "decoder" in capsys.readouterr().out
