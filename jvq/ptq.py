"""Post-training quantisation in one call: a checkpoint and some images give a model that is packed and runs."""

from typing import Any

import numpy as np
from jax.sharding import Mesh

from jvq import config
from jvq.core.calibrate import Track, silent
from jvq.core.recipe import sites
from jvq.export import Deployment
from jvq.methods import METHODS
from jvq.models.weights import Checkpoint
from jvq.rows import fitted_checkpoint, planned


def quantize(
    checkpoint: Checkpoint,
    images: np.ndarray,
    method: str = "igq",
    *,
    rules: str = "",
    track: Track = silent,
    mesh: Mesh | None = None,
    **options: Any,
) -> Deployment:
    """The checkpoint quantised by a post-training method, from float images [b y x c] as its preprocessing makes them.

    ``options`` are fields of the method's ``Options`` (``bits=4``), ``rules`` changes to its recipe
    (``"head.*=8,patch.x=float"``). The result runs (``forward``, ``integer``), is saved by ``jvq.export.save`` and
    exported. Raises ``ValueError`` for a method that trains: a config of it does that (``configs/vvtq_demo.py``).
    """
    run = config.typed(config.config("quantize", method, **options))
    module = METHODS[run.method_name]
    if getattr(module, "TRAINS", False) or not hasattr(module, "recipe"):
        known = [name for name, m in METHODS.items() if hasattr(m, "recipe") and not getattr(m, "TRAINS", False)]
        raise ValueError(
            f"quantize: '{method}' trains; python -m jvq.main does that. Without training: {', '.join(known)}"
        )
    forward, params = checkpoint.model.forward, checkpoint.params
    known = sites(forward, params, checkpoint.model.image)
    plan = planned(run.method_name, run.method, rules, known)
    fit = module.fit(run.method, forward, params, images, plan, known, track=track, journal=None, mesh=mesh)
    protocol = module.protocol(run.method) | {"rules": rules or "none", "calibration": f"{len(images)} images, given"}
    return Deployment.of(fitted_checkpoint(checkpoint, fit), fit.plan, fit.qstate, known, protocol)
