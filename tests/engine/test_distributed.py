"""Several processes on the CPU (gloo): the same training as one process that accumulates their batches."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from returnn_hydra.engine.checkpoint import Checkpoint, CheckpointStore
from returnn_hydra.engine.errors import StateReadError
from returnn_hydra.engine.manifest import Manifest, Progress
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.run_store import RunStore

ROOT = Path(__file__).resolve().parents[2]
# six batches of 41 sequences: they come out even, so that no batch is cut in two
WORDS = (
    "task=train",
    "model.hidden_dim=4",
    "num_epochs=2",
    "batch_size=100000",
    "max_seqs=41",
    "model.input_noise=0",
    "model.input_norm=false",
)
STEP = """
import json as _json, os as _os
import torch.distributed as _dist
from dataclasses import replace as _replace
from returnn_hydra.steps.cross_entropy import CrossEntropy as _CrossEntropy
_RANK = int(_os.environ.get("RANK", "0"))
_step = _CrossEntropy()
_calls = 0
"""
SAME_PARAMETERS_AND_ONE_BAD_BATCH = """
def train_step(model, batch):
    global _calls
    if not model.training:
        return _step(model, batch)
    found = [None] * _dist.get_world_size()
    _dist.all_gather_object(found, [parameter.tolist() for parameter in model.parameters()])
    if any(other != found[0] for other in found):
        raise ValueError("the ranks' parameters differ")
    losses = _step(model, batch)
    _calls += 1
    if _RANK == 1 and _calls == BAD:
        losses["ce"] = _replace(losses["ce"], sum=losses["ce"].sum * float("nan"))
    return losses
"""
OTHER_RATE_ON_RANK_1 = """
from returnn_hydra.optim.learning_rate_control import LearningRateControl as _Control
_rate = _Control.learning_rate
_Control.learning_rate = lambda self, epoch, history: _rate(self, epoch, history) * (1 + _RANK)
"""
RANK_0_IS_SLOW_TO_END = """
import time as _time
import returnn_hydra.tasks.job as _job
_write_result = _job.write_result
def _slow(*arguments):
    _time.sleep(1)
    _write_result(*arguments)
_job.write_result = _slow
"""
DEFERRED = """
import returnn_hydra.engine.updater as _updater
_init = _updater.Updater.__init__
def _deferring(self, *arguments, **options):
    _init(self, *arguments, **{**options, "defer_checks": True})
_updater.Updater.__init__ = _deferring
"""
STREAM = (
    "~datasets.train.source.part",
    "datasets.train.source._target_=returnn_hydra.data.postprocessing.PostprocessingDataset",
    "+datasets.train.source.dataset={_target_: returnn_hydra.data.embedded.japanese_vowels, part: train}",
    "+datasets.train.source.map_seq={_target_: copy.copy, _partial_: true}",
    "allow_targets=[copy.]",
)
WRITE_TAGS = """
def train_step(model, batch):
    if model.training:
        with open(f"tags.{_os.environ.get('WORLD_SIZE', '1')}.{_RANK}", "a") as file:
            print(_json.dumps([batch.epoch, list(batch.seq_tags)]), file=file)
    return _step(model, batch)
"""
BATCH_NORM = """
from torch import nn
class model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(12), nn.Linear(12, 9)
    def forward(self, features, lengths):
        return self.linear(self.norm(features.transpose(1, 2)).transpose(1, 2)), lengths
"""


@pytest.fixture
def torchrun(several_ranks, tmp_path, monkeypatch):
    """Run in the test's folder; checks the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0, **options):
        done = several_ranks(tmp_path, *words, **options)
        assert done.exit == code, done.output
        assert done.orphans == 0
        return done.output

    return run


