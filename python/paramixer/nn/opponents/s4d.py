"""S4D: a diagonal state space for every channel, applied as a convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramixer._checks import check_size
from paramixer.nn._rows import at_least_float32, zero_padding
from paramixer.nn.opponents.heads import padded_input

STEPS = (1e-3, 1e-1)  # the least and the greatest step of a fresh layer


class S4D(nn.Module):
    """A linear state space for every channel, in both directions, then GELU and a gate.

        u_i = sum_{j <= i} k_{i-j} x_j + sum_{j > i} k'_{j-i-1} x_j + D x_i
        k_t = 2 Re sum_n C_n (exp(s a_n) - 1) / a_n exp(t s a_n)        (k' with C' for C)
        y = A sigmoid(G),    [A, G] = Linear(dropout(GELU(u)))

    k_t is 2 Re sum_n C_n z_n, dz_n/dt = a_n z_n + x, after x = 1 for one step s and t steps more;
    at first a_n = -1/2 + i pi n (S4D-Lin). Gu et al., NeurIPS 2022, arXiv 2206.11893. FFTs of 2 N
    rows, in float32 at least, take O(N log N) time, k O(length states). k is the same for all data.

    Args:
        width: input width E, also that of the result.
        length: the longest sequence.
        states: complex states a channel, each standing for a conjugate pair.
        bias: whether the linear layer has a bias.
        dropout: probability of dropout, as above.

    Shapes:
        x (B, N, E), floating, N <= length; mask (B, N), bool, True where valid; result (B, N, E),
        zero at padding, else that of the sequence without its padding where that comes last.

    Raises:
        ValueError: a size is out of range, x or mask has the wrong shape, or N > length.
        TypeError: a size is not an integer, x is not floating or mask is not bool.
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        states: int = 32,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.width = check_size("S4D", "width", width)
        self.length = check_size("S4D", "length", length)
        self.states = check_size("S4D", "states", states)
        self.log_step = nn.Parameter(torch.empty(self.width, 1).uniform_(*map(math.log, STEPS)))
        self.log_decay = nn.Parameter(torch.full((self.width, self.states), math.log(0.5)))
        self.frequency = nn.Parameter(torch.pi * torch.arange(self.states).repeat(self.width, 1))
        # C and C', their real and imaginary parts last.
        self.readout = nn.Parameter(torch.randn(2, self.width, self.states, 2) / math.sqrt(2))
        self.skip = nn.Parameter(torch.randn(self.width))
        self.output = nn.Linear(self.width, 2 * self.width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes x (B, N, E) into (B, N, E)."""
        x = padded_input(self, x, mask)
        if x.numel() == 0:
            return F.glu(self.output(x))
        mixed = self.output(self.dropout(F.gelu(self._convolve(x))))
        return zero_padding(F.glu(mixed), mask)

    def kernels(self) -> Tensor:
        """The numbers k and k', (2, E, more than `length`)."""
        with torch.autocast(self.readout.device.type, enabled=False):
            parameters = (self.log_step, self.log_decay, self.frequency, self.readout)
            log_step, log_decay, frequency, readout = map(at_least_float32, parameters)
            pole = torch.complex(-log_decay.exp(), frequency)
            exponent = log_step.exp() * pole
            gain = torch.view_as_complex(readout) * torch.expm1(exponent) / pole
            # exp(t e) = exp(p q e) exp(r e) for t = p q + r: no (E, states, length) is ever made.
            root = math.isqrt(self.length) + 1
            r = torch.arange(root, device=gain.device)
            inner = (exponent.unsqueeze(2) * r).exp()
            outer = (exponent.unsqueeze(1) * (root * r).unsqueeze(1)).exp()
            return 2 * ((gain.unsqueeze(2) * outer) @ inner).real.flatten(2)

    def _convolve(self, x: Tensor) -> Tensor:
        forth, back = self.kernels()[..., : (rows := x.shape[1])]
        with torch.autocast(x.device.type, enabled=False):
            # The second kernel lies at the negative distances of a ring twice as long.
            ring = torch.fft.rfft(torch.cat((forth, back.flip(1)), 1))
            values = at_least_float32(x)
            spectrum = torch.fft.rfft(values.mT, 2 * rows) * ring
            mixed = torch.fft.irfft(spectrum, 2 * rows)[..., :rows].mT
            return (mixed + self.skip * values).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` shows besides the submodules."""
        return f"width={self.width}, length={self.length}, states={self.states}"
