"""resume_from: everything of another run, and the run goes on in a folder of its own with the same bits."""

import json
from pathlib import Path

import torch

WORDS = (
    "task=train",
    "model.hidden_dim=4",
    "model.dropout=0.1",
    "learning_rate_control=newbob",
    "batch_size=1200",
    "max_seqs=null",
)


def state(name, epoch=3):
    folder = Path("outputs") / name / "checkpoints"
    model = torch.load(folder / f"model.{epoch:03d}.pt", weights_only=True)
    optimizer = torch.load(folder / f"model.{epoch:03d}.opt.pt", weights_only=True)
    return {
        **model["model"],
        **{f"{n}.{k}": v for n, s in optimizer["optimizer"]["state"].items() for k, v in s.items()},
    }


def scores(name):
    lines = [json.loads(line) for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["learning_rate"], line["scores"], line["step"]) for line in lines]


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_goes_on_with_the_same_bits_in_another_folder(command):
    assert command(*WORDS, "num_epochs=3", "name=whole") == 0
    assert command(*WORDS, "num_epochs=2", "name=first") == 0
    before = sorted(Path("outputs/first").rglob("*"))
    places = ["", "/checkpoints", "/checkpoints/model.002", "/checkpoints/model.002.opt.pt"]
    for number, place in enumerate(places):
        assert command(*WORDS, "num_epochs=3", f"name={number}", f"resume_from=outputs/first{place}") == 0
        assert_same(state("whole"), state(str(number)))
        assert scores("whole") == scores(str(number))
        assert not Path(f"outputs/{number}/checkpoints/model.002.pt").exists()
    assert sorted(Path("outputs/first").rglob("*")) == before


def test_an_older_epoch_and_one_inside_of_an_epoch(command, monkeypatch):
    assert command(*WORDS, "num_epochs=3", "name=whole") == 0
    assert command(*WORDS, "num_epochs=3", "name=older", "resume_from=outputs/whole/checkpoints/model.001.json") == 0
    assert_same(state("whole"), state("older"))
    assert scores("whole") == scores("older")

    from returnn_hydra.engine.run_store import RunStore

    save = RunStore.save_within_epoch

    def save_and_stop(self, trainer):
        save(self, trainer)
        if trainer.position.epoch == 2 and trainer.position.batch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save_within_epoch", save_and_stop)
        assert command(*WORDS, "num_epochs=3", "checkpoint_every.steps=1", "name=cut") == 130
    assert command(*WORDS, "num_epochs=3", "name=rest", "resume_from=outputs/cut") == 0
    assert_same(state("whole"), state("rest"))
    assert scores("whole") == scores("rest")


def test_the_own_checkpoint_wins_after_a_restart(command, capsys):
    assert command(*WORDS, "num_epochs=1", "name=first") == 0
    again = (*WORDS, "name=second", "resume_from=outputs/first")
    assert command(*again, "num_epochs=2") == 0
    capsys.readouterr()
    assert command(*again, "num_epochs=3") == 0
    text = capsys.readouterr().out
    assert "Resumed after epoch 2" in text
    assert "another run" not in text
    assert command(*WORDS, "num_epochs=3", "name=whole") == 0
    assert_same(state("whole"), state("second"))


def test_a_changed_config_is_refused_or_allowed(command, capsys):
    assert command(*WORDS, "num_epochs=1", "name=first") == 0
    changed = (*WORDS, "num_epochs=2", "name=second", "resume_from=outputs/first", "optimizer.weight_decay=0.25")
    capsys.readouterr()
    assert command(*changed) == 2
    assert "optimizer.weight_decay" in capsys.readouterr().err
    assert not list(Path("outputs/second/checkpoints").glob("*.pt"))
    assert command(*changed, "allow_changed=[optimizer]") == 0
    saved = torch.load("outputs/second/checkpoints/model.002.opt.pt", weights_only=True)
    assert {group["weight_decay"] for group in saved["optimizer"]["param_groups"]} == {0.0, 0.25}  # it has its effect


def test_another_optimizer_starts_anew_when_it_is_allowed(command, capsys):
    assert command(*WORDS, "num_epochs=1", "name=first") == 0
    words = (*WORDS, "num_epochs=2", "name=second", "resume_from=outputs/first", "optimizer=sgd")
    assert command(*words, "allow_changed=[optimizer]") == 0
    assert "was Adam and is SGD" in capsys.readouterr().out


def test_what_is_not_there_is_named(command, capsys):
    for place, words in {
        "outputs/nowhere": "neither a folder nor a checkpoint",
        "outputs/nowhere/checkpoints/model.007": "model.007.json",
        ".": "no checkpoint with a manifest",
    }.items():
        assert command(*WORDS, "name=second", f"resume_from={place}") == 2
        assert words in capsys.readouterr().err
    assert command(*WORDS, "num_epochs=1", "name=first") == 0
    assert command(*WORDS, "num_epochs=1", "name=second", "resume_from=outputs/first") == 2
    assert "trained until epoch 1" in capsys.readouterr().err


def test_a_damaged_checkpoint_falls_back_to_the_one_before(command, capsys):
    assert command(*WORDS, "num_epochs=2", "name=first") == 0
    file = Path("outputs/first/checkpoints/model.002.pt")
    file.write_bytes(file.read_bytes()[:-1])
    assert command(*WORDS, "num_epochs=3", "name=second", "resume_from=outputs/first") == 0
    assert "model.002.pt" in capsys.readouterr().out
    assert command(*WORDS, "num_epochs=3", "name=whole") == 0
    assert_same(state("whole"), state("second"))
    assert command(*WORDS, "name=third", "resume_from=outputs/first/checkpoints/model.002") == 74
