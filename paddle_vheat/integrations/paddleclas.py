"""vHeat inside PaddleClas. Importing this module is all that a PaddleClas project needs:

    import paddle_vheat.integrations.paddleclas

It adds the architectures ``vHeat_tiny``, ``vHeat_small`` and ``vHeat_base`` to every PaddleClas that can be
imported: that of the wheel (``paddleclas.ppcls.arch``) and that of a source checkout (``ppcls.arch``). PaddleClas
looks an architecture's name up as an attribute of that module. ``docs/paddleclas.md`` shows the use of both.

PaddleClas needs no compatibility patch: its 2.6.0 builds models on Paddle 3 as it is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from paddle_vheat._paddle import nn
from paddle_vheat.models import VARIANTS, VHeatClassifier
from paddle_vheat.models.registry import unknown_name
from paddle_vheat.models.vheat import Stage
from paddle_vheat.weights.download import local_file
from paddle_vheat.weights.loading import LoadReport, load_classifier, load_weights

Tensor = Any

# PaddleClas sets up the logger "ppcls": where to write, from which level on, and silence but on the first process.
_log = logging.getLogger("ppcls.vHeat")

# Where an installed PaddleClas and a source checkout keep their architectures.
_ARCH_MODULES = ("paddleclas.ppcls.arch", "ppcls.arch")

STAGES = tuple(f"backbone.stages[{i}]" for i in range(4))

_ARGUMENTS = (
    "class_num",
    "img_size",
    "drop_path_rate",
    "in_channels",
    "recompute",
    "return_stages",
    "return_patterns",
)


class VHeatArch(VHeatClassifier):
    """:class:`paddle_vheat.models.VHeatClassifier` with PaddleClas' two ways to the features inside a model.

    Args:
        return_stages: which stages' maps ``forward`` shall return beside the logits: True for all four, or an
            index or indices from 0 to 3.
        return_patterns: names of layers whose outputs ``forward`` shall return, such as ``backbone.stem`` or
            ``backbone.stages[2].blocks[0]``, instead of ``return_stages``.
        num_classes, **backbone: see the parent class.

    Shapes:
        images (B, C, H, W) -> logits (B, num_classes); with one of the two arguments a dict of ``"logits"`` and
        one entry for each layer under its name: a stage's map NCHW, anything else as the layer gives it (inside
        the backbone channels last).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        return_stages: bool | int | Sequence[int] | None = None,
        return_patterns: str | Sequence[str] | None = None,
        **backbone: Any,
    ) -> None:
        super().__init__(num_classes, **backbone)
        self.load_report: LoadReport | None = None
        self.stopped_at_map = False
        self.returned_layers = _returned_layers(return_stages, return_patterns)
        self._kept: dict[str, Tensor] = {}
        layers = dict(self.named_sublayers())
        for name in self.returned_layers:
            path = re.sub(r"\[(\d+)\]", r".\1", name)
            if path not in layers:
                known = [re.sub(r"\.(\d+)\b", r"[\1]", layer) for layer in layers]
                raise ValueError(f"return_patterns: {unknown_name('layer', name, _near(name, known))}")
            if backbone.get("recompute") and ".blocks." in path:
                # In the first of a block's two runs there are no gradients, and the second is past forward.
                raise ValueError(f"return_patterns: with recompute, the output of {name!r} would have no gradient")
            layers[path].register_forward_post_hook(functools.partial(_keep, self._kept, name))

    def forward(self, x: Tensor) -> Any:
        self._kept.clear()
        # Paddle's to_static cannot convert super().
        logits = self.backbone.forward_features(x)[-1] if self.stopped_at_map else VHeatClassifier.forward(self, x)
        if not self.returned_layers:
            return logits
        silent = [name for name in self.returned_layers if name not in self._kept]
        if silent:
            raise RuntimeError(f"return_patterns: no call of {', '.join(silent)} in forward, so there is no output")
        return {"logits": logits, **{name: self._kept.pop(name) for name in self.returned_layers}}

    def stop_after(self, stop_layer_name: str) -> bool:
        """Cut the model off after a layer, in place; what follows is removed, its parameters too.

        Args:
            stop_layer_name: ``"norm"``, and ``forward`` gives the pooled features (B, 8D), or one of
                ``"backbone.stages[0]"`` to ``"backbone.stages[3]"``, and it gives that stage's raw NCHW map;
                ``"backbone"`` is the last of them.

        Returns:
            True, as PaddleClas wants it.

        Raises:
            ValueError: for any other layer, and for one that is cut off already.
        """
        here = STAGES[: len(self.backbone.stages)]
        name = here[-1] if stop_layer_name == "backbone" else stop_layer_name
        if name in here:
            last = here.index(name)
            self.backbone.stages = nn.LayerList(list(self.backbone.stages)[: last + 1])
            self.backbone.stages[last].downsample = None
            self.backbone.feat_channels = self.backbone.feat_channels[: last + 1]
            self.norm, self.head = nn.Identity(), nn.Identity()
            self.stopped_at_map = True
        elif name == "norm" and not self.stopped_at_map:
            self.head = nn.Identity()
        else:
            known = [*here, "backbone"] + ([] if self.stopped_at_map else ["norm"])
            raise ValueError(f"stop_after: vHeat cannot stop there: {unknown_name('layer', stop_layer_name, known)}")
        return True


