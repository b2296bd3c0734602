"""A model with other parts between its products, where its parameters keep what they mean."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jvq.core.errors import nearest
from jvq.models import Model, build
from jvq.models.layers import QK_NORMS, Variant
from jvq.models.merging import FUSED, merged

FIELDS = tuple(f.name for f in dataclasses.fields(Variant))


def altered(model: Model, params: Any, *, where: str = "the model", **fields: Any) -> tuple[Model, Any]:
    """The model with other values of ``fields`` of its Spec, and the parameters that it then has.

    ``merged`` makes query and key one matrix, which is the same function; ``qk_norm`` adds norms of scale one and bias
    zero; ``clip`` and ``softmax`` leave the parameters as they are. None: as it is. The leaves of ``params`` are arrays
    or shapes. ``where`` is what errors call the parameters. ``ValueError``: another field, what cannot be undone, or
    what cannot go together.
    """
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f"model.{name} cannot be altered in {where}{nearest(name, FIELDS)}")
    new = {name: x for name, x in fields.items() if x is not None and x != getattr(model.spec, name, None)}
    if not new:
        return model, params
    if "merged" in new and not new["merged"]:
        raise ValueError(f"model.merged: the query and key of {where} are one matrix already")
    if "qk_norm" in new and not new["qk_norm"]:
        raise ValueError(f"model.qk_norm: the query and key of {where} have norms already, which cannot be dropped")
    other = build(model.architecture, {**dataclasses.asdict(model.spec), **new})
    if not {"merged", "qk_norm"} & set(new):
        return other, params
    change = merged if "merged" in new else normed  # never both
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    return other, jax.eval_shape(change, params) if abstract else change(params)


def normed(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with norms that change no mean and no scale, beside every fused projection that has none."""
    found = {name: normed(value) if isinstance(value, Mapping) else value for name, value in params.items()}
    if FUSED in params:
        like = params[FUSED]["bias"]  # [s h e]; the kernel may be packed
        for name in QK_NORMS:
            fresh = {"scale": jnp.ones(like.shape[-1:], like.dtype), "bias": jnp.zeros(like.shape[-1:], like.dtype)}
            found.setdefault(name, fresh)
    return found
