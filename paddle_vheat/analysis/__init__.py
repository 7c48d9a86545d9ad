"""What a network with heat conduction does: k, reach, response, conduction, receptive field, Grad-CAM, cost."""

from paddle_vheat.analysis.attribution import contribution_areas, grad_cam, receptive_field, score_of
from paddle_vheat.analysis.conduction import (
    FREQUENCY_BINS,
    by_frequency,
    conduction,
    diffusivity_of,
    radial_frequency,
    reach,
)
from paddle_vheat.analysis.cost import count, total
from paddle_vheat.analysis.observe import Observation, observe

__all__ = [
    "FREQUENCY_BINS",
    "Observation",
    "by_frequency",
    "conduction",
    "contribution_areas",
    "count",
    "diffusivity_of",
    "grad_cam",
    "observe",
    "radial_frequency",
    "reach",
    "receptive_field",
    "score_of",
    "total",
]
