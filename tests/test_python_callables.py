"""RETURNN's per-epoch callables as values of our configuration, through Python overrides."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from returnn_hydra.data.batching import Batching
from returnn_hydra.data.embedded import japanese_vowels
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.engine.run_store import RunStore

WORDS = ("task=train", "overrides=mine.py", "model.hidden_dim=4", "model.dropout=0.1", "num_epochs=3")
FUNCTIONS = '''
def batch_size(epoch, seq_idx, **_):
    """Small batches at first, and at the end of every epoch."""
    return 300 * epoch if seq_idx < 200 else 400

def max_seqs(epoch_continuous):
    return 10 if epoch_continuous < 1.5 else 40

def dynamic_learning_rate(*, global_train_step, epoch, learning_rate, **_):
    return learning_rate / (1 + global_train_step) / epoch

def grad_accum_steps(epoch, global_train_step):
    return epoch if global_train_step < 30 else 1

learning_rate = 0.02
'''


def write(text=FUNCTIONS):
    Path("mine.py").write_text(text)


def lines(name):
    return [json.loads(line) for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def state(name, kind=""):
    return torch.load(f"outputs/{name}/checkpoints/model.003{kind}.pt", weights_only=True)


def test_functions_of_the_epoch_and_the_step(command):
    write()
    assert command(*WORDS, "name=x") == 0
    functions = {}
    exec(FUNCTIONS, functions)
    steps = 0
    for line in lines("x"):
        epoch = line["epoch"]
        batching = Batching(
            batch_size=functions["batch_size"], max_seqs=lambda **at: 10 if at["epoch_continuous"] < 1.5 else 40
        )
        batches = Loader(japanese_vowels("train"), None, SeqOrder("random", seed=1), batching).num_batches(epoch)
        assert line["statistics"]["num_batches"] == batches
        waiting = 0
        for batch in range(batches):
            waiting += 1
            if waiting >= functions["grad_accum_steps"](epoch, steps) or batch == batches - 1:
                steps, waiting = steps + 1, 0
        assert line["step"] == steps
    assert len({line["statistics"]["num_batches"] for line in lines("x")}) == 3
    (group,) = state("x", ".opt")["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(lines("x")[-1]["learning_rate"] / steps / 3)
    saved = yaml.safe_load(Path("outputs/x/config.yaml").read_text())
    assert "batch_size" not in saved
    assert "batch_size" not in saved["datasets"]["train"]
    assert saved["learning_rate"] == 0.02
    assert command("task=evaluate", "run=outputs/x", "evaluate_data=dev") == 0


def test_resumed_with_the_same_bits(command, monkeypatch):
    write()
    words = (*WORDS, "checkpoint_every.steps=1")
    assert command(*words, "name=whole") == 0
    save, count = RunStore.save_within_epoch, [0]

    def save_and_die(self, trainer):
        save(self, trainer)
        count[0] += 1
        if count[0] % 11 == 0:
            self.saver.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "save_within_epoch", save_and_die)
    starts = 1
    while command(*words, "name=parts") == 130:
        starts += 1
    assert starts >= 3
    whole, parts = state("whole")["model"], state("parts")["model"]
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert [(line["step"], line["scores"]) for line in lines("whole")] == [
        (line["step"], line["scores"]) for line in lines("parts")
    ]


def test_inside_of_a_node_and_for_one_data_set(command):
    write(
        "learning_rate_control = {\n"
        "    '_target_': 'returnn_hydra.optim.learning_rate_control.Newbob',\n"
        "    'decay': lambda rate: rate / 4,\n"
        "    'threshold': -10.0,\n"
        "}\n"
        "datasets = {'train': {'batch_size': lambda epoch: 300}}\n"
    )
    assert command(*WORDS, "name=x") == 0
    found = lines("x")
    assert [line["learning_rate"] for line in found] == [0.01, 0.01, 0.0025]
    batches = Loader(japanese_vowels("train"), None, SeqOrder("random", seed=1), Batching(batch_size=300, max_seqs=20))
    assert found[0]["statistics"]["num_batches"] == batches.num_batches(1)
    saved = yaml.safe_load(Path("outputs/x/config.yaml").read_text())
    assert saved["datasets"]["dev"]["batch_size"] == 1000


def test_the_command_line_wins(command):
    write("def batch_size(epoch):\n    return 1\n")
    assert command(*WORDS, "num_epochs=1", "batch_size=2000", "max_seqs=null", "name=x") == 0
    assert lines("x")[0]["statistics"]["num_batches"] < 10


def test_another_function_is_a_change_of_the_config(command, capsys):
    write("def batch_size(epoch):\n    return 500\n")
    assert command(*WORDS, "num_epochs=1", "name=x") == 0
    write("batch_size = 500\n")
    assert command(*WORDS, "num_epochs=2", "name=x") == 2
    assert "batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("def learning_rate(epoch):\n    return 1.0\n", (), "learning_rate can't be a function"),
        ("", ("dynamic_learning_rate=3",), "dynamic_learning_rate=3: expected a function"),
        ("", ("max_seqs=0",), "max_seqs=0: expected a number of sequences"),
        ("", ("grad_accum_steps=0",), "grad_accum_steps=0: expected a number of batches"),
        ("", ("datasets.dev.max_seqs=many",), "datasets.dev.max_seqs='many'"),
    ],
)
def test_what_can_not_be_is_an_error(command, capsys, text, words, message):
    write(text)
    assert command(*WORDS, *words) == 2
    assert message in capsys.readouterr().err
