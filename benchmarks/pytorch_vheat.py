"""vHeat in PyTorch, written from the paper's formulas, and a process that times it. Imports no Paddle.

Names are those of the published checkpoints. ``beside_pytorch.py`` starts the processes and compares the outputs.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import _process
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def cosines(n: int) -> torch.Tensor:
    """The orthonormal DCT-II matrix (n, n)."""
    mode, position = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * mode * (position + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of NCHW."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class HeatConduction(nn.Module):
    def __init__(self, channels: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.linear = nn.Linear(channels, 2 * channels)
        self.to_k = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.out_norm = nn.LayerNorm(channels)
        self.out_linear = nn.Linear(channels, channels)
        height, width = size
        rows, columns = (torch.arange(n) * math.pi / n for n in size)
        self.register_buffer("squares", (rows[:, None] ** 2 + columns[None] ** 2)[..., None], persistent=False)
        self.register_buffer("rows", cosines(height), persistent=False)
        self.register_buffer("columns", cosines(width), persistent=False)
        self.k_exp: torch.Tensor | None = None  # once folded

    def decay(self, embedding: torch.Tensor) -> torch.Tensor:
        return torch.exp(-self.to_k(embedding) * self.squares)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        both = self.linear(self.dwconv(x).permute(0, 2, 3, 1))
        heat, gate = both.chunk(2, dim=-1)
        batch, height, width, channels = heat.shape

        def transform(rows: torch.Tensor, columns: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
            half = (rows @ heat.reshape(batch, height, width * channels)).reshape(batch, height, width, channels)
            return columns @ half

        modes = transform(self.rows, self.columns, heat)
        modes = modes * (self.decay(embedding) if self.k_exp is None else self.k_exp)
        heat = transform(self.rows.T, self.columns.T, modes)
        return self.out_linear(self.out_norm(heat) * F.silu(gate)).permute(0, 3, 1, 2)


class MLP(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, channels: int, size: tuple[int, ...], scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.op, self.mlp = HeatConduction(channels, size), MLP(channels)
        self.scaled = scaled  # post-norm with a scale for each channel: small and base
        if scaled:
            self.gamma1, self.gamma2 = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        if self.scaled:
            x = x + self.gamma1.view(-1, 1, 1) * self.norm1(self.op(x, embedding))
            return x + self.gamma2.view(-1, 1, 1) * self.norm2(self.mlp(x))
        x = x + self.op(self.norm1(x), embedding)
        return x + self.mlp(self.norm2(x))


class VHeat(nn.Module):
    """The classifier, from a published state: name -> array."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        super().__init__()
        embeddings = [state[f"freq_embed.{i}"] for i in range(4)]
        width, widths = embeddings[0].shape[2], [e.shape[2] for e in embeddings]
        self.freq_embed = nn.ParameterList([nn.Parameter(torch.empty(*e.shape)) for e in embeddings])
        self.patch_embed = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(3, width // 2, 3, 2, 1),
                "norm1": nn.Sequential(nn.Identity(), ChannelNorm(width // 2, 1e-6)),
                "conv2": nn.Conv2d(width // 2, width, 3, 2, 1),
                "norm2": nn.Sequential(nn.Identity(), ChannelNorm(width, 1e-6)),
            }
        )
        scaled = "layers.0.0.gamma1" in state
        self.layers = nn.ModuleList()
        for i, (channels, embedding) in enumerate(zip(widths, embeddings)):
            depth = sum(f"layers.{i}.{j}.norm1.weight" in state for j in range(100))
            blocks: list[nn.Module] = [Block(channels, embedding.shape[:2], scaled) for _ in range(depth)]
            if i < 3:
                convolution = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
                blocks.append(nn.Sequential(convolution, ChannelNorm(2 * channels)))
            self.layers.append(nn.ModuleList(blocks))
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.classifier = nn.Sequential(
            ChannelNorm(widths[-1]), *pool, nn.Linear(widths[-1], len(state["classifier.3.bias"]))
        )
        self.load_state_dict({k: torch.from_numpy(v).reshape(self.state_dict()[k].shape) for k, v in state.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.patch_embed
        x = F.gelu(stem["norm1"](stem["conv1"](x)))
        x = stem["norm2"](stem["conv2"](x))
        for embedding, stage in zip(self.freq_embed, self.layers):
            for layer in stage:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
        return self.classifier(x)

    @torch.no_grad()
    def fold(self) -> VHeat:
        """Make every decay a constant, in place."""
        for embedding, stage in zip(self.freq_embed, self.layers):
            for layer in stage:
                if isinstance(layer, Block):
                    layer.op.k_exp = layer.op.decay(embedding)
        return self


def inference(model: Any, images: torch.Tensor) -> tuple[Callable[[], Any], np.ndarray]:
    def run() -> Any:
        with torch.inference_mode():
            return model(images)

    return run, run().numpy()


def training(model: Any, images: torch.Tensor, labels: torch.Tensor) -> tuple[Callable[[], Any], np.ndarray]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> Any:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, np.array([float(step()) for _ in range(2)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, help="JSON, as beside_pytorch.py gives it")
    job = json.loads(parser.parse_args().job)
    torch.set_num_threads(job["threads"])
    before = _process.resident_mib()
    with np.load(job["inputs"]) as inputs:
        arrays = {name: inputs[name] for name in inputs.files}
    images, labels = torch.from_numpy(arrays.pop("images")), torch.from_numpy(arrays.pop("labels"))
    model: Any = VHeat(arrays)
    if job["train"]:
        model.train()
    else:
        model.eval().fold()
    if job["form"] == "compiled":
        model = torch.compile(model)
    run, found = training(model, images, labels) if job["train"] else inference(model, images)
    np.save(job["outputs"], found)
    print(json.dumps(_process.measure(run, job["least"], before)))


if __name__ == "__main__":
    main()
