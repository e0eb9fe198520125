"""Larger configs in the styles of public research setups, unchanged: train, restart, forward; the same in RETURNN."""

import ast
import math
import os
import subprocess
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parent / "configs"
START = "import sys\nfrom returnn.__main__ import main\nsys.argv[0] = 'rnn.py'\nmain()\n"
SMALL = {"num_seqs": 16}
RATES = {
    "ctc_conformer.config": "learning_rates",
    "transformer_search.config": "learning_rates",
    "lstm_attention.config": "learning_rates",
}


@pytest.mark.parametrize("config", RATES)
def test_train_restart_forward(run, scores, config):
    run(config, num_epochs=1, **SMALL)
    run(config, num_epochs=2, **SMALL)
    found = scores(RATES[config])
    run(config, num_epochs=2, model="whole/epoch", learning_rate_file="whole/lr", **SMALL)
    assert sorted(found) == [1, 2] and found == scores("whole/lr")
    count = run(config, task="forward", num_epochs=2, **SMALL)
    text = Path("out.txt").read_text()
    assert all(f"seq-{number}" in text for number in range(count)) and count >= 8


def test_mini_returnn_with_partials_and_hooks(run, scores):
    run("mini_asr.config", num_epochs=1, **SMALL)
    run("mini_asr.config", num_epochs=2, **SMALL)
    found = scores("learning_rates")
    assert [rate for rate, _ in found.values()][:2] == [7e-6, 5e-4]
    assert {"train_loss_ctc", "dev_loss_ctc", "devtrain_loss_ctc"} <= set(found[2][1])
    assert run("mini_asr.config", task="forward", num_epochs=2, **SMALL) == 10
    assert len(ast.literal_eval(Path("search_out.py").read_text())) == 10


def test_audio_through_workers_and_functions(run, scores):
    """OggZip inside of Meta, Postprocessing and MultiProc, with a `pre_process` that draws random numbers."""
    run("mini_ogg_zip.config", num_epochs=1)
    run("mini_ogg_zip.config", num_epochs=2)
    found = scores("net/learning_rates")
    run("mini_ogg_zip.config", num_epochs=2, model="whole/epoch", learning_rate_file="whole/lr")
    assert found == scores("whole/lr") and "devtrain_loss_ctc" in found[2][1]
    assert run("mini_ogg_zip.config", task="forward") == 5
    assert len(ast.literal_eval(Path("search_out.py").read_text())) == 5
    assert run("mini_ogg_zip.config", task="prior") == 5
    priors = [float(line) for line in Path("prior.txt").read_text().split()]
    assert sum(math.exp(value) for value in priors) == pytest.approx(1, abs=1e-4)


def test_language_model_with_perplexities_and_functions_of_the_step(run, scores, tmp_path):
    words = ["the cat sat", "a mat", "on the mat the cat sat", "cat", "sat on a mat on the cat"]
    (tmp_path / "lm.txt").write_text("".join(f"{line}\n" for line in words * 6))
    (tmp_path / "lm_dev.txt").write_text("".join(f"{line}\n" for line in words))
    options = {"data_dir": str(tmp_path), "batch_size": 120}
    run("language_model.config", num_epochs=1, **options)
    run("language_model.config", num_epochs=2, **options)
    keys = {"dev_loss_ce", "dev_loss_ce:exp", "dev_loss_fer", "train_loss_ce", "train_loss_ce:exp", "train_loss_fer"}
    for _, found in scores("learning_rates").values():
        assert set(found) == keys
        assert found["dev_loss_ce:exp"] == pytest.approx(2.718281828 ** found["dev_loss_ce"])
    assert run("language_model.config", task="forward", num_epochs=2, **options) == 5


@pytest.mark.peer
@pytest.mark.parametrize("config", RATES)
def test_returnn_has_the_same_scores_and_outputs(run, scores, config):
    """With dropout, zoneout and SpecAugment, from the seed alone: the same random numbers."""
    if "RETURNN_PYTHON" not in os.environ:
        pytest.skip("RETURNN_PYTHON does not name an interpreter with RETURNN")
    theirs = ["++num_seqs", "16", "++num_epochs", "2", "++model", "theirs/epoch", "++learning_rate_file", "theirs/lr"]
    command = [os.environ["RETURNN_PYTHON"], "-c", START, str(CONFIGS / config), *theirs]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run(config, num_epochs=2, **SMALL)
    expected, found = scores("theirs/lr"), scores(RATES[config])
    assert sorted(found) == [1, 2]
    for epoch, (rate, errors) in expected.items():
        if epoch > 2:  # a rate of the list that was not used yet
            continue
        assert found[epoch][0] == rate
        for key, value in errors.items():
            if not key.startswith("train"):
                continue  # RETURNN's batch norm and Adam's small epsilon blow rounding up, which shows in evaluation
            assert found[epoch][1][key] == pytest.approx(value, rel=1e-3), (epoch, key)
