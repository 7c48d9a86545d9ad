"""vHeat inside PaddleSeg. Importing this module is all that a PaddleSeg project needs:

    import paddle_vheat.integrations.paddleseg

It registers the backbones ``vHeat`` (any widths and depths), ``vHeat_tiny``, ``vHeat_small`` and ``vHeat_base``,
the models ``UPerNetMMSeg`` (UPerNet in the layout of the published weights), ``UPerNetContrast`` (the same with a
projection head) and ``PixelContrastSegmentor`` (both heads on any backbone), and the loss ``PixelContrastLoss``, and
mends what is broken in the installed PaddleSeg on the installed Paddle (``docs/paddleseg.md`` lists it).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from paddleseg.core import infer as infer
from paddleseg.cvlibs import Config, SegBuilder, manager
from paddleseg.transforms import Compose as Compose
from paddleseg.utils import logger, utils
from paddleseg.utils.visualize import get_color_map_list as get_color_map_list

from paddle_vheat.integrations._paddleseg_mends import apply_mends
from paddle_vheat.losses import PixelContrastLoss
from paddle_vheat.models import VARIANTS, UPerNet, VHeat, contrast
from paddle_vheat.weights.loading import LoadReport, load_segmentor, load_state, load_weights, read_weights

APPLIED_MENDS = apply_mends()

_TRUNK_PREFIX = "backbone."


def load_backbone(backbone: VHeat, path: str | Path) -> LoadReport:
    """Fill a backbone from a checkpoint of the backbone, a classifier or a segmentor, strictly.

    The output norms may be missing (a classifier has none) and are then left as initialised; the rest of a
    classifier or segmentor is not needed. Anything else missing or left over is an error.
    """
    state = read_weights(path)
    if any(name.startswith(_TRUNK_PREFIX) for name in state):
        state = {n[len(_TRUNK_PREFIX) :]: value for n, value in state.items() if n.startswith(_TRUNK_PREFIX)}
    report = load_state(backbone, state, str(path), fresh_prefixes=("outnorm",))
    logger.info(f"vHeat backbone from {path}: {report}")
    return report


def _register(registry: Any, component: Any) -> Any:
    """Add a component of ours; a name that somebody else has taken is left to them, loudly."""
    name = component.__name__
    taken = registry.components_dict.get(name)
    if taken is not None:
        if getattr(taken, "__module__", None) == component.__module__:
            return component
        raise RuntimeError(f"PaddleSeg already has a component {name!r}, from {taken.__module__}")
    return registry.add_component(component)


def vHeat(
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    post_norm: bool = False,
    layer_scale: float | None = None,
    drop_path_rate: float = 0.1,
    img_size: int | Sequence[int] = 512,
    in_channels: int = 3,
    recompute: bool = False,
    pretrained: str | None = None,
) -> VHeat:
    """Backbone of any widths and depths; see :class:`paddle_vheat.models.VHeat`.

    ``img_size`` is an int or [height, width]. ``pretrained`` is a checkpoint's path: see :func:`load_backbone`.
    """
    backbone = VHeat(
        embed_dim, depths, post_norm, layer_scale, drop_path_rate, img_size, in_channels, recompute=recompute
    )
    if pretrained is not None:
        load_backbone(backbone, pretrained)
    return backbone


def _variant(name: str, drop_path_rate: float) -> Any:
    variant = VARIANTS[name]
    default = drop_path_rate

    def build(
        drop_path_rate: float = default,
        img_size: int | Sequence[int] = 512,
        in_channels: int = 3,
        recompute: bool = False,
        pretrained: str | None = None,
    ) -> VHeat:
        return vHeat(
            variant.embed_dim,
            variant.depths,
            variant.post_norm,
            variant.layer_scale,
            drop_path_rate,
            img_size,
            in_channels,
            recompute,
            pretrained,
        )

    build.__name__ = build.__qualname__ = name.replace("vheat", "vHeat")
    build.__doc__ = f"The {name} backbone; arguments as of vHeat. Drop path {default} is the ADE20K recipe's."
    return build


vHeat_tiny = _variant("vheat_tiny", 0.3)
vHeat_small = _variant("vheat_small", 0.4)
vHeat_base = _variant("vheat_base", 0.5)


def _start_from(model: Any, pretrained: str | None, load: Callable[[Any, str], LoadReport]) -> None:
    """Fill a new model from the checkpoint that its configuration names, if it names one, and say so."""
    if pretrained is not None:
        logger.info(f"{type(model).__name__} from {pretrained}: {load(model, pretrained)}")


class UPerNetMMSeg(UPerNet):
    """:class:`paddle_vheat.models.UPerNet` as a PaddleSeg model.

    Args:
        num_classes, backbone, channels, aux_channels, dropout: see the parent class.
        pretrained: path of a checkpoint of the whole model or of a classifier, loaded as
            :func:`paddle_vheat.weights.loading.load_segmentor` says.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(num_classes, backbone, channels, aux_channels, dropout)
        _start_from(self, pretrained, load_segmentor)


