"""LAMA: pooling by heads of rank-one bilinear attention, and a document classifier around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from paramixer._checks import check_choice, check_mask, check_rows, check_size
from paramixer.nn._rows import at_least_float32, mean_of_valid, zero_padding

POOLING_CONTEXTS = ("learned", "given")
CLASSIFIER_CONTEXTS = ("learned", "mean")
INITIAL_BOUND = 0.1  # the authors draw all weights but the context from U(-0.1, 0.1)


class LamaPooling(nn.Module):
    """m weighted means of N rows: A X, with attention A (m, N) from m bilinear forms of rank one.

        u_t = tanh(W x_t + b),   g_ti = tanh((p_i . c) (q_i . u_t)),   f_t = g_t / |g_t|,
        A_it = exp(f_ti / T) / sum_s exp(f_si / T)

    where the context c asks the same of all rows and the norm is over the m heads. The p_i and q_i
    together factorise one bilinear form W = P Q^T of rank m, c^T W u = sum_i (p_i . c)(q_i . u),
    and every term is a head: 2 D m parameters. Mehta, Rangwala and Ramakrishnan (arXiv 1912.00835).

    As f lies in [-1, 1], the largest weight of a head is at most exp(2 / T) times its smallest:
    at the published T = 1 attention is nearly flat by construction. Scores and sums are in float32
    for 16-bit dtypes, under autocast too.

    Args:
        width: width D of the rows.
        heads: number of heads m, at least 2: with one f is 1 or -1 and has no gradient.
        context: "learned": c is a parameter. "given": it comes with every call.
        context_width: width of c; default D.
        mlp: whether there are W and b; else u_t = x_t.
        temperature: T > 0.

    Shapes:
        x (B, N, D), N >= 1; mask (B, N), bool, True where valid; context (B, context_width).
        The result is the pair of A X (B, m, D) and A (B, m, N). A is zero at padding, and a
        sequence without a valid row gives zeros. What padding holds and how much there is of it
        changes nothing.

    Raises:
        ValueError: at construction when an argument is out of range; in the call when a tensor has
            the wrong shape, N = 0, or context is not given exactly where it should be.
        TypeError: at construction when a size is not an integer; in the call when x or context is
            not floating or mask is not bool.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: str = "learned",
        context_width: int | None = None,
        mlp: bool = True,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.width = check_size("LamaPooling", "width", width)
        self.heads = check_size("LamaPooling", "heads", heads)
        if self.heads == 1:
            raise ValueError("LamaPooling: heads must be at least 2 (got 1)")
        check_choice("LamaPooling", "context", context, POOLING_CONTEXTS)
        context_width = self.width if context_width is None else context_width
        self.context_width = check_size("LamaPooling", "context_width", context_width)
        if not temperature > 0:
            raise ValueError(f"LamaPooling: temperature must be positive (got {temperature})")
        self.temperature = float(temperature)
        self.mlp = nn.Linear(self.width, self.width) if mlp else None
        self.query = nn.Linear(self.width, self.heads, bias=False)  # Q^T
        self.context_query = nn.Linear(self.context_width, self.heads, bias=False)  # P^T
        learned = torch.empty(self.context_width) if context == "learned" else None
        self.context = None if learned is None else nn.Parameter(learned)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew: all from U(-0.1, 0.1), but the context as Xavier normal."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INITIAL_BOUND, INITIAL_BOUND)
        if self.context is not None:
            nn.init.xavier_normal_(self.context.unsqueeze(0))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows (B, N, D) to their means (B, m, D) and the weights (B, m, N) of these."""
        self._check(x, mask, context)
        x = zero_padding(x, mask)
        hidden = x if self.mlp is None else self.mlp(x).tanh()
        rows = self.query(hidden)
        asked = self.context_query(self.context if context is None else context.unsqueeze(1))
        with torch.autocast(x.device.type, enabled=False):
            score = F.normalize((at_least_float32(asked) * at_least_float32(rows)).tanh(), dim=2)
            attention = _masked_softmax(score.mT / self.temperature, mask)
            pooled = attention @ at_least_float32(x)
        return pooled.to(rows.dtype), attention.to(rows.dtype)

    def _check(self, x: Tensor, mask: Tensor | None, context: Tensor | None) -> None:
        check_rows("LamaPooling", "x", x, self.width)
        if x.shape[1] == 0:
            raise ValueError("LamaPooling: x must have N >= 1 (got N = 0)")
        if mask is not None:
            check_mask("LamaPooling", "mask", x, mask)
        if self.context is not None:
            if context is not None:
                raise ValueError("LamaPooling: context must be None where it is learned")
            return
        expected = [x.shape[0], self.context_width]
        if context is None or list(context.shape) != expected:
            got = None if context is None else f"shape {list(context.shape)}"
            raise ValueError(f"LamaPooling: context must be (B, C) = {expected} (got {got})")
        if not context.is_floating_point():
            raise TypeError(f"LamaPooling: context must be floating (got {context.dtype})")

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"width={self.width}, heads={self.heads}, temperature={self.temperature}"


class BidirectionalGRU(nn.GRU):
    """Two GRUs, one from the first valid row on and one from the last, their states side by side.

    Called like every mixer, for what is pooled behind it. Padding is packed away: neither direction
    sees it, and the result is zero there. PyTorch cannot export a packed GRU, and `torch.compile`
    leaves it out of its graphs.

    Args:
        width: width E of the rows.
        hidden: width h of the states of each direction; default E / 2, rounded up.

    Attributes:
        value_width: width of the result, D = 2 h.

    Shapes:
        x (B, N, E); mask (B, N), bool, True where valid; result (B, N, D).

    Raises:
        ValueError: at construction when a size is below 1; in the call when x or mask has the
            wrong shape.
        TypeError: at construction when a size is not an integer; in the call when x is not
            floating or mask is not bool.
    """

    def __init__(self, width: int, hidden: int | None = None):
        name = "BidirectionalGRU"
        width = check_size(name, "width", width)
        hidden = check_size(name, "hidden", (width + 1) // 2 if hidden is None else hidden)
        super().__init__(width, hidden, batch_first=True, bidirectional=True)
        self.width, self.value_width = width, 2 * hidden

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Rows (B, N, E) to states (B, N, D)."""
        check_rows("BidirectionalGRU", "x", x, self.width)
        if mask is not None:
            check_mask("BidirectionalGRU", "mask", x, mask)
        if x.numel() == 0:
            return x @ x.new_zeros(self.width, self.value_width)
        return nn.GRU.forward(self, x)[0] if mask is None else self._packed(x, mask)

    def _packed(self, x: Tensor, mask: Tensor) -> Tensor:
        """Valid rows to the front, in their order, and their states back to where they were."""
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        front = zero_padding(x, mask).gather(1, order.unsqueeze(2).expand_as(x))
        lengths = mask.sum(1).clamp(min=1).cpu()  # a packed sequence cannot be empty
        packed = pack_padded_sequence(front, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            nn.GRU.forward(self, packed)[0], batch_first=True, total_length=x.shape[1]
        )
        states = states.gather(1, order.argsort(dim=1).unsqueeze(2).expand_as(states))
        return zero_padding(states, mask)


