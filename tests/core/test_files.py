"""Files are whole or not there, whatever happens while they are written, and the disk's errors are one line."""

import errno
import os
import resource
import signal
import subprocess

import pytest

from jvq.core import files


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("content", [b"\0bytes\xff", "text, ü\n", ""])
def test_what_is_written_is_there(content, tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    files.replace(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_is_one_line_and_leaves_what_was_there(step, code, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("before")

    def failing(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        with pytest.raises(ValueError, match=f"^labels: .*/a cannot be written: {os.strerror(code)}$"):
            files.replace(path, "after", "labels: ")
    assert (path.read_text(), names(tmp_path)) == ("before", ["a"])


def test_an_error_in_the_block_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("before")

    def torn():
        with files.replacing(tmp_path / "a") as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        torn()
    assert ((tmp_path / "a").read_text(), names(tmp_path)) == ("before", ["a"])


def test_a_name_is_given_only_to_what_is_on_the_disk(tmp_path, monkeypatch):
    """The order of the system calls: the content, the name, the folder."""
    done, real = [], {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:

        def noted(*args, name=name):
            done.append((name, sorted(p.name for p in tmp_path.iterdir())))
            return real[name](*args)

        monkeypatch.setattr(os, name, noted)
    files.replace(tmp_path / "a", "x")
    assert done == [("fsync", ["a.part"]), ("replace", ["a.part"]), ("fsync", ["a"])]


def test_what_a_killed_process_left_is_replaced_and_a_link_is_not_followed(tmp_path):
    (tmp_path / "a.part").write_text("left")
    files.replace(tmp_path / "a", "x")
    (tmp_path / "other").write_text("mine")
    (tmp_path / "a.part").symlink_to(tmp_path / "other")
    files.replace(tmp_path / "a", "y")
    assert ((tmp_path / "a").read_text(), (tmp_path / "other").read_text()) == ("y", "mine")
    assert names(tmp_path) == ["a", "other"]


def test_no_folder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no/a cannot be written: No such file or directory"):
        files.replace(tmp_path / "no" / "a", "x")
    with pytest.raises(ValueError, match="no/a cannot be written: No such file or directory"):
        files.append(tmp_path / "no" / "a", "x")


def test_lines_are_added(tmp_path):
    files.append(tmp_path / "a", "one\n")
    files.append(tmp_path / "a", "two\n")
    assert (tmp_path / "a").read_text() == "one\ntwo\n"


def test_a_line_that_does_not_fit_is_not_begun(tmp_path):
    """A limit on a file's size stops a write in its middle, as a full disk does."""
    path = tmp_path / "a"
    files.append(path, "one\n")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(ValueError, match="a cannot be written: File too large"):
            files.append(path, "a line of twenty bytes\n")
        with pytest.raises(ValueError, match="a cannot be written: File too large"):
            files.replace(path, "a text of twenty bytes\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (path.read_text(), names(tmp_path)) == ("one\n", ["a"])
    files.append(path, "two\n")
    assert path.read_text() == "one\ntwo\n"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("no right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk):
    files.replace(small_disk / "a", b"x" * 20_000)
    for write in (files.replace, files.append):
        with pytest.raises(ValueError, match="a cannot be written: No space left on device"):
            write(small_disk / "a", "y" * 100_000)
        assert (small_disk / "a").read_bytes() == b"x" * 20_000
        assert names(small_disk) == ["a"]


def test_a_disk_that_is_only_to_be_read(small_disk):
    files.replace(small_disk / "a", "before")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (files.replace, files.append):
        with pytest.raises(ValueError, match="a cannot be written: Read-only file system"):
            write(small_disk / "a", "after")
    assert (small_disk / "a").read_text() == "before"
