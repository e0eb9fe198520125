"""Cleaners of texts. The expected texts were made by RETURNN's cleaners, with inflect and unidecode."""

import pytest

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.text import LmDataset
from returnn_hydra.data.text_cleaners import CLEANERS, text_cleaner
from returnn_hydra.data.vocab import CharacterVocabulary
from returnn_hydra.extras import MissingExtra

NUMBERS = {
    "0 7 13 20 21 100 101 123 999": "zero seven thirteen twenty twenty-one one hundred one hundred one"
    " one hundred twenty-three nine hundred ninety-nine",
    "1000 1005 1023 1100 1984 1905 2000 2005 2011": "one thousand ten oh five ten twenty-three eleven hundred"
    " nineteen eighty-four nineteen oh five two thousand two thousand five twenty eleven",
    "3001 12345 1,000,000 1000001": "three thousand one twelve thousand, three hundred forty-five one million"
    " one million one",
    "747 007 3.14 12a": "seven four seven zero zero seven three point fourteen twelve a",
    "1st 2nd 3rd 12th 20th 101st 1234th 129127th": "first second third twelfth twentieth one hundred and first"
    " one thousand, two hundred and thirty-fourth one hundred and twenty-nine thousand, one hundred and twenty-seventh",
    "$1 $5.50 $0.01 $0": "one dollar five dollars, fifty cents one cent zero dollars",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    assert text_cleaner("english_cleaners")(text) == NUMBERS[text]


def test_pounds():
    assert text_cleaner("normalize_numbers")("£3,000") == "three thousand pounds"


def test_names():
    text = "  Mr. and MRS. Co. at the St.\t[NOISE] Hello <UNK> [x]Abc"
    assert text_cleaner("basic_cleaners")(text) == "mr. and mrs. co. at the st. [noise] hello <unk> [x]abc"
    assert text_cleaner("english_cleaners")(text) == "mister and misses company at the saint [noise] hello <unk> [x]abc"
    kept = "mister and misses company at the saint [NOISE] hello <UNK> [x]Abc"
    assert text_cleaner("english_cleaners_keep_special")(text) == kept
    assert text_cleaner("lowercase_keep_special")("A [B] <C> d\nE") == "a [B] <C> d\ne"
    assert all(isinstance(cleaner(text), str) for cleaner in CLEANERS.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("get_remove_chars(',/')", "A B - C"),
        ("lowercase,get_replace('-', '+')", "a,/b + c "),
        (["english_cleaners", "get_remove_chars(['-', '/'])"], "a, b c"),
        (str.upper, "A,/B - C "),
        (None, "A,/b - C "),
        ([], "A,/b - C "),
    ],
)
def test_ways_to_say_it(options, expected):
    assert text_cleaner(options)("A,/b - C ") == expected.replace("A B", "A b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("english_cleaner", "no cleaner of texts 'english_cleaner', did you mean 'english_cleaners'"),
        ("get_remove_chars", "expected a name"),
        ("get_replace(open('x'), '')", "malformed node"),
        ("__import__('os').system('true')", "expected a name"),
        ("get_replace('a')", "missing 1 required positional argument"),
        ("a b", "invalid syntax"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        text_cleaner(options)


def test_texts_with_accents(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "unidecode", None)
    assert text_cleaner("transliteration_cleaners")("Plain  Text") == "plain text"
    with pytest.raises(MissingExtra, match=r"for 'naïve', .* needs the extra text: pip install"):
        text_cleaner("transliteration_cleaners")("naïve")


def test_in_a_data_set(tmp_path):
    (tmp_path / "text.txt").write_text("Dr. No 7\n")
    vocab = CharacterVocabulary(labels=[*" abcdefghijklmnopqrstuvwxyz"])
    data = LmDataset(tmp_path / "text.txt", vocab, orth_post_process="english_cleaners")
    assert vocab.decode(data.read([0]).streams["data"][0]) == "doctor no seven"
