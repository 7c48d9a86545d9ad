"""Official SwinIR checkpoints (denoising, JPEG), in terms of ours.

A file holds the weights under ``params``, under ``params_ema``, or bare. Its buffers (masks of the shifted windows, the
index of relative positions) follow from the sizes and are not needed. For vHeatIR, of which nothing is published, the
same layout with the vHeat authors' names of the operator in the place of ``attn`` is understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_vheat.errors import UserError
from paddle_vheat.weights import key_map
from paddle_vheat.weights.key_map import is_state, renamed
from paddle_vheat.weights.loading import LoadReport, load_state
from paddle_vheat.weights.torch_file import read_torch_file

_BLOCK = r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\."
_PAIR = r"\.(weight|bias)"
# (pattern of the published name, our name), {0}, {1} ... being its groups.
_RULES = [
    (rf"(conv_first|norm|conv_after_body|conv_last){_PAIR}", "{0}.{1}"),
    (rf"patch_embed\.norm{_PAIR}", "first_norm.{0}"),
    (rf"layers\.(\d+)\.conv{_PAIR}", "groups.{0}.conv.{1}"),
    (rf"{_BLOCK}(norm[12]|mlp\.fc[12]){_PAIR}", "groups.{0}.blocks.{1}.{2}.{3}"),
    (rf"{_BLOCK}attn\.(qkv|proj){_PAIR}", "groups.{0}.blocks.{1}.mixer.{2}.{3}"),
    (rf"{_BLOCK}attn\.relative_position_bias_table", "groups.{0}.blocks.{1}.mixer.relative_position_bias_table"),
    (rf"{_BLOCK}op\.to_k\.0{_PAIR}", "groups.{0}.blocks.{1}.mixer.to_k.{2}"),
    (rf"{_BLOCK}op\.(dwconv|linear|out_norm|out_linear){_PAIR}", "groups.{0}.blocks.{1}.mixer.{2}.{3}"),
    (r"layers\.(\d+)\.residual_group\.freq_embed", "groups.{0}.frequency_embedding"),
]
_BUFFER = re.compile(rf"{_BLOCK}(attn_mask|attn\.relative_position_index)")
_LINEAR = re.compile(r".*\.(qkv|proj|linear|to_k|out_linear|fc1|fc2)\.weight")


def our_name(published: str) -> str | None:
    """Our parameter name for a published one; None where there is none."""
    return renamed(published, _RULES)


def convert_state(state: Mapping[str, np.ndarray], source: str = "the checkpoint") -> dict[str, np.ndarray]:
    """As :func:`paddle_vheat.weights.key_map.convert_state`, buffers dropped."""
    parameters = {name: array for name, array in state.items() if not _BUFFER.fullmatch(name)}
    return key_map.convert_state(parameters, source, our_name, _LINEAR)


def _states(content: Any) -> dict[str, Mapping[str, np.ndarray]]:
    """The sets of weights in a checkpoint, by the key that they are under; "" for a bare one."""
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Any] = {"params": content.get("params"), "params_ema": content.get("params_ema"), "": content}
    return {key: state for key, state in found.items() if is_state(state)}


def _pick_state(content: Any, path: str | Path, ema: bool = False) -> Mapping[str, np.ndarray]:
    states = _states(content)
    if ema and "params_ema" not in states:
        raise UserError(f"{path}: no averaged weights (--ema) under 'params_ema'")
    if states:
        return states["params_ema"] if ema else next(iter(states.values()))
    mapping = isinstance(content, Mapping)
    held = f"; it holds {', '.join(map(str, content)) if mapping else f'a {type(content).__name__}'}"
    raise UserError(f"{path}: no weights under 'params' or 'params_ema', and no bare state dict{held}")


def is_swinir(content: Any) -> bool:
    """Whether what :func:`read_torch_file` gave is a checkpoint of SwinIR's body."""
    return any(our_name(name) == "first_norm.weight" for state in _states(content).values() for name in state)


def _options(state: Mapping[str, np.ndarray], path: str | Path) -> dict[str, Any]:
    """Arguments of ``build_swin_ir`` that our names and the shapes stand for."""
    blocks = [re.fullmatch(r"groups\.(\d+)\.blocks\.(\d+)\.norm1\.weight", name) for name in state]
    places = {(int(m[1]), int(m[2])) for m in blocks if m}
    depths = [sum(g == group for g, _ in places) for group in range(len({g for g, _ in places}))]
    table = state.get("groups.0.blocks.0.mixer.relative_position_bias_table")
    first = state.get("conv_first.weight")
    fc1 = state.get("groups.0.blocks.0.mlp.fc1.weight")
    # A gap: a name alone must not ask for a million blocks.
    complete = places == {(g, b) for g, depth in enumerate(depths) for b in range(depth)}
    if table is None or first is None or fc1 is None or not complete or table.ndim != 2:
        raise UserError(f"{path}: no SwinIR checkpoint of denoising or JPEG (conv_first, bias tables, all blocks)")
    window = (round(len(table) ** 0.5) + 1) // 2
    return {
        "in_channels": int(first.shape[1]),
        "width": int(first.shape[0]),
        "depths": depths,
        "heads": int(table.shape[1]),
        "window": window,
        "mlp_ratio": fc1.shape[1] / fc1.shape[0],
        # No checkpoint says it. The JPEG models are the only ones with window 7.
        "img_range": 255.0 if window == 7 else 1.0,
    }


def read_swinir(
    path: str | Path, ema: bool = False, content: Any = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an official ``.pth``.

    Args:
        ema: take the weights under ``params_ema``, which else are taken only where there are no others.
        content: what :func:`read_torch_file` gave for the path; None to read it.

    Returns:
        Arguments for :func:`paddle_vheat.models.restoration.build_swin_ir`, and the weights under our names.
        ``img_range`` is not in the file: it is that of the published model with this window.

    Raises:
        FileNotFoundError, UnsafeFileError, UserError: naming the file and what is wrong with it.
    """
    content = read_torch_file(path) if content is None else content
    state = convert_state(_pick_state(content, path, ema), str(path))
    return _options(state, path), state


def load_swinir(model: Any, path: str | Path) -> LoadReport:
    """Fill a model from an official ``.pth``, strictly; see :func:`paddle_vheat.weights.loading.load_state`."""
    return load_state(model, convert_state(_pick_state(read_torch_file(path), path), str(path)), str(path))