def _near(name: str, known: list[str]) -> list[str]:
    """Those of very many layers that are worth listing beside a misspelt one: its siblings, else the outermost."""
    parent = name.rpartition(".")[0]
    siblings = [layer for layer in known if layer.rpartition(".")[0] == parent]
    return siblings or [*STAGES, "norm", "head"]


def _keep(kept: dict[str, Tensor], name: str, layer: Any, inputs: Any, output: Any) -> None:
    kept[name] = output.transpose([0, 3, 1, 2]) if isinstance(layer, Stage) else output


def _returned_layers(stages: Any, patterns: Any) -> list[str]:
    """Names of the layers that ``return_stages`` or ``return_patterns`` ask for."""
    if patterns:
        if stages is not None and stages is not False:
            raise ValueError("return_stages and return_patterns cannot both be given; patterns may name stages too")
        return [patterns] if isinstance(patterns, str) else list(patterns)
    if stages is None or isinstance(stages, bool):
        return list(STAGES) if stages else []
    indices = [stages] if isinstance(stages, int) else list(stages)
    wrong = [i for i in indices if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(STAGES)]
    if wrong:
        raise ValueError(f"return_stages: expected True, or indices from 0 to {len(STAGES) - 1}, got {stages!r}")
    return [STAGES[i] for i in indices]


def _build(name: str, pretrained: Any, use_ssld: bool, arguments: dict[str, Any]) -> VHeatArch:
    arch = name.replace("vheat", "vHeat")
    for argument in arguments:
        if argument not in _ARGUMENTS:
            raise TypeError(f"{arch}: {unknown_name('argument', argument, _ARGUMENTS)}")
    if use_ssld:
        raise ValueError(f"{arch}: use_ssld must be False: there are no weights distilled by SSLD for vHeat")
    if pretrained is not None and not isinstance(pretrained, (bool, str, Path)):
        raise ValueError(
            f"{arch}: pretrained must be False, True, 'imagenet', an address or the path of a checkpoint, got "
            f"{pretrained!r}"
        )
    class_num = arguments.pop("class_num", None)
    model = VHeatArch(1000 if class_num is None else class_num, **VARIANTS[name].options(**arguments))
    if pretrained in (None, False):
        return model
    path = local_file(pretrained, name)
    report = model.load_report = load_weights(model, path) if class_num is None else load_classifier(model, path)
    if "head.weight" not in report.loaded:
        _log.warning(f"{path} is not of {model.num_classes} classes, so the head is newly initialised: {report}")
    else:
        _log.info(f"{path}: {report}")
    return model


