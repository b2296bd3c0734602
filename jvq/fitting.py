"""How a row is fitted: a post-training method looks at calibration images, one that trains at the training set."""

from jvq import qat
from jvq.core.calibrate import Fitted
from jvq.rows import Material, Row


def fitted_row(row: Row, material: Material) -> Fitted:
    """The row's quantisers fitted, and where its method trains also the parameters."""
    m, subject = material, row.subject(material.checkpoint, material.known)
    journal = row.journal(m.workdir, subject.checkpoint.params, m.images)
    if journal is not None and journal.resumed:
        m.console.say(f"{row.name}: {journal.resumed} measurements taken from {journal.path}")
    fit = row.method.fit(
        row.options,
        subject.checkpoint.model.forward,
        subject.checkpoint.params,
        m.images,
        row.plan,
        subject.known,
        track=m.console.track,
        journal=journal,
        mesh=m.mesh,
    )
    if not getattr(row.method, "TRAINS", False):
        return fit
    return qat.trained(row, fit, material)
