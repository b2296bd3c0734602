"""Integer inference: a frozen model whose products are computed from integers.

``prepared`` turns packed weights into what kernels multiply, once; ``integer_dot`` quantises activations to integers
and multiplies. What it computes is what fake quantisation computes, to the bit where that adds up whole numbers
(:mod:`jvq.core.whole`). ``compiled`` is ``jax.jit`` with the options that suit it.
"""

from jvq.integer.compiling import compiled
from jvq.integer.products import Way, integer_dot, ways
from jvq.integer.rows import Rows, prepared

__all__ = ["Rows", "Way", "compiled", "integer_dot", "prepared", "ways"]