def _arch(name: str) -> Any:
    def build(pretrained: bool | str | Path | None = False, use_ssld: bool = False, **kwargs: Any) -> VHeatArch:
        return _build(name, pretrained, use_ssld, kwargs)

    build.__name__ = build.__qualname__ = name.replace("vheat", "vHeat")
    build.__doc__ = f"""The {name} classifier as a PaddleClas architecture.

    Args:
        pretrained: False (or None); True or "imagenet" for the authors' ImageNet release; an address; or the path of
            a classifier: ``.pdparams`` or ``.safetensors`` in this project's layout, or a published ``.pth``. See
            :func:`paddle_vheat.weights.download.local_file`. Loading is strict; frequency embeddings of another
            resolution are resized.
            If ``class_num`` is given and is not the file's, exactly the head is newly initialised, and a warning
            says so. ``model.load_report`` tells what was done.
        use_ssld: must be False; PaddleClas passes it to every architecture.
        class_num: number of classes, 1000 if not given.
        img_size: int or [height, width] that the frequency embeddings are made for (224).
        drop_path_rate: stochastic depth ({VARIANTS[name].drop_path_rate}, the ImageNet recipe's).
        in_channels: channels of the image (3).
        recompute: recompute activations in the backward pass: less memory, more time, equal results (False).
        return_stages, return_patterns: see :class:`VHeatArch`.

    Raises:
        TypeError: for any other argument.
        ValueError: for a checkpoint that does not fit, listing keys that are missing, unexpected or of another shape;
            for what cannot be downloaded; for ``use_ssld=True``.
        FileNotFoundError: if there is no such checkpoint.
    """
    return build


vHeat_tiny = _arch("vheat_tiny")
vHeat_small = _arch("vheat_small")
vHeat_base = _arch("vheat_base")


def _find_arch_modules() -> list[ModuleType]:
    """The architecture modules of every PaddleClas that can be imported; at least one."""
    found, broken = [], {}
    for name in _ARCH_MODULES:
        spec = importlib.util.find_spec(name.split(".")[0])
        # The root of a checkout holds a file paddleclas.py, which is not the wheel and cannot be imported by itself.
        if spec is None or spec.submodule_search_locations is None:
            continue
        try:
            found.append(importlib.import_module(name))
        except Exception as error:  # an old PaddleClas fails on a new Paddle or NumPy in ways other than ImportError
            broken[name] = error
    whys = "; ".join(f"{name} cannot be imported ({type(error).__name__}: {error})" for name, error in broken.items())
    if not found:
        raise ImportError(
            "PaddleClas is needed: the wheel (pip install --no-deps -r requirements-clas.txt), or a source checkout "
            "whose root is on sys.path. " + (f"Here, {whys}." if broken else "Here is neither.")
        ) from next(iter(broken.values()), None)
    if broken:
        warnings.warn(f"vHeat is registered in {found[0].__name__} only: {whys}", RuntimeWarning, stacklevel=3)
    return found


def register() -> list[str]:
    """Add the architectures to every PaddleClas that can be imported, and return the names of its modules.

    Importing this module does it. It may be called again, as is needed only after another PaddleClas has become
    importable (the root of a checkout was put on ``sys.path``).

    Raises:
        ImportError: if there is no PaddleClas, or none that can be imported, saying why.
        RuntimeError: if somebody else's architecture has one of the names; nothing is changed then.
    """
    archs = (vHeat_tiny, vHeat_small, vHeat_base)
    modules = _find_arch_modules()
    for module in modules:
        for arch in archs:
            taken = getattr(module, arch.__name__, None)
            if taken is not None and getattr(taken, "__module__", None) != __name__:
                where = getattr(taken, "__module__", type(taken).__name__)
                raise RuntimeError(f"{module.__name__} already has an architecture {arch.__name__!r}, from {where}")
    for module in modules:
        for arch in archs:
            setattr(module, arch.__name__, arch)
    return [module.__name__ for module in modules]


REGISTERED_IN = register()
