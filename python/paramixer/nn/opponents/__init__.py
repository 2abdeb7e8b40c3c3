"""Mixers of other papers, called like `paramixer.nn.Paramixer`, to compare it with.

Performer is `paramixer.nn.LinearAttention` with the feature map "favor".
"""

from paramixer.nn.opponents.linformer import Linformer
from paramixer.nn.opponents.local import LocalAttention
from paramixer.nn.opponents.nystromformer import Nystromformer
from paramixer.nn.opponents.s4d import S4D
from paramixer.nn.opponents.softmax import SoftmaxAttention
from paramixer.nn.opponents.transformer import EncoderBlock, TransformerBlock

__all__ = [
    "S4D",
    "EncoderBlock",
    "Linformer",
    "LocalAttention",
    "Nystromformer",
    "SoftmaxAttention",
    "TransformerBlock",
]
