"""Products of eight-bit integers that become values in the same pass: scales, zero points and bias are the epilogue.

What a linear layer and the two products of attention are made of once their operands are quantised.
"""

from jvq.kernels.int8_matmul.cases import CASES
from jvq.kernels.int8_matmul.matmul import IMPLEMENTATIONS, int8_matmul

__all__ = ["CASES", "IMPLEMENTATIONS", "int8_matmul"]
