"""vHeat as one would port it line by line: NCHW, plain operations, autograd. Slow, and independent of ours.

It reads the published parameter names directly, so it shares neither layout, names nor formulation with the
package. Used to check gradients, and as the baseline of the benchmarks.
"""

from __future__ import annotations

import math

import numpy as np

from paddle_vheat._paddle import paddle

F = paddle.nn.functional


def cosine(n, dtype):
    mode, position = np.arange(n)[:, None], np.arange(n)[None]
    matrix = np.cos(math.pi * mode * (position + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return paddle.to_tensor(matrix).astype(dtype)


def channel_norm(x, weight, bias, epsilon):
    mean = x.mean(axis=1, keepdim=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdim=True)
    return (x - mean) / paddle.sqrt(variance + epsilon) * weight.reshape([1, -1, 1, 1]) + bias.reshape([1, -1, 1, 1])


class PlainVHeat:
    """Published state dict (NumPy arrays) -> forward pass. Post-norm where the blocks have a layer scale."""

    def __init__(self, state, dtype="float64"):
        self.p = {name: paddle.to_tensor(value).astype(dtype) for name, value in state.items()}
        for tensor in self.p.values():
            tensor.stop_gradient = False
        self.dtype = dtype

    def norm(self, x, name, epsilon=1e-5):
        return channel_norm(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], epsilon)

    def linear(self, x, name):
        weight = self.p[f"{name}.weight"].reshape([*self.p[f"{name}.weight"].shape[:2], 1, 1])
        return F.conv2d(x, weight, self.p.get(f"{name}.bias"))

    def hco(self, x, name, embedding):
        _, channels, height, width = x.shape
        x = F.conv2d(x, self.p[f"{name}.dwconv.weight"], self.p[f"{name}.dwconv.bias"], padding=1, groups=channels)
        both = self.linear(x, f"{name}.linear")
        heat, gate = both[:, :channels], both[:, channels:]
        rows, columns = cosine(height, self.dtype), cosine(width, self.dtype)
        modes = paddle.matmul(paddle.matmul(rows, heat), columns, transpose_y=True)
        decay = self.decay(name, embedding, height, width)
        heat = paddle.matmul(paddle.matmul(rows, modes * decay, transpose_x=True), columns)
        return self.linear(self.norm(heat, f"{name}.out_norm") * gate * F.sigmoid(gate), f"{name}.out_linear")

    def decay(self, name, embedding, height, width):
        k = F.relu(self.linear(embedding.transpose([2, 0, 1]).unsqueeze(0), f"{name}.to_k.0"))
        w = [paddle.arange(n, dtype="float64").astype(self.dtype) * math.pi / n for n in (height, width)]
        return paddle.exp(-k * (w[0].reshape([-1, 1]) ** 2 + w[1].reshape([1, -1]) ** 2))

    def block(self, x, name, embedding):
        def mlp(y):
            y = self.linear(y, f"{name}.mlp.fc1")
            return self.linear(0.5 * y * (1 + paddle.erf(y / math.sqrt(2))), f"{name}.mlp.fc2")

        if f"{name}.gamma1" in self.p:
            scale = [self.p[f"{name}.gamma{i}"].reshape([1, -1, 1, 1]) for i in (1, 2)]
            x = x + scale[0] * self.norm(self.hco(x, f"{name}.op", embedding), f"{name}.norm1")
            return x + scale[1] * self.norm(mlp(x), f"{name}.norm2")
        x = x + self.hco(self.norm(x, f"{name}.norm1"), f"{name}.op", embedding)
        return x + mlp(self.norm(x, f"{name}.norm2"))

    def stages(self, x):
        p = self.p
        x = F.conv2d(x, p["patch_embed.conv1.weight"], p["patch_embed.conv1.bias"], stride=2, padding=1)
        x = self.norm(x, "patch_embed.norm1.1", 1e-6)
        x = 0.5 * x * (1 + paddle.erf(x / math.sqrt(2)))
        x = F.conv2d(x, p["patch_embed.conv2.weight"], p["patch_embed.conv2.bias"], stride=2, padding=1)
        x = self.norm(x, "patch_embed.norm2.1", 1e-6)
        outputs = []
        for s in range(4):
            depth = 0
            while f"layers.{s}.{depth}.norm1.weight" in p:
                x = self.block(x, f"layers.{s}.{depth}", p[f"freq_embed.{s}"])
                depth += 1
            outputs.append(x)
            if s < 3:
                x = F.conv2d(x, p[f"layers.{s}.{depth}.0.weight"], stride=2, padding=1)
                x = self.norm(x, f"layers.{s}.{depth}.1")
        return outputs

    def logits(self, x):
        pooled = self.norm(self.stages(x)[-1], "classifier.0").mean(axis=[2, 3], keepdim=True)
        return self.linear(pooled, "classifier.3").flatten(1)


def published_layout(model):
    """Our classifier's parameters under the published names: the key map, backwards and by hand."""
    state = {}
    depths = [len(stage.blocks) for stage in model.backbone.stages]
    for name, parameter in model.named_parameters():
        value, part = parameter.numpy(), name.split(".")
        if value.ndim == 2:
            value = value.T
        if part[0] == "norm":
            new = f"classifier.0.{part[1]}"
        elif part[0] == "head":
            new = f"classifier.3.{part[1]}"
        elif part[1].startswith("outnorm"):
            new = ".".join(part[1:])
        elif part[1] == "stem":
            new = f"patch_embed.{part[2]}{'.1' if 'norm' in part[2] else ''}.{part[3]}"
        elif part[3] == "frequency_embedding":
            new = f"freq_embed.{part[2]}"
        elif part[3] == "downsample":
            new = f"layers.{part[2]}.{depths[int(part[2])]}.{0 if part[4] == 'conv' else 1}.{part[5]}"
        else:
            rest = ".".join(part[5:]).replace("hco.", "op.").replace("to_k.", "to_k.0.")
            new = f"layers.{part[2]}.{part[4]}.{rest}"
        assert new not in state
        state[new] = value
    return state
