"""Whole training runs by the command line: killed, torn, refused and asked to stop, then started again.

"Identical" means: the same bytes in the model and optimizer files of the kept epochs, the same scores, learning rates
and steps of every epoch.
"""

import random
import signal

import pytest
from faulttools.training_runs import Runs

WORDS = ["task=train", "num_epochs=3", "checkpoint_every.steps=4", "keep_last=2", "num_threads=1"]
SOURCE = "datasets.train.source"
MASKED = [
    *(f"~{SOURCE}.part", f"{SOURCE}._target_=returnn_hydra.data.postprocessing.PostprocessingDataset"),
    f"+{SOURCE}.dataset={{_target_: returnn_hydra.data.embedded.japanese_vowels, part: train}}",
    f"+{SOURCE}.map_seq={{_target_: returnn_hydra.data.augment.SpecAugment, num_time_masks: 1, max_time_mask: 3}}",
    f"+{SOURCE}.same_lengths=true",
]
"""Data that worker processes read when they are asked for: they don't for what is a mere copy."""
BLSTM = ["model=blstm", "model.hidden_dim=4"]
CONFORMER = ["model=conformer", "model.model_dim=8", "model.num_layers=1", "model.num_heads=2"]
TOGETHER = [
    *("datasets.train.num_workers=2", "grad_accum_steps=3", "learning_rate_control=newbob", "model.dropout=0.2"),
]
VARIANTS = {
    "plain": BLSTM,
    "accumulation": [*BLSTM, "grad_accum_steps=3"],
    "newbob": [*BLSTM, "learning_rate_control=newbob"],
    "dropout": [*BLSTM, "model.dropout=0.2"],
    "BatchNorm": CONFORMER,
    "1 worker": [*BLSTM, *MASKED, "datasets.train.num_workers=1"],
    "2 workers": [*BLSTM, *MASKED, "datasets.train.num_workers=2"],
    "all together": [*CONFORMER, *MASKED, *TOGETHER],
    "long": [*BLSTM, "num_epochs=50"],
}


@pytest.fixture(scope="module")
def runs(zygote, tmp_path_factory):
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = Runs(zygote, tmp_path_factory.mktemp("runs"), [*WORDS, *VARIANTS[variant]])
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
    for at in (0, 1, plain.operations // 2):  # the run folder, its log, a checkpoint
        plain.refuse(at, "ENOSPC", sticky=at > 1)


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
    runs("plain").damage("checkpoints/model.003.pt", DAMAGES["bit flip"])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_damaged_file_is_noticed_and_made_again(tally, runs):
    plain, count = runs("plain"), tally("finished run, file damaged: noticed, trained again")
    for file in DAMAGED_FILES:
        for change in DAMAGES.values():
            count.add(plain.damage, f"checkpoints/{file}", change)
    for file in DAMAGED_FILES[:2]:
        count.add(plain.damage, f"checkpoints/{file}", lambda data: None)
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_operation(tally, runs, part):
    plain, count = runs("plain"), tally(f"command line: killed or torn at every operation ({part + 1} of 4)")
    for at in range(plain.operations * part // 4, plain.operations * (part + 1) // 4):
        count.add(plain.kill, at, ("kill", "torn")[at % 2])
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("plain", "long")])
def test_killed_in_every_variant(tally, runs, variant):
    made, count = runs(variant), tally(f"command line, {variant}: killed or torn")
    for number, at in enumerate(spread(20, made.operations)):
        count.add(made.kill, at, ("kill", "torn")[number % 2])
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EDQUOT", "EACCES"])
@pytest.mark.parametrize("sticky", [False, True])
def test_refused_in_many_places(tally, runs, code, sticky):
    plain, count = runs("plain"), tally(f"command line: {code}{' for good' if sticky else ''}")
    for at in spread(15, plain.operations, seed=2):
        count.add(plain.refuse, at, code, sticky)
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_stopped_at_many_times(tally, runs):
    plain, rng, count = runs("plain"), random.Random(3), tally("command line: SIGTERM, SIGINT, SIGUSR1, SIGUSR2")
    cases = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)]
    stopped = 0
    for index in range(50):
        number, code = cases[index % 4]
        stopped += bool(count.add(plain.stop, number, rng.uniform(0, plain.seconds), code))
    count.close()
    assert stopped >= 10  # the others had ended before, or were still importing


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_with_too_little_memory(tally, runs):
    """The address space is limited. A library may then die of a signal; the state must be intact all the same."""
    plain, count = runs("plain"), tally("command line: too little memory")
    exits = [count.add(plain.starve, step) for step in range(40)]
    count.close()
    assert sum(code in (0, 71) for code in exits) >= 30, exits


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_one_run_killed_200_times(tally, runs):
    long, rng = runs("long"), random.Random(4)
    count = tally("command line: one run killed 200 times")
    for number in range(200):
        count.add(long.kill_again, rng.randrange(5, 60), ("kill", "torn")[number % 2])
    long.finish(long.run(at=40, kind="kill"))
    count.close()
