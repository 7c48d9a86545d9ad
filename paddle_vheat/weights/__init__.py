"""Weights: reading checkpoints without running code from them, mapping names, loading strictly."""

from paddle_vheat.weights.loading import LoadReport, load_weights, read_weights, save_weights

__all__ = ["LoadReport", "load_weights", "read_weights", "save_weights"]
