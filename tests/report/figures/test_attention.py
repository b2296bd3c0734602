"""Attention of heads: what is written and said."""

import numpy as np
import pytest

from jvq.report.figures import attention


def data(rng, seen=True, tau=None):
    tau = tau or {
        "stage0/block00/attn/pv.p": np.array([0.5, 0.25]),
        "stage0/block01/attn/pv.p": np.array([-0.1, 0.9, 0.3]),
    }
    maps = rng.uniform(0, 1, (3, 7, 7))
    behind = (maps[2] > 0.5).astype(float) if seen else None
    first, last = next(iter(tau)), next(reversed(tau))
    heads = [
        attention.Head(last, 0, 2, -0.2, maps[0], maps[1], behind),
        attention.Head(first, 0, 0, 0.8, maps[0], maps[1], behind),
    ]
    return attention.Attention("igq", tau, 8, heads)


@pytest.mark.parametrize("seen", [True, False])
def test_every_head_has_its_number(rng, drawn, seen):
    texts = drawn(attention.draw, data(rng, seen))
    assert {"0.50", "0.25", "-0.10", "0.90", "0.30", "float", "quantised", "difference"} <= {*texts}
    assert ("behind its quantiser: 2 values" in texts) is seen


def test_the_caption_says_the_worst_and_the_best(rng):
    said = attention.caption(data(rng))
    assert "rows of 5 heads" in said
    assert f"tau {np.mean([0.5, 0.25, -0.1, 0.9, 0.3]):.2f} on average" in said
    assert "worst -0.10 in head 0 of stage0/block01/attn/pv.p" in said
    assert "best 0.90 in head 1 of stage0/block01/attn/pv.p" in said


def test_many_layers_and_heads_are_drawn_without_numbers(rng, drawn):
    tau = {f"block{i:02}/attn/pv.p": rng.uniform(0, 1, 16) for i in range(24)}
    texts = drawn(attention.draw, data(rng, tau=tau))
    assert len(texts) < 120


def test_one_head_and_constant_maps(drawn):
    flat = np.full((4, 4), 0.25)
    tau = {"a/pv.p": np.ones(1)}
    drawn(attention.draw, attention.Attention("igq", tau, 1, [attention.Head("a/pv.p", 0, 0, 1.0, flat, flat, flat)]))
