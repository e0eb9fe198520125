"""Whole training runs by the command line: killed, torn, refused and asked to stop, then started again.

"Identical" means: the same bytes in the last epoch's model and optimizer files, the same scores, learning rates and
steps of every epoch.
"""

import json
import random
import shutil
import signal

import pytest
from faulttools.zygote import Zygote, build_fault_layer

MODULES = ["torch", "faulttools.runs", "returnn_hydra.cli", "returnn_hydra.tasks.train", "returnn_hydra.data.embedded"]
COMMAND = "faulttools.runs:command_line"
WORDS = ["task=train", "model.hidden_dim=4", "num_epochs=3", "checkpoint_every.steps=4", "keep_last=2", "num_threads=1"]
UNCACHED = "+datasets.train.source.cache=none"
"""Else the data is in memory, and no worker processes are started for it."""
VARIANTS = {
    "plain": [],
    "accumulation": ["grad_accum_steps=3"],
    "newbob": ["learning_rate_control=newbob"],
    "dropout": ["model.dropout=0.2"],
    "one worker": ["datasets.train.num_workers=1", UNCACHED],
    "two workers": ["datasets.train.num_workers=2", UNCACHED],
}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zygote")
    layer = build_fault_layer(folder)
    if layer is None:
        pytest.skip("the fault layer needs Linux and a C compiler (gcc)")
    with Zygote(layer, MODULES, folder) as zygote:
        yield zygote


class Runs:
    """The same command in many folders, and what an undisturbed run of it leaves."""

    def __init__(self, zygote, parent, words):
        self.zygote = zygote
        self.parent = parent
        self.words = [*WORDS, *words, f"outputs={parent}"]
        done = self.run("reference")
        assert done.exit == 0, done.output
        self.operations = done.operations
        self.seconds = done.seconds
        self.expected = self.result("reference")
        assert len(self.expected["epochs"]) == 3

    def run(self, name, **fault):
        return self.zygote.run(COMMAND, {"words": [*self.words, f"name={name}"]}, self.parent / name, **fault)

    def result(self, name):
        folder = self.parent / name
        records = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        epochs = [[record[key] for key in ("epoch", "learning_rate", "step", "scores")] for record in records]
        files = {path.name: path.read_bytes() for path in (folder / "checkpoints").glob("*.pt")}
        assert json.loads((folder / "result.json").read_text())["status"] == "done"
        return {"epochs": epochs, "files": files}

    def finish(self, name, broken):
        """Start again until it is done, and compare."""
        again = self.run(name)
        assert again.exit == 0, (broken, again)
        assert "DAMAGED" not in broken.output + again.output
        assert broken.orphans == again.orphans == 0
        found = self.result(name)
        assert found["epochs"] == self.expected["epochs"], (broken, again)
        assert {name: found["files"].get(name) for name in self.expected["files"]} == self.expected["files"], (
            broken,
            again,
        )

    def kill(self, at, kind):
        broken = self.run(f"{kind}-{at}", at=at, kind=kind)
        assert broken.exit == -signal.SIGKILL, broken
        self.finish(f"{kind}-{at}", broken)

    def refuse(self, at, code, sticky):
        name = f"{code}-{sticky}-{at}"
        broken = self.run(name, at=at, kind=code, sticky=sticky)
        assert broken.exit in (0, 74), broken
        assert broken.exit == 0 or f"({code})" in broken.output, broken
        self.finish(name, broken)

    def damage(self, name, file, change):
        """Damage a file of the finished run: the next start says so, and trains again what is lost."""
        folder = self.parent / name
        shutil.copytree(self.parent / "reference", folder)
        path = folder / file
        data = path.read_bytes()
        changed = change(data)
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)
        again = self.run(name)
        assert again.exit == 0, again
        assert "DAMAGED" in again.output, again
        assert path.name in again.output, again
        found = self.result(name)
        assert found["epochs"] == self.expected["epochs"], again
        assert {file: found["files"].get(file) for file in self.expected["files"]} == self.expected["files"], again

    def stop(self, number, after, code):
        name = f"{number}-{after:.3f}"
        broken = self.run(name, signals=[(after, number)])
        if not broken.sent:  # it was faster
            assert broken.exit == 0
            return False
        in_start_up = broken.exit == -number and "Start epoch" not in broken.output  # imports, before the handlers
        assert broken.exit in (code, 0) or in_start_up, broken
        assert broken.seconds - broken.sent[0] < 5 or broken.exit == 0
        self.finish(name, broken)
        return broken.exit == code


