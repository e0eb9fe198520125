"""Parts that don't fit together: one line that says what fits, exit code 2, and no traceback."""

from pathlib import Path

import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.steps.attention import AttentionCrossEntropy
from returnn_hydra.steps.classification import run_model
from returnn_hydra.steps.language_model import LanguageModelCrossEntropy
from returnn_hydra.steps.log_likelihood import LogLikelihood
from returnn_hydra.usage import UsageError, check_call, described

SMALL = ("num_epochs=1", "name=x")
TRAININGS = [
    ("model=transformer_attention train_step=ctc", "train_step: CTC calls its model with (features, lengths), but"),
    ("model=transformer_attention", "models that fit: blstm, conformer"),
    ("model=lstm_lm", "CrossEntropy calls its model with (features, lengths), but LSTMLanguageModel takes (labels,"),
    ("train_step=attention", "needs a model with decoder and bos_id and eos_id, and BLSTM has no decoder"),
    ("train_step=transducer", "BLSTM has no blank_id; models that fit: transducer"),
    ("model=transducer train_step=language_model", "models that fit: lstm_lm, transformer_lm"),
    ("train_step=ctc", "the model's 9 classes allow 0..8 but 8, the blank"),  # known with the data only
    ("model.output_dim=5", "the model's classes are 0..4"),
    ("datasets=task12ax model=pyramidal_blstm model.output_dim=2", "expected one target per output"),
]


@pytest.mark.parametrize(("words", "message"), TRAININGS, ids=[words for words, _ in TRAININGS])
def test_a_training_whose_parts_do_not_fit(words, message, command, capsys):
    assert command(*words.split(), *SMALL) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.fixture(scope="module")
def ctc_run(tmp_path_factory):
    """The folder of a CTC training of one epoch."""
    import sys

    from hydra.core.global_hydra import GlobalHydra

    from returnn_hydra import cli

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        words = ["train_step=ctc", "model.output_dim=10", "model.hidden_dim=8", "num_epochs=1"]
        patch.setattr(sys, "argv", ["run.py", *words, f"outputs={folder}", "name=ctc"])
        cli.main()
        GlobalHydra.instance().clear()
    return folder / "ctc"


SEARCHES = [
    ("task=search search=greedy", "for a CTC model take search=ctc_best_path or search=ctc_prefix"),
    ("task=search search=transducer_greedy", "needs a model with encode and joint and blank_id, and BLSTM has no"),
    ("task=search search=ctc_prefix search.lm=nothere.arpa", "an n-gram model needs the names of the labels"),
    ("task=search search=ctc_prefix search.lm_unit=word search.lm=nothere.arpa", "needs search.lexicon"),
    ("task=search search=ctc_prefix search.beam_size=0", "must be at least 1"),
    ("task=search search=ctc_prefix search_output.formats=[ctm]", "CTM files hold words: the stream of the labels"),
    ("task=search search=ctc_prefix search_output.error_units=[word]", "search_output.error_units: word errors need"),
]


@pytest.mark.parametrize(("words", "message"), SEARCHES, ids=[words for words, _ in SEARCHES])
def test_a_search_that_the_model_or_the_data_do_not_allow(words, message, command, capsys, ctc_run):
    assert command(*words.split(), f"run={ctc_run}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arpa", "message"), [(None, "nothere.arpa: no such file"), ("no model", "is not a whole ARPA file")]
)
def test_a_language_model_that_is_none(command, capsys, ctc_run, tmp_path, arpa, message):
    names = tmp_path / "labels.txt"
    names.write_text(repr({f"s{index}": index for index in range(9)}))
    file = tmp_path / "nothere.arpa"
    if arpa is not None:
        file.write_text(arpa)
    vocab = f"extern_data.classes.vocab={{_target_: returnn_hydra.data.vocab.Vocabulary, vocab_file: '{names}'}}"
    assert command("task=search", "search=ctc_prefix", f"search.lm={file}", vocab, f"run={ctc_run}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_what_a_model_may_be_called_with():
    class Own(nn.Module):
        def forward(self, x, sizes, speed=1.0):
            return x, sizes

    class Words(nn.Module):
        def forward(self, labels, lengths):
            return labels

    check_call(None, Own(), ("features", "lengths"), "any")  # names of one's own mean anything
    with pytest.raises(UsageError, match=r"with \(features, lengths\), but Words takes \(labels, lengths\)"):
        check_call(None, Words(), ("features", "lengths"), "any")
    with pytest.raises(UsageError, match="models that fit: any"):
        check_call(None, Words(), ("labels",), "any")


def test_a_forward_step_asks_its_criterion():
    step = LogLikelihood(AttentionCrossEntropy())
    with pytest.raises(UsageError, match="AttentionCrossEntropy needs a model with decoder"):
        step.check_model(nn.Linear(2, 2))


def test_a_model_that_returns_something_else():
    batch = Batch({"data": torch.zeros(2, 3, 4)}, {"data": torch.tensor([3, 2])}, ["a", "b"])

    class Own(nn.Module):
        def __init__(self, found):
            super().__init__()
            self.found = found

        def forward(self, features, lengths):
            return self.found

    logits, lengths = torch.zeros(2, 3, 5), torch.tensor([3, 2])
    assert run_model(Own([logits, lengths]), batch, "data") == (logits, lengths)
    for found, words in {
        logits: r"Own returns tensor \(2, 3, 5\); expected logits",
        (logits, lengths, None): r"\(tensor \(2, 3, 5\), tensor \(2,\), NoneType\)",
        (logits[0], lengths): r"\(tensor \(3, 5\), tensor \(2,\)\)",
    }.items():
        with pytest.raises(UsageError, match=words):
            run_model(Own(found), batch, "data")
    assert described({"logits": logits}) == "dict"


def test_scorers_of_a_search_are_given_on_the_command_line(command, capsys):
    words = ("search=label_sync", "search.language_models={lm: a.arpa}", "--cfg", "job")
    assert command("search.scorers={am: 0.7, ctc: 0.3, lm: 0.4}", *words) == 0
    assert "  scorers:\n    am: 0.7\n    ctc: 0.3\n    lm: 0.4\n" in capsys.readouterr().out
    assert command("task=search", "search=label_sync", "search.scorers={ct: 0.3}") == 2
    assert "search scale 'ct' has no scorer; there are am, ctc, ilm; did you mean 'ctc'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("model(batch['data'], batch.lengths['data'])[0].sum()", "train_step returned tensor (); expected {name: "),
        (
            "{'ce': model(batch['data'], batch.lengths['data'])[0].sum()}",
            "train_step returned {ce: tensor ()}; expected",
        ),
        ("None", "train_step returned NoneType"),
    ],
)
def test_a_train_step_that_returns_no_losses(result, message, command, capsys):
    Path("mine.py").write_text(f"def train_step(model, batch):\n    return {result}\n")
    assert command("overrides=mine.py", "model.hidden_dim=4", *SMALL) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_decoder_or_language_model_that_returns_something_else():
    class Own(nn.Module):
        bos_id = eos_id = 3
        num_classes = 4

        def __init__(self):
            super().__init__()
            self.decoder = self

        def forward(self, *arguments):
            return {"logits": arguments[0]}

    labels, lengths = torch.ones(2, 3, dtype=torch.long), torch.tensor([3, 1])
    batch = Batch({"data": labels, "classes": labels}, {"data": lengths, "classes": lengths}, ["a", "b"])
    for step in (AttentionCrossEntropy(), LanguageModelCrossEntropy()):
        with pytest.raises(UsageError, match="Own returns dict; expected logits"):
            step(Own(), batch)
