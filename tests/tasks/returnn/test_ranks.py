"""A RETURNN configuration under torchrun: data, gradients and scores of all ranks; other tasks are refused."""

import re
from pathlib import Path

import pytest

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
