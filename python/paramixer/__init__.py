"""Attention by sparse factors: operators, modules and tasks on top of PyTorch."""

from paramixer._load import __version__, has_cuda  # before all else: registers the operators

# isort: split
from paramixer import compat, links, nn, reference, utils
from paramixer.factorize import SparseFactorization, factorize
from paramixer.ops import link_dot, link_weights, mix, mix_chain, mix_transpose, rotate_tracks

__all__ = [
    "SparseFactorization",
    "__version__",
    "compat",
    "factorize",
    "has_cuda",
    "link_dot",
    "link_weights",
    "links",
    "mix",
    "mix_chain",
    "mix_transpose",
    "nn",
    "reference",
    "rotate_tracks",
    "utils",
]
