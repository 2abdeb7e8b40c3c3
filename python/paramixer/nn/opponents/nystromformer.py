"""Nyströmformer: softmax attention by way of a few landmarks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_size
from paramixer.nn.opponents.heads import HeadedMixer, at_least_float32, attended, zero_padding


class Nystromformer(HeadedMixer):
    """Attention by the Nyström method, and a convolution of the values.

        attend(Q, K, V) = s(Q K~^T) s(Q~ K~^T)^+ s(Q~ K^T) V + conv(V),    s(A) = softmax(A/sqrt(d))

    The landmarks Q~, K~ are the means of m segments of the rows, ^+ the pseudo-inverse after a few
    iterations, conv one filter a head along the rows. Xiong et al., AAAI 2021, arXiv 2102.03902.
    Time and memory grow with N m. With m >= N and enough iterations it is softmax attention.

    Beyond the published code, N need not be a multiple of m (the j-th of n rows is in segment
    floor(j m / n); with n < m some are empty and take no part), and the iterations start from the
    norms of each matrix by itself, so a result does not depend on the rest of the batch.

    Other arguments, shapes and errors: `HeadedMixer`. The segments are those of the valid rows; the
    convolution alone knows positions, so a result equals that of the sequence without its padding
    where that comes last.

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
        # Not Conv2d, whose CPU backward in torch 2.11 corrupts memory with one head and N < kernel.
        self.convolution = nn.Conv1d(
            self.heads, self.heads, kernel, padding=kernel // 2, groups=self.heads, bias=False
        )

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
        channels = in_place.movedim(3, 1)
        return mixed + self.convolution(channels.flatten(0, 1)).view_as(channels).movedim(1, 3)

    def _segments(self, valid: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The matrices (B, m, N) that take means of segments, and which (B, m) have any row."""
        ordinal, count = valid.cumsum(1) - 1, valid.sum(1, keepdim=True)
        segment = ordinal * self.landmarks // count.clamp(min=1)
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
