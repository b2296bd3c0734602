"""One, two and eight simulated devices come to the same: states, groups, plans to the bit; what is trained to rounding.

The results of one device without a mesh are those of this process; the others come from one of eight devices.
"""

import jax
import launching
import numpy as np
import on_devices
import pytest

pytestmark = pytest.mark.once

SECONDS = 900


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the number of devices (0: no mesh, "split": four by two) the arrays by name."""
    folder = tmp_path_factory.mktemp("devices")
    ((code, _, err),) = launching.ended([launching.started([on_devices.__file__, str(folder)], 8)], SECONDS)
    assert code == 0, err[-4000:]
    results = {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}
    return {"0": on_devices.plain(None), **results}


def of(results, part):
    """What is named ``part``, by the rest of its name."""
    mine = {name.partition("/")[2]: x for name, x in results.items() if name.partition("/")[0] == part}
    assert mine
    return mine


ALIKE = [("states", "0", n) for n in ("1", "2", "8")] + [
    (part, "1", n) for part in ("swept", "igq", "liu21") for n in ("2", "8")
]


@pytest.mark.parametrize(("part", "one", "number"), ALIKE)
def test_states_losses_groups_and_plans_are_the_same_to_the_bit(found, part, one, number):
    """Uniform (maximum, percentile, error), learned, groups, one pass or site by site; sweeps; Liu et al.'s search."""
    want, got = of(found[one], part), of(found[number], part)
    assert want.keys() == got.keys()
    unlike = [name for name in want if not np.array_equal(want[name], got[name])]
    assert not unlike, f"{len(unlike)} of {len(want)}: {unlike[:5]}"


@pytest.mark.parametrize("number", ["1", "2", "8"])
@pytest.mark.parametrize("part", ["evaluated", "odd"])
def test_predictions_of_an_uneven_set_are_complete_and_in_order(found, part, number):
    """37 images in batches of 16 and of 15, an image in each that cannot be read: nothing else is left out."""
    want, got = of(found["0"], part), of(found[number], part)
    step = {"evaluated": 16, "odd": 15}[part]
    left = [i for i in range(37) if i % step != 3]
    np.testing.assert_array_equal(got["labels"], on_devices.labels[left])
    np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-5, atol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(got[f"score/{i}"], want[f"score/{i}"], rtol=1e-5)


@pytest.mark.parametrize("number", ["2", "8"])
def test_biases_of_the_pass_at_the_end_are_the_same_to_rounding(found, number):
    want, got = of(found["1"], "last"), of(found[number], "last")
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5, err_msg=name)


def learned(results):
    """What two steps of training came to.

    Without the biases of keys: a softmax takes away what they add, so that their gradient is rounding, and Adam
    divides it by itself.
    """
    found = of(results, "trained")
    bias = found["block00/attn/qkv/bias"]
    return {**found, "block00/attn/qkv/bias": np.delete(bias, 1, axis=0)}


@pytest.mark.parametrize("number", ["1", "2", "8"])
def test_two_steps_of_training_come_to_the_same_parameters(found, number):
    want, got = learned(found["0"]), learned(found[number])
    assert want.keys() == got.keys()
    begin = learned({f"trained/{name}": x for name, x in on_devices.flat(on_devices.params).items()})
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert any(np.abs(want[name] - begin[name]).max() > 1e-3 for name in want)


def test_wide_weights_lie_in_parts_and_stay_so_behind_training(found):
    """fc1 [16, 64] by its columns, fc2 [64, 16] by its rows, in two parts, on eight devices; Adam's moments too.

    What was written whole is laid so again.
    """
    for when in ("begin", "end", "state", "again"):
        shown = {n: x for n, x in of(found["split"], "shown").items() if n.startswith(f"{when}/")}
        shapes = {}
        for name, x in sorted(shown.items()):
            key = name.split("/", 1)[1].rsplit("/", 2)[0]
            shapes.setdefault(key, {}).setdefault(name.rsplit("/", 2)[1], []).append(int(x))
        kinds = {key: {tuple(s) for s in mine.values()} for key, mine in shapes.items()}
        assert kinds == {"fc1/kernel": {(16, 32)}, "fc1/bias": {(32,)}, "fc2/kernel": {(32, 16)}}, when
        assert all(len(mine) == 8 for mine in shapes.values())


def test_split_weights_give_the_same_numbers_to_rounding(found):
    want = found["0"]
    np.testing.assert_allclose(
        of(found["split"], "evaluated")["logits"], of(want, "evaluated")["logits"], rtol=1e-4, atol=1e-4
    )
    trained = learned(found["split"])
    for name, x in learned(want).items():
        np.testing.assert_allclose(trained[name], x, rtol=1e-3, atol=1e-4, err_msg=name)
    weights = {n: x for n, x in of(found["split"], "state").items() if ".w/" in n}
    assert weights
    for name, x in weights.items():  # brought together before they are looked at
        np.testing.assert_array_equal(x, of(want, "states")[f"parallel/{name}"], err_msg=name)


def test_parts_that_would_not_be_equal_are_refused(found):
    want = "mesh rule 'head/kernel=.m': head/kernel has shape (16, 3): 3 cannot be split into 4 equal parts"
    assert str(found["split"]["refused"]) == want


def test_the_images_of_this_test_are_uneven_for_every_number_of_devices(found):
    """Else padding would not be tried."""
    assert all(on_devices.COUNT % (on_devices.BATCH * n) for n in on_devices.NUMBERS)
    assert jax.device_count() == 1
