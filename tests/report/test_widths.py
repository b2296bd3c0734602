"""Pictures and tables of chosen widths and searched intervals."""

import numpy as np
import pytest
from PIL import Image

from jvq.report import draw_joint, draw_widths, markdown

MIXED = {
    "target": 4, "unit": "KL of predictions, nats", "candidates": [3, 4, 5], "limit": 4096.0, "size": 4000.0,
    "loss": 0.02,
    "modules": {
        "block00/attn": {"bits": 3, "parameters": 1024, "norm": None, "loss": [0.01, 0.005, 0.001]},
        "block00/mlp": {"bits": 5, "parameters": 2048, "norm": None, "loss": [0.1, 0.05, 0.01]},
    },
    "equal": {"3": [3000.0, 0.11], "4": [4096.0, 0.055], "5": [5000.0, 0.011]},
    "front": [[3000.0, 0.11], [4000.0, 0.02], [5000.0, 0.011]],
}  # fmt: skip
JOINT = {
    "limit": 10**6, "spent": 9 * 10**5, "kl": 0.5,
    "sites": {
        "block00/attn/qkv": {"bits": 3, "groups": 8, "kl": 0.125, "bops": 5 * 10**5},
        "block00/attn/qk": {"bits": 5, "groups": None, "kl": 0.25, "bops": 4 * 10**5},
    },
}  # fmt: skip
SEARCH = {
    "patch": {"left": 0.75, "right": [1.0, 0.5], "score": 0.99, "start": 0.98, "gain": 0.97, "rounds": 3},
}


@pytest.mark.parametrize(("draw", "notes", "part"), [(draw_widths, MIXED, "modules"), (draw_joint, JOINT, "sites")])
def test_another_choice_gives_another_picture(draw, notes, part, tmp_path):
    draw(tmp_path / "a.png", notes)
    draw(tmp_path / "b.png", notes)
    first = next(iter(notes[part]))
    draw(tmp_path / "c.png", notes | {part: notes[part] | {first: notes[part][first] | {"bits": 4}}})
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert (a == b).all()
    assert a.shape != c.shape or (a != c).any()
    assert a.std() > 0


def test_the_report_has_a_line_a_module_a_site_and_a_product(report):
    text = markdown(report | {"mixed": MIXED, "joint": JOINT, "search": SEARCH})
    assert "| block00/attn | 3 | 1,024 | **1.00e-02** | 5.00e-03 | 1.00e-03 |" in text
    assert "| block00/mlp | 5 | 2,048 | 1.00e-01 | 5.00e-02 | **1.00e-02** |" in text
    assert "Budget: 4,096 bytes of weights, as at 4 bits everywhere; spent 4,000." in text
    assert "| block00/attn/qkv | 3 | 8 | 1.2e-01 | 0.50 |" in text
    assert "| block00/attn/qk | 5 |  | 2.5e-01 | 0.40 |" in text
    assert "| patch | 0.750 | 1.000, 0.500 | 0.990000 | 0.980000 | 0.9700 | 3 |" in text


def test_a_report_without_them_says_nothing_of_them(report):
    text = markdown(report)
    assert not any(part in text for part in ("Widths", "Searched", "products\n"))
