"""Products with weights of 2, 3 or 4 bits that stay packed in memory and are unpacked where they are multiplied.

Activations are integers, as in ``int8_matmul``, or bfloat16 or float32: only the weights are quantised then.
"""

from jvq.kernels.packed_matmul.cases import CASES
from jvq.kernels.packed_matmul.layout import pack_rows, rows_of, unpack_rows
from jvq.kernels.packed_matmul.matmul import IMPLEMENTATIONS, packed_matmul

__all__ = ["CASES", "IMPLEMENTATIONS", "pack_rows", "packed_matmul", "rows_of", "unpack_rows"]
