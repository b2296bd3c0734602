"""How a row is fitted: a post-training method looks at calibration images, one that trains at the training set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jvq import qat
from jvq.core.calibrate import Fitted
from jvq.core.recipe import Sites
from jvq.data import Preprocess, Source
from jvq.models.weights import Checkpoint
from jvq.report import Console
from jvq.rows import Row


class Material(NamedTuple):
    """What fitting may draw on."""

    checkpoint: Checkpoint
    known: Sites
    images: np.ndarray  # for calibration, float [b y x c]
    train: Source
    preprocess: Preprocess
    workdir: Path
    console: Console


def fitted_row(row: Row, material: Material) -> Fitted:
    """The row's quantisers fitted, and where its method trains also the parameters."""
    m, model = material, material.checkpoint.model
    journal = row.journal(m.workdir, m.checkpoint.params, m.images)
    if journal is not None and journal.resumed:
        m.console.say(f"{row.name}: {journal.resumed} measurements taken from {journal.path}")
    fit = row.method.fit(
        row.options,
        model.forward,
        m.checkpoint.params,
        m.images,
        row.plan,
        m.known,
        track=m.console.track,
        journal=journal,
    )
    if not getattr(row.method, "TRAINS", False):
        return fit
    return qat.trained(row, fit, m.checkpoint, m.known, m.train, m.preprocess, m.workdir, m.console)
