"""Every operand of a ViT of one block, as shapes."""

import pytest

from jvq.core.recipe import sites
from jvq.models import build

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}


@pytest.fixture(scope="session")
def known():
    model = build("vit", SPEC)
    return sites(model.forward, model.shapes(), model.image)
