"""Every task word runs, or is refused with what there is; where a training starts from; keys that can't be honoured."""

import ast
from pathlib import Path

import pytest
import torch

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.tasks.returnn.session import open_session
from returnn_hydra.tasks.returnn_command import main

SMALL = {"num_seqs": 40, "num_epochs": 1, "batch_size": 400}


def parameters(file):
    return torch.load(file, weights_only=True)["model"]


def test_eval_gives_the_scores_of_training(run, scores):
    run("plain_torch.config", **SMALL)
    trained = scores()[1][1]
    assert run("plain_torch.config", task="eval", eval_output_file="eval.txt", **SMALL) == trained["dev_loss_ce"]
    found = ast.literal_eval(Path("eval.txt").read_text())
    assert found == {
        "dev": {"score": {"ce": trained["dev_loss_ce"]}, "error": {"fer": pytest.approx(trained["dev_loss_fer"])}}
    }


def test_initialize_model_and_start_from_it(run):
    file = run("plain_torch.config", task="initialize_model", model="init/net", **SMALL)
    run("plain_torch.config", task="initialize_model", model="init/other", random_seed=7, **SMALL)
    first, other = parameters(file), parameters("init/other.pt")
    assert any(not torch.equal(first[name], other[name]) for name in first)
    run("plain_torch.config", import_model_train_epoch1="init/other.pt", learning_rate=0.0, **SMALL)
    assert all(torch.equal(value, other[name]) for name, value in parameters("net/model.001.pt").items())
    run("plain_torch.config", model="same/model", learning_rate=0.0, **SMALL)
    assert all(torch.equal(value, first[name]) for name, value in parameters("same/model.001.pt").items())


def test_start_epoch_one_starts_anew(run):
    run("plain_torch.config", **SMALL)
    before = parameters("net/model.001.pt")
    run("plain_torch.config", start_epoch=1, random_seed=3, **SMALL)
    after = parameters("net/model.001.pt")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_preload_a_part(run):
    run("plain_torch.config", **SMALL)
    options = {
        "a": {"filename": "net/model.001.pt", "init_for_train": True, "ignore_params_prefixes": ["layers.4."]},
    }
    run("plain_torch.config", model="new/model", learning_rate=0.0, preload_from_files=options, **SMALL)
    run("plain_torch.config", model="fresh/model", learning_rate=0.0, **SMALL)
    old, new, fresh = (parameters(f"{name}/model.001.pt") for name in ("net", "new", "fresh"))
    assert torch.equal(new["layers.0.weight"], old["layers.0.weight"])
    assert torch.equal(new["layers.4.weight"], fresh["layers.4.weight"])
    with pytest.raises(ConfigError, match="unknown option 'file_name'; did you mean 'filename'"):
        run("plain_torch.config", model="x/model", preload_from_files={"a": {"file_name": "x"}}, **SMALL)


@pytest.mark.parametrize("case", ["no_model", "preload", "allowed", "missing", "asked"])
def test_forward_without_a_checkpoint(run, caplog, case):
    """RETURNN takes the model as it is made; here only a config that names no checkpoints, or says so."""
    file = run("plain_torch.config", task="initialize_model", model="init/net", random_seed=7, **SMALL)
    options = {
        "no_model": {"model": ""},
        "preload": {"preload_from_files": {"all": {"filename": str(file)}}},
        "allowed": {"allow_random_model_init": True},
        "missing": {},
        "asked": {"allow_random_model_init": True, "load_epoch": 3},
    }[case]
    if case in ("missing", "asked"):
        with pytest.raises(ConfigError, match="allow_random_model_init" if case == "missing" else "load_epoch=3"):
            run("plain_torch.config", task="eval", **options, **SMALL)
        return
    found = run("plain_torch.config", task="eval", log_verbosity=3, **options, **SMALL)
    assert "There is no checkpoint" in caplog.text
    expected = run("plain_torch.config", task="eval", load=str(file), **SMALL)
    assert (found == expected) == (case == "preload")


def test_config_function_as_task(run, tmp_path):
    (tmp_path / "my.config").write_text(
        "#!rnn.py\nfrom returnn.config import get_global_config\n"
        "def count(config):\n    assert get_global_config() is config\n    return config.int('number', 0) + 1\n"
    )
    assert run("my.config", task="config:count", number=4) == 5
    assert run("my.config", task="optional-config:nothing") is None
    with pytest.raises(ConfigError, match="no function 'cont'; did you mean 'count'"):
        run("my.config", task="config:cont")


