"""Models: one architecture a file. The only place that knows Flax."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvq.core.dot import Dot, float_dot
from jvq.core.errors import nearest
from jvq.models import saliency, swin, vit

ARCHITECTURES = {  # name: shape, module, shape by the name of a size
    "vit": (vit.Spec, vit.ViT, vit.sized),
    "swin": (swin.Spec, swin.Swin, swin.sized),
    "saliency": (saliency.Spec, saliency.Saliency, saliency.sized),
}

__all__ = ["ARCHITECTURES", "Model", "build", "saliency", "swin", "vit"]


class Model(NamedTuple):
    """An architecture of a given shape, as pure functions."""

    architecture: str
    spec: Any  # the architecture's frozen Spec
    module: Any  # the Flax module

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of one image: y, x, c."""
        return (*self.spec.image, self.spec.channels)

    def forward(self, params: Any, images: jax.typing.ArrayLike, dot: Dot = float_dot) -> jax.Array:
        """Images [b y x c] to logits [b o]."""
        return self.module.apply({"params": params}, jnp.asarray(images), dot)

    def heads(self, params: Any, images: jax.typing.ArrayLike, dot: Dot = float_dot) -> jax.Array:
        """Images [b y x c] to the logits of every head [b t o]: two with a distillation token, else one."""
        if getattr(self.spec, "distill_token", False):
            return self.module.apply({"params": params}, jnp.asarray(images), dot, heads=True)
        return self.forward(params, images, dot)[:, None]

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters."""
        return jax.jit(self.module.init)(key, jnp.zeros((1, *self.image)))["params"]

    def shapes(self) -> Any:
        """The parameter tree as shapes and dtypes; nothing is computed."""
        leaves, tree = _shapes(self.architecture, self.spec)
        return jax.tree.unflatten(tree, leaves)


@functools.lru_cache(maxsize=64)
def _shapes(architecture: str, spec: Any) -> tuple[list[Any], Any]:
    """Leaves and structure: tracing a model takes seconds, and its shapes are asked for again and again."""
    module = ARCHITECTURES[architecture][1](spec)
    image = jnp.zeros((1, *spec.image, spec.channels))
    return jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), image)["params"])


def build(architecture: str, spec: Mapping[str, Any]) -> Model:
    """The model of an architecture by name and the fields of its Spec; ``size="S/16"`` stands for dim, depth, heads."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"model.architecture '{architecture}' is not known{nearest(architecture, ARCHITECTURES)}")
    shape, module, sized = ARCHITECTURES[architecture]
    fields: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in spec.items() if name != "size"
    }
    known = [f.name for f in dataclasses.fields(shape)]
    for name in fields:
        if name not in known:
            raise ValueError(f"model.{name}: {architecture} has no such option{nearest(name, known)}")
    try:
        built = sized(spec["size"], **fields) if spec.get("size") else shape(**fields)
    except TypeError as error:  # "16" for 16
        raise ValueError(f"model: a field has the wrong type: {error}") from None
    return Model(architecture, built, module(built))
