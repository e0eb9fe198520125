"""Bit flips, truncations and swaps of every state file of a finished run: how many would be used without a word?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from faulttools.enumeration import Report, complaints, tell
from faulttools.simulated_disk import Image, SimulatedDisk
from faulttools.small_trainer import FOLDER, content, make_store
from returnn_hydra.engine.checkpoint import CheckpointStore, run_id_of_folder
from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.score_file import ScoreFile


def flips(data: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    for _ in range(count):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def truncations(data: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    for _ in range(count):
        yield data[: rng.randrange(len(data))]


def silent_damage(kind: Callable[[bytes, int, random.Random], Iterator[bytes]], count: int, seed: int = 0) -> Report:
    """Damage each file of a run in turn, and use exactly that file; violations: the damage was not noticed."""
    report, rng = Report(), random.Random(seed)
    image = tell({}).image
    for index, path in enumerate(sorted(image)):
        share = count * (index + 1) // len(image) - count * index // len(image)
        for data in kind(image[path], share, rng):
            report.tried += 1
            if not noticed({**image, path: data}, path, image):
                report.violations.append(f"{path}: used without a word")
    report.distinct = report.tried
    return report


def noticed(image: Image, path: str, before: Image) -> bool:
    """Whether reading this one file fails or is reported, or gives what was an earlier state of the same file."""
    disk, name = SimulatedDisk.from_image(image), Path(path).name
    with complaints() as lines:
        if name == "run.json":
            right = run_id_of_folder(FOLDER, SimulatedDisk.from_image(before))
            return run_id_of_folder(FOLDER, disk) == right and bool(lines)
        if name == "scores.jsonl":
            whole = before[path].splitlines(keepends=True)
            records = ScoreFile(Path(path), disk).read()
            older = image[path] == b"".join(whole[: len(records)])
            full = ScoreFile(Path(path), SimulatedDisk.from_image(before)).read()
            return records == full[: len(records)] and (bool(lines) or older)
        epoch = int(name.split(".")[1])
        try:
            make_store(disk).load(epoch, with_optimizer=True)
        except DamagedStateError as error:
            return name in str(error)
    return False


def swaps() -> Report:
    """Files of one epoch under the names of another, and files of another run."""
    report = Report()
    image = tell({}).image
    disk = SimulatedDisk()
    CheckpointStore(FOLDER, "another run", disk=disk).save_epoch(Progress(4, None, 12, 0.1), *content(1.0, 1.0))
    other_run = disk.image()
    for suffixes in ((".pt",), (".opt.pt",), (".json",), (".pt", ".opt.pt"), (".pt", ".opt.pt", ".json")):
        for source in (image, other_run):
            changed = dict(image)
            for suffix in suffixes:
                origin = "model.004" if source is other_run else "model.003"
                changed[str(FOLDER / f"model.004{suffix}")] = source[str(FOLDER / (origin + suffix))]
            report.tried += 1
            store = make_store(SimulatedDisk.from_image(changed))
            with complaints() as lines:
                found = store.load_newest()
            if not lines or found is None or found.progress.epoch == 4:
                report.violations.append(f"{suffixes} swapped: epoch {found and found.progress.epoch}, {lines}")
    report.distinct = report.tried
    return report
