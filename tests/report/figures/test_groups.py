"""Which group a channel chooses, against plain counting."""

import re
from collections import Counter

import numpy as np

from jvq.report.figures import groups


def choices(rng, count=4):
    group = rng.integers(0, count - 1, (6, 10))
    group[:, 3] = 1
    return groups.Choices("block00/fc.x", "channels", group, np.array([3.0, 0.5, 2.0, 9.0])[:count])


def test_groups_are_numbered_by_their_width(rng):
    data = choices(rng)
    rank = groups.ranked(data)
    for i, j in np.ndindex(*data.group.shape):
        width = data.width[data.group[i, j]]
        assert rank[i, j] == sum(w < width for w in data.width)


def test_the_usual_group_and_the_channels_that_move(rng):
    rank = groups.ranked(choices(rng))
    usual, share = groups.usual(rank, 4)
    for j in range(10):
        counts = Counter(rank[:, j].tolist())
        most = max(counts.values())
        assert usual[j] == min(g for g, n in counts.items() if n == most)
        assert share[j] == most / 6
    assert groups.moved(rank).tolist() == [len({*rank[:, j].tolist()}) > 1 for j in range(10)]
    assert not groups.moved(rank)[3]


def test_the_caption_s_numbers_are_counted(rng, drawn):
    data = choices(rng)
    assert "block00/fc.x" in drawn(groups.draw, data)
    said = groups.caption(data)
    moves = sum(len({*data.group[:, j].tolist()}) > 1 for j in range(10))
    stays = np.mean([max(Counter(data.group[:, j].tolist()).values()) / 6 for j in range(10)])
    use = Counter(data.group.reshape(-1).tolist())
    numbers = re.findall(r"([\d.]+) %", said)
    assert numbers == [f"{10 * moves:.0f}", f"{100 * stays:.0f}", f"{100 * max(use.values()) / 60:.0f}", "0.0"]
    assert "1 of 4 are never chosen" in said


def test_many_groups_are_drawn(rng, drawn):
    data = groups.Choices("a.x", "rows", rng.integers(0, 40, (16, 2000)), np.arange(40.0))
    assert "narrowest" in drawn(groups.draw, data)
