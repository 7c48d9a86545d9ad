"""Train ids of Cityscapes' classes, as the generator labels what it paints."""

from __future__ import annotations

# fmt: off
(
    ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN, SKY,
    PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE,
) = range(19)
# fmt: on
THINGS = range(PERSON, BICYCLE + 1)
"""Classes whose objects are told apart."""
IGNORE = 255
"""What is not scored."""
