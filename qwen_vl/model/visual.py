"""The vision tower: a ViT and a one-layer resampler that turn an image into a few embeddings.

Source: docs/checkpoint_format.md section 4.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_qwen import attend
from .configuration_qwen import QWenConfig

STORED_POSITIONS = 256  # rows of `positional_embedding` in every checkpoint, whatever the image size
RESAMPLER_HEAD_DIM = 128
LAYER_NORM_EPSILON = 1e-6


def sincos_table(channels: int, side: int) -> torch.Tensor:
    """Return the 2-D sine-cosine table [side * side, channels], float32; the first half encodes the column.

    Source: MAE (He et al., 2021), which the published resampler stores as `pos_embed`.
    """

    def one_axis(position: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(channels // 4, dtype=np.float32) / (channels / 4.0))
        angle = np.einsum("m,d->md", position.reshape(-1), omega)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    grid: np.ndarray = np.arange(side, dtype=np.float32)
    column, row = np.meshgrid(grid, grid)
    return torch.from_numpy(np.concatenate([one_axis(column), one_axis(row)], axis=1)).float()


def resize_table(table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Return the table [n, channels] of a square interpolated to [num_positions, channels], in its dtype."""
    if table.shape[0] == num_positions:
        return table
    side, new_side = round(table.shape[0] ** 0.5), round(num_positions**0.5)
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(num_positions, -1).to(table.dtype)


class VisualAttention(nn.Module):
    """Self-attention over patches. Rows of `in_proj` are grouped by head, q|k|v in each."""

    is_causal = False

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.config = config
        width, self.num_heads = config.visual["width"], config.visual["heads"]
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # [images, patches, width]
        images, patches, width = hidden.shape
        mixed = self.in_proj(hidden).view(images, patches, self.num_heads, 3, width // self.num_heads)
        query, key, value = mixed.permute(3, 0, 2, 1, 4)  # each [images, heads, patches, head_dim]
        output, _ = attend(self, query, key, value, is_causal=False)
        return self.out_proj(output.reshape(images, patches, width))


class VisualMLP(nn.Module):
    """Two linears with the exact GELU between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden_width)
        self.c_proj = nn.Linear(hidden_width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(hidden)))


class VisualAttentionBlock(GradientCheckpointingLayer):
    """One pre-norm ViT block."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        width = config.visual["width"]
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = VisualAttention(config)
        self.mlp = VisualMLP(width, int(width * config.visual["mlp_ratio"]))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden))
        return hidden + self.mlp(self.ln_2(hidden))


class VisualTransformer(nn.Module):
    """The stack of ViT blocks."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisualAttentionBlock(config) for _ in range(config.visual["layers"]))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            hidden = block(hidden)
        return hidden


class CrossAttention(nn.Module):
    """Attention of a few queries over all patches, with the packed projections of torch's MultiheadAttention."""

    is_causal = False

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.config = config
        width = config.visual["output_dim"]
        self.num_heads = max(width // RESAMPLER_HEAD_DIM, 1)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    # Shapes: [images, queries | patches, width].
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        projected = []
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        for states, weight, bias in parts:
            states = F.linear(states, weight, bias)
            projected.append(states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        output, _ = attend(self, *projected, is_causal=False)
        return self.out_proj(output.flatten(2))


class Resampler(nn.Module):
    """Learned queries that attend to patches: [images, patches, width] -> [images, n_queries, output_dim]."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        num_queries, width = config.image_span_tokens, config.visual["output_dim"]
        self.query = nn.Parameter(torch.empty(num_queries, width))
        # Checkpoints store it as a parameter, but it is a fixed table and never trains.
        self.pos_embed = nn.Parameter(torch.empty(num_queries, width), requires_grad=False)
        self.kv_proj = nn.Linear(config.visual["width"], width, bias=False)
        self.attn = CrossAttention(config)
        self.ln_q = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.ln_kv = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        value = self.ln_kv(self.kv_proj(hidden))
        table = self.pos_embed.detach()  # loading turns its gradient back on
        key = value + resize_table(table, hidden.shape[1])
        query = (self.ln_q(self.query) + table).expand(hidden.shape[0], -1, -1)
        return self.attn(query, key, value)


class VisionTower(nn.Module):
    """A module from pixel_values [images, 3, size, size] to embeddings [images, n_queries, hidden_size].

    `vit_features` [images, patches, width] replace the ViT's outputs. To save memory in training, a frozen ViT stores
    nothing for the backward pass.
    """

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        width, output_dim, patch = config.visual["width"], config.visual["output_dim"], config.visual["patch_size"]
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(STORED_POSITIONS, width))
        self.ln_pre = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.transformer = VisualTransformer(config)
        self.attn_pool = Resampler(config)
        self.ln_post = nn.LayerNorm(output_dim, eps=LAYER_NORM_EPSILON)
        self.proj = nn.Parameter(torch.empty(output_dim, output_dim))

    def forward(
        self, pixel_values: torch.Tensor | None = None, vit_features: torch.Tensor | None = None
    ) -> torch.Tensor:
        if vit_features is None:
            assert pixel_values is not None  # the caller passes one of the two
            with torch.set_grad_enabled(torch.is_grad_enabled() and (pixel_values.requires_grad or self.vit_trains())):
                vit_features = self.encode(pixel_values)
        return self.ln_post(self.attn_pool(vit_features)) @ self.proj

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the ViT's outputs [images, patches, width] for images."""
        patches = self.conv1(pixel_values.to(self.conv1.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # [images, patches, width]
        hidden = self.ln_pre(patches + resize_table(self.positional_embedding, patches.shape[1]))
        return self.transformer(hidden)

    def vit_trains(self) -> bool:
        """Return whether a weight of the ViT trains. Resampler, `ln_post` and `proj` come after it and do not count."""
        first = (self.positional_embedding, *self.conv1.parameters(), *self.ln_pre.parameters())
        return any(parameter.requires_grad for parameter in (*first, *self.transformer.parameters()))
