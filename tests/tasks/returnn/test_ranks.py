"""A RETURNN configuration under torchrun: data, gradients and scores of all ranks; other tasks are refused."""

import re
from pathlib import Path

import pytest

from returnn_hydra.tasks.returnn.parameter_average import average_interval

CONFIG = Path(__file__).parent / "configs" / "mini_returnn.config"


@pytest.mark.slow
def test_two_ranks_train_and_evaluate(several_ranks, tmp_path):
    words = [f"returnn_config={CONFIG}", "num_epochs=2", "name=x"]

    def run(task, **options):
        return several_ranks(tmp_path, *words, f"task={task}", **options)

    trained = run("train")
    assert trained.exit == 0, trained.output
    tables = [
        re.findall(r"^dev +ce +([\d.]+) +[\d.]+ +(\d+)$", run("evaluate", num_ranks=n).output, re.M) for n in (1, 2)
    ]
    assert len(tables[0]) == len(tables[1]) == 1  # only the first rank prints
    (one, two) = (table[0] for table in tables)
    assert two[1] == one[1]
    assert float(two[0]) == pytest.approx(float(one[0]), rel=1e-4)
    refused = run("forward")
    assert refused.exit == 1
    assert "task=forward: runs in one process, and there are 2" in refused.output


@pytest.mark.parametrize(
    ("options", "interval"),
    [
        ({}, None),
        ({"reduce_type": "grad"}, None),
        ({"reduce_type": "param", "param_sync_step": 100}, 100),
        ({"sync": [{"group": "world", "type": "param", "every": 7}]}, 7),
        ({"sync": [{"type": "grad"}]}, None),
    ],
)
def test_how_often_parameters_are_averaged(options, interval):
    assert average_interval(options) == interval


NOTES = """
torch_distributed = {{"reduce_type": "param", "param_sync_step": {every}}}


def epoch_end(*, epoch, model, dataset_name, **kwargs):
    import os

    if dataset_name == "train":
        total = sum(float(parameter.double().abs().sum()) for parameter in model.parameters())
        with open(f"rank{{os.environ['RANK']}}.txt", "a") as file:
            print(total, file=file)
"""


@pytest.mark.slow
def test_ranks_that_average_their_parameters(several_ranks, tmp_path):
    totals = {}
    for every in (1, 1000):
        folder = tmp_path / str(every)
        folder.mkdir()
        (folder / "my.config").write_text(CONFIG.read_text() + NOTES.format(every=every))
        done = several_ranks(folder, "returnn_config=my.config", "num_epochs=2", "name=x", "task=train")
        assert done.exit == 0, done.output
        first, second = ((folder / f"rank{rank}.txt").read_text().split() for rank in (0, 1))
        assert len(first) == 2
        assert first == second
        totals[every] = [float(value) for value in first]
    assert totals[1] != totals[1000]