class UPerNetContrast(contrast.UPerNetContrast):
    """:class:`paddle_vheat.models.UPerNetContrast` as a PaddleSeg model.

    Args:
        num_classes, backbone, channels, aux_channels, dropout, proj_dim: see the parent class.
        pretrained: as of :class:`UPerNetMMSeg`; a checkpoint without a projection head leaves it as initialised.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
        proj_dim: int = 256,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(num_classes, backbone, channels, aux_channels, dropout, proj_dim)
        _start_from(self, pretrained, load_segmentor)


class PixelContrastSegmentor(contrast.PixelContrastSegmentor):
    """:class:`paddle_vheat.models.PixelContrastSegmentor` as a PaddleSeg model.

    Args:
        num_classes, backbone, proj_dim, drop_prob, backbone_indices, align_corners: see the parent class.
        pretrained: path of a checkpoint of the whole model, such as PaddleSeg's of ``HRNetW48Contrast``, loaded
            strictly.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Any,
        proj_dim: int = 256,
        drop_prob: float = 0.1,
        backbone_indices: Sequence[int] | None = None,
        align_corners: bool = False,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(num_classes, backbone, proj_dim, drop_prob, backbone_indices, align_corners)
        _start_from(self, pretrained, load_weights)


for _backbone in (vHeat, vHeat_tiny, vHeat_small, vHeat_base):
    _register(manager.BACKBONES, _backbone)
for _model in (UPerNetMMSeg, UPerNetContrast, PixelContrastSegmentor):
    _register(manager.MODELS, _model)
_register(manager.LOSSES, PixelContrastLoss)


def load_pretrained(model: Any, path: str) -> None:
    """Fill a model or backbone from a checkpoint, in the place of PaddleSeg's function of this purpose.

    PaddleSeg's only warns of what is missing or of another shape, goes on with random numbers there, and runs what
    code the file holds. Here both are errors; what the file has beyond the model, such as an ImageNet classifier,
    is passed over and said.

    Args:
        path: a file in Paddle's format or ``.safetensors``, or an address that PaddleSeg can download.
    """
    if path is None:
        return
    if "://" in path:
        path = utils.download_pretrained_model(path)
    state, wanted = read_weights(path), model.state_dict()
    beyond = [name for name in state if name not in wanted]
    report = load_state(model, {name: value for name, value in state.items() if name in wanted}, str(path))
    logger.info(f"{type(model).__name__} from {path}: {report}")
    if beyond:
        logger.warning(f"{path}: not needed, passed over: {', '.join(beyond[:5])}{', ...' if beyond[5:] else ''}")


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


class DictConfig(Config):
    """PaddleSeg's configuration from keys and values that are read already, so that its YAML loader is not used."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.dic = values
        self._build_default_checker().apply_all_rules(self)


def component(name: str) -> Any | None:
    """The class or function that PaddleSeg's registries hold under a name; None if there is none."""
    for registry in _registries():
        if name in registry.components_dict:
            return registry[name]
    return None


def component_names() -> list[str]:
    """All names in PaddleSeg's registries."""
    return [name for registry in _registries() for name in registry.components_dict]


def component_arguments(name: str) -> set[str] | None:
    """Argument names of a component; None if it takes any."""
    found = component(name)
    target: Any = found.__init__ if inspect.isclass(found) else found
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters} - {"self"}


def _registries() -> list[Any]:
    return [
        manager.MODELS,
        manager.BACKBONES,
        manager.DATASETS,
        manager.TRANSFORMS,
        manager.LOSSES,
        manager.OPTIMIZERS,
    ]


def make_builder(values: dict[str, Any]) -> SegBuilder:
    """PaddleSeg's builder of models, datasets, losses and schedules for a configuration."""
    logger.log_level = 1  # warnings; the builder would print every block of the configuration
    return SegBuilder(DictConfig(values))
