"""One of two ranks is killed, raises an error or is stopped: the run ends soon, names the rank, and resumes identical.

"Identical" means: the same bytes in all checkpoints, and the same scores and learning rates, as in an undisturbed run
of two ranks. A stopped rank (SIGSTOP) is noticed after `distributed_timeout`; torchrun then gives it 30 s more.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 10
WORDS = (
    "task=train",
    "model.hidden_dim=4",
    "model.dropout=0.2",
    "num_epochs=2",
    "batch_size=100000",
    "max_seqs=21",
    "checkpoint_every.steps=2",
    "learning_rate_control=newbob",
    "num_threads=1",
)
KINDS, PLACES = ("kill", "raise", "stop"), ("start", "step", "save", "dev")


class Runs:
    """The same command again and again, and what an undisturbed run of it leaves."""

    def __init__(self, several_ranks, folder, *words):
        self.several_ranks = several_ranks
        self.folder = folder
        self.words = [*WORDS, *words]
        done = self.start("whole")
        assert done.exit == 0, done.output
        self.expected = self.result("whole")
        assert {"model.001.pt", "model.002.pt", "model.002.opt.pt"} <= set(self.expected["files"])

    def start(self, name, *more, **options):
        (self.folder / name).mkdir(exist_ok=True)
        return self.several_ranks(self.folder / name, *self.words, *more, "name=x", **options)

    def result(self, name):
        folder = self.folder / name / "outputs/x"
        records = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        epochs = [[record[key] for key in ("epoch", "learning_rate", "step", "scores")] for record in records]
        return {"epochs": epochs, "files": {file.name: file.read_bytes() for file in folder.glob("checkpoints/*.pt")}}

    def fail(self, kind, place, rank, by_torchrun=False):
        """Returns the seconds from the fault to the end."""
        fault, name = {"kind": kind, "place": place, "rank": rank}, f"{kind}-{place}-{rank}"
        more = [f"distributed_timeout={TIMEOUT}"] if kind == "stop" else []
        if by_torchrun:
            code, seconds, orphans, output = self.torchrun(name, fault, more)
        else:
            done = self.start(name, *more, fault=fault, patience=6)
            code, orphans, output = done.exit, done.orphans, done.output
            seconds = float(re.findall(r"ended ([\d.]+) s after", output)[0])
        assert code not in (0, None), output
        assert orphans == 0, output
        assert seconds <= (TIMEOUT + 40 if kind == "stop" else 15), (seconds, output)
        named = rf"rank {rank} of 2 \(|rank {rank} failed|rank {rank}: ERROR|rank +: {rank} |not here .*: rank {rank}\b"
        assert re.search(named, output), output
        again = self.start(name)
        assert again.exit == 0, again.output
        assert self.result(name) == self.expected, (output, again.output)
        return seconds

    def torchrun(self, name, fault, more):
        folder = self.folder / name
        folder.mkdir()
        paths = os.pathsep.join([str(ROOT / "tests/faults/tools"), str(ROOT)])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "FAULT": json.dumps(fault)}
        program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
        script = ROOT / "tests/faults/tools/faulttools/rank_runs.py"
        run = subprocess.run(
            [*program, str(script), *self.words, *more, "name=x"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        seconds = time.time() - json.loads((folder / "fault.json").read_text())["time"]
        return run.returncode, seconds, processes_in(folder), run.stdout


def processes_in(folder):
    """How many processes have this working folder."""
    count = 0
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            count += link.resolve() == folder.resolve()
        except OSError:
            continue
    return count


@pytest.fixture(scope="module")
def runs(several_ranks, tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip("looks for processes in /proc")
    made = {}

    def make(distributed):
        if distributed not in made:
            folder = tmp_path_factory.mktemp(distributed)
            made[distributed] = Runs(several_ranks, folder, f"distributed={distributed}")
        return made[distributed]

    return make


@pytest.mark.parametrize(
    ("distributed", "kind", "place", "rank"),
    [("ddp", "kill", "step", 1), ("ddp", "raise", "dev", 0), ("fsdp", "stop", "save", 1), ("fsdp", "kill", "start", 0)],
)
def test_a_rank_fails(runs, distributed, kind, place, rank):
    runs(distributed).fail(kind, place, rank)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_every_rank_fails_everywhere(several_ranks, tmp_path, distributed, kind):
    """DistributedDataParallel under torchrun, FSDP under the tests' own launcher, which is faster."""
    made = Runs(several_ranks, tmp_path, f"distributed={distributed}")
    cases = list(itertools.product(PLACES, (0, 1)))
    seconds = {case: made.fail(kind, *case, by_torchrun=distributed == "ddp") for case in cases}
    cells = [f"{place} {seconds[place, 0]:.1f} / {seconds[place, 1]:.1f}" for place in PLACES]
    print(
        f"\n{distributed}, {kind} (distributed_timeout={TIMEOUT} s), seconds to the end for rank 0 / rank 1: "
        f"{', '.join(cells)}; {len(cases)} of {len(cases)}: rank named, no orphans, resumed identical"
    )
