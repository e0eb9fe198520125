"""Stop requests by signals and by time, with real signals in forked processes."""

import os
import signal
import time

import pytest

from returnn_hydra.engine.errors import Stopped
from returnn_hydra.engine.signals import StopRequest, parse_duration


def run_forked(function):
    """Run it in a child that leaves with its return value; returns the child's pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = function()
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """The exit code, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def training(ready):
    """Steps until it is asked to stop; the exit code says why."""

    def function():
        with StopRequest() as stop:
            stop.immediate = False
            os.write(ready, b"x")
            for _ in range(2000):
                time.sleep(0.005)
                if stop.requested:
                    os.write(ready, b"s")
                    time.sleep(0.2)
                    return stop.stopped("saved").exit_code
        return 98

    return function


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGUSR1, 143),
        (signal.SIGUSR2, 143),
        (signal.SIGHUP, 143),
    ],
)
def test_a_signal_asks_for_the_end_of_the_step(pipe, number, code):
    pid = run_forked(training(pipe[1]))
    assert os.read(pipe[0], 1) == b"x"
    os.kill(pid, number)
    assert ended(pid) == code


@pytest.mark.parametrize(
    ("second", "end"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGUSR1, signal.SIGTERM)],
)
def test_a_second_signal_ends_at_once(pipe, second, end):
    pid = run_forked(training(pipe[1]))
    assert os.read(pipe[0], 1) == b"x"
    os.kill(pid, signal.SIGTERM)
    assert os.read(pipe[0], 1) == b"s"
    os.kill(pid, second)
    assert ended(pid) == -end


def test_in_this_process(monkeypatch):
    killed = []
    with StopRequest() as stop:
        stop.immediate = False
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        assert (stop.reason, stop.exit_code) == ("SIGINT", 130)
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
        signal.raise_signal(signal.SIGINT)
    assert killed == [signal.SIGINT]
    with pytest.raises(Stopped, match="SIGTERM: before the first step"), StopRequest():
        signal.raise_signal(signal.SIGTERM)


def test_during_start_up_the_first_signal_ends_it():
    def function():
        try:
            with StopRequest():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        except Stopped as error:
            return error.exit_code
        return 98

    assert ended(run_forked(function)) == 143


def test_a_stop_that_a_library_turns_into_another_error_stays_a_stop():
    def swallowing():
        try:
            signal.raise_signal(signal.SIGUSR1)
        except Stopped:
            raise SystemError("returned a result with an exception set") from None

    with pytest.raises(Stopped, match="SIGUSR1: before the first step") as caught, StopRequest():
        swallowing()
    assert isinstance(caught.value.__cause__, SystemError)
    stop = StopRequest()
    stop.__enter__()
    stop.immediate = False  # what happens later is an error of its own
    signal.raise_signal(signal.SIGUSR1)
    stop.__exit__(SystemError, SystemError(), None)


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        term = signal.getsignal(signal.SIGTERM)
        with StopRequest():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != term
        assert signal.getsignal(signal.SIGTERM) == term
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_limit():
    now = [100.0]
    stop = StopRequest("1h", clock=lambda: now[0])
    now[0] += 3599
    assert not stop.requested
    now[0] += 1
    assert stop.requested
    error = stop.stopped("epoch 3, batch 117 of 240 is saved")
    assert error.exit_code == 143
    assert str(error).startswith("stop_after=1h: epoch 3, batch 117 of 240 is saved. Start the same command again")
    assert not StopRequest().requested


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("23h30m", 84600),
        ("90s", 90),
        ("1d", 86400),
        ("1.5h", 5400),
        (45, 45),
        ("7.5", 7.5),
        ("1d2h3m4s", 93784),
        (" 5M ", 300),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "30m1h", "-5", "1..5h", "5 apples", "1e9", ".h", "nan"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="expected such as 23h30m"):
        parse_duration(text)