@pytest.mark.parametrize(
    ("task", "message"),
    [("trian", "did you mean 'train'"), ("analyze", "task=eval gives the scores"), ("search_server", "no server")],
)
def test_other_tasks_are_refused(run, task, message):
    with pytest.raises(ConfigError, match=message):
        run("plain_torch.config", task=task)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("load_epoch", 7, "no such checkpoint"),
        ("load", "nowhere/model.001.pt", "no such checkpoint"),
        ("torch_distributed", {"reduce_type": "param", "param_sync_step": 0}, "a number of updates from 1"),
        ("torch_distributed", {"sync": [{"group": "node", "type": "grad"}]}, "only one level"),
        ("window", 5, "windows of frames"),
        ("behavior_version", 99, "expected a number from 0 to"),
        ("default_float_dtype", "double", "expected one of float16"),
        ("torch_optimizer_step", "f", "optimizer's own step"),
        ("train", {"class": "Task12AXDatset"}, "did you mean 'Task12AXDataset'"),
        ("optimizer", {"class": "adma"}, "did you mean 'adam"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(run, key, value, message):
    with pytest.raises(ConfigError, match=message):
        run("plain_torch.config", **{**SMALL, key: value})


def test_weight_decay_is_decoupled(run):
    decay = {"class": "adamw", "weight_decay": 0.1}
    run("plain_torch.config", decouple_constraints=True, use_last_best_model={}, optimizer=decay, **SMALL)
    with pytest.raises(ConfigError, match="not part of the loss"):
        run("plain_torch.config", decouple_constraints=False, optimizer=decay, **SMALL)


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parent / "configs" / "plain_torch.config"
    main([str(config), "-n", "1", "++num_seqs", "40", "++log", "train.log", "++log_verbosity", "3"])
    assert "Epoch 1" in Path("train.log").read_text() and Path("net/model.001.pt").exists()
    with pytest.raises(SystemExit) as error:
        main([str(config), "++learning_rate", "fast"])
    assert error.value.code == 2
    assert "learning_rate" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["nothing.config"])


def test_returnn_is_only_there_while_a_config_runs(run):
    import sys

    run("plain_torch.config", task="nop_init_net_train", **SMALL)
    assert "returnn" not in sys.modules


def test_cleanup_of_old_models(run):
    run(
        "plain_torch.config",
        **{**SMALL, "num_epochs": 6},
        cleanup_old_models={"keep_last_n": 2, "keep_best_n": 0, "keep": [1]},
    )
    assert sorted(Path("net").glob("model.*.pt")) == [
        Path(f"net/model.00{epoch}{suffix}.pt") for epoch in (1, 5, 6) for suffix in (".opt", "")
    ]


def test_accumulation_sums_and_drops_the_rest(run):
    """The batches of an accumulation give the gradient of their sum, as one batch of all of them does."""
    options = {"num_seqs": 10, "num_epochs": 1, "optimizer": {"class": "sgd"}, "learning_rate": 0.001}
    run("plain_torch.config", max_seqs=2, accum_grad_multiple_step=5, model="a/model", **options)
    run("plain_torch.config", max_seqs=10, model="b/model", **options)
    run("plain_torch.config", max_seqs=2, accum_grad_multiple_step=6, model="c/model", **options)
    run("plain_torch.config", task="initialize_model", model="init", **options)
    a, b, c, init = (parameters(file) for file in ("a/model.001.pt", "b/model.001.pt", "c/model.001.pt", "init.pt"))
    assert torch.load("a/model.001.pt", weights_only=True)["step"] == 5
    for name, value in init.items():
        assert torch.equal(c[name], value) and not torch.equal(a[name], value)
        # padding reaches a convolution's last frames, so the batches differ a little
        torch.testing.assert_close(a[name] - value, b[name] - value, rtol=0.05, atol=2e-4)


def test_values_are_seen_while_the_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.config").write_text("#!rnn.py\ntwice = 2 * config.int('number', 1)\nnumber = 3\n")
    session = open_session(["my.config"], values={"number": 21})
    assert session.values["twice"] == 42 and session.values["number"] == 21


def test_default_float_dtype(run):
    run("plain_torch.config", default_float_dtype="float64", **SMALL)
    assert {value.dtype for value in parameters("net/model.001.pt").values()} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32
