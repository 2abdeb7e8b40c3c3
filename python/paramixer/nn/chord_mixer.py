"""ChordMixer: mixing by rotations of channel tracks, without weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_choice, check_sequence, check_size
from paramixer.links import MAX_LINKS, chord
from paramixer.ops import rotate_tracks

NORMS = ("none", "layer", "batch")


class ChordMixerBlock(nn.Module):
    """norm(x + Rotate(MLP(norm(x)))), MLP = Linear-GELU-dropout-Linear-dropout.

    Args:
        width: channels D.
        shifts: one a track; their number divides D.
        hidden: hidden width h of the MLP.
        dropout: probability of both dropouts.
        prenorm: normalisation before the MLP: "none", "layer" or "batch".
        postnorm: normalisation after the sum.
    """

    def __init__(
        self,
        width: int,
        shifts: list[int],
        hidden: int,
        *,
        dropout: float = 0.0,
        prenorm: str = "layer",
        postnorm: str = "none",
    ):
        super().__init__()
        self.shifts = shifts
        self.prenorm = _norm(prenorm, width)
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.postnorm = _norm(postnorm, width)
        for layer in (self.hidden, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, valid: Tensor | None, lengths: Tensor | None) -> Tensor:
        """X (B, N, D) to (B, N, D); valid (B, N) is True in the first `lengths` (B) rows."""
        inner = self.dropout(F.gelu(self.hidden(_normalised(self.prenorm, x, valid))))
        mixed = rotate_tracks(self.dropout(self.output(inner)), self.shifts, lengths)
        return _normalised(self.postnorm, x + mixed, valid)


class ChordMixer(nn.Module):
    """A mixer of position-wise networks, between which tracks of channels rotate.

    With MLP = Linear-GELU-dropout-Linear-dropout and the channels cut into T tracks, a block is

        x <- postnorm(x + Rotate(MLP(prenorm(x))))
        Rotate(v)[i, track t] = v[(i + o_t) mod n, track t],   o = (0, 1, 2, 4, .., 2^(T-2))

    on the ring of the n rows of a sequence. After ceil(log2 n) blocks every row depends on every
    other. Khalitov et al., ICLR 2023, arXiv 2206.05852.

    Every sequence rotates in the ring of its own valid rows, so that sequences of any lengths share
    a batch and each gives what it would give alone, without padding. (The published code takes
    fewer blocks for shorter sequences and has to sort them by length; here all go through all
    blocks.)

    Args:
        width: channels E of input and result, a multiple of the tracks T.
        length: the longest sequence.
        tracks: number of tracks T; default the published 1 + ceil(log2 length).
        blocks: number of blocks; default ceil(log2 length), at least one.
        hidden: hidden width of the MLPs; default `width`.
        dropout: probability of both dropouts of an MLP.
        prenorm: normalisation before the MLP: "none", "layer" (LayerNorm) or "batch" (BatchNorm
            over all valid rows of the batch).
        postnorm: normalisation of a block's result. Published with fixed lengths: "layer" or
            "batch" before and "batch" after; with variable lengths: "none" and "none".

    Shapes:
        x (B, N, E), N <= length; mask (B, N), bool, True where valid, of any form: the valid rows
        of a sequence, in their order, are its ring. Result (B, N, E), zero at padding; what padding
        holds changes nothing. "batch" in training with a mask picks rows by the mask, which breaks
        the graph of `torch.compile`.

    Raises:
        ValueError: at construction when an argument is out of range or T does not divide `width`;
            in the call when x or mask has the wrong shape or N > length.
        TypeError: at construction when a size is not an integer; in the call when x is not floating
            or mask is not bool.
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        tracks: int | None = None,
        blocks: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        prenorm: str = "layer",
        postnorm: str = "none",
    ):
        super().__init__()
        width = check_size("ChordMixer", "width", width)
        length = check_size("ChordMixer", "length", length)
        if tracks is not None:
            tracks = check_size("ChordMixer", "tracks", tracks, MAX_LINKS)
        if blocks is not None:
            blocks = check_size("ChordMixer", "blocks", blocks)
        hidden = check_size("ChordMixer", "hidden", width if hidden is None else hidden)
        check_choice("ChordMixer", "prenorm", prenorm, NORMS)
        check_choice("ChordMixer", "postnorm", postnorm, NORMS)
        shifts = chord(length, blocks, tracks)  # those of a block
        self.width = width
        self.length = length
        self.tracks = len(shifts[0])
        if width % self.tracks != 0:
            raise ValueError(
                "ChordMixer: width must be a multiple of the tracks, by default "
                f"1 + ceil(log2 length) (got width {width} and {self.tracks} tracks)"
            )
        norms = {"prenorm": prenorm, "postnorm": postnorm}
        self.blocks = nn.ModuleList(
            ChordMixerBlock(width, tracks, hidden, dropout=dropout, **norms) for tracks in shifts
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E); see the class for the mask."""
        if x.dim() != 3 or x.shape[2] != self.width:
            raise ValueError(
                f"ChordMixer: x must be (B, N, {self.width}) (got shape {list(x.shape)})"
            )
        if not x.is_floating_point():
            raise TypeError(f"ChordMixer: x must be floating (got {x.dtype})")
        check_sequence("ChordMixer", x, mask, self.length)
        if mask is None:
            for block in self.blocks:
                x = block(x, None, None)
            return x
        # The valid rows first, in their order, and zeros behind: gradients stay finite where
        # padding is not.
        order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        lengths = mask.sum(1)
        valid = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
        x = _zero_padding(_rows(x, order), valid)
        for block in self.blocks:
            x = block(x, valid, lengths)
        return _rows(_zero_padding(x, valid), order.argsort(1))

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"width={self.width}, length={self.length}, tracks={self.tracks}"


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """x[b, order[b, i]] in row i of sequence b."""
    first = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (order + first).flatten()).view(x.shape)


def _zero_padding(x: Tensor, valid: Tensor) -> Tensor:
    return x.masked_fill(~valid.unsqueeze(2), 0)


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(width)
    return nn.BatchNorm1d(width) if kind == "batch" else nn.Identity()


def _normalised(norm: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """norm(x), where padding takes no part in the statistics of a batch."""
    if not isinstance(norm, nn.BatchNorm1d):
        return norm(x)
    if valid is None or not norm.training:
        return norm(x.flatten(0, 1)).view(x.shape)
    normalised = torch.zeros_like(x)
    normalised[valid] = norm(x[valid])
    return normalised
