"""Integer inference: a frozen model whose products are computed from integers.

``prepared`` turns packed weights into what kernels multiply, once; ``integer_dot`` quantises activations to integers
and multiplies. What it computes is what fake quantisation computes, but for the order in which float32 rounds.
"""

from jvq.integer.products import Way, integer_dot, ways
from jvq.integer.rows import Rows, prepared

__all__ = ["Rows", "Way", "integer_dot", "prepared", "ways"]
