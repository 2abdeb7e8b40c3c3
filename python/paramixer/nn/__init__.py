"""Mixing modules and the networks built from them."""

from paramixer.nn.chord_mixer import ChordMixer
from paramixer.nn.classifier import SequenceClassifier
from paramixer.nn.deep import ChannelDropout, GatedFeedForward, with_feed_forward
from paramixer.nn.dense import dense_map
from paramixer.nn.feature_maps import EluPlusOne, Favor, FeatureMap, FeedForwardKernel, Relu
from paramixer.nn.lama import BidirectionalGRU, LamaClassifier, LamaPooling, diversity_penalty
from paramixer.nn.linear_attention import LinearAttention, LinearState, SimpleTron
from paramixer.nn.monarch import Monarch, monarch_matrix, project_monarch
from paramixer.nn.paramixer import Paramixer, PSFAttention, average_init

__all__ = [
    "BidirectionalGRU",
    "ChannelDropout",
    "ChordMixer",
    "EluPlusOne",
    "Favor",
    "FeatureMap",
    "FeedForwardKernel",
    "GatedFeedForward",
    "LamaClassifier",
    "LamaPooling",
    "LinearAttention",
    "LinearState",
    "Monarch",
    "PSFAttention",
    "Paramixer",
    "Relu",
    "SequenceClassifier",
    "SimpleTron",
    "average_init",
    "dense_map",
    "diversity_penalty",
    "monarch_matrix",
    "project_monarch",
    "with_feed_forward",
]
