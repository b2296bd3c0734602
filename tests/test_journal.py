"""The journal on disk: nothing that was found is lost, nothing of another computation is believed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.journal import Journal, fingerprint

VALUES = {"block00/attn/pv.p 0/1": [0.1, 1e-300, 1 / 3], "b.x 0/1": [], "ü\u2028\n": {"a": [1, None, True]}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "method.jsonl"


@pytest.fixture
def filled(path):
    journal = Journal(path, "here")
    journal.update(VALUES)
    return path


def test_a_new_journal_is_empty_and_leaves_no_file(path):
    journal = Journal(path, "here")
    assert dict(journal) == {}
    assert (len(journal), journal.resumed) == (0, 0)
    assert not path.exists()


def test_values_survive_reopening(filled):
    """Numbers to the last bit, in the order in which they came."""
    for _ in range(3):
        journal = Journal(filled, "here")
        assert dict(journal) == VALUES
        assert list(journal) == list(VALUES)
        assert journal.resumed == len(journal) == 3


def test_what_comes_after_reopening_is_kept_too(filled):
    journal = Journal(filled, "here")
    journal["later"] = [2.0]
    assert journal.resumed == 3, "what the file had"
    assert dict(Journal(filled, "here")) == {**VALUES, "later": [2.0]}


def test_a_value_is_on_disk_before_the_assignment_returns(path):
    """Without closing anything: another process reads it."""
    journal = Journal(path, "here")
    for i, (key, value) in enumerate(VALUES.items()):
        journal[key] = value
        head, *lines = path.read_text(encoding="utf8").splitlines()
        assert json.loads(head) == {"fingerprint": "here"}
        assert json.loads(lines[i]) == {key: value}


def test_a_value_may_be_corrected(filled):
    journal = Journal(filled, "here")
    journal["b.x 0/1"] = [7.0]
    assert journal["b.x 0/1"] == [7.0]
    assert dict(Journal(filled, "here")) == {**VALUES, "b.x 0/1": [7.0]}


def test_a_last_line_that_was_cut_off_is_dropped_and_the_next_value_stands_alone(filled):
    """However much of it had been written when the process was killed."""
    whole = filled.read_bytes()
    start = whole.rstrip().rfind(b"\n") + 1
    first = {key: VALUES[key] for key in list(VALUES)[:2]}
    for end in range(start, len(whole)):
        filled.write_bytes(whole[:end])
        journal = Journal(filled, "here")
        complete = end == len(whole) - 1  # but for the line break
        assert dict(journal) == (VALUES if complete else first)
        journal["next"] = [1.0]
        assert dict(Journal(filled, "here")) == {**(VALUES if complete else first), "next": [1.0]}


def test_what_stands_in_front_of_a_damaged_line_is_kept(filled):
    lines = filled.read_bytes().splitlines(keepends=True)
    lines[-1] = b"\0" * 40 + b"\n"
    filled.write_bytes(b"".join(lines))
    assert dict(Journal(filled, "here")) == {key: VALUES[key] for key in list(VALUES)[:2]}


@pytest.mark.parametrize("kept", [0, 1, 10])
def test_a_head_that_was_cut_off_is_an_empty_journal(kept, filled):
    filled.write_bytes(filled.read_bytes()[:kept])
    assert dict(Journal(filled, "here")) == {}


@pytest.mark.parametrize("content", ["not json\n", "[1, 2]\n", "\n\n", '{"a": [1.0]}\n'])
def test_a_file_of_something_else_is_replaced(content, path):
    path.write_text(content)
    journal = Journal(path, "here")
    assert dict(journal) == {}
    journal["a"] = [1.0]
    assert dict(Journal(path, "here")) == {"a": [1.0]}


def test_a_journal_of_another_computation_is_replaced(filled):
    journal = Journal(filled, "there")
    assert dict(journal) == {}
    assert journal.resumed == 0
    assert dict(Journal(filled, "here")) == VALUES, "until there is something new"
    journal["a"] = [1.0]
    assert dict(Journal(filled, "here")) == {}, "for good"
    assert dict(Journal(filled, "there")) == {"a": [1.0]}


def test_a_value_that_is_no_json_leaves_the_journal_as_it_was(filled):
    journal = Journal(filled, "here")
    with pytest.raises(TypeError):
        journal["array"] = np.ones(2)
    assert dict(journal) == VALUES
    assert dict(Journal(filled, "here")) == VALUES


def test_what_was_found_is_not_deleted(filled):
    journal = Journal(filled, "here")
    with pytest.raises(TypeError, match="a journal only grows"):
        del journal["b.x 0/1"]
    for attempt in (journal.clear, journal.popitem):
        with pytest.raises(TypeError, match="a journal only grows"):
            attempt()
    assert dict(journal) == dict(Journal(filled, "here")) == VALUES


def test_a_kill_while_going_on_loses_nothing(filled, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda x, dumps=json.dumps: killed() if "fingerprint" not in x else dumps(x))
        with pytest.raises(KeyboardInterrupt):
            Journal(filled, "here")["next"] = [1.0]
    assert dict(Journal(filled, "here")) == VALUES


@dataclasses.dataclass(frozen=True)
class Options:
    bits: int = 4
    candidates: tuple[int, ...] = (2, 4)
    name: str = "a"
    seed: int | None = None


def things():
    """As ``Row.journal`` calls it: parameters, images, the plan's quantisers, options."""
    rng = np.random.default_rng(0)
    params = {"fc": {"kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32), "bias": jnp.zeros(3)}}
    return (
        params,
        rng.normal(size=(2, 4, 4, 1)).astype(np.float32),
        {"fc.x": "Grouped(4)", "fc.w": "Uniform(4)"},
        Options(),
    )


def test_the_same_things_have_the_same_fingerprint():
    """Made anew, on the device or not, contiguous or not."""
    params, images, plan, options = things()
    want = fingerprint(*things())
    assert want == fingerprint(params, images, plan, options)
    assert want == fingerprint(jax.device_get(params), jnp.asarray(images), dict(reversed(plan.items())), Options(4))
    assert want == fingerprint(params, np.asfortranarray(images), plan, options)
    assert len(want) == 16
    assert int(want, 16) >= 0


def test_every_element_of_every_array_counts():
    params, images, plan, options = things()
    seen = {fingerprint(params, images, plan, options)}
    for i in range(images.size):
        other = images.copy()
        other.flat[i] = np.nextafter(other.flat[i], np.float32(9))
        seen.add(fingerprint(params, other, plan, options))
    for name, x in params["fc"].items():
        for i in range(x.size):
            other = np.array(x)
            other.flat[i] += np.float32(1e-6)
            seen.add(fingerprint({"fc": {**params["fc"], name: other}}, images, plan, options))
    assert len(seen) == 1 + images.size + 6 + 3


def test_the_images_order_counts():
    params, images, plan, options = things()
    assert fingerprint(params, images[::-1], plan, options) != fingerprint(params, images, plan, options)


@pytest.mark.parametrize(
    "other",
    [
        np.zeros(4, np.float16),
        np.zeros(2, np.int32),
        np.zeros(1, np.float64),
        np.zeros((2, 1), np.float32),
        np.zeros((1, 2), np.float32),
        np.zeros(3, np.float32),
        jnp.zeros(4, jnp.bfloat16),
        [np.zeros(1, np.float32), np.zeros(1, np.float32)],
    ],
    ids=lambda x: f"{getattr(x, 'dtype', 'list')}{getattr(x, 'shape', '')}",
)
def test_types_and_shapes_count_where_the_bytes_are_the_same(other):
    assert fingerprint(other) != fingerprint(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "change", [{"bits": 5}, {"candidates": (2, 4, 8)}, {"candidates": (4, 2)}, {"name": "b"}, {"seed": 0}]
)
def test_every_option_counts(change):
    assert fingerprint(Options(**change)) != fingerprint(Options())
    assert fingerprint(repr(Options(**change))) != fingerprint(repr(Options()))


FORMS = {
    "a dict's keys: the quantiser is another operand's": ({"fc1.x": "Uniform(4)"}, {"fc2.x": "Uniform(4)"}),
    "where one thing ends": ((1, 23), (12, 3)),
    "None": ((None, 4), (4,)),
    "scalars and vectors of one": (np.float32(1), np.ones(1, np.float32)),
}


@pytest.mark.parametrize("case", FORMS)
def test_what_differs_in_form_only_differs(case):
    one, other = FORMS[case]
    assert fingerprint(one) != fingerprint(other)
