"""Atomic writing on the real disk, error messages, and names that can't leave a folder."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from returnn_hydra.engine import files
from returnn_hydra.engine.errors import StateReadError, StateWriteError, UnsafeNameError
from returnn_hydra.engine.files import FileSystem, Writer, check_free_space, inside, safe_name, write_atomic, write_text

DISK = FileSystem()


class Recorder(FileSystem):
    """The real disk, with a list of what was done to it."""

    def __init__(self):
        self.calls = []

    def create(self, path):
        self.calls.append(("create", path.name))
        return super().create(path)

    def write(self, handle, data):
        self.calls.append(("write", len(data)))
        return super().write(handle, data)

    def fsync(self, handle):
        self.calls.append(("fsync",))
        super().fsync(handle)

    def close(self, handle):
        self.calls.append(("close",))
        super().close(handle)

    def rename(self, source, target):
        self.calls.append(("rename", source.name, target.name))
        super().rename(source, target)

    def fsync_folder(self, folder):
        self.calls.append(("fsync_folder",))
        super().fsync_folder(folder)


def test_the_order_of_operations_of_a_write(tmp_path):
    disk = Recorder()
    write_text(disk, tmp_path / "a.json", "text")
    assert disk.calls == [
        ("create", "a.json.tmp"),
        ("write", 4),
        ("fsync",),
        ("close",),
        ("rename", "a.json.tmp", "a.json"),
        ("fsync_folder",),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_need_not_survive_a_power_cut_waits_for_no_disk(tmp_path):
    disk = Recorder()
    write_text(disk, tmp_path / "a.txt", "text", synced=False)
    assert (tmp_path / "a.txt").read_text() == "text"
    assert not [call for call in disk.calls if call[0].startswith("fsync")]


def test_a_file_is_replaced_and_a_temporary_file_of_a_crash_is_overwritten(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a.tmp").write_text("half")
    write_text(DISK, tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a.tmp").exists()


def test_small_pieces_are_collected_and_large_ones_are_not_copied(tmp_path):
    disk = Recorder()
    pieces = [b"ab", b"c" * 10, b"d" * (files.SMALL_PIECES + 1), b"e", b"f" * files.SMALL_PIECES]

    def fill(writer):
        for piece in pieces:
            assert writer.write(piece) == len(piece)

    facts = write_atomic(disk, tmp_path / "a", fill, 0)
    sizes = [call[1] for call in disk.calls if call[0] == "write"]
    assert sizes == [12, files.SMALL_PIECES + 1, 1, files.SMALL_PIECES]
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert facts.bytes == sum(sizes)
    with (tmp_path / "a").open("rb") as file:
        assert files.hash_file(file) == facts


def test_symlinks_are_replaced_and_never_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a", "a.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_text(DISK, tmp_path / "a", "new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()
    (tmp_path / "b").symlink_to(victim)
    with pytest.raises(FileExistsError):
        DISK.create(tmp_path / "b")


def test_the_umask_counts(tmp_path):
    before = os.umask(0o077)
    try:
        write_text(DISK, tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_failure_while_filling_leaves_nothing(tmp_path):
    def fill(writer):
        writer.write(b"x")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_atomic(DISK, tmp_path / "a", fill, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "close", "rename", "fsync_folder"])
def test_the_message_says_what_where_and_how_much(tmp_path, monkeypatch, operation):
    (tmp_path / "a").write_text("old")

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk = FileSystem()
    monkeypatch.setattr(disk, operation, refuse)
    with pytest.raises(StateWriteError) as caught:
        write_text(disk, tmp_path / "a", "new!")
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "No space left on device (ENOSPC)" in text
    assert "bytes needed" in text
    assert "free" in text
    assert caught.value.exit_code == 74
    assert (tmp_path / "a").read_text() == ("new!" if operation == "fsync_folder" else "old")
    assert not (tmp_path / "a.tmp").exists()


def test_a_disk_that_loses_bytes_without_an_error(tmp_path, monkeypatch):
    disk = FileSystem()
    monkeypatch.setattr(disk, "write", lambda handle, data: os.write(handle, data[:-1]) + 1)
    with pytest.raises(StateWriteError, match=r"EIO.*4 bytes needed") as caught:
        write_text(disk, tmp_path / "a", "text")
    assert "4 bytes were written without an error, but the file has 3" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_message_when_even_the_free_space_is_unknown(tmp_path):
    with pytest.raises(StateWriteError, match=r"ENOENT.*an unknown number of bytes free"):
        write_text(DISK, tmp_path / "missing" / "deep" / "a", "x")


def test_a_cause_without_a_number():
    assert files.cause(OSError("strange")) == "strange"


def test_folders_that_cannot_be_synced(tmp_path, monkeypatch):
    def refuse(code):
        def fsync(handle):
            raise OSError(code, os.strerror(code))

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    DISK.fsync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(StateWriteError, match="EIO"):
        files.sync_folder(DISK, tmp_path)


def test_reading(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.read_bytes(DISK, tmp_path / "a") == b"abc"
    assert DISK.size(tmp_path / "a") == 3
    assert DISK.names(tmp_path) == ["a"]
    assert DISK.names(tmp_path / "missing") == []
    assert not files.exists(DISK, tmp_path / "missing")
    with pytest.raises(StateReadError, match=r"can't read .*missing: No such file or directory \(ENOENT\)"):
        files.read_bytes(DISK, tmp_path / "missing")


def test_remove(tmp_path):
    (tmp_path / "a").touch()
    files.remove(DISK, tmp_path / "a")
    files.remove(DISK, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_free_space(tmp_path, monkeypatch):
    check_free_space(DISK, tmp_path, 1)
    disk = FileSystem()
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    check_free_space(disk, tmp_path, 1000)
    with pytest.raises(StateWriteError, match=r"ENOSPC\); 1,001 bytes needed, 1,000 bytes free"):
        check_free_space(disk, tmp_path, 1001)


def test_the_first_error_is_kept():
    class Failing(FileSystem):
        codes = [errno.ENOSPC, errno.EBADF]

        def write(self, handle, data):
            raise OSError(self.codes.pop(0), "")

    writer = Writer(Failing(), 0)
    for _ in range(2):
        with pytest.raises(OSError):
            writer.write(b"x" * (files.SMALL_PIECES + 1))
    assert writer.error.errno == errno.ENOSPC


NAMES = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="ab./~\\\0\n -_%$*é", max_size=8),
    st.lists(st.sampled_from(["..", ".", "", "a", "b.txt", "~", "/", "link", "\n", "a" * 250]), max_size=5).map(
        "/".join
    ),
)


@settings(max_examples=1_500, derandomize=True, database=None, deadline=None)
@given(NAMES)
@example("a\n")
@example("..")
@example("link/x")
def test_no_name_leads_out_of_the_folder(folder_with_link, name):
    stays_inside(folder_with_link, name)


@pytest.mark.slow
@settings(max_examples=10_000, derandomize=True, database=None, deadline=None)
@given(NAMES)
def test_no_name_of_ten_thousand_leads_out_of_the_folder(folder_with_link, name):
    stays_inside(folder_with_link, name)


def stays_inside(folder_with_link, name):
    folder, outside = folder_with_link
    try:
        path = inside(folder, name)
    except UnsafeNameError:
        return
    assert path.resolve().is_relative_to(folder.resolve())
    assert not path.resolve().is_relative_to(outside)
    assert name.isprintable()
    assert path.relative_to(folder.resolve()).as_posix() == name


@pytest.fixture(scope="module")
def folder_with_link(tmp_path_factory):
    folder, outside = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("outside")
    (folder / "link").symlink_to(outside)
    return folder, outside


@pytest.mark.parametrize("name", ["model.003.pt", "a", "A-1_b,c=d+e", "x" * 200])
def test_safe_names(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\0", "a\n", "~root", ".hidden", "-rf", "ä", "x" * 201, "a b"],
)
def test_unsafe_names(name):
    with pytest.raises(UnsafeNameError, match="output name"):
        safe_name(name)


def test_a_symlinked_parent_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "out").symlink_to(tmp_path)
    with pytest.raises(UnsafeNameError, match="leads out of"):
        inside(tmp_path / "run", "out/file")
    assert inside(tmp_path / "run", "sub/file") == Path(tmp_path / "run" / "sub" / "file").resolve()
