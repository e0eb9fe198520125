"""Overrides may stand on both sides of Hydra's flags."""

import pytest

from returnn_hydra.config.flags import flags_first, is_sweep


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("task=train --config-dir a=b model=x", "--config-dir a=b task=train model=x"),
        ("a=1 -m b=1,2 ~c +d=3", "-m a=1 b=1,2 ~c +d=3"),
        ("a=1 --cfg job --resolve b=2", "--cfg job --resolve a=1 b=2"),
        ("a=1 -c job -p model b=2", "-c job -p model a=1 b=2"),
        ("a=1 --info defaults b=2 -i c=3", "--info defaults -i a=1 b=2 c=3"),
        ("a=1 --config-dir=x --multirun b=2", "--config-dir=x --multirun a=1 b=2"),
        ("", ""),
    ],
)
def test_flags_first(words, expected):
    assert flags_first(words.split()) == expected.split()


def test_the_command_line_takes_them(command, tmp_path, capsys):
    (tmp_path / "mine/optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/own.yaml").write_text("_target_: torch.optim.Adagrad\n")
    assert command("num_epochs=7", "--config-dir", "mine", "optimizer=own", "--cfg", "job", "seed=3") == 0
    shown = capsys.readouterr().out
    assert "num_epochs: 7" in shown
    assert "torch.optim.Adagrad" in shown
    assert "seed: 3" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [("-m seed=1,2", True), ("seed=1,2 --multirun", True), ("hydra.mode=MULTIRUN seed=1", True), ("name=-m", False)],
)
def test_is_sweep(words, expected):
    assert is_sweep(words.split()) is expected