@pytest.fixture(scope="module")
def runs(zygote, tmp_path_factory):
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = Runs(zygote, tmp_path_factory.mktemp("runs"), VARIANTS[variant])
        return made[variant]

    return make


def spread(count, total, seed=0):
    """`count` numbers below `total`, one in each equal part."""
    rng = random.Random(seed)
    return [index * total // count + rng.randrange(max(1, total // count)) for index in range(count)]


def test_killed_runs_end_identical(runs):
    plain = runs("plain")
    for kind, at in zip(("kill", "torn"), spread(2, plain.operations), strict=True):
        plain.kill(at, kind)


def test_a_refused_run_ends_identical_after_repair(runs):
    plain = runs("plain")
    plain.refuse(plain.operations // 2, "ENOSPC", sticky=True)


def test_a_stopped_run_saves_and_ends_identical(runs):
    plain = runs("plain")
    plain.stop(signal.SIGTERM, plain.seconds * 0.7, 143)


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "last byte lost": lambda data: data[:-1],
    "bit flip": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 16]) + data[len(data) // 3 + 1 :],
    "lost sector": lambda data: data[:512] + bytes(min(512, len(data) - 512)) + data[1024:],
}
DAMAGED_FILES = ("model.003.pt", "model.003.opt.pt", "model.003.json")


def test_a_damaged_checkpoint_is_trained_again(runs):
    runs("plain").damage("damaged", "checkpoints/model.003.pt", DAMAGES["bit flip"])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_damaged_file_is_noticed_and_made_again(runs):
    plain, cases = runs("plain"), 0
    for file in DAMAGED_FILES:
        for kind, change in DAMAGES.items():
            plain.damage(f"{file}-{kind.replace(' ', '-')}", f"checkpoints/{file}", change)
            cases += 1
    for file in DAMAGED_FILES[:2]:  # without its manifest there is no checkpoint, and nothing to be said
        plain.damage(f"{file}-deleted", f"checkpoints/{file}", lambda data: None)
        cases += 1
    print(f"\ndamaged at rest: {cases} of {cases} noticed, trained again, identical")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_at_every_operation(runs):
    plain = runs("plain")
    for at in range(plain.operations):
        plain.kill(at, ("kill", "torn")[at % 2])
    print(f"\nkilled or torn at every operation: {plain.operations} of {plain.operations} resumed, identical")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_killed_in_every_variant(runs, variant):
    made = runs(variant)
    for number, at in enumerate(spread(20, made.operations)):
        made.kill(at, ("kill", "torn")[number % 2])
    print(f"\n{variant}: 20 of 20 resumed, identical")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EDQUOT", "EACCES"])
@pytest.mark.parametrize("sticky", [False, True])
def test_refused_in_many_places(runs, code, sticky):
    plain = runs("plain")
    for at in spread(15, plain.operations, seed=2):
        plain.refuse(at, code, sticky)
    print(f"\n{code}{' for good' if sticky else ''}: 15 of 15 resumed, identical")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_stopped_at_many_times(runs):
    plain, rng, stopped = runs("plain"), random.Random(3), 0
    cases = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)]
    for index in range(50):
        stopped += plain.stop(cases[index % 4][0], rng.uniform(0, plain.seconds), cases[index % 4][1])
    print(f"\nstopped: {stopped} of 50 in time, all identical")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_with_too_little_memory(runs):
    """The address space is limited. A library may then die of a signal; the state must be intact all the same."""
    plain, exits = runs("plain"), []
    for step in range(40):
        name = f"memory-{step}"
        arguments = {"words": [*plain.words, f"name={name}"], "extra_bytes": (1 << 20) * (1 + step * step // 5)}
        broken = plain.zygote.run("faulttools.runs:with_little_memory", arguments, plain.parent / name)
        exits.append(broken.exit)
        plain.finish(name, broken)
    assert sum(code in (0, 71) for code in exits) >= 30, exits
    print(f"\ntoo little memory: 40 of 40 identical after it; exit codes {sorted(set(exits))}, 71: {exits.count(71)}")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_one_run_killed_up_to_200_times(runs):
    plain, rng, kills = runs("plain"), random.Random(4), 0
    while kills < 200:
        broken = plain.run("soak", at=rng.randrange(5, 60), kind=("kill", "torn")[kills % 2])
        assert broken.exit in (-signal.SIGKILL, 0), broken
        assert "DAMAGED" not in broken.output
        if broken.exit == 0:
            break
        kills += 1
    plain.finish("soak", broken)
    assert kills > 10
    print(f"\nkilled {kills} times: identical")
