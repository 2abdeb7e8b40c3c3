"""The block of a Transformer encoder, around any mixer."""

from typing import Any

from torch import Tensor, nn

from paramixer._checks import check_size
from paramixer.nn._rows import zero_padding
from paramixer.nn.opponents.heads import padded_input
from paramixer.nn.opponents.softmax import SoftmaxAttention


class EncoderBlock(nn.Module):
    """A mixer and a network for single rows, each residual and normalised.

        x = x + dropout(mixer(LayerNorm(x)))
        x = x + dropout(Linear(dropout(GELU(Linear(LayerNorm(x))))))

    or, as first published, every LayerNorm after its sum: x = LayerNorm(x + dropout(mixer(x))).
    With `SoftmaxAttention` this is the encoder block of the Transformer (arXiv 1706.03762, there
    with ReLU; normalised first: Xiong et al., ICML 2020, arXiv 2002.04745).

    Args:
        mixer: called as mixer(x, mask), from (B, N, E) to (B, N, E).
        width: width E of input and result.
        length: the longest sequence.
        hidden: width of the network's hidden layer; default 4 E.
        bias: whether the network and the norms have a bias.
        dropout: probability of dropout, as above.
        norm_first: whether what is mixed is normalised, or what is added up.

    Shapes:
        x (B, N, E); mask (B, N), bool, True where valid; result (B, N, E), zero at padding.

    Raises:
        ValueError: a size is out of range, the mixer states another width or a smaller length, x or
            mask has the wrong shape, or N > length.
        TypeError: a size is not an integer, x is not floating or mask is not bool.
    """

    def __init__(
        self,
        mixer: nn.Module,
        width: int,
        length: int,
        *,
        hidden: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        norm_first: bool = True,
    ):
        super().__init__()
        name = type(self).__name__
        self.width = check_size(name, "width", width)
        self.length = check_size(name, "length", length)
        widths = {getattr(mixer, stated, self.width) for stated in ("width", "value_width")}
        if widths != {self.width} or getattr(mixer, "length", self.length) < self.length:
            raise ValueError(
                f"{name}: mixer must take and give width {self.width} up to length {self.length} "
                f"(got {mixer})"
            )
        hidden = check_size(name, "hidden", 4 * self.width if hidden is None else hidden)
        self.norm_first = norm_first
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(self.width, bias=bias)
        self.row_norm = nn.LayerNorm(self.width, bias=bias)
        self.dropout = nn.Dropout(dropout)
        inner, outer = nn.Linear(self.width, hidden, bias), nn.Linear(hidden, self.width, bias)
        self.rows = nn.Sequential(inner, nn.GELU(), nn.Dropout(dropout), outer, self.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E)."""
        x = padded_input(self, x, mask)
        if self.norm_first:
            x = x + self.dropout(self.mixer(self.mixer_norm(x), mask))
            x = x + self.rows(self.row_norm(x))
        else:
            x = self.mixer_norm(x + self.dropout(self.mixer(x, mask)))
            x = self.row_norm(x + self.rows(x))
        return zero_padding(x, mask)


class TransformerBlock(EncoderBlock):
    """`EncoderBlock` around a `SoftmaxAttention` with the same arguments.

    `options` are `hidden` and `norm_first`.
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        heads: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        **options: Any,
    ):
        mixer = SoftmaxAttention(width, length, heads=heads, bias=bias, dropout=dropout)
        super().__init__(mixer, width, length, bias=bias, dropout=dropout, **options)
