"""Checks that list faults one after another and return what went wrong, as text; an empty list is the promise kept."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faulttools.simulated_disk import Crash, Image, Operation, SimulatedDisk
from faulttools.small_trainer import FOLDER, Saved, Trained, make_store, numbers, train
from returnn_hydra.engine.errors import StateError, StateWriteError
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.score_file import ScoreFile

ENGINE_LOG = logging.getLogger("returnn_hydra.engine")
START = (0, -1.0)


class Complaints(logging.Handler):
    """Collects what the engine reports as damaged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def complaints() -> Iterator[list[str]]:
    handler, propagate = Complaints(), ENGINE_LOG.propagate
    ENGINE_LOG.addHandler(handler)
    ENGINE_LOG.propagate = False
    try:
        yield handler.lines
    finally:
        ENGINE_LOG.removeHandler(handler)
        ENGINE_LOG.propagate = propagate


@dataclass
class Story:
    """A run that nothing disturbed, from a first disk on."""

    before: Image
    result: Trained
    operations: list[Operation]
    saved: list[Saved]
    states: dict[tuple[int, float], tuple[float, float]]
    """Position to the numbers that were saved there."""
    image: Image
    """The disk at its end."""


def tell(before: Image, num_epochs: int = 4) -> Story:
    disk = SimulatedDisk.from_image(before)
    saved: list[Saved] = []
    states: dict[tuple[int, float], tuple[float, float]] = {}

    def on_saved(progress: Progress, state: tuple[float, float]) -> None:
        saved.append(Saved(progress.position, len(disk.trace)))
        states[progress.position] = state

    result = train(disk, num_epochs, on_saved=on_saved)
    return Story(before, result, disk.trace, saved, states, disk.image())


@dataclass
class Report:
    tried: int = 0
    distinct: int = 0
    violations: list[str] = field(default_factory=list)


def crash_states(story: Story, per_operation: int, rng: random.Random) -> Iterator[tuple[int, Image]]:
    """(number of operations done, what the crash left), for a crash before every operation and at the end."""
    disk = SimulatedDisk.from_image(story.before)
    for done in range(len(story.operations) + 1):
        for image in disk.crash_images(rng, per_operation):
            yield done, image
        if done < len(story.operations):
            disk.redo(story.operations[done])


