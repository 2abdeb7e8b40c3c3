"""Nyströmformer: softmax attention by way of a few landmarks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_size
from paramixer.nn._rows import at_least_float32, zero_padding
from paramixer.nn.opponents.heads import HeadedMixer, attended


class Nystromformer(HeadedMixer):
    """Attention by the Nyström method, and a convolution of the values.

        attend(Q, K, V) = s(Q K~^T) s(Q~ K~^T)^+ s(Q~ K^T) V + conv(V),    s(A) = softmax(A/sqrt(d))

    The landmarks Q~, K~ are the means of m segments of the rows, ^+ the pseudo-inverse after a few
    iterations, conv one filter a head along the rows. Xiong et al., AAAI 2021, arXiv 2102.03902.
    Time and memory grow with N m. With m >= N and enough iterations it is softmax attention.

    Beyond the published code, N need not be a multiple of m (the j-th of n rows is in segment
    floor(j m / n); with n < m some are empty and take no part), and the iterations start from the
    norms of each matrix by itself, so a result does not depend on the rest of the batch.

    Other arguments, shapes and errors: `HeadedMixer`. The segments are those of the valid rows, the
    convolution knows positions: padding has to come last for a result equal to that without it.

    Args:
        width: input width.
        length: the longest sequence.
        landmarks: number of landmarks m.
        iterations: iterations of the pseudo-inverse.
        kernel: rows that the convolution spans, odd.
        options: `heads`, `bias` and `dropout`.
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        landmarks: int = 64,
        iterations: int = 6,
        kernel: int = 33,
        **options: Any,
    ):
        super().__init__(width, length, **options)
        self.landmarks = check_size("Nystromformer", "landmarks", landmarks)
        self.iterations = check_size("Nystromformer", "iterations", iterations)
        kernel = check_size("Nystromformer", "kernel", kernel)
        if kernel % 2 == 0:
            raise ValueError(f"Nystromformer: kernel must be odd (got {kernel})")
        self.taps = nn.Parameter((2 * torch.rand(self.heads, kernel) - 1) / kernel**0.5)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        valid = query.new_ones(1, query.shape[2], dtype=torch.bool) if mask is None else mask
        valid = attended(valid)
        means, used = self._segments(valid, query.dtype)
        query_marks, key_marks = means.unsqueeze(1) @ query, means.unsqueeze(1) @ key
        used, valid = used[:, None, None], valid[:, None, None]
        marks = F.scaled_dot_product_attention(query_marks, key, value, attn_mask=valid)
        marks = self._inverse(query_marks, key_marks, used).to(value.dtype) @ marks
        mixed = F.scaled_dot_product_attention(query, key_marks, marks, attn_mask=used)
        in_place = value if mask is None else zero_padding(value, mask[:, None])
        # Not conv2d: its backward on the CPU, in torch 2.11, crashed with one head and N < kernel.
        taps = self.taps.repeat_interleave(value.shape[3], 0).unsqueeze(1)
        around, channels = taps.shape[2] // 2, in_place.transpose(1, 2).flatten(2).mT
        filtered = F.conv1d(channels, taps, padding=around, groups=taps.shape[0])
        return mixed + filtered.mT.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _segments(self, valid: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The matrices (B, m, N) that take means of segments, and which (B, m) have any row."""
        ordinal, count = valid.cumsum(1) - 1, valid.sum(1, keepdim=True)
        segment = ordinal * self.landmarks // count
        marks = torch.arange(self.landmarks, device=valid.device).unsqueeze(1)
        member = (segment.unsqueeze(1) == marks) & valid.unsqueeze(1)
        sizes = member.sum(2, keepdim=True)
        return member.to(dtype) / sizes.clamp(min=1), sizes.squeeze(2) > 0

    def _inverse(self, query: Tensor, key: Tensor, used: Tensor) -> Tensor:
        """An approximation of s(Q~ K~^T)^+, (B, H, m, m), zero for landmarks that are not used."""
        with torch.autocast(query.device.type, enabled=False):
            query, key = at_least_float32(query), at_least_float32(key)
            scores = query @ key.mT / query.shape[3] ** 0.5
            matrix = scores.masked_fill(~used, -torch.inf).softmax(3).masked_fill(~used.mT, 0)
            norms = matrix.sum(2).amax(2) * matrix.sum(3).amax(2)
            inverse = matrix.mT / norms[..., None, None]
            identity = torch.eye(self.landmarks, dtype=matrix.dtype, device=matrix.device)
            for _ in range(self.iterations):
                product = matrix @ inverse
                inner = 15 * identity - product @ (7 * identity - product)
                inverse = 0.25 * inverse @ (13 * identity - product @ inner)
            return inverse

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"{super().extra_repr()}, landmarks={self.landmarks}, iterations={self.iterations}"
