"""A signal before every single thing that a training does: it saves, ends with the right code, and goes on identical.

Unlike signals at random times, these also come in the moments that are short: in the last batch of an epoch, between
the save and the evaluation, in the clean-up. The variants are those whose state is more than parameters.
"""

import random
import re
import signal

import pytest
from faulttools.training_runs import Runs

WORDS = [
    *("task=train", "num_epochs=2", "batch_size=1200", "max_seqs=null", "num_threads=1", "model.hidden_dim=4"),
    *("model.dropout=0.1", "keep_last=1"),
]
VARIANTS = {
    "cosine": [],
    "warm-up": ["learning_rate_control=warmup_inverse_sqrt", "learning_rate_control.schedule.warmup_steps=5"],
    "newbob": ["learning_rate_control=newbob", "checkpoint_every.steps=3"],
    "ema": ["ema.decay=0.9"],
    "accumulation": ["grad_accum_steps=3", "checkpoint_every.steps=1"],
    "partitions": ["datasets.train.partition_epoch=2", "num_epochs=4", "callbacks=early_stopping"],
}
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)]
SAVED = re.compile(r"epoch (\d+), batch (\d+) of \d+ is saved")
RESUMED = re.compile(r"Resumed at epoch (\d+), batch (\d+) of")


class StoppedRuns(Runs):
    """Runs that get a signal before a place."""

    def __init__(self, zygote, parent, words):
        super().__init__(zygote, parent, words)
        counted = self.stop_before(-1, 0)
        self.compare(counted)
        self.clear()
        self.places = re.findall(r"^place \d+: (\S+)", counted.output, re.MULTILINE)

    def stop_before(self, place, number):
        return self.run(before=("faulttools.places:send_before", {"call": place, "number": number}))

    def check(self, stopped, code):
        """A run that got a signal: it has ended soon, and has said what it saved."""
        assert stopped.exit in (0, code), stopped
        assert stopped.orphans == 0
        assert stopped.output.count("batch after the signal") <= 1 + 2 * ("grad_accum_steps=3" in self.words), stopped
        if stopped.exit == 0:
            self.compare(stopped)

    def stop_once(self, place, number, code):
        self.clear()
        stopped = self.stop_before(place, number)
        assert f"place {place}:" in stopped.output, stopped
        self.check(stopped, code)
        again = self.run()
        assert again.exit == 0, (stopped, again)
        assert RESUMED.findall(again.output) == SAVED.findall(stopped.output), (stopped, again)
        assert stopped.exit == 0 or "evaluation comes" not in stopped.output or "evaluation is missing" in again.output
        self.compare(again)

    def stop_again_and_again(self, seed):
        """Until it is done; every start is stopped at another place. Returns how often it was stopped."""
        rng, stops, known = random.Random(seed), 0, []
        self.clear()
        while stops < 100:
            number, code = SIGNALS[stops % len(SIGNALS)]
            stopped = self.stop_before(rng.randrange(5, 25), number)
            self.check(stopped, code)
            too_early = "before the first step" in stopped.output  # perhaps even before the checkpoint was looked for
            assert RESUMED.findall(stopped.output) in ([known, []] if too_early else [known]), stopped
            if stopped.exit == 0:
                return stops
            known = SAVED.findall(stopped.output) or known * too_early
            stops += 1
        raise AssertionError("it does not come to an end")


@pytest.fixture(scope="module")
def runs(zygote, tmp_path_factory):
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = StoppedRuns(zygote, tmp_path_factory.mktemp("runs"), [*WORDS, *VARIANTS[variant]])
        return made[variant]

    return make


def test_a_signal_in_every_phase(tally, runs):
    """In the last batch of an epoch, and in every eighth place."""
    cosine, count = runs("cosine"), tally("a signal before a place of a training, cosine")
    before_the_end = cosine.places[: cosine.places.index("Updater.end_epoch")]
    last_batch = len(before_the_end) - 1 - before_the_end[::-1].index("Trainer.train_batch")
    for index, place in enumerate([last_batch, *range(0, len(cosine.places), 8)]):
        count.add(cosine.stop_once, place, *SIGNALS[index % len(SIGNALS)])
    count.close()


def test_stopped_again_and_again(tally, runs):
    cosine, count = runs("cosine"), tally("one training stopped again and again, cosine")
    assert count.add(cosine.stop_again_and_again, 1) >= 5
    count.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_signal_before_every_place(tally, runs, variant):
    made, count = runs(variant), tally(f"a signal before every place of a training, {variant}")
    for place in range(len(made.places)):
        count.add(made.stop_once, place, *SIGNALS[place % len(SIGNALS)])
    for seed in range(4):
        count.add(made.stop_again_and_again, seed)
    count.close()
