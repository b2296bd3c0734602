"""Products of one-bit operands by counting bits: exact integers (Bi-ViT's specification, section 8, K1 to K4).

Operands are uint32 words along the contracted axis (``bits``). ``binary_matmul`` is the kernel; a linear layer, the
scores and the values of attention are made of it.
"""

from jvq.kernels.binary_matmul.bits import kernel_words, pack_words, plane_words, sign_words, unpack_words
from jvq.kernels.binary_matmul.cases import CASES
from jvq.kernels.binary_matmul.matmul import IMPLEMENTATIONS, KINDS, binary_matmul
from jvq.kernels.binary_matmul.products import binary_linear, binary_scores, binary_values

__all__ = [
    "CASES",
    "IMPLEMENTATIONS",
    "KINDS",
    "binary_linear",
    "binary_matmul",
    "binary_scores",
    "binary_values",
    "kernel_words",
    "pack_words",
    "plane_words",
    "sign_words",
    "unpack_words",
]
