"""Lines of text, pairs of lines, texts by tag: golden values of RETURNN, and files of all kinds."""

import ast
import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.data import lines as lines_module
from returnn_hydra.data.bpe import SamplingBytePairEncoding
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.lines import LineCorpus
from returnn_hydra.data.orth_vocab import OrthVocabulary
from returnn_hydra.data.text import LmDataset, TextDictDataset, TranslationDataset
from returnn_hydra.data.vocab import CharacterVocabulary, Utf8Bytes, Vocabulary

GOLDEN = Path(__file__).parent / "golden"
DATA = GOLDEN / "data"
CASES = [c for c in json.loads((GOLDEN / "datasets.json").read_text())["cases"] if "'LmDataset'" in c["opts_py"]]
TEXT = (DATA / "lm.txt").read_text().split("\n")


def lm_dataset(options):
    """Our data set for RETURNN's options."""
    files = options["corpus_file"]
    files = [DATA / name for name in ([files] if isinstance(files, str) else files)]
    if "orth_vocab" in options:
        kind = options["orth_vocab"].pop("class")
        given = options["orth_vocab"] | {k: DATA / v for k, v in options["orth_vocab"].items() if k == "vocab_file"}
        vocab = {"CharacterTargets": CharacterVocabulary, "Utf8ByteTargets": Utf8Bytes}[kind](**given)
    else:
        names = ("word_based", "seq_end_symbol", "unknown_symbol", "auto_replace_unknown_symbol")
        vocab = OrthVocabulary(
            DATA / options["orth_symbols_map_file"], **{k: options[k] for k in names if k in options}
        )
    return LmDataset(files, vocab, skip_empty_lines=options.get("skip_empty_lines", True), dtype="smallest")


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_golden(case):
    dataset = lm_dataset(ast.literal_eval(case["opts_py"]))
    assert len(dataset) == case["total_num_seqs"]
    assert dataset.seq_tags(range(len(dataset))) == case["all_tags"]
    assert dataset.streams["data"].dtype == case["dtype"]["data"]
    assert dataset.streams["data"].dim == case["num_outputs"]["data"][0]
    assert dataset.streams["data"].vocab.labels[:12] == case["labels"]["data"]
    if "error" in case:
        with pytest.raises(DataError, match=r"lm.txt, line 3: .*no label 'unknownword'"):
            dataset.seq_lengths("data")
        return
    for fresh in (True, False):  # encoded one by one, and out of what was encoded for the lengths
        arrays = dataset.read(range(len(dataset))).streams["data"]
        for array, expected in zip(arrays, case["epochs"]["1"], strict=True):
            assert array.tolist() == expected["data"]["values"], fresh
        assert dataset.seq_lengths("data").tolist() == [len(array) for array in arrays]


def test_delayed_stream():
    vocab = OrthVocabulary(
        DATA / "vocab.txt",
        word_based=True,
        seq_end_symbol="</s>",
        unknown_symbol="<unk>",
        auto_replace_unknown_symbol=True,
    )
    dataset = LmDataset(DATA / "lm.txt", vocab, add_delayed_seq_data=True, delayed_seq_data_start_symbol="<s>")
    examples = dataset.read([0])
    assert examples.streams["data"][0].tolist() == [9, 15, 0]
    assert examples.streams["delayed"][0].tolist() == [0, 9, 15]
    with pytest.raises(DataError, match=r"no label '\[START\]'"):
        LmDataset(DATA / "lm.txt", vocab, add_delayed_seq_data=True)


def read_all(path, skip):
    corpus = LineCorpus([path], skip)
    return [corpus[i] for i in range(len(corpus))]


ALPHABET = st.text(st.sampled_from("ab \t\r\näß\u2028"), max_size=60)


