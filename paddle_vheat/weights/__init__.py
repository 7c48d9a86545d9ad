"""Weights: reading checkpoints without running code from them, mapping names, loading strictly, downloading."""

from paddle_vheat.weights.loading import LoadReport, live_tensors, load_weights, read_weights, save_weights

__all__ = ["LoadReport", "live_tensors", "load_weights", "read_weights", "save_weights"]
