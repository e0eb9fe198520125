"""The everyday command lines of the README, end to end, on the embedded data."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from returnn_hydra.data.embedded import japanese_vowels

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("model.hidden_dim=8", "num_epochs=2")
FOLDER = "outputs/japanese_vowels-blstm,model.hidden_dim=8"


def scores(folder):
    return [json.loads(line) for line in (Path(folder) / "scores.jsonl").read_text().splitlines()]


def test_train_leaves_checkpoints_scores_and_learning_rates(command):
    assert command("task=train", "model=blstm", *SMALL) == 0
    folder = Path(FOLDER)
    for epoch in (1, 2):
        model = torch.load(folder / f"checkpoints/model.{epoch:03d}.pt", weights_only=True)
        assert {"model", "epoch", "step", "effective_learning_rate", "returnn_version"} <= set(model)
        assert model["epoch"] == epoch
        optimizer = torch.load(folder / f"checkpoints/model.{epoch:03d}.opt.pt", weights_only=True)
        assert {"optimizer", "optimizer_class_name", "optimizer_opts", "param_names"} <= set(optimizer)
        buffers = {name for name in model["model"] if name.startswith("input_norm.")}
        assert set(optimizer["param_names"]) == set(model["model"]) - buffers
    lines = scores(folder)
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert set(line["scores"]) == {"train", "dev", "eval"}
        for entries in line["scores"].values():
            for score in entries.values():
                assert score["mean"] == pytest.approx(score["sum"] / score["count"])
        assert line["scores"]["eval"]["error"]["count"] == 370
        assert {"padding_fraction", "frames_per_second", "num_batches"} <= set(line["statistics"])
    assert lines[1]["scores"]["train"]["ce"]["mean"] < lines[0]["scores"]["train"]["ce"]["mean"]
    assert "EpochData(" in (folder / "learning_rates").read_text()
    assert "Epoch 2: train: ce" in (folder / "run.log").read_text()
    assert json.loads((folder / "result.json").read_text())["status"] == "done"


def test_saved_config_reloads_to_the_same_config(command):
    words = ("batch_size=500", "optimizer=sgd", "num_epochs=1", "model.hidden_dim=4")
    assert command("task=train", *words, "name=saved") == 0
    assert command("task=train", "run=outputs/saved", "name=again") == 0
    saved, again = (yaml.safe_load(Path(f"outputs/{name}/config.yaml").read_text()) for name in ("saved", "again"))
    assert {**again, "run": None, "name": "saved"} == saved
    assert (saved["datasets"]["train"]["batch_size"], saved["optimizer"]["momentum"]) == (500, 0.9)


def test_same_command_again_goes_on_and_then_has_nothing_to_do(command, capsys):
    whole = ("task=train", "model.hidden_dim=8", "num_epochs=3")
    assert command(*whole, "name=whole") == 0
    assert command("task=train", "model.hidden_dim=8", "num_epochs=1", "name=parts") == 0
    capsys.readouterr()
    assert command(*whole, "name=parts") == 0
    assert "Resumed after epoch 1, starting epoch 2" in capsys.readouterr().out
    assert command(*whole, "name=parts") == 0
    assert "nothing to do" in capsys.readouterr().out
    one = torch.load("outputs/whole/checkpoints/model.003.pt", weights_only=True)["model"]
    two = torch.load("outputs/parts/checkpoints/model.003.pt", weights_only=True)["model"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [line["scores"] for line in scores("outputs/whole")] == [line["scores"] for line in scores("outputs/parts")]


def test_changed_config_is_refused_with_the_difference(command, capsys):
    assert command("task=train", *SMALL, "num_epochs=1", "name=run") == 0
    before = Path("outputs/run/config.yaml").read_text()
    assert command("task=train", *SMALL, "name=run", "batch_size=500") == 2
    assert "batch_size: 1000 -> 500" in capsys.readouterr().err
    assert Path("outputs/run/config.yaml").read_text() == before
    assert command("task=train", *SMALL, "name=run", "batch_size=500", "allow_changed=[batch_size,datasets]") == 0


def test_other_optimizer_and_everyday_numbers(command):
    words = ("optimizer=adamw", "learning_rate=3e-3", "batch_size=2000", "max_seqs=32", "num_epochs=5")
    assert command("task=train", "model=blstm", *words, "model.hidden_dim=8") == 0
    (folder,) = Path("outputs").iterdir()
    assert [line["epoch"] for line in scores(folder)] == [1, 2, 3, 4, 5]
    optimizer = torch.load(folder / "checkpoints/model.005.opt.pt", weights_only=True)
    assert optimizer["optimizer_class_name"] == "AdamW"


def test_forward_writes_an_hdf_in_corpus_order(command):
    assert command("task=train", *SMALL) == 0
    assert command("task=forward", "load_epoch=best", "forward_callback=hdf", *SMALL) == 0
    (file,) = Path(FOLDER).glob("forward.*/eval.hdf")
    corpus = japanese_vowels("eval")
    everything = np.arange(len(corpus))
    with h5py.File(file) as hdf:
        tags = [tag if isinstance(tag, str) else tag.decode() for tag in hdf["seqTags"][:]]
        lengths = hdf["seqLengths"][:, 0]
        inputs = hdf["inputs"][:]
    assert tags == corpus.seq_tags(everything)
    assert lengths.tolist() == corpus.seq_lengths("data").tolist()
    assert inputs.shape == (lengths.sum(), 9)
    assert np.allclose(np.exp(inputs).sum(-1), 1.0, atol=1e-4)


def test_forward_with_every_callback(command):
    assert command("task=train", *SMALL, "num_epochs=1", "name=run") == 0
    base = ("run=outputs/run", "task=forward")
    assert command(*base, "forward_callback=text") == 0
    lines = [json.loads(line) for line in Path("outputs/run/forward.001/eval.jsonl").read_text().splitlines()]
    assert len(lines) == 370
    assert command(*base, "forward_callback=priors", "forward_data=train") == 0
    log_priors = np.loadtxt("outputs/run/forward.001/train.log_priors.txt")
    assert np.exp(log_priors).sum() == pytest.approx(1.0)
    assert command(*base, "forward_step=log_likelihood", "forward_callback=text", "forward_data=dev") == 0
    likelihoods = [json.loads(line) for line in Path("outputs/run/forward.001/dev.jsonl").read_text().splitlines()]
    total = sum(line["log_likelihood"] for line in likelihoods)
    assert -total == pytest.approx(scores("outputs/run")[0]["scores"]["dev"]["ce"]["sum"], rel=1e-4)


def test_evaluate_one_epoch(command, capsys):
    assert command("task=train", "model.hidden_dim=8", "num_epochs=3") == 0
    assert command("task=evaluate", "model.hidden_dim=8", "load_epoch=3") == 0
    values = json.loads((Path(FOLDER) / "evaluation.003.json").read_text())
    assert values["scores"]["eval"] == scores(FOLDER)[2]["scores"]["eval"]
    assert "eval" in capsys.readouterr().out


def test_sweep_has_a_folder_per_override_set(command):
    assert command("-m", "optimizer=adam,sgd", "seed=1,2", "num_epochs=1", "model.hidden_dim=4") == 0
    folders = sorted(path.name for path in Path("outputs").iterdir() if (path / "scores.jsonl").is_file())
    assert len(folders) == 4
    assert {("optimizer=sgd" in name, "seed=2" in name) for name in folders} == {(a, b) for a in (0, 1) for b in (0, 1)}


def test_the_name_of_a_sweep_is_the_folder_of_its_runs(command):
    assert command("-m", "seed=1,2", "num_epochs=1", "model.hidden_dim=4", "name=mine") == 0
    found = sorted(path.parent.name for path in Path("outputs/mine").glob("*/scores.jsonl"))
    assert found == [f"japanese_vowels-blstm,model.hidden_dim=4,seed={seed}" for seed in (1, 2)]
    assert command("-m", "seed=1,2", "num_epochs=1", "model.hidden_dim=4", "name=own_${seed}") == 0
    assert all(Path(f"outputs/own_{seed}/scores.jsonl").is_file() for seed in (1, 2))


def test_the_name_of_a_sweep_over_a_returnn_config(command):
    config = Path(__file__).resolve().parents[1] / "docs/examples/returnn_config.py"
    assert command("-m", f"returnn_config={config}", "seed=1,2", "num_epochs=1", "name=mine") == 0
    assert len(list(Path("outputs/mine").glob("*seed=[12]*/checkpoints/*.001.pt"))) == 2


def test_a_failing_job_does_not_stop_the_others(command, capsys):
    assert command("-m", "model.hidden_dim=abc,4", "num_epochs=1") == 2
    assert len(list(Path("outputs").glob("*/scores.jsonl"))) == 1


def test_run_takes_the_saved_config_and_new_overrides(command):
    assert command("task=train", "model.hidden_dim=5", "num_epochs=1", "batch_size=700", "name=old") == 0
    assert command("run=outputs/old", "task=forward", "forward_callback=text", "batch_size=300") == 0
    assert Path("outputs/old/forward.001/eval.jsonl").is_file()


def test_run_takes_an_override_inside_of_a_list(command, capsys):
    words = ("model=blstm_ctc", "train_step=ctc", "num_epochs=1", "name=old", "model.encoder.parts.1.hidden_dim=8")
    assert command("task=train", *words) == 0
    assert (
        yaml.safe_load(Path("outputs/old/config.yaml").read_text())["model"]["encoder"]["parts"][1]["hidden_dim"] == 8
    )
    assert command("run=outputs/old", "task=evaluate", "model.encoder.parts.1.dropout=0.5") == 0
    assert command("run=outputs/old", "task=evaluate", "model.encoder.parts.1.hidden_dim=4") == 2
    assert "don't fit the model, CTCModel: 25 of another shape" in capsys.readouterr().err


def test_python_overrides_between_yaml_and_command_line(command):
    Path("mine.py").write_text(
        "num_epochs = 1\nbatch_size = 400\nmodel = dict(hidden_dim=6)\n"
        "def train_step(model, batch):\n"
        "    from returnn_hydra.steps.cross_entropy import CrossEntropy\n"
        "    return CrossEntropy()(model, batch)\n"
    )
    assert command("task=train", "overrides=mine.py", "batch_size=300", "name=mine") == 0
    saved = yaml.safe_load(Path("outputs/mine/config.yaml").read_text())
    assert (saved["num_epochs"], saved["batch_size"], saved["model"]["hidden_dim"]) == (1, 300, 6)


def test_python_overrides_of_another_kind_of_file(command, capsys):
    Path("mine.txt").write_text("num_epochs = 1")
    assert command("task=train", "overrides=mine.txt") == 2
    assert "ERROR 2: overrides=mine.txt: expected a Python file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [("num_epoch = 3\n", "did you mean 'num_epochs'?"), ("num_epochs = 'x'\n", "num_epochs")]
)
def test_python_overrides_are_checked_by_the_schema(command, capsys, text, message):
    Path("mine.py").write_text(text)
    assert command("task=train", "overrides=mine.py") == 2
    assert message in capsys.readouterr().err


def test_task12ax_needs_no_file(command):
    words = ("datasets=task12ax", "model.hidden_dim=16", "num_epochs=1", "batch_size=4000")
    assert command("task=train", *words, "datasets.train.source.num_seqs=200") == 0
    (line,) = scores(next(Path("outputs").iterdir()))
    assert line["scores"]["dev"]["error"]["mean"] < 0.2


def test_second_run_in_a_live_folder_is_refused(command, capsys):
    from returnn_hydra.engine.lock import RunLock

    with RunLock(Path("outputs/busy")):
        assert command("task=train", *SMALL, "name=busy") == 73
    assert "another run is live" in capsys.readouterr().err
    assert command("task=train", *SMALL, "num_epochs=1", "name=busy") == 0


def test_other_tasks_leave_what_a_live_training_writes(command):
    from returnn_hydra.engine.lock import RunLock

    assert command("task=train", *SMALL, "name=live") == 0
    folder = Path("outputs/live")
    with RunLock(folder):  # a training that goes on
        before = {name: (folder / name).read_bytes() for name in ("result.json", "status.json", "scores.jsonl")}
        assert command("task=evaluate", "run=outputs/live") == 0
        assert command("task=forward", "run=outputs/live", "forward_callback=priors") == 0
        assert command("task=search", "run=outputs/live") == 2
        assert command("task=train", "run=outputs/live", "datasets.train=null") == 73
        assert before == {name: (folder / name).read_bytes() for name in before}
    results = {
        task: json.loads((folder / f"result.{task}.json").read_text()) for task in ("evaluate", "forward", "search")
    }
    assert [(row["task"], row["status"], row["exit_code"]) for row in results.values()] == [
        ("evaluate", "done", 0),
        ("forward", "done", 0),
        ("search", "failed", 2),
    ]


def test_data_that_are_not_there_are_named_with_their_place(command, capsys):
    assert command("task=train", "datasets=digits", "data_folder=nowhere") == 65
    error = capsys.readouterr().err
    assert error.startswith("ERROR 65: datasets.train.source: files='nowhere/digits/train.*.hdf': no file matches")


def test_forward_without_a_checkpoint_says_what_there_is(command, capsys):
    assert command("task=train", *SMALL, "num_epochs=1", "name=mine") == 0
    assert command("task=forward") == 2
    message = capsys.readouterr().err
    assert "train first" in message
    assert "mine" in message


def test_help_and_composed_config(command, capsys):
    assert command("--help") == 0
    assert "optimizer: adam" in capsys.readouterr().out
    assert command("--cfg", "job", "--resolve") == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["input_dim"] == 12


def test_as_a_program_from_any_folder(tmp_path):
    words = ["task=train", "model=blstm", "num_epochs=1", "model.hidden_dim=4", "name=x"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "outputs/x/checkpoints/model.001.pt").is_file()
    wrong = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "modle=blstm"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "did you mean 'model'?" in wrong.stderr


def test_search_and_alignment_with_ctc(command):
    """One label per utterance, so that the best path of CTC is a classification."""
    words = ("model=blstm", "model.output_dim=10", "model.hidden_dim=16", "train_step=ctc", "name=ctc", "num_epochs=4")
    assert command("task=train", *words) == 0
    assert command("task=search", "run=outputs/ctc", "search=ctc_best_path") == 0
    folder = Path("outputs/ctc/search.004")
    errors = json.loads((folder / "eval.errors.json").read_text())
    last = scores("outputs/ctc")[-1]["scores"]["eval"]["label_error"]
    assert sum(errors["ler"][kind] for kind in ("substitutions", "deletions", "insertions")) == last["sum"]
    best_path = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    assert len(best_path) == 370
    assert command("task=search", "run=outputs/ctc", "search=ctc_prefix", "search.beam_size=4") == 0
    assert command("task=align", "run=outputs/ctc", "search=ctc_align") == 0
    with h5py.File("outputs/ctc/align.004/eval.hdf") as hdf:
        lengths = hdf["seqLengths"][:, 0]
        assert lengths.tolist() == japanese_vowels("eval").seq_lengths("data").tolist()
        assert set(np.unique(hdf["inputs"][:])) <= set(range(10))


def test_run_of_a_folder_that_an_earlier_version_wrote(command):
    """There `debug` had no keys yet."""
    assert command("task=train", *SMALL, "name=old") == 0
    for name in ("composed.yaml", "config.yaml"):
        file = Path("outputs/old") / name
        text = re.sub(r"(?m)^debug:\n(  .*\n)+", "debug: null\n", file.read_text())
        assert "debug: null" in text
        file.write_text(text)
    assert command("run=outputs/old", "task=forward", "forward_callback=text") == 0
    assert command("run=outputs/old", "task=train", "name=again", "num_epochs=1") == 0
    assert command("run=outputs/old", "task=train", "num_epochs=3") == 0


def test_inspect_shows_the_data(command, capsys):
    assert command("task=inspect", "name=look") == 0
    text = capsys.readouterr().out
    assert "train: HDFDataset, 243 sequences" in text
    assert "% padding" in text
    assert Path("outputs/look/inspect.png").stat().st_size > 5000


def test_init_from_takes_weights_only(command):
    assert command("task=train", *SMALL, "name=first") == 0
    file = "outputs/first/checkpoints/model.002"
    words = ("task=train", "model.hidden_dim=8", "num_epochs=1", "learning_rate=0.0", "name=second")
    buffers = "input_norm."
    assert command(*words, f"init_from={file}") == 0
    first, second = (
        torch.load(f"outputs/{name}/checkpoints/model.{epoch}.pt", weights_only=True)
        for name, epoch in (("first", "002"), ("second", "001"))
    )
    assert second["epoch"] == 1
    for name, value in first["model"].items():
        assert name.startswith(buffers) or torch.equal(value, second["model"][name]), name
    assert command(*words[:-1], "name=third", "+init_from={file: x, prefx: y}") == 2
