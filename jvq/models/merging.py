"""Query and key as one matrix a head: a weight that oscillates on one side no longer meets one on the other.

Source: Liu et al. 2023 (OFQ, query-key reparameterisation). ``(x Wq + bq) (x Wk + bk)'`` is ``(x Wq Wk' + bq Wk') x'``
and a number that is the same for all keys, which the softmax takes away: the merged model is the same function. There
the two factors are trained and their product quantised; here the product is the parameter [choice], so that sites,
scales and packing are those of any other weight. It has ``d h d`` values instead of ``2 d d``.
"""

from collections.abc import Mapping
from typing import Any

from jvq.core.dot import Dot, float_dot
from jvq.core.packed import Packed

FUSED = "qkv"


def merged(params: Mapping[str, Any], dot: Dot = float_dot) -> dict[str, Any]:
    """The parameters with every fused projection as ``query_key`` [d h o], with a bias [h o], and ``value`` [d h e]."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name == FUSED:
            kernel, bias = value["kernel"], value["bias"]  # [d s h e], [s h e]
            if isinstance(kernel, Packed):
                raise ValueError("model.merged: a packed query and key cannot be made one matrix")
            both = dot(name, "dhe,ohe->dho", query=kernel[:, 0], key=kernel[:, 1])
            shift = dot(name, "he,ohe->ho", query=bias[0], key=kernel[:, 1])
            found["query_key"] = {"kernel": both, "bias": shift}
            found["value"] = {"kernel": kernel[:, 2], "bias": bias[2]}
        else:
            found[name] = merged(value, dot) if isinstance(value, Mapping) else value
    return found
