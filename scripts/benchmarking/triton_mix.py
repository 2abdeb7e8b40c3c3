"""One factor as a user of Triton would write it: a tile of rows and channels per program.

A program reads K weights a row and K rows of V, and writes its tile of Y once; neighbouring
programs share their rows of V in the L2 cache. Sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32


@triton.jit
def _mix_kernel(
    weight,
    value,
    result,
    offsets,
    length,
    channels,
    links: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_channels: tl.constexpr,
):
    rows = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    columns = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    first = tl.program_id(2).to(tl.int64) * length  # the row this batch item starts at
    inside = rows < length
    mask = inside[:, None] & (columns < channels)[None, :]
    total = tl.zeros((tile_rows, tile_channels), dtype=tl.float32)
    for k in tl.static_range(links):
        source = rows + tl.load(offsets + k)  # the host reduced the offsets to 0 .. N - 1
        source = tl.where(source >= length, source - length, source)
        w = tl.load(weight + (first + rows) * links + k, mask=inside, other=0.0)
        pointers = value + (first + source)[:, None] * channels + columns[None, :]
        v = tl.load(pointers, mask=mask, other=0.0)
        total += w.to(tl.float32)[:, None] * v.to(tl.float32)
    pointers = result + (first + rows)[:, None] * channels + columns[None, :]
    tl.store(pointers, total.to(result.dtype.element_ty), mask=mask)


def mix(weight: Tensor, value: Tensor, offsets: Tensor) -> Tensor:
    """`paramixer.mix` for contiguous W (B, N, K), V (B, N, D) and K int32 offsets in 0 .. N - 1."""
    batch, length, channels = value.shape
    result = torch.empty_like(value)
    tile_channels = min(triton.next_power_of_2(channels), 128)
    grid = (triton.cdiv(length, ROWS), triton.cdiv(channels, tile_channels), batch)
    _mix_kernel[grid](
        weight, value, result, offsets, length, channels, len(offsets), ROWS, tile_channels
    )
    return result
