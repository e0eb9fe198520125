from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.config.run_name import run_name, safe_file_name

CHOICES = {"datasets": "japanese_vowels", "model": "blstm", "task": "train", "experiment": None}
DEFAULTS = {"datasets": "japanese_vowels", "model": "blstm", "task": "train"}


def name(*overrides, **choices):
    return run_name({**CHOICES, **choices}, overrides, DEFAULTS)


def test_same_folder_whatever_the_task_and_how_it_is_shown():
    plain = name()
    assert plain == "japanese_vowels-blstm"
    assert name("task=train", "model=blstm") == plain
    assert name("task=forward", "load_epoch=best", "forward_callback=hdf", "log_verbosity=5", "device=cpu") == plain
    assert name("num_epochs=100") == plain
    assert name("callbacks.progress.every_seconds=2") == plain


def test_what_changes_the_training_changes_the_folder():
    assert name("learning_rate=0.1") == "japanese_vowels-blstm,learning_rate=0.1"
    assert name("seed=2", "optimizer=sgd") == name("optimizer=sgd", "seed=2")
    assert name("model=conformer", model="conformer") == "japanese_vowels-conformer"
    assert name("datasets.train.seq_ordering=random") != name()
    assert name("experiment=an4_ctc", experiment="an4_ctc") == "an4_ctc"


@given(st.text(max_size=300))
def test_always_a_safe_file_name(text):
    result = safe_file_name(text)
    assert 0 < len(result) <= 120
    assert "/" not in result
    assert not result.startswith(".")
    assert result.isprintable()


@given(st.text(max_size=200), st.text(max_size=200))
def test_different_texts_have_different_names(first, second):
    if first != second:
        assert safe_file_name(first) != safe_file_name(second) or "run" in (first, second) or not (first and second)