class LamaClassifier(nn.Module):
    """Embedding, bidirectional GRU, `LamaPooling` of its states, and two linear layers.

    The network of arXiv 1912.00835 with its sizes as defaults. The backward direction of its
    `BidirectionalGRU` starts at the last valid token; the authors' starts in the padding.
    `LamaPooling` alone can be exported and compiled.

    Args:
        vocabulary: number of tokens.
        classes: number of outputs C.
        width: width E of the embedding.
        hidden: width h of the GRU in each direction; its states have D = 2 h.
        heads: number of heads m.
        context: "learned": one vector for all documents (LAMA). "mean": the mean of the document's
            word embeddings (LAMA+ctx).
        mlp: whether scores come from tanh(W h_t + b) or from the states h_t themselves.
        temperature: that of the attention.
        head_hidden: width between the two linear layers.
        head_activation: whether a ReLU stands between them; the authors have none.
        dropout: probability of dropout between them.
        padding_idx: token whose embedding is zero and gets no gradient.

    Shapes:
        x tokens (B, N), N >= 1; mask (B, N), bool, True where valid; result (B, C). Only valid
        tokens and their order count: what padding holds, where and how much there is of it changes
        nothing.

    Raises:
        ValueError: at construction when an argument is out of range; in the call when x or mask
            has the wrong shape or N = 0.
        TypeError: at construction when a size is not an integer; in the call when x is not int64
            or int32 or mask is not bool.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        width: int = 100,
        hidden: int = 50,
        heads: int = 5,
        context: str = "learned",
        mlp: bool = True,
        temperature: float = 1.0,
        head_hidden: int = 512,
        head_activation: bool = False,
        dropout: float = 0.4,
        padding_idx: int | None = None,
    ):
        super().__init__()
        name = "LamaClassifier"
        vocabulary = check_size(name, "vocabulary", vocabulary)
        classes = check_size(name, "classes", classes)
        width, hidden = check_size(name, "width", width), check_size(name, "hidden", hidden)
        head_hidden = check_size(name, "head_hidden", head_hidden)
        check_choice(name, "context", context, CLASSIFIER_CONTEXTS)
        self.mean_context = context == "mean"
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=padding_idx)
        self.gru = BidirectionalGRU(width, hidden)
        self.pooling = LamaPooling(
            2 * hidden,
            heads,
            context="given" if self.mean_context else "learned",
            context_width=width if self.mean_context else 2 * hidden,
            mlp=mlp,
            temperature=temperature,
        )
        self.head = nn.Sequential(
            nn.Linear(heads * 2 * hidden, head_hidden),
            nn.ReLU() if head_activation else nn.Identity(),
            nn.Dropout(dropout),
            nn.Linear(head_hidden, classes),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N) to (B, C)."""
        pooled, _ = self.pool(x, mask)
        return self.head(pooled.flatten(1))

    def pool(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the head is applied to, (B, m, D), and the attention (B, m, N)."""
        if x.dim() != 2 or x.shape[1] == 0:
            raise ValueError(
                f"LamaClassifier: x must be tokens (B, N), N >= 1 (got shape {list(x.shape)})"
            )
        if x.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"LamaClassifier: x must be int64 or int32 tokens (got {x.dtype})")
        if mask is not None:
            check_mask("LamaClassifier", "mask", x, mask)
        embedded = zero_padding(self.embedding(x), mask)
        context = mean_of_valid(embedded, mask) if self.mean_context else None
        return self.pooling(self.gru(embedded, mask), mask, context)


def diversity_penalty(attention: Tensor) -> Tensor:
    """How much heads attend to the same rows: the mean over the batch of ``|A A^T - I|^2``.

    Of Lin et al., "A Structured Self-attentive Sentence Embedding" (arXiv 1703.03130). Published
    LAMA has none; add it to the loss with a weight of your choice.

    Args:
        attention: A, (B, m, N), as `LamaPooling` returns it.

    Returns:
        A number that is 0 where every head attends to one row, each to another.
    """
    identity = torch.eye(attention.shape[1], dtype=attention.dtype, device=attention.device)
    return (attention @ attention.mT - identity).square().sum((1, 2)).mean()


def _masked_softmax(score: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of (B, m, N) over valid rows; zero at the others, and without any zero throughout."""
    if mask is None:
        return score.softmax(2)
    padding = ~mask.unsqueeze(1)
    lowest = torch.finfo(score.dtype).min
    return score.masked_fill(padding, lowest).softmax(2).masked_fill(padding, 0)