def scores(name):
    return [json.loads(line)["scores"] for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def values(name, key):
    return [value[key] for entries in scores(name) for losses in entries.values() for value in losses.values()]


def rates(name):
    return [json.loads(line)["learning_rate"] for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def model_of(name, epoch=2):
    return torch.load(Path(f"outputs/{name}/checkpoints/model.{epoch:03d}.pt"), weights_only=True)["model"]


def assert_same_training(one, two, epoch=2):
    assert values(one, "count") == values(two, "count")  # every sequence exactly once, in training and in evaluation
    assert values(one, "mean") == pytest.approx(values(two, "mean"), rel=1e-4)
    assert rates(one) == rates(two)
    first, second = model_of(one, epoch), model_of(two, epoch)
    assert list(first) == list(second)
    assert all(torch.allclose(first[name], second[name], atol=2e-5) for name in first)


def test_the_real_torchrun(tmp_path):
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*program, str(ROOT / "run.py"), *WORDS, "name=x"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert len((tmp_path / "outputs/x/scores.jsonl").read_text().splitlines()) == 2
    assert done.stdout.count("Epoch 2: train:") == 1  # only the first rank talks


CLIPPED = ("max_grad_norm=0.05", "max_grad_value=0.02", "learning_rate_control=newbob", "num_epochs=4")


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_two_ranks_are_one_process_that_accumulates(command, torchrun, distributed):
    assert command(*WORDS, *CLIPPED, "grad_accum_steps=2", "name=one") == 0
    torchrun(*WORDS, *CLIPPED, f"distributed={distributed}", "name=two")
    assert_same_training("one", "two", epoch=4)
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_accumulation_on_every_rank(command, torchrun, distributed):
    words = [*WORDS, "max_seqs=21", "freeze=[output.weight]", "weight_decay_exclude=[output.bias]"]
    assert command(*words, "grad_accum_steps=4", "name=one") == 0
    torchrun(*words, "grad_accum_steps=2", f"distributed={distributed}", "name=two")
    assert_same_training("one", "two")
    start = torch.load("outputs/two/checkpoints/model.001.pt", weights_only=True)["model"]
    assert torch.equal(start["output.weight"], model_of("two")["output.weight"])


@pytest.mark.slow
def test_sharded_units_and_mixed_precision(torchrun):
    words = [*WORDS, "amp=bfloat16", "optimizer=sgd"]
    torchrun(*words, "name=whole")
    torchrun(*words, "distributed=fsdp", "fsdp_units=[lstm]", "name=parts")
    assert values("whole", "mean") == pytest.approx(values("parts", "mean"), rel=1e-3)


@pytest.mark.slow
def test_sharded_gradients_with_a_loss_scale_and_checks_on_the_way(torchrun):
    Path("mine.py").write_text(BATCH_NORM)
    words = [word for word in WORDS if not word.startswith("model.")]
    words += ["amp=float16", "max_grad_norm=0.05", "overrides=mine.py"]
    torchrun(*words, "name=whole")
    torchrun(*words, "distributed=fsdp", "name=parts")
    assert values("whole", "mean") == pytest.approx(values("parts", "mean"), rel=1e-3)
    Path("mine.py").write_text(DEFERRED)
    torchrun(*WORDS, "max_grad_norm=0.05", "name=one")
    torchrun(*WORDS, "max_grad_norm=0.05", "distributed=fsdp", "overrides=mine.py", "name=two")
    assert values("one", "mean") == pytest.approx(values("two", "mean"), rel=1e-5)


def test_what_does_not_go_with_fsdp(command, torchrun, capsys):
    assert command(*WORDS, "distributed=fsdp") == 2
    assert "distributed=fsdp: needs several processes" in capsys.readouterr().err
    assert command(*WORDS, "distributed=zero") == 2
    assert "distributed" in capsys.readouterr().err
    assert command(*WORDS, "fsdp_units=[lstm]") == 2
    assert "fsdp_units: only distributed=fsdp" in capsys.readouterr().err
    assert "ema.decay is only possible" in torchrun(*WORDS, "distributed=fsdp", "ema.decay=0.9", code=1)
    assert "on_oom=split: only possible in one process" in torchrun(*WORDS, "on_oom=split", code=1)
    assert "'lstn' matches no module" in torchrun(*WORDS, "distributed=fsdp", "fsdp_units=[lstn]", code=1)


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_batch_norm_with_evaluation(torchrun, distributed):
    Path("mine.py").write_text(BATCH_NORM)
    words = [word for word in WORDS if not word.startswith("model.")]
    torchrun(*words, f"distributed={distributed}", "name=norm", "overrides=mine.py")
    assert len(scores("norm")) == 2


def test_a_checkpoint_of_fsdp_is_evaluated_by_one_process_and_by_two_and_starts_another(command, torchrun):
    torchrun(*WORDS, "distributed=fsdp", "name=x")
    evaluate = [*WORDS[1:], "name=x", "task=evaluate"]
    assert command(*evaluate) == 0
    file = Path("outputs/x/evaluation.002.json")
    one = json.loads(file.read_text())["scores"]
    assert one["eval"]["ce"]["mean"] == pytest.approx(scores("x")[-1]["eval"]["ce"]["mean"], rel=1e-5)
    torchrun(*evaluate)
    two = json.loads(file.read_text())["scores"]
    for data, losses in one.items():
        for loss, score in losses.items():
            assert two[data][loss]["count"] == score["count"]
            assert two[data][loss]["mean"] == pytest.approx(score["mean"], rel=1e-5)
    file = "init_from=outputs/x/checkpoints/model.002.pt"
    torchrun(*WORDS, "learning_rate=0", "num_epochs=1", "distributed=fsdp", file, "name=y")
    first, again = model_of("x"), model_of("y", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradient_noise_is_the_same_on_all_ranks(torchrun):
    Path("mine.py").write_text(STEP + SAME_PARAMETERS_AND_ONE_BAD_BATCH.replace("BAD", "None"))
    torchrun(*WORDS, "gradient_noise=0.1", "overrides=mine.py")


def test_the_first_rank_decides_the_learning_rate(torchrun):
    Path("mine.py").write_text(STEP + SAME_PARAMETERS_AND_ONE_BAD_BATCH.replace("BAD", "None") + OTHER_RATE_ON_RANK_1)
    torchrun(*WORDS, "learning_rate_control=constant", "overrides=mine.py", "name=x")
    assert rates("x") == [0.01, 0.01]


def test_batches_of_other_sizes_have_the_same_learning_rate(torchrun):
    """The learning rate follows the part of the epoch that is done."""
    Path("mine.py").write_text(STEP + SAME_PARAMETERS_AND_ONE_BAD_BATCH.replace("BAD", "None"))
    torchrun(*WORDS, "max_seqs=null", "batch_size=600", "overrides=mine.py", "name=x")
    assert [entries["train"]["ce"]["count"] for entries in scores("x")] == [243, 243]


def test_early_stopping_stops_all_ranks(torchrun):
    words = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "learning_rate=0", "num_epochs=9"]
    torchrun(*WORDS, *words, "name=x")
    assert len(scores("x")) == 2


def test_bad_numbers_of_one_rank_stop_all(torchrun):
    Path("mine.py").write_text(STEP + SAME_PARAMETERS_AND_ONE_BAD_BATCH.replace("BAD", "4") + RANK_0_IS_SLOW_TO_END)
    output = torchrun(*WORDS, "overrides=mine.py", "name=x", code=1)
    assert "rank 0: ERROR 76" in output
    assert "rank 1: ERROR 76" in output
    files = sorted(path.name for path in Path("outputs/x/bad_batches").iterdir())
    assert files == ["epoch.002.batch.000000.pt", "epoch.002.batch.000000.rank1.pt"]


@pytest.mark.parametrize("rule", [pytest.param("skip", marks=pytest.mark.slow), "rollback"])
def test_bad_numbers_of_one_rank_are_left_out_by_all(torchrun, rule):
    Path("mine.py").write_text(STEP + SAME_PARAMETERS_AND_ONE_BAD_BATCH.replace("BAD", "4"))
    torchrun(*WORDS, "num_epochs=3", "overrides=mine.py", f"on_nonfinite={rule}", "name=x")
    assert len(scores("x")) == 3


def test_one_decision_about_bad_parameters(torchrun):
    words = ["learning_rate=1e38", "optimizer=sgd", "distributed=fsdp"]
    output = torchrun(*WORDS, *words, code=1)
    assert "rank 1: ERROR 76" in output
    assert "ERROR 69" not in output


def test_another_number_of_ranks_is_refused(command, torchrun):
    assert command(*WORDS, "num_epochs=1", "name=x") == 0
    assert "world_size: 1 -> 2" in torchrun(*WORDS, "name=x", code=1)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_the_rest_of_an_epoch_is_dealt_to_another_number_of_ranks(torchrun, command, num_ranks):
    Path("mine.py").write_text(STEP + WRITE_TAGS)
    words = [*WORDS, "max_seqs=7", "overrides=mine.py", "checkpoint_every.steps=2", "name=x"]
    torchrun(*words, code=1, fault={"kind": "raise", "place": "step", "rank": 1})
    manifests = [json.loads(file.read_text()) for file in Path("outputs/x/checkpoints").glob("model.latest.*.json")]
    assert {manifest["epoch"] for manifest in manifests} == {1}
    done = max(manifest["batch"] for manifest in manifests)
    words += ["allow_changed=[world_size]", "num_epochs=1"]
    if num_ranks == 1:
        assert command(*words) == 0
    else:
        assert "Epoch 1 was begun with 2 ranks: 3 get the rest" in torchrun(*words, num_ranks=3)
    tags = Counter()
    for rank in range(2):
        lines = Path(f"tags.2.{rank}").read_text().splitlines()
        tags.update(tag for line in lines[:done] for tag in json.loads(line)[1])
    for rank in range(num_ranks):
        lines = Path(f"tags.{num_ranks}.{rank}").read_text().splitlines()
        tags.update(tag for line in lines for tag in json.loads(line)[1])
    assert len(tags) == 243
    assert set(tags.values()) == {1}
    assert scores("x")[0]["train"]["ce"]["count"] == 243


@pytest.mark.parametrize("task", ["forward", "inspect"])
def test_tasks_for_one_process_say_so(torchrun, task):
    assert "this task runs in one process" in torchrun(f"task={task}", "name=x", code=1)


def test_the_ranks_must_see_the_same_checkpoint(tmp_path):
    class OtherRankSeesNothing(Ranks):
        def gather(self, value):
            return [value, None]

    store = RunStore(tmp_path, ranks=OtherRankSeesNothing())
    store.checkpoints = CheckpointStore(tmp_path)
    checkpoint = Checkpoint(Manifest("model.003", "id", Progress(3, None, 9, 0.1), {}, {}), {}, None)
    with pytest.raises(StateReadError, match=r"rank 0 finds model\.003, rank 1 finds no checkpoint"):
        store._refuse_other_files(checkpoint)


def test_a_stream_with_accumulation(torchrun):
    """243 sequences, batches of 11: rank 0 has 12 batches, rank 1 has 11, and two make an update."""
    Path("mine.py").write_text(STEP + SAME_PARAMETERS_AND_ONE_BAD_BATCH.replace("BAD", "None"))
    words = [*WORDS, *STREAM, "max_seqs=11", "grad_accum_steps=2", "overrides=mine.py"]
    output = torchrun(*words, "name=x")
    assert "make no update" in output
    assert [entries["train"]["ce"]["count"] for entries in scores("x")] == [242, 242]


def test_epochs_of_streams_end_with_the_first_rank_that_has_no_more():
    class OtherRankHasTwo(Ranks):
        calls = 0

        def smallest(self, value):
            OtherRankHasTwo.calls += 1
            return min(value, OtherRankHasTwo.calls <= 2)

    assert list(OtherRankHasTwo().while_all_have(iter("abc"))) == ["a", "b"]
    assert list(Ranks().while_all_have(iter("abc"))) == ["a", "b", "c"]
