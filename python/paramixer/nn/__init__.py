"""Mixing modules and the networks built from them."""

from paramixer.nn.chord_mixer import ChordMixer
from paramixer.nn.classifier import SequenceClassifier
from paramixer.nn.dense import dense_map
from paramixer.nn.paramixer import Paramixer, PSFAttention

__all__ = ["ChordMixer", "PSFAttention", "Paramixer", "SequenceClassifier", "dense_map"]
