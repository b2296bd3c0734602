"""Errors of sites: what is compared and said."""

import numpy as np

from jvq.report.figures import errors

MAIN = {"block00/fc.x": 0.02, "block00/fc.w": 0.001, "block01/fc.x": 0.0, "block01/fc.w": 0.003}
PLAIN = {"block00/fc.x": 0.08, "block00/fc.w": 0.001, "block01/fc.x": 0.1, "block01/fc.w": 0.002}
WEIGHTS = frozenset(["block00/fc.w", "block01/fc.w"])


def test_weights_and_activations_are_drawn_apart(drawn):
    texts = drawn(errors.draw, errors.Errors("igq", MAIN, WEIGHTS, "minmax", PLAIN))
    assert {"activations", "weights", "igq", "minmax", "block00/fc.x"} <= {*texts}
    alone = drawn(errors.draw, errors.Errors("igq", {"block00/fc.x": 0.02}, frozenset()))
    assert "weights" not in alone
    assert "minmax" not in alone


def test_the_caption_counts_where_the_method_is_better():
    said = errors.caption(errors.Errors("igq", MAIN, WEIGHTS, "minmax", PLAIN))
    assert "2 % of the operand's power, at block00/fc.x" in said
    assert "below that of minmax at 2 of 4 sites and above it at 1" in said
    assert "minmax" not in errors.caption(errors.Errors("igq", MAIN, WEIGHTS))


def test_labels_keep_apart(rng):
    values = rng.uniform(0, 1, 30).tolist()
    found = errors.apart(values, 5.0)
    assert found[0] == int(np.argmax(values))
    assert len(found) == 3
    assert all(abs(i - j) >= 5 for i in found for j in found if i != j)


def test_hundreds_of_sites_are_drawn(rng, drawn):
    main = {f"block{i // 8:02}/s{i}.x": float(x) for i, x in enumerate(rng.uniform(1e-9, 1, 400))}
    drawn(errors.draw, errors.Errors("igq", main, frozenset(), "minmax", {a: 2 * x for a, x in main.items()}))