def after_crashes(
    per_operation: int,
    seed: int = 0,
    before: Image | None = None,
    floor: tuple[int, float] = START,
    only_first: bool = False,
    go_on_every: int = 50,
    damaged: bool = False,
    reference: Story | None = None,
) -> Report:
    """Crash a run at every operation in many ways, and look at what a restart finds.

    Args:
        before: the disk at the start of the run that is crashed.
        floor: the checkpoint that a restart must find at least.
        go_on_every: so often the restart also trains to the end, which must be as if nothing had happened.
        damaged: the first disk had a damaged file, so that reports of damage are right.
    """
    report, rng, seen = Report(), random.Random(seed), set[int]()
    story = tell(before or {})
    reference = reference or story
    states = {**reference.states, **story.states}
    for done, image in crash_states(story, per_operation, rng):
        report.tried += 1
        newest = max([floor] + [saved.position for saved in story.saved if saved.operations <= done])
        key = hash((newest, tuple(sorted(image.items()))))
        if key in seen:
            continue
        seen.add(key)
        report.distinct += 1
        try:
            problem = what_is_wrong(image, newest, states, damaged)
            if problem is None and report.distinct % go_on_every == 0:
                problem = wrong_end(image, reference)
        except (StateError, ValueError, AssertionError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            report.violations.append(f"crash after {done} operations: {problem}")
            if only_first:
                return report
    return report


def what_is_wrong(
    image: Image, newest: tuple[int, float], states: dict[tuple[int, float], tuple[float, float]], damaged: bool
) -> str | None:
    """Restart on a disk: is the newest checkpoint there, whole, and is nothing called damaged that a crash left?"""
    disk = SimulatedDisk.from_image(image)
    with complaints() as lines:
        store = make_store(disk)
        store.clean_up()
        checkpoint = store.load_newest()
        scores = ScoreFile(FOLDER / "scores.jsonl", disk).read()
        if not damaged:
            for manifest in store.manifests():
                store.verify(manifest)
    if lines and not damaged:
        return f"a crash looks like damage: {lines[0]}"
    if [record["epoch"] for record in scores] != list(range(1, len(scores) + 1)):
        return f"scores {scores}"
    position = checkpoint.progress.position if checkpoint else START
    if position < newest:
        return f"lost: {newest} was saved, found {position}"
    if checkpoint and numbers(checkpoint) != states[position]:
        return f"{position}: wrong content"
    left = [Path(path).name for path in disk.image() if path.endswith((".tmp", ".gone")) and "model" in path]
    return f"left over: {left}" if left else None


def wrong_end(image: Image, reference: Story) -> str | None:
    """Restart on a disk and train to the end."""
    disk = SimulatedDisk.from_image(image)
    with complaints():
        result = train(disk)
    if result != reference.result:
        return f"the resumed run ends with {result}, not {reference.result}"
    end = disk.image()
    differing = [path for path, data in reference.image.items() if path.endswith("4.pt") and end.get(path) != data]
    return f"the resumed run wrote another {differing}" if differing else None


def after_damage_and_crash(
    per_operation: int, damages: int, seed: int = 0, only_first: bool = False, go_on_every: int = 40
) -> Report:
    """Damage a file of a crashed or finished run, then crash the run that goes on from there, at every operation."""
    total, rng = Report(), random.Random(seed)
    reference = tell({})
    moments = [saved.operations for saved in reference.saved][3:] + [len(reference.operations)]
    for number in range(damages):
        disk = SimulatedDisk()
        for operation in reference.operations[: moments[number % len(moments)]]:
            disk.redo(operation)
        image = disk.image()
        path = rng.choice(sorted(path for path in image))
        image[path], kind = damage(image[path], rng)
        try:
            floor = newest_undamaged(image, Path(path).name, reference)
            part = after_crashes(per_operation, seed + number, image, floor, only_first, go_on_every, True, reference)
        except (StateError, ValueError, AssertionError, KeyError) as error:
            part = Report(1, 1, [f"{type(error).__name__}: {error}"])
        total.tried += part.tried
        total.distinct += part.distinct
        total.violations += [f"{Path(path).name} {kind}: {violation}" for violation in part.violations]
        if only_first and total.violations:
            break
    return total


def newest_undamaged(image: Image, damaged: str, reference: Story) -> tuple[int, float]:
    """The newest position whose files were all there and are not the damaged one."""
    store = make_store(SimulatedDisk.from_image({path: data for path, data in image.items() if "run.json" in path}))
    intact = {path: data for path, data in image.items() if not same_checkpoint(Path(path).name, damaged)}
    store.disk = SimulatedDisk.from_image(intact)
    with complaints():
        positions = [manifest.progress.position for manifest in store.manifests() if store.is_valid(manifest)]
    assert set(positions) <= set(reference.states)
    return max(positions)


def same_checkpoint(name: str, other: str) -> bool:
    return name.removesuffix(".opt.pt").removesuffix(".pt").removesuffix(".json") == other.removesuffix(
        ".opt.pt"
    ).removesuffix(".pt").removesuffix(".json")


def damage(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The file with one fault in it."""
    kind = rng.choice(["bit flip", "truncated", "zeros", "garbage"])
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 200))
    if kind == "bit flip":
        changed = bytearray(data)
        changed[start] ^= 1 << rng.randrange(8)
        return bytes(changed), kind
    if kind == "truncated":
        return data[:start], kind
    if kind == "zeros":
        new = bytes(end - start)
    else:
        new = rng.randbytes(end - start)
    if new == data[start:end]:
        return data[:start], "truncated"
    return data[:start] + new + data[end:], kind


ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES)


def after_refusals(
    codes: tuple[int, ...] = ERRORS, only_first: bool = False, every: int = 1, go_on_every: int = 1
) -> Report:
    """Every operation fails, once or from there on: a clear error, the old state intact, the same end after repair.

    Args:
        every: leave out the operations in between.
        go_on_every: so often the repaired run also trains to the end.
    """
    report, reference = Report(), tell({})
    for code in codes:
        for sticky in (False, True):
            at = (code + sticky) % every
            while refuse(code, at, sticky, reference, report, report.tried % go_on_every == 0):
                at += every
                if only_first and report.violations:
                    return report
    return report


def refuse(code: int, at: int, sticky: bool, reference: Story, report: Report, go_on: bool) -> bool:
    """One fault; returns False when the run ended before it."""
    disk = SimulatedDisk(torn_fault=at % 2 == 0)

    def fault(number: int, kind: str, path: str) -> OSError | None:
        if number == at or (sticky and number > at):
            return OSError(code, errno.errorcode[code])
        return None

    disk.fault = fault
    report.tried += 1
    report.distinct += 1
    saved: list[tuple[int, float]] = [START]
    where = f"{errno.errorcode[code]}{' for good' if sticky else ''} at operation {at}"
    try:
        with complaints():
            train(disk, on_saved=lambda progress, _: saved.append(progress.position))
        if at >= disk.count:
            return False
        failed = None
    except StateError as error:
        failed = error
    except OSError as error:
        report.violations.append(f"{where}: a bare {error!r}")
        return True
    if failed is not None and not clear(failed, code):
        report.violations.append(f"{where}: unclear message: {failed}")
    disk.fault = None
    problem = what_is_wrong(disk.image(), max(saved), reference.states, False)
    if problem is None and go_on:
        problem = wrong_end(disk.image(), reference)
    if problem:
        report.violations.append(f"{where}: {problem}")
    return True


def clear(error: StateError, code: int) -> bool:
    """Whether the message names the path and the cause, and for writing the bytes needed and free."""
    text = str(error)
    named = str(FOLDER) in text and errno.errorcode[code] in text
    return named and (not isinstance(error, StateWriteError) or ("bytes needed" in text and "free" in text))


def crash_in_process(seed: int, kills: int) -> Report:
    """A real restart loop: the process dies at a random operation, again and again, until the run is done."""
    report, rng, reference = Report(), random.Random(seed), tell({})
    image: Image = {}
    for _ in range(kills):
        disk = SimulatedDisk.from_image(image)
        disk.crash_before = rng.randrange(5, 60)
        report.tried += 1
        try:
            with complaints() as lines:
                result = train(disk)
            if result != reference.result or lines:
                report.violations.append(f"ends with {result}, complaints {lines}")
            image = {}
        except Crash:
            image = rng.choice(list(disk.crash_images(rng, 6)))
    report.distinct = report.tried
    return report
