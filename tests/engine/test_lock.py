"""One live run per folder."""

import json
import os
import signal
import socket
import time

import pytest

from returnn_hydra.engine.errors import LockedError, StateWriteError
from returnn_hydra.engine.lock import LOCK_FILE, NAMING_SECONDS, RunLock


def in_child(function):
    """Run it in a forked process; returns the pid and the reading end of a pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            function(write)
        finally:
            os._exit(0)
    os.close(write)
    return pid, read


def hold(folder):
    def function(pipe):
        lock = RunLock(folder).acquire()
        os.write(pipe, b"x")
        time.sleep(60)
        lock.release()

    pid, pipe = in_child(function)
    assert os.read(pipe, 1) == b"x"
    os.close(pipe)
    return pid


def end(pid, number=signal.SIGKILL):
    os.kill(pid, number)
    os.waitpid(pid, 0)


def test_200_of_200_second_starts_are_refused_and_name_the_first(tmp_path):
    pid = hold(tmp_path)
    try:
        for _ in range(200):
            with pytest.raises(LockedError, match=rf"process {pid} on {socket.gethostname()}, since 20") as caught:
                RunLock(tmp_path).acquire()
            assert caught.value.exit_code == 73
            assert str(tmp_path) in str(caught.value)
        with pytest.raises(LockedError):
            RunLock(tmp_path, steal=True).acquire()
    finally:
        end(pid)


def test_free_after_kill_9(tmp_path):
    for _ in range(20):
        end(hold(tmp_path))
        with RunLock(tmp_path):
            owner = json.loads((tmp_path / LOCK_FILE).read_text())
            assert owner["pid"] == os.getpid()
        assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_child_of_the_owner_does_not_keep_the_lock(tmp_path):
    def with_child(pipe):
        RunLock(tmp_path).acquire()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.write(pipe, str(child).encode())
        time.sleep(60)

    pid, pipe = in_child(with_child)
    child = int(os.read(pipe, 20))
    os.close(pipe)
    end(pid)
    try:
        RunLock(tmp_path).acquire().release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_releases_leaves_the_parents_lock(tmp_path):
    with RunLock(tmp_path) as lock:
        pid, pipe = in_child(lambda pipe: lock.release())
        os.close(pipe)
        os.waitpid(pid, 0)
        with pytest.raises(LockedError):
            RunLock(tmp_path).acquire()


def test_the_lock_of_another_host_needs_steal(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "2026-01-01"}))
    with pytest.raises(LockedError, match=r"process 7 on elsewhere, since 2026-01-01.*steal_lock=true"):
        RunLock(tmp_path).acquire()
    with RunLock(tmp_path, steal=True):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == socket.gethostname()
    RunLock(tmp_path).acquire().release()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "x" * 10_000, "[" * 4096])
def test_a_strange_text_without_an_owner_is_no_lock(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    RunLock(tmp_path).acquire().release()


def test_an_owner_that_has_not_written_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("returnn_hydra.engine.lock.NAMING_SECONDS", 0.05)
    with RunLock(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        with pytest.raises(LockedError, match="has not written its name yet"):
            RunLock(tmp_path).acquire()
    assert NAMING_SECONDS > 0.05


def test_a_second_release_does_nothing(tmp_path):
    lock = RunLock(tmp_path).acquire()
    lock.release()
    lock.release()


def test_a_symlink_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(StateWriteError, match="ELOOP"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StateWriteError, match=r"can't lock .*run\.lock: Operation not supported"):
        RunLock(tmp_path).acquire()
