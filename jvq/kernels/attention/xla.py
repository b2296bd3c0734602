"""Plain XLA for every platform, as fast on a CPU as was found: int8 products, an image or a few at a time.

Scores of one step stay in the processor's cache; all of a batch at once would go through memory four times. The two
barriers part what XLA fuses badly: the scores of the softmax (else they are converted again in each of its passes) and
the softmax of the codes (else rounding is a pass of its own, in float32). Codes are clipped as integers.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.attention.terms import Terms, terms

STEP = 2**19  #: scores of one step, at most: 2 MiB


@partial(jax.jit, static_argnames=("p_levels",))
def attend(
    *,
    q: Int8[Array, "b h q e"],
    k: Int8[Array, "b h k e"],
    v: Int8[Array, "b h k e"],
    q_scale: Float32[Array, "#b #h 1 1"],
    k_scale: Float32[Array, "#b #h 1 1"],
    v_scale: Float32[Array, "#b #h 1 1"],
    q_zero: Int32[Array, "#b #h 1 1"] | None = None,
    k_zero: Int32[Array, "#b #h 1 1"] | None = None,
    v_zero: Int32[Array, "#b #h 1 1"] | None = None,
    bias: Float32[Array, "#b #h q k"] | None = None,
    p_scale: Float32[Array, "1 #h 1 1"] | None = None,
    p_zero: Int32[Array, "1 #h 1 1"] | None = None,
    p_levels: int = 255,
) -> Float32[Array, "b h q e"]:
    """The output of the heads, float32 [b h q e]; see ``attention``."""
    del k_zero  # adds the same to all scores of a row
    images = q.shape[0]
    together = _together(images, q.shape[1] * q.shape[2] * k.shape[2])
    added = terms(k, v, q_scale, k_scale, v_scale, q_zero, v_zero, p_scale, p_zero, p_levels)
    shared = added._replace(**{name: None for name, a in added._asdict().items() if _varies(a, images)})
    varying = {name: a for name, a in added._asdict().items() if _varies(a, images)}
    some = {"q": q, "k": k, "v": v, "terms": varying} | ({"bias": bias} if _varies(bias, images) else {})
    if together == images:
        return _step(q, k, v, added, bias, p_levels)

    def step(part: dict) -> jax.Array:
        whole = shared._replace(**part["terms"])
        return _step(part["q"], part["k"], part["v"], whole, part.get("bias", bias), p_levels)

    parts = jax.tree.map(lambda a: a.reshape(-1, together, *a.shape[1:]), some)
    return jax.lax.map(step, parts).reshape(q.shape)


def _varies(a: jax.Array | int | None, images: int) -> bool:
    """Whether there is a part of ``a`` for each of several images."""
    return isinstance(a, jax.Array) and images > 1 and a.shape[0] == images


def _together(images: int, scores: int) -> int:
    """How many images are one step: as many as fit, of those that divide all."""
    fitting = [n for n in range(1, images + 1) if images % n == 0 and n * scores <= STEP]
    return max(fitting, default=1)


def _step(q: jax.Array, k: jax.Array, v: jax.Array, added: Terms, bias: jax.Array | None, p_levels: int) -> jax.Array:
    """The output of a few images, float32 [b h q e]."""
    products = jnp.einsum("bhqe,bhke->bhqk", q, k, preferred_element_type=jnp.int32)
    products = products if added.keys is None else products + added.keys
    scores = products.astype(jnp.float32) * added.scale
    scores = jax.lax.optimization_barrier(scores if bias is None else scores + bias)
    powers = jnp.exp(scores - scores.max(axis=3, keepdims=True))
    total = powers.sum(axis=3, keepdims=True)
    if added.inverse is None:
        values = v.astype(jnp.float32)
        values = values if added.v_zero is None else values - added.v_zero.astype(jnp.float32)
        out = jnp.einsum("bhqk,bhke->bhqe", powers, values, precision=jax.lax.Precision.HIGHEST)
        return out * (added.scaled / total)
    powers, total = jax.lax.optimization_barrier((powers, total))
    codes = jnp.round(powers * (added.inverse / total)).astype(jnp.int32)
    codes = codes if added.p_zero is None else codes + added.p_zero
    codes = (jnp.clip(codes, 0, p_levels) - added.shift).astype(jnp.int8)
    if added.v_zero is not None:  # a channel of ones: the product sums the codes faster than a sum does
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    out = jnp.einsum("bhqk,bhke->bhqe", codes, v, preferred_element_type=jnp.int32)
    if added.v_zero is not None:
        out = out[..., :-1] - added.v_zero * out[..., -1:]
    out = out if added.values is None else out + added.values
    return out.astype(jnp.float32) * added.scaled
