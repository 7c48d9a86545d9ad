"""vHeat inside PaddleDetection. Importing this module is all that a PaddleDetection project needs:

    import paddle_vheat.integrations.paddledet

It registers the backbones ``vHeat_tiny``, ``vHeat_small``, ``vHeat_base`` and ``vHeat`` (of any width and depth). On
Paddle 3 it adds the one compatibility patch without which PaddleDetection 2.6.0 neither trains nor evaluates a
two-stage detector. ``docs/detection.md`` has a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppdet.core.workspace import register, serializable
from ppdet.modeling import post_process
from ppdet.modeling.proposal_generator import rpn_head
from ppdet.modeling.proposal_generator import target as rcnn_target
from ppdet.modeling.shape_spec import ShapeSpec

from paddle_vheat._paddle import PADDLE_2, paddle
from paddle_vheat.models.vheat import VARIANTS, VHeat
from paddle_vheat.weights.download import local_file
from paddle_vheat.weights.key_map import renamed
from paddle_vheat.weights.loading import load_backbone

# --- backbones --------------------------------------------------------------------------------------


class _Backbone(VHeat):
    """Takes PaddleDetection's dict of inputs, gives the four maps, and says their widths and strides."""

    def __init__(self, pretrained: str | bool | None, **options: Any) -> None:
        super().__init__(**options, out_norms=True)
        self.load_report = None
        if pretrained:
            self.load_report = load_backbone(self, local_file(pretrained, type(self).__name__.lower()))
            print(f"{pretrained}: {self.load_report}", flush=True)

    def forward(self, inputs: Any) -> Any:
        return super().forward(inputs["image"] if isinstance(inputs, Mapping) else inputs)

    @property
    def out_shape(self) -> list[Any]:
        return [ShapeSpec(channels=info["num_chs"], stride=info["reduction"]) for info in self.feature_info]


# PaddleDetection reads the arguments' names off ``__init__``, and calls a module by its class's name.
@register
@serializable
class vHeat(_Backbone):
    """A vHeat of any width and depth; arguments as of :class:`paddle_vheat.models.VHeat`. ``pretrained`` is a
    checkpoint's path, address or release: see :func:`paddle_vheat.weights.download.local_file`."""

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        img_size: int = 512,
        drop_path_rate: float = 0.1,
        pretrained: str | bool | None = None,
        recompute: bool = False,
    ) -> None:
        options = {"img_size": img_size, "drop_path_rate": drop_path_rate, "recompute": recompute}
        super().__init__(pretrained, embed_dim=embed_dim, depths=tuple(depths), **options)


def _variant(name: str, schedule_rate: float) -> type[_Backbone]:
    class Variant(_Backbone):
        def __init__(
            self,
            img_size: int = 512,
            drop_path_rate: float = schedule_rate,
            pretrained: str | bool | None = None,
            recompute: bool = False,
        ) -> None:
            options = {"img_size": img_size, "drop_path_rate": drop_path_rate, "recompute": recompute}
            super().__init__(pretrained, **VARIANTS[name].options(**options))

    Variant.__name__ = Variant.__qualname__ = name.replace("vheat", "vHeat")
    Variant.__doc__ = f"The published {name} backbone; the stochastic depth is that of its 1x schedule."
    return register(serializable(Variant))


vHeat_tiny = _variant("vheat_tiny", 0.1)
vHeat_small = _variant("vheat_small", 0.3)
vHeat_base = _variant("vheat_base", 0.5)


# --- compatibility ----------------------------------------------------------------------------------


class _PaddleWithOldConcat:
    """Paddle, with a ``concat`` that takes scalars as it did in Paddle 2: as vectors of one value."""

    def __getattr__(self, name: str) -> Any:
        return getattr(paddle, name)

    @staticmethod
    def concat(x: Any, axis: int = 0, name: str | None = None) -> Any:
        return paddle.concat([item.reshape([1]) if item.ndim == 0 else item for item in x], axis, name)


def patch_concat() -> None:
    """PaddleDetection 2.6.0 concatenates numbers of boxes, which are scalars since Paddle 3: ``ValueError: The axis is
    expected to be in range of [0, 0)``. In the three modules that do so, and nowhere else."""
    for module in (rpn_head, rcnn_target, post_process):
        if not isinstance(module.paddle, _PaddleWithOldConcat):
            module.paddle = _PaddleWithOldConcat()


if not PADDLE_2:
    patch_concat()


# --- weights ----------------------------------------------------------------------------------------

# (pattern of our name, PaddleDetection's); {0}, {1} ... are its groups.
_RULES = [
    (r"(backbone\..*)", "{0}"),
    (r"neck\.laterals\.3\.(\w+)", "neck.fpn_inner_res5_sum.{0}"),
    *((rf"neck\.laterals\.{i}\.(\w+)", f"neck.fpn_inner_res{i + 2}_sum_lateral.{{0}}") for i in range(3)),
    *((rf"neck\.outputs\.{i}\.(\w+)", f"neck.fpn_res{i + 2}_sum.{{0}}") for i in range(4)),
    (r"rpn_head\.conv\.(\w+)", "rpn_head.rpn_feat.rpn_conv.{0}"),
    (r"rpn_head\.scores\.(\w+)", "rpn_head.rpn_rois_score.{0}"),
    (r"rpn_head\.deltas\.(\w+)", "rpn_head.rpn_rois_delta.{0}"),
    (r"roi_head\.box_head\.fc1\.(\w+)", "bbox_head.head.fc6.{0}"),
    (r"roi_head\.box_head\.fc2\.(\w+)", "bbox_head.head.fc7.{0}"),
    (r"roi_head\.box_head\.scores\.(\w+)", "bbox_head.bbox_score.{0}"),
    (r"roi_head\.box_head\.deltas\.(\w+)", "bbox_head.bbox_delta.{0}"),
    *(
        (rf"roi_head\.mask_head\.convs\.{i}\.(\w+)", f"mask_head.head.upsample.mask_inter_feat_{i + 1}.{{0}}")
        for i in range(4)
    ),
    (r"roi_head\.mask_head\.upsample\.(\w+)", "mask_head.head.upsample.conv5_mask.{0}"),
    (r"roi_head\.mask_head\.classifier\.(\w+)", "mask_head.mask_fcn_logits.{0}"),
]


def to_paddledet(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a Mask R-CNN of ours under the names of PaddleDetection's ``MaskRCNN``.

    Raises:
        ValueError: for what is none of its parameters.
    """
    found = {}
    for name, value in state.items():
        theirs = renamed(name, _RULES)
        if theirs is None:
            raise ValueError(f"no parameter of a Mask R-CNN is called {name!r}")
        found[theirs] = value
    return found
