"""Softmax attention, the mixer of the Transformer."""

import torch.nn.functional as F
from torch import Tensor

from paramixer.nn.opponents.heads import HeadedMixer, attended


class SoftmaxAttention(HeadedMixer):
    """Attention with all N x N scores: attend(Q, K, V) = softmax(Q K^T / sqrt(d)) V.

    Vaswani et al., NeurIPS 2017, arXiv 1706.03762. Time grows with N^2; the scores themselves are
    stored only where PyTorch has no fused kernel. Arguments, shapes and errors: `HeadedMixer`.
    Padded keys have no weight, so padding may lie anywhere.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        keys = None if mask is None else attended(mask)[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
