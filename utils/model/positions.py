"""Positions on a square grid: made of sines and cosines, or stored for one grid and interpolated for another."""

import math

import torch
from torch.nn import functional as F


def sine_cosine_grid(side: int, width: int) -> torch.Tensor:
    """Fixed positions of a square grid, [side * side, width]: half of the width for rows, half for columns.

    Source: He et al., "Masked autoencoders are scalable vision learners", 2021, after Vaswani et al., 2017.
    """
    if width % 4:
        raise ValueError(f"the encoder is {width} wide; 2-D sine-cosine positions need a multiple of 4")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # [side, width / 4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)


def interpolated(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Positions [s * s, D] stored for a square grid -> [rows * columns, D] for `grid`, bicubic in float32."""
    side = math.isqrt(positions.shape[0])
    if grid == (side, side):
        return positions
    stored = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, s, s]
    resized = F.interpolate(stored, size=grid, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)
