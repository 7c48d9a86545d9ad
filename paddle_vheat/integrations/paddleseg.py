"""vHeat inside PaddleSeg. Importing this module is all that a PaddleSeg project needs:

    import paddle_vheat.integrations.paddleseg

It registers the backbones ``vHeat`` (any widths and depths), ``vHeat_tiny``, ``vHeat_small`` and ``vHeat_base``, the
models ``UPerNetMMSeg`` (UPerNet in the layout of the published weights), ``UPerNetContrast`` (the same with a
projection head) and ``PixelContrastSegmentor`` (both heads on any backbone), and the loss ``PixelContrastLoss``. It
applies compatibility patches to what is faulty in the installed PaddleSeg (``docs/paddleseg.md`` lists them).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import paddle_vheat._paddle  # noqa: F401 - before PaddleSeg, so that Paddle's import is quiet

# isort: split
from paddleseg.core import infer
from paddleseg.cvlibs import manager
from paddleseg.transforms import Compose
from paddleseg.utils import logger, utils
from paddleseg.utils.visualize import get_color_map_list

from paddle_vheat.config import build
from paddle_vheat.integrations import seg_transforms
from paddle_vheat.integrations._paddleseg_patches import apply_patches
from paddle_vheat.integrations._paddleseg_reading import ReadingTransforms, wrap_dataset
from paddle_vheat.losses import PixelContrastLoss
from paddle_vheat.models import VARIANTS, VHeat, contrast, upernet
from paddle_vheat.weights import LoadReport, load_weights, read_weights
from paddle_vheat.weights.download import local_file
from paddle_vheat.weights.loading import load_backbone, load_segmentor, load_state

__all__ = [
    "APPLIED_PATCHES",
    "Compose",
    "PixelContrastSegmentor",
    "ReadingTransforms",
    "UPerNetContrast",
    "UPerNetMMSeg",
    "apply_patches",
    "assemble",
    "get_color_map_list",
    "infer",
    "load_backbone",
    "load_pretrained",
    "reading_transforms",
    "registry",
    "seg_transforms",
    "strict_pretraining",
    "vHeat",
    "vHeat_base",
    "vHeat_small",
    "vHeat_tiny",
    "wrap_dataset",
]

APPLIED_PATCHES = apply_patches()


def vHeat(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    post_norm: bool = False,
    layer_scale: float | None = None,
    drop_path_rate: float = 0.1,
    img_size: int | Sequence[int] = 512,
    in_channels: int = 3,
    recompute: bool = False,
    pretrained: str | bool | None = None,
    ablation: Any = None,
) -> VHeat:
    """Backbone of any widths and depths; see :class:`paddle_vheat.models.VHeat`.

    ``img_size`` is an int or [height, width]. ``pretrained`` is a checkpoint's path, address or release: see
    :func:`paddle_vheat.weights.download.local_file` and :func:`load_backbone`.
    """
    backbone = VHeat(
        embed_dim, depths, post_norm, layer_scale, drop_path_rate, img_size, in_channels, recompute=recompute,
        ablation=ablation,
    )  # fmt: skip
    if pretrained:
        path = local_file(pretrained, "vHeat")
        logger.info(f"vHeat backbone from {path}: {load_backbone(backbone, path)}")
    return backbone


def _variant(name: str, drop_path_rate: float) -> Any:
    variant = VARIANTS[name]
    default = drop_path_rate

    def build(
        drop_path_rate: float = default,
        img_size: int | Sequence[int] = 512,
        in_channels: int = 3,
        recompute: bool = False,
        pretrained: str | bool | None = None,
        ablation: Any = None,
    ) -> VHeat:
        own = variant.embed_dim, variant.depths, variant.post_norm, variant.layer_scale
        path = str(local_file(pretrained, name)) if pretrained else None
        return vHeat(*own, drop_path_rate, img_size, in_channels, recompute, path, ablation)

    build.__name__ = build.__qualname__ = name.replace("vheat", "vHeat")
    build.__doc__ = f"The {name} backbone; arguments as of vHeat. Drop path {default} is the ADE20K recipe's."
    return build


vHeat_tiny = _variant("vheat_tiny", 0.3)
vHeat_small = _variant("vheat_small", 0.4)
vHeat_base = _variant("vheat_base", 0.5)


def _model(name: str, parent: Any, load: Callable[[Any, str], LoadReport]) -> Any:
    """A model of ours with one argument more: ``pretrained``, the path, address or release of a checkpoint for
    ``load``."""
    arguments = inspect.signature(parent.__init__)
    pretrained = inspect.Parameter("pretrained", inspect.Parameter.KEYWORD_ONLY, default=None)

    def __init__(self: Any, *args: Any, pretrained: str | None = None, **kwargs: Any) -> None:
        parent.__init__(self, *args, **kwargs)
        if pretrained:
            path = str(local_file(pretrained, name))
            logger.info(f"{name} from {path}: {load(self, path)}")

    # By it, misspelt keys are found.
    __init__.__signature__ = arguments.replace(parameters=[*arguments.parameters.values(), pretrained])  # type: ignore[attr-defined]
    doc = f"""{parent.__name__} as a PaddleSeg model; ``pretrained`` is loaded by :func:`{load.__name__}`."""
    return type(name, (parent,), {"__init__": __init__, "__doc__": doc, "__module__": __name__})


# load_segmentor takes a checkpoint of the model, or of a classifier, and newly initialises what that does not have.
UPerNetMMSeg = _model("UPerNetMMSeg", upernet.UPerNet, load_segmentor)
UPerNetContrast = _model("UPerNetContrast", contrast.UPerNetContrast, load_segmentor)
PixelContrastSegmentor = _model("PixelContrastSegmentor", contrast.PixelContrastSegmentor, load_weights)

for _backbone in (vHeat, vHeat_tiny, vHeat_small, vHeat_base):
    seg_transforms.register(manager.BACKBONES, _backbone)
for _segmentor in (UPerNetMMSeg, UPerNetContrast, PixelContrastSegmentor):
    seg_transforms.register(manager.MODELS, _segmentor)
seg_transforms.register(manager.LOSSES, PixelContrastLoss)


def load_pretrained(model: Any, path: str) -> None:
    """Fill a model or backbone from a checkpoint, in the place of PaddleSeg's function of this purpose.

    PaddleSeg's only warns of keys that are missing or of another shape, goes on with random numbers there, and runs
    what code the file holds. Here both are errors. Unexpected keys, such as an ImageNet classifier, are skipped and
    reported.

    Args:
        path: a file in Paddle's format or ``.safetensors``, or an address that PaddleSeg can download.
    """
    if path is None:
        return
    if "://" in path:
        path = utils.download_pretrained_model(path)
    state, wanted = read_weights(path), model.state_dict()
    unexpected = [name for name in state if name not in wanted]
    report = load_state(model, {name: value for name, value in state.items() if name in wanted}, str(path))
    logger.info(f"{type(model).__name__} from {path}: {report}")
    if unexpected:
        more = ", ..." if unexpected[5:] else ""
        logger.warning(f"{path}: unexpected keys, skipped: {', '.join(unexpected[:5])}{more}")


@contextlib.contextmanager
def strict_pretraining() -> Iterator[None]:
    """PaddleSeg's models and backbones load their ``pretrained`` by :func:`load_pretrained` while this lasts.

    Those that read the file by themselves (the ViTs, CAE) are not reached.
    """
    original = utils.load_pretrained_model
    utils.load_pretrained_model = load_pretrained
    try:
        yield
    finally:
        utils.load_pretrained_model = original


def registry() -> dict[str, Any]:
    """Everything that PaddleSeg's registries hold, by name: models, backbones, data sets, transforms, losses."""
    parts = manager.LOSSES, manager.TRANSFORMS, manager.DATASETS, manager.BACKBONES, manager.MODELS
    return {name: component for part in parts for name, component in part.components_dict.items()}


def assemble(value: Any, components: Mapping[str, Any], where: str) -> Any:
    """Build what a block describes: every ``{type: name, argument: value}`` in it becomes a component.

    Args:
        components: as from :func:`registry`.
        where: file and path of the block, for an error.

    Raises:
        ConfigError: for what a component does not take, naming its place.
    """
    if isinstance(value, Mapping):
        built = {key: assemble(item, components, f"{where}.{key}") for key, item in value.items() if key != "type"}
        return build(value["type"], built, components, where) if "type" in value else built
    if isinstance(value, list):
        return [assemble(item, components, f"{where}.{i}") for i, item in enumerate(value)]
    return value


def reading_transforms(transforms: list[Any], channels: int) -> ReadingTransforms:
    """PaddleSeg's transforms in a row, which take paths or arrays and read files as this project does."""
    return ReadingTransforms(Compose(transforms, img_channels=channels))
