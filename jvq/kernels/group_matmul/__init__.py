"""Products whose left operand's scales vary along what they sum over: groups of channels, chosen anew for every image.

The integer product of IGQ-ViT (its specification, sections 2.5 and 10), on codes of ``group_encode``: for scales of any
kind, and for the power-of-two ladder, whose shifted codes share one scale.
"""

from jvq.kernels.group_matmul.cases import CASES
from jvq.kernels.group_matmul.matmul import IMPLEMENTATIONS, group_matmul

__all__ = ["CASES", "IMPLEMENTATIONS", "group_matmul"]