@settings(max_examples=60)
@given(ALPHABET, st.booleans(), st.sampled_from([3, 7, 1 << 24]))
def test_lines_against_splitting(tmp_path_factory, text, skip, block):
    """Any text, plain and packed, in blocks of any size."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "a.txt").write_bytes(text.encode())
    (folder / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    expected = text.split("\n")
    if expected[-1] == "":
        expected.pop()
    expected = [line.strip() for line in expected if not skip or line.strip(" \t\r\n")]
    before, lines_module.BLOCK = lines_module.BLOCK, block
    try:
        assert read_all(folder / "a.txt", skip) == expected
        assert read_all(folder / "a.txt.gz", skip) == expected
    finally:
        lines_module.BLOCK = before


def test_last_line_without_end_counts(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert read_all(tmp_path / "a.txt", True) == ["one", "two"]


def test_bliss_corpus(tmp_path):
    (tmp_path / "c.xml").write_text(
        '<?xml version="1.0"?><corpus name="c"><recording name="r"><segment name="1"><orth> the\n cat </orth></segment>'
        '<segment name="2"><orth>dog</orth></segment></recording></corpus>'
    )
    assert read_all(tmp_path / "c.xml", True) == ["the cat", "dog"]
    (tmp_path / "bad.xml").write_text('<?xml version="1.0"?><corpus><segment name="1"></segment>')
    with pytest.raises(DataError, match=r"bad\.xml"):
        read_all(tmp_path / "bad.xml", True)


def test_lm_options(tmp_path):
    (tmp_path / "a.txt").write_text("the cat\nqqq\nthe dog\n")
    (tmp_path / "tags").write_text("x\ny\nz\n")
    vocab = Vocabulary(DATA / "vocab.txt")
    skipping = LmDataset(tmp_path / "a.txt", vocab, skip_invalid_seqs=True)
    assert skipping.seq_tags(range(len(skipping))) == ["line-0", "line-2"]
    assert skipping.seq_lengths("data").tolist() == [2, 2]
    assert skipping.order_lengths().tolist() == [7, 7]
    assert LmDataset(tmp_path / "a.txt", vocab, seq_list_file=tmp_path / "tags").seq_tags([2]) == ["z"]
    assert LmDataset(tmp_path / "a.txt", vocab, tag_prefix="t-").seq_tags([2]) == ["t-2"]
    upper = LmDataset(tmp_path / "a.txt", Utf8Bytes(), orth_post_process=str.upper)
    assert bytes(upper.read([0]).streams["data"][0].astype("uint8")) == b"THE CAT"
    (tmp_path / "tags").write_text("x\ny\n")
    with pytest.raises(DataError, match="2 tags for 3 lines"):
        LmDataset(tmp_path / "a.txt", vocab, seq_list_file=tmp_path / "tags").seq_tags([0])
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe4\n")
    with pytest.raises(DataError, match=r"latin.txt, line 1.*not UTF-8"):
        LmDataset(tmp_path / "latin.txt", Utf8Bytes()).read([1])
    with pytest.raises(DataError, match=r"no such file, did you mean .a\.txt."):
        len(LmDataset(tmp_path / "b.txt", vocab))


def test_sampling_depends_on_epoch_and_line_alone():
    dataset = LmDataset(DATA / "lm.txt", SamplingBytePairEncoding(DATA / "bpe.vocab", breadth_prob=0.7))
    assert dataset.seq_lengths("data") is None
    third = dataset.at_epoch(3).read([1, 0])
    again = pickle.loads(pickle.dumps(dataset)).at_epoch(3).read([0])
    assert third.streams["data"][1].tolist() == again.streams["data"][0].tolist()
    assert third.streams["data"][1].tolist() != dataset.at_epoch(4).read([0]).streams["data"][0].tolist()


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"word_based": True}, "hello  [noise x] (there)", ["hello", "[NOISE X]", "there", "[END]"]),
        ({}, "ab [hes] c", ["a", "b", " ", "[HES]", " ", "c", "[END]"]),
        ({"word_end_symbol": "|", "seq_end_symbol": None}, "ab c", ["a", "b", "|", "c", "|"]),
        ({"word_end_symbol": "|"}, "ab c", ["a", "b", "|", "c", "|", "[END]"]),
        ({"upper_case_special": False, "word_based": True}, "[x] y", ["[x]", "y", "[END]"]),
        ({"square_brackets_for_specials": False, "word_based": True}, "[x] y", ["[x]", "y", "[END]"]),
        ({"prefix": ["a"], "postfix": [], "word_based": True}, "b", ["a", "b"]),
        ({"word_based": True}, "[a [b] c]x", ["[A [B] C]x", "[END]"]),
    ],
)
def test_orthography(options, text, expected):
    assert OrthVocabulary(labels=["a"], **options).split(text) == expected


def test_orthography_replacements(tmp_path):
    (tmp_path / "map.json").write_text('{"x": "ab", "y": ""}')
    vocab = OrthVocabulary(labels=["a", "b", "?"], orth_replace_map_file=tmp_path / "map.json", seq_end_symbol=None)
    assert vocab.split("xyb") == ["a", "b", "b"]
    unknown = {"auto_replace_unknown_symbol": True, "seq_end_symbol": None}
    assert OrthVocabulary(labels=["a", "?"], unknown_symbol="?", **unknown).encode("aqa") == [0, 1, 0]
    assert OrthVocabulary(labels=["a"], unknown_symbol=None, **unknown).encode("aqa") == [0, 0]
    with pytest.raises(DataError, match="unknown_symbol"):
        OrthVocabulary(labels=["a"], **unknown)
    (tmp_path / "ids.txt").write_text("a 1\nb 0\n[END] 2\n")
    assert OrthVocabulary(tmp_path / "ids.txt").encode("ab") == [1, 0, 2]
    (tmp_path / "gap.txt").write_text("a 1\nb 5\n")
    with pytest.raises(DataError, match="without gaps"):
        OrthVocabulary(tmp_path / "gap.txt")


def translation(**options):
    vocabs = [Vocabulary(DATA / f"{side}.vocab.pkl", unknown_label="<UNK>") for side in ("source", "target")]
    files = [DATA / f"{side}.tr.gz" for side in ("source", "target")]
    return TranslationDataset(files[0], vocabs[0], files[1], vocabs[1], **options)


def test_translation(tmp_path):
    dataset = translation(target_postfix=" </S>")
    texts = [line for line in TEXT if line]
    assert dataset.seq_tags(range(len(dataset))) == [f"line-{i}" for i in range(len(texts))]
    ids = pickle.loads((DATA / "source.vocab.pkl").read_bytes())
    for fresh in (True, False):
        examples = dataset.read(range(len(texts)))
        for i, text in enumerate(texts):
            expected = [ids.get(word, 1) for word in text.split()]
            assert examples.streams["data"][i].tolist() == expected, fresh
            assert examples.streams["classes"][i].tolist() == [*expected, 0]
        assert dataset.seq_lengths("classes").tolist() == [len(text.split()) + 1 for text in texts]
    (tmp_path / "order").write_text("2\n0\n2\n")
    assert translation(seq_list_file=tmp_path / "order").seq_tags([0, 1, 2]) == ["line-2", "line-0", "line-2#2"]
    (tmp_path / "order").write_text("99\n")
    with pytest.raises(DataError, match="numbers from 0 to 5"):
        len(translation(seq_list_file=tmp_path / "order"))
    (tmp_path / "short").write_text("a\n")
    with pytest.raises(DataError, match="as many lines each"):
        len(TranslationDataset(DATA / "lm.txt", Utf8Bytes(), tmp_path / "short", Utf8Bytes()))
    assert set(TranslationDataset(DATA / "lm.txt", Utf8Bytes()).streams) == {"data"}


def test_text_dict(tmp_path):
    single = TextDictDataset(DATA / "text_dict.py.txt", Utf8Bytes(), "single")
    assert single.seq_tags([2]) == ["corpus/rec1/seg2"]
    assert bytes(single.read([2]).streams["data"][0].astype("uint8")) == b"a b c"
    with pytest.raises(DataError, match=r"seq_tag 'corpus/rec0/seg0': got 'hello world', expected \[\(score, text\)"):
        len(TextDictDataset(DATA / "text_dict.py.txt", Utf8Bytes()))
    (tmp_path / "search.py").write_text(
        "{'s1': [(-1.5, 'ab'), (np.float32(-0.5), 'c'), (-inf, '')],\n 's2': [(0.0, 'd')]}\n"
    )
    beams = TextDictDataset(tmp_path / "search.py", Utf8Bytes())
    examples = beams.read([0, 1])
    assert [a.tolist() for a in examples.streams["data"]] == [[99], [100]]
    assert examples.streams["data_flat"][0].tolist() == [97, 98, 99]
    assert examples.streams["data_seq_lens"][0].tolist() == [2, 1, 0]
    np.testing.assert_array_equal(examples.streams["scores"][0], np.array([-1.5, -0.5, -np.inf], "float32"))
    assert beams.seq_lengths("data_flat").tolist() == [3, 1]
    assert beams.order_lengths().tolist() == [3, 1]
    (tmp_path / "evil.py").write_text("{'s1': __import__('os').getcwd()}")
    with pytest.raises(DataError, match="is not a literal"):
        len(TextDictDataset(tmp_path / "evil.py", Utf8Bytes(), "single"))
