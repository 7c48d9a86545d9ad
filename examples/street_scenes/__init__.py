"""Procedural street scenes in Cityscapes' layout: data to train and to test on without a download.

    python -m examples.street_scenes --output data/street_scenes --train 200 --val 50

writes ``leftImg8bit/{train,val}/{city}/*_leftImg8bit.png`` (RGB),
``gtFine/{train,val}/{city}/*_gtFine_labelTrainIds.png`` (train ids 0-18, 255 for what is not scored) and
``annotations/instances_{train,val}.json`` (COCO: boxes and masks of people and vehicles; file names are relative to the
data set's folder). Training and validation scenes come from different invented cities, which differ in facades, plants,
weather and kinds of streets.

The same arguments give the same bytes with the same versions of numpy and Pillow on the same processor, and a scene
does not depend on how many others are written.
"""

from examples.street_scenes.dataset import write_dataset
from examples.street_scenes.scene import render_scene

__all__ = ["render_scene", "write_dataset"]
