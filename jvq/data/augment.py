"""Training augmentation inside the jitted step, by explicit keys."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from jvq.data.transforms import Preprocess


def preparation(preprocess: Preprocess, shift: int | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``prepare(key, uint8 images [b y x c])``: mirrored and moved by up to ``shift`` (None: not), and normalised."""
    mean, std = (np.asarray(v, np.float32).reshape(1, 1, 1, -1) for v in (preprocess.mean, preprocess.std))

    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        moved = images if shift is None else flip_and_shift(key, images, shift)
        return (moved.astype(jnp.float32) / 255.0 - mean) / std

    return prepare


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
