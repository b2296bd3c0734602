"""Training augmentation inside the jitted step, by explicit keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8


def flip_and_shift(key: Key[Array, ""], images: UInt8[Array, "b y x c"], shift: int) -> UInt8[Array, "b y x c"]:
    """Every image mirrored with probability one half and moved by up to ``shift`` pixels each way, zeros moving in."""
    b, y, x, c = images.shape
    mirror_key, offset_key = jax.random.split(key)
    mirror = jax.random.bernoulli(mirror_key, 0.5, (b, 1, 1, 1))
    images = jnp.where(mirror, images[:, :, ::-1], images)
    if not shift:
        return images
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    corner = jax.random.randint(offset_key, (b, 2), 0, 2 * shift + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (y, x, c)))(padded, corner)
