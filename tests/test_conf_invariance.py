"""Every model of conf/model with every train step of conf/train_step that fits it: a padded batch gives the sums of
what its sequences give alone.
"""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from returnn_hydra.batch import Batch
from returnn_hydra.build import Builder
from returnn_hydra.config.compose import finish
from returnn_hydra.config.paths import config_dir
from returnn_hydra.config.schema import register
from returnn_hydra.tasks.data import build_specs

CONF = Path(__file__).resolve().parents[1] / "conf"
FRAMES, LABELS = [33, 13, 40, 20], [5, 1, 2, 4]
FITTING = {
    "blstm": ("cross_entropy", "ctc"),
    "blstm_ctc": ("ctc",),
    "conformer": ("cross_entropy", "ctc"),
    "conformer_ctc": ("ctc",),
    "lstm_attention": ("attention", "joint_ctc_attention"),
    "lstm_lm": ("language_model",),
    "pyramidal_blstm": ("cross_entropy", "ctc"),
    "time_conv_ctc": ("ctc",),
    "transducer": ("transducer",),
    "transformer": ("cross_entropy", "ctc"),
    "transformer_attention": ("attention", "joint_ctc_attention"),
    "transformer_lm": ("language_model",),
    "vgg_blstm": ("cross_entropy", "ctc"),
}
PAIRS = [(model, step) for model, steps in FITTING.items() for step in steps]
"""With cross_entropy, one class for every sequence here."""


@pytest.fixture(scope="module", autouse=True)
def hydra():
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def built(model, step):
    """The parts as the program builds them, for 12 features, or labels for a language model, and 9 labels."""
    words = [f"model={model}", f"train_step={step}", "~extern_data"]
    data = "{dim:9,sparse:true}" if step == "language_model" else "{dim:12}"
    words += [f"+extern_data.data={data}", "+extern_data.classes={dim:9,sparse:true}"]
    values = finish(compose("config", overrides=words), words).values
    builder = Builder()
    specs = build_specs(builder, values["extern_data"], "extern_data")
    torch.manual_seed(1)
    made = builder.make(values["model"], "model", extern_data=specs)
    return made.eval(), builder.build(values["train_step"], "train_step", extern_data=specs)


def make_batch(step):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor(LABELS if step == "language_model" else FRAMES)
    if step == "language_model":
        data = torch.randint(0, 9, (4, 5), generator=generator, dtype=torch.int32)
    else:
        data = torch.randn(4, 40, 12, generator=generator)
    label_lengths = torch.ones(4, dtype=torch.long) if step == "cross_entropy" else torch.tensor(LABELS)
    blank = 8  # CTC on a model with 9 outputs: the last one
    classes = torch.randint(0, blank, (4, int(label_lengths.max())), generator=generator, dtype=torch.int32)
    for row, length in zip(data, lengths, strict=True):
        row[length:] = 0
    for row, length in zip(classes, label_lengths, strict=True):
        row[length:] = 0
    return Batch({"data": data, "classes": classes}, {"data": lengths, "classes": label_lengths}, list("abcd"))


@pytest.mark.parametrize(("model", "step"), PAIRS)
@torch.no_grad()
def test_alone_as_in_a_padded_batch(model, step):
    made, train_step = built(model, step)
    batch = make_batch(step)
    together = train_step(made, batch)
    alone = [train_step(made, batch.select(index, index + 1)) for index in range(4)]
    assert together
    for name, loss in together.items():
        assert float(loss.sum) == pytest.approx(sum(float(one[name].sum) for one in alone), rel=1e-5)
        assert float(loss.count) == sum(float(one[name].count) for one in alone)


def test_every_choice_is_here():
    assert set(FITTING) == {path.stem for path in (CONF / "model").glob("*.yaml")}
    used = {step for steps in FITTING.values() for step in steps}
    assert used == {path.stem for path in (CONF / "train_step").glob("*.yaml")}
