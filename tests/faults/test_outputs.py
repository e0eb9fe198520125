"""The files of forward, search and align: there only when they are complete, and the same again after any fault."""

import shutil
import signal

import pytest
from faulttools.tally import Different

WORDS = [
    *("model=blstm", "model.output_dim=10", "model.hidden_dim=4", "train_step=ctc", "num_epochs=1", "num_threads=1"),
]
TASKS = {
    "hdf": (["task=forward", "forward_callback=hdf"], "forward.001"),
    "text": (["task=forward", "forward_callback=text"], "forward.001"),
    "priors": (["task=forward", "forward_callback=priors"], "forward.001"),
    "search": (["task=search", "search=ctc_best_path"], "search.001"),
    "align": (["task=align", "search=ctc_align"], "align.001"),
    "evaluate": (["task=evaluate"], "."),
}


@pytest.fixture(scope="module")
def trained(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    done = zygote.command(["task=train", *WORDS, f"outputs={folder}", "name=run"], folder / "run")
    assert done.exit == 0, done.output
    return folder / "run"


class OutputRuns:
    """One task on a trained model again and again."""

    def __init__(self, zygote, trained, task):
        words, place = TASKS[task]
        self.zygote, self.trained = zygote, trained
        self.before = set(trained.iterdir())
        self.folder = trained / place
        self.words = [*words, f"run={trained}"]
        done = self.run()
        assert done.exit == 0, done.output
        self.operations = done.operations
        self.expected = self.files()
        assert self.expected
        self.clear()

    def run(self, **fault):
        return self.zygote.command(self.words, self.trained, **fault)

    def files(self):
        new = [path for path in self.folder.iterdir() if path not in self.before]
        return {
            path.name: path.read_bytes() for path in new if path.name != "run.log" and not path.match("result*.json")
        }

    def clear(self):
        for path in set(self.trained.iterdir()) - self.before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fail(self, at, kind, sticky=False):
        self.clear()
        broken = self.run(at=at, kind=kind, sticky=sticky)
        if kind in ("kill", "torn"):
            assert broken.exit == -signal.SIGKILL, broken
        else:
            assert broken.exit in (0, 74), broken
            assert broken.exit == 0 or f"({kind})" in broken.output, broken
            last = broken.output.strip().splitlines()[-1]
            assert broken.exit == 0 or str(self.trained) in last, broken
        left = self.files() if self.folder.is_dir() else {}
        for name, content in self.expected.items():
            assert left.get(name, content) == content, (f"{name} is there, and is not complete", broken)
        again = self.run()
        assert again.exit == 0, (broken, again)
        if self.files() != self.expected:
            raise Different(f"{sorted(self.files())}, {again}")


@pytest.fixture
def runs(zygote, trained):
    made = []

    def make(task):
        made.append(OutputRuns(zygote, trained, task))
        return made[-1]

    yield make
    for each in made:
        each.clear()


@pytest.mark.parametrize("task", ["hdf", "search"])
def test_outputs_are_complete_or_absent(tally, runs, task):
    made, count = runs(task), tally(f"outputs of {task}: killed or torn")
    for number, at in enumerate(range(2, made.operations, made.operations // 5)):
        count.add(made.fail, at, ("kill", "torn")[number % 2])
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("task", TASKS)
def test_killed_at_every_operation(tally, runs, task):
    made, count = runs(task), tally(f"outputs of {task}: killed and torn at every operation")
    for at in range(made.operations):
        for kind in ("kill", "torn"):
            count.add(made.fail, at, kind)
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("task", TASKS)
def test_refused_at_every_operation(tally, runs, task):
    made, count = runs(task), tally(f"outputs of {task}: the disk is full or refuses")
    for at in range(made.operations):
        for kind, sticky in (("ENOSPC", True), ("EIO", False)):
            count.add(made.fail, at, kind, sticky)
    count.close()
