"""Two real processes share soft labels and finished rows: the files of one process, and no image read by both."""

import launching
import numpy as np
import on_labels
import pytest

from jvq.data import SoftLabels
from jvq.data.soft_labels import steps

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder, what each of two processes has found by name, and how it ended."""
    folder = tmp_path_factory.mktemp("labels")
    ends = launching.together([on_labels.__file__, str(folder)], 2)
    for i, (_, _, err) in enumerate(ends):
        assert (folder / f"process-{i}.npz").exists(), err[-4000:]
    return folder, [dict(np.load(folder / f"process-{i}.npz")) for i in range(2)], ends


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The labels that this process writes, and what it asked the teacher."""
    folder = tmp_path_factory.mktemp("alone")
    teacher = on_labels.Teacher()
    labels = on_labels.write(folder / "labels", on_labels.Pictures(), teacher)
    on_labels.write(folder / "some", on_labels.Pictures(), on_labels.Teacher(), indices=[9, 2, 5, 3, 0])
    return labels, teacher.calls


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_files_are_those_of_one_process(found, alone):
    """Also those of the labels of some images, whose two shards are of 4 and 1; and nobody else has written any."""
    folder, _, _ = found
    labels, _ = alone
    assert contents(folder / "labels") == contents(labels.folder)
    assert contents(folder / "some") == contents(labels.folder.with_name("some"))
    assert [path.name for path in (folder / "own-1").rglob("*") if path.is_file()] == []


def test_shards_are_made_by_one_process_each_and_missing_ones_alone(found, alone):
    """Three shards take nine batches; two of them, one missing and one damaged, are made again."""
    _, calls = alone
    asked = np.stack([mine["calls"] for mine in found[1]])
    each = -(-on_labels.SHARD * on_labels.CROPS // on_labels.CALLED)
    assert asked.sum(axis=0).tolist() == [calls, calls - each]
    assert (asked > 0).all()


@pytest.mark.parametrize("per_image", [3, 4])
def test_batches_are_cut_by_the_process_whose_rows_they_are(per_image, found, alone):
    labels, _ = alone
    source = on_labels.Pictures()
    whole = on_labels.batches(SoftLabels.open(labels.folder, source), source, None, per_image)
    half = on_labels.BATCH // 2
    got = [{name: mine[f"batches{per_image}/{name}"] for name in whole} for mine in found[1]]
    for name in ("image", "label", "index", "value"):
        both = np.concatenate([got[0][name][:, :half], got[1][name][:, half:]], axis=1)
        np.testing.assert_array_equal(both, whole[name])
        assert not got[0][name][:, half:].any()
        assert not got[1][name][:, :half].any()
    passed = steps(on_labels.IMAGES, on_labels.BATCH, on_labels.EPOCHS, per_image)
    assert len(whole["image"]) == passed
    twice = steps(on_labels.IMAGES, on_labels.BATCH, on_labels.EPOCHS // 4 * 4, 4) if per_image == 4 else 0
    assert sum(len(mine["read"]) for mine in got) == len(whole["read"]) + twice, "but for an image of both"


def test_what_the_leading_process_has_finished_is_found_by_all(found):
    for mine in found[1]:
        assert mine["took/own"].tolist() == [0, 1, 2, 3, 4]
        assert mine["took/whole"].tolist() == [0, 1, 2]
        assert mine["took/parts"].tolist() == [0, 1, 2, 3]
        assert mine["sent"].tolist() == list(range(10))


def test_all_compute_again_where_one_cannot_take_it(found):
    """Another run's, one that the second process cannot read, one that is damaged."""
    assert [mine["computed"].tolist() for mine in found[1]] == [[1, 2, 3]] * 2


def test_what_is_kept_is_of_all_processes(found):
    """The mark is the same in all; and another where one process differs, in its packages perhaps."""
    (a, same, differs), other = (mine["marks"].tolist() for mine in found[1])
    assert a == same != differs
    assert other == [a, same, differs]


def test_a_folder_that_one_process_does_not_see_is_a_line_of_all(found):
    folder, _, ends = found
    for code, _, err in ends:
        said = [line for line in err.splitlines() if line.startswith("jvq:")]
        assert (code, said) == (2, [f"jvq: soft labels: process 1 does not see {folder / 'seen-by-0'}: all have to"])
