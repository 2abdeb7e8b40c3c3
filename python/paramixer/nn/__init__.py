"""Mixing modules and the networks built from them."""

from paramixer.nn.classifier import SequenceClassifier
from paramixer.nn.deep import GatedFeedForward, with_feed_forward
from paramixer.nn.dense import dense_map
from paramixer.nn.paramixer import Paramixer, PSFAttention

__all__ = [
    "GatedFeedForward",
    "PSFAttention",
    "Paramixer",
    "SequenceClassifier",
    "dense_map",
    "with_feed_forward",
]
