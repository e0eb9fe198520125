"""The table at the end of a sweep, and what ends one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from returnn_hydra.tasks.sweep import FOLDER, Row, table, table_at_the_end

ROOT = Path(__file__).resolve().parents[2]


def row(job, outcome, *overrides, folder="outputs/x"):
    return {"job": job, "outcome": outcome, "overrides": ["num_epochs=1", *overrides], "folder": folder}


def test_best_first_and_failures_last():
    rows = [row(0, "failed 76", "seed=1"), row(1, 0.25, "seed=2"), row(2, 1e-5, "seed=3"), row(3, None, "seed=4")]
    assert table(rows) == [
        "Sweep of 4 jobs, 1 not done, the best score first",
        "job  score      overrides  folder",
        "2    1e-05      seed=3     outputs/x",
        "1    0.25       seed=2     outputs/x",
        "3    -          seed=4     outputs/x",
        "0    failed 76  seed=1     outputs/x",
    ]


def test_numbers_of_things_are_no_scores_and_one_job_shows_all_its_words():
    assert table([row(1, 370), row(0, 400)])[0] == "Sweep of 2 jobs"
    assert [line.split()[:2] for line in table([row(1, 370), row(0, 400)])[2:]] == [["0", "400"], ["1", "370"]]
    assert table([row(0, "died")])[2] == "0    died   num_epochs=1  outputs/x"


def test_nothing_outside_of_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Row(0, []).write(folder="x")
    with table_at_the_end():
        Row(None, []).write(folder="x")
    assert FOLDER not in os.environ
    assert (capsys.readouterr().err, list(tmp_path.iterdir())) == ("", [])


def test_a_job_that_dies_has_its_row(capsys):
    with table_at_the_end():
        Row(3, ["seed=1"]).write(folder="outputs/x")
    assert capsys.readouterr().err.splitlines()[-1] == "3    died   seed=1     outputs/x"


def test_a_sweep_with_a_failing_job(command, capsys):
    words = ("num_epochs=1", "model.hidden_dim=8", "name=sweep")
    assert command("-m", "datasets.train.min_seq_length=99,0", *words) == 65
    error = capsys.readouterr().err
    lines = error[error.index("Sweep of") :].splitlines()
    assert lines[0] == "Sweep of 2 jobs, 1 not done, the best score first"
    job, score, word, folder = lines[2].split()
    assert (job, word) == ("1", "datasets.train.min_seq_length=0")
    assert score == f"{json.loads(Path(folder, 'result.json').read_text())['score']:.6g}"
    assert lines[3].split()[:3] == ["0", "failed", "65"]
    assert lines[4].startswith("ERROR 65: ")
    assert command("num_epochs=1", "model.hidden_dim=8", "name=single") == 0
    assert "Sweep" not in capsys.readouterr().err


def test_two_jobs_never_train_in_one_folder(command, capsys):
    words = ("model.hidden_dim=8", "datasets.train.source.part=dev")
    assert command("-m", "num_epochs=1,2", *words) == 2
    error = capsys.readouterr().err
    assert "job 0 of the sweep trains there too; num_epochs=2 is not in a run's name" in error
    assert command("-m", "num_epochs=1,2", *words, "name=n_${num_epochs}") == 0
    assert sorted(path.name for path in Path("outputs").glob("n_*")) == ["n_1", "n_2"]
    capsys.readouterr()
    assert command("-m", "run=outputs/n_2", "task=evaluate", "load_epoch=1,2") == 0  # any number of other tasks
    assert capsys.readouterr().err.count("outputs/n_2\n") == 2


def test_a_signal_ends_the_whole_sweep(tmp_path):
    words = ["-m", "seed=1,2", "num_epochs=5000", "model.hidden_dim=8", "name=sweep"]
    sweep = subprocess.Popen(
        [sys.executable, ROOT / "run.py", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/sweep/*seed=1/scores.jsonl")) and time.monotonic() < end:
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    _, error = sweep.communicate(timeout=60)
    assert sweep.returncode == 143
    assert not list(tmp_path.glob("outputs/sweep/*seed=2"))
    assert error.splitlines()[-2].split()[:3] == ["0", "stopped", "143"]
    assert error.splitlines()[-1].startswith("STOPPED 143: SIGTERM: ")
