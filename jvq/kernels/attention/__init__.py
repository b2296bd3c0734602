"""Attention of integers: scores and values are products of int8, the softmax between them is float32.

For sequences whose keys fit on the chip (up to about 1,400 tokens): nothing goes back to memory between the two
products. The attention itself is quantised with a scale known beforehand, or stays float32.
"""

from jvq.kernels.attention.attend import IMPLEMENTATIONS, attention
from jvq.kernels.attention.cases import CASES

__all__ = ["CASES", "IMPLEMENTATIONS", "attention"]
