"""The store on the real disk under the fault layer: killed, torn and refused at its file operations."""

import shutil
import signal
import time

import pytest
from faulttools.tally import Different

RUN = "faulttools.runs:small_training"
STATE = ("*.pt", "*.json", "*.jsonl")


@pytest.fixture(scope="module")
def reference(zygote, tmp_path_factory):
    """(the files of an undisturbed run, how many operations it took)."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    done = zygote.run(RUN, {"folder": str(folder)}, folder)
    assert done.exit == 0, done.output
    assert done.operations > 150
    return files_of(folder), done.operations


def files_of(folder):
    return {path.name: path.read_bytes() for pattern in STATE for path in folder.glob(pattern)}


def fail_once(zygote, files, folder, kind, sticky, at):
    """A run with a fault at an operation, then the same command again: the same bytes, and nothing left over."""
    broken = zygote.run(RUN, {"folder": str(folder)}, folder, at=at, kind=kind, sticky=sticky)
    if kind in ("kill", "torn"):
        assert broken.exit == -signal.SIGKILL, (at, broken)
    else:
        assert broken.exit in (0, 74), (at, broken)
        assert broken.exit == 0 or f"({kind})" in broken.output, (at, broken)
    again = zygote.run(RUN, {"folder": str(folder)}, folder)
    assert again.exit == 0, (at, again)
    assert "DAMAGED" not in broken.output + again.output
    if files_of(folder) != files:
        raise Different(at)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "run.lock"])
    shutil.rmtree(folder)


def check(count, zygote, reference, tmp_path, kind, sticky, numbers):
    """One run per number."""
    for at in numbers:
        count.add(fail_once, zygote, reference[0], tmp_path / str(at), kind, sticky, at)
    count.close()


@pytest.mark.parametrize("kind", ["kill", "torn"])
def test_killed_at_an_operation(tally, zygote, reference, tmp_path, kind):
    check(
        tally(f"store on the real disk: {kind}"),
        zygote,
        reference,
        tmp_path,
        kind,
        False,
        range(kind == "torn", reference[1], 20),
    )


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "EDQUOT", "EACCES"])
def test_refused_at_an_operation(tally, zygote, reference, tmp_path, kind):
    count, numbers = tally(f"store on the real disk: {kind}"), range(len(kind), reference[1], 50)
    check(count, zygote, reference, tmp_path, kind, kind in ("ENOSPC", "EACCES"), numbers)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", ["kill", "torn"])
def test_killed_at_every_operation(tally, zygote, reference, tmp_path, kind):
    count = tally(f"store on the real disk: {kind} at every operation")
    check(count, zygote, reference, tmp_path, kind, False, range(reference[1]))


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "EDQUOT", "EACCES"])
def test_refused_at_every_operation(tally, zygote, reference, tmp_path, kind, sticky):
    count = tally(f"store on the real disk: {kind}{' for good' if sticky else ''} at every operation")
    check(count, zygote, reference, tmp_path, kind, sticky, range(reference[1]))


def test_the_harness_sees_orphans_and_time_limits(zygote, tmp_path):
    done = zygote.run("faulttools.runs:sleep_with_child", {"seconds": 60}, tmp_path, limit=0.3, patience=0.1)
    assert (done.exit, done.orphans) == (None, 1)
    started = time.monotonic()
    done = zygote.run(
        "faulttools.runs:sleep_with_child", {"seconds": 60}, tmp_path, signals=[(0.1, signal.SIGTERM)], patience=0.1
    )
    assert (done.exit, done.orphans) == (-signal.SIGTERM, 1)
    assert time.monotonic() - started < 30
