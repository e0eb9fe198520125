"""The same config in the installed RETURNN and here, and each going on with the other's checkpoints.

Run with RETURNN_PYTHON=<interpreter of an environment with RETURNN> and `-m peer`.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.peer
CONFIGS = Path(__file__).parent / "configs"
START = "import sys\nfrom returnn.__main__ import main\nsys.argv[0] = 'rnn.py'\nmain()\n"
SMALL = {"num_seqs": 60, "batch_size": 600}


@pytest.fixture
def returnn(run):
    """returnn(config, key=value, ...): RETURNN's own run, in the current folder."""
    if "RETURNN_PYTHON" not in os.environ:
        pytest.skip("RETURNN_PYTHON does not name an interpreter with RETURNN")

    def run_config(config, **values):
        words = [word for key, value in values.items() for word in (f"++{key}", str(value))]
        workers = ["++torch_dataloader_opts", "{'num_workers': 0}"]
        command = [os.environ["RETURNN_PYTHON"], "-c", START, str(CONFIGS / config), *words, *workers]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    return run_config


@pytest.mark.parametrize("config", ["plain_torch.config", "rf_modules.config"])
def test_same_scores_and_each_goes_on_with_the_others_checkpoint(run, scores, returnn, config):
    theirs = {**SMALL, "model": "theirs/model", "learning_rate_file": "theirs/lr"}
    mixed = {**SMALL, "model": "mixed/model", "learning_rate_file": "mixed/lr"}
    returnn(config, num_epochs=2, **theirs)
    shutil.copytree("theirs", "mixed")
    run(config, num_epochs=4, **mixed)
    returnn(config, num_epochs=6, **mixed)
    returnn(config, num_epochs=6, **theirs)
    run(config, num_epochs=6, **SMALL)
    expected = scores("theirs/lr")
    for found in (scores("mixed/lr"), scores()):
        assert sorted(found) == sorted(expected)
        for epoch, (rate, errors) in expected.items():
            assert found[epoch][0] == rate
            assert found[epoch][1]["train_loss_ce"] == pytest.approx(errors["train_loss_ce"], rel=1e-4)
            assert found[epoch][1]["dev_loss_ce"] == pytest.approx(errors["dev_loss_ce"], rel=1e-4)


def test_forward_gives_the_same_text(run, returnn):
    run("plain_torch.config", num_epochs=1, **SMALL)
    returnn("plain_torch.config", task="forward", load_epoch=1, output_text="theirs.txt", **SMALL)
    run("plain_torch.config", task="forward", load_epoch=1, output_text="ours.txt", **SMALL)
    theirs, ours = (
        [line.split() for line in Path(f"{name}.txt").read_text().splitlines()] for name in ("theirs", "ours")
    )
    assert len(ours) == 6
    for their, our in zip(theirs, ours, strict=True):
        assert their[:2] == our[:2] and their[3] == our[3]
        assert float(their[2]) == pytest.approx(float(our[2]), abs=2e-3)
