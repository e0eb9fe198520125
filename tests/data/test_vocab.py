"""Vocabularies: golden values of RETURNN, round trips, files that are broken."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.data.bpe import BytePairEncoding, SamplingBytePairEncoding
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import parse_literal
from returnn_hydra.data.subword_models import HuggingFaceTokenizer, SentencePieceVocabulary
from returnn_hydra.data.vocab import CharacterVocabulary, Utf8Bytes, Vocabulary

GOLDEN = Path(__file__).parent / "golden"
DATA = GOLDEN / "data"
CASES = json.loads((GOLDEN / "datasets.json").read_text())["vocab"]
SIZES = {"unigram": 30, "bpe": 26}
CLASSES = {
    "Vocabulary": Vocabulary,
    "CharacterTargets": CharacterVocabulary,
    "Utf8ByteTargets": Utf8Bytes,
    "BytePairEncoding": BytePairEncoding,
    "SamplingBytePairEncoding": SamplingBytePairEncoding,
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["cls"] + str(len(case["opts"])))
def test_golden(case):
    options = {k: v for k, v in case["opts"].items() if k != "class"}
    options |= {k: DATA / options[k] for k in ("vocab_file", "bpe_file") if k in options}
    vocab = CLASSES[case["cls"]](**options)
    assert vocab.num_labels == case["num_labels"]
    assert vocab.labels[:8] == case["labels_head"]
    assert (vocab.unknown_id, vocab.bos_id, vocab.eos_id) == (case["unk"], case["bos"], case["eos"])
    for text, *expected in case["get_seq"]:
        if expected == ["KeyError"]:
            with pytest.raises(DataError, match="no unknown_label"):
                vocab.encode(text)
        else:
            assert [vocab.encode(text), vocab.label_string(vocab.encode(text))] == expected


@given(st.text())
def test_bytes_and_characters_come_back(text):
    text = text.encode("utf-8", errors="ignore").decode("utf-8")
    assert Utf8Bytes().decode(Utf8Bytes().encode(text)) == text
    if text:
        characters = CharacterVocabulary(labels=sorted(set(text)))
        assert characters.decode(characters.encode(text)) == text


WORDS = st.lists(st.text("abcdehlorwtn", min_size=1, max_size=12), max_size=6)


@given(WORDS)
def test_subword_units_come_back(words):
    text = " ".join(words)
    for vocab in (_bpe(), _sampling_bpe(0.0)):
        assert vocab.decode(vocab.encode(text)) == text
    assert (_sampling_bpe(0.5)).decode(_sampling_bpe(0.5).encode(text, np.random.default_rng(1))) == text


def _bpe(**options):
    return BytePairEncoding(DATA / "bpe.vocab", DATA / "bpe.codes", **options)


def _sampling_bpe(prob, **options):
    return SamplingBytePairEncoding(DATA / "bpe.vocab", breadth_prob=prob, **options)


def test_bpe_against_merging_by_hand(tmp_path):
    """Version 0.1 has the word end as a unit of its own, 0.2 has it at the last letter."""
    (tmp_path / "labels.txt").write_text("\n".join(["a", "b", "c", "a@@", "b@@", "c@@", "ab@@", "ab", "bc"]))
    (tmp_path / "v2").write_text("#version: 0.2\na b\nb c</w>\na b</w>\n")
    vocab = BytePairEncoding(tmp_path / "labels.txt", tmp_path / "v2")
    assert vocab.label_string(vocab.encode("abc abab cab bc")) == "ab@@ c ab@@ ab c@@ ab bc"
    (tmp_path / "v1").write_text("a b\nab </w>\n")
    vocab = BytePairEncoding(tmp_path / "labels.txt", tmp_path / "v1")
    assert vocab.label_string(vocab.encode("abc ab")) == "ab@@ c ab"


def test_units_outside_the_vocabulary_are_split_again(tmp_path):
    (tmp_path / "labels.txt").write_text("a@@\nb@@\nc\nab@@\nbc\n")
    (tmp_path / "codes").write_text("#version: 0.2\na b\nab c</w>\n")
    vocab = BytePairEncoding(tmp_path / "labels.txt", tmp_path / "codes")
    assert vocab.label_string(vocab.encode("abc")) == "ab@@ c"


def test_sampling_is_a_function_of_the_generator():
    text = "hello world again and again the cat"
    draws = [_sampling_bpe(0.7).encode(text, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1
    with pytest.raises(DataError, match="random generator"):
        _sampling_bpe(0.7).encode(text)


def test_sampling_bpe_with_word_prefix(tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(["<unk>", "▁a", "▁ab", "b", "c", "bc", "▁"]))
    vocab = SamplingBytePairEncoding(tmp_path / "labels.txt", word_prefix_symbol="▁", unknown_label="<unk>")
    assert vocab.label_string(vocab.encode("abc abb x")) == "▁ab c ▁ab b <unk>"
    assert vocab.decode(vocab.encode("abc abb")) == "abc abb"


def test_a_word_without_segmentation_ends_soon(tmp_path):
    """Two ways for every letter, and no way to end: without a memory of dead ends this takes 2^60 steps."""
    (tmp_path / "labels.txt").write_text("a@@\naa@@\nb\n")
    vocab = SamplingBytePairEncoding(tmp_path / "labels.txt")
    with pytest.raises(DataError, match="can't be made"):
        vocab.encode("a" * 60 + "c")


def test_file_formats(tmp_path):
    expected = {"a": 0, "b": 1}
    for name, content in {
        "lines.txt": b"a\nb\n",
        "no_end.txt": b"a\nb",
        "windows.txt": b"a\r\nb\r\n",
        "dict.py": b"{'a': 0, 'b': 1}",
        "dict.json": b'{"a": 0, "b": 1}',
        "dict.pkl": pickle.dumps(expected),
        "packed.txt.gz": gzip.compress(b"a\nb\n"),
        "packed.pkl.gz": gzip.compress(pickle.dumps(expected)),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert Vocabulary(tmp_path / name)._ids == expected, name


class _Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_bad_files(tmp_path, capsys):
    for name, content, message in [
        ("twice.txt", b"a\nb\na\n", "'a' is there twice, as id 0 and 2"),
        ("gap.json", b'{"a": 0, "b": 2}', r"missing \[1\]"),
        ("text.json", b'{"a": "b"}', "'a': 'b'"),
        ("code.py", b"{'a': print('this must not run')}", "line 1"),
        ("evil.pkl", pickle.dumps({"a": _Evil()}), "builtins.print"),
        ("cut.pkl", pickle.dumps({"a": 0})[:-3], "cut.pkl"),
        ("latin.txt", "a\nä".encode("latin-1"), "line 2 is not UTF-8"),
        ("empty.txt", b"", "no labels"),
        ("cut.txt.gz", gzip.compress(b"a" * 99)[:-9], "can't be unpacked"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            Vocabulary(tmp_path / name)
    with pytest.raises(DataError, match=r"did you mean 'twice.txt'"):
        Vocabulary(tmp_path / "twic.txt")
    assert capsys.readouterr().out == ""


def test_roles_and_postfix():
    vocab = Vocabulary(labels=["<s>", "</s>", "a"], bos_label="<s>", eos_label=1, seq_postfix=["</s>"])
    assert (vocab.bos_id, vocab.eos_id, vocab.pad_id, vocab.encode("a a")) == (0, 1, None, [2, 2, 1])
    with pytest.raises(DataError, match=r"bos_label='<S>'.*did you mean '<s>'"):
        Vocabulary(labels=["<s>", "a"], bos_label="<S>")
    with pytest.raises(DataError, match=r"no label has id 3; ids are 0 .. 2"):
        vocab.decode([3])


def test_labels_with_spaces():
    vocab = Vocabulary(labels=["a", " ", "a b"], single_whitespace_split=True)
    for ids in ([0, 1, 2], [1, 1, 0], [2, 0]):
        assert vocab.encode(vocab.label_string(ids)) == ids


@pytest.mark.parametrize("make", [_bpe, lambda: _sampling_bpe(0.3), lambda: Vocabulary(DATA / "vocab.txt")])
def test_pickles(make):
    vocab = make()
    copy = pickle.loads(pickle.dumps(vocab))
    rngs = np.random.default_rng(3), np.random.default_rng(3)
    assert copy.encode("hello the cat", rngs[0]) == vocab.encode("hello the cat", rngs[1])


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sp")
    rng = np.random.default_rng(0)
    words = [
        "hello",
        "world",
        "the",
        "cat",
        "sat",
        "again",
        "dog",
        "they",
        "hell",
        "hello",
        "theory",
        "worldly",
        "ago",
        "orld",
        "ello",
        "gain",
    ]
    (folder / "c.txt").write_text("\n".join(" ".join(rng.choice(words, 8)) for _ in range(200)))
    for kind in SIZES:
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "c.txt"),
            model_prefix=str(folder / kind),
            vocab_size=SIZES[kind],
            model_type=kind,
            minloglevel=2,
        )
    return folder


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece(sentencepiece_model, kind):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = sentencepiece_model / f"{kind}.model"
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = pickle.loads(pickle.dumps(SentencePieceVocabulary(path, add_eos=True)))
    text = "hello the cats"
    assert vocab.encode(text) == library.encode(text) + [library.eos_id()]
    assert (vocab.num_labels, vocab.unknown_id, vocab.eos_id, vocab.pad_id) == (SIZES[kind], 0, 2, None)
    assert vocab.decode(vocab.encode("hello the cat")) == "hello the cat"
    sampling = SentencePieceVocabulary(path, enable_sampling=True, alpha={"unigram": 0.01, "bpe": 0.4}[kind])
    draws = [
        tuple(sampling.encode("hello world again the theory", np.random.default_rng(seed)))
        for seed in [*range(8), *range(8)]
    ]
    assert draws[:8] == draws[8:]
    assert len(set(draws)) > 1
    with pytest.raises(DataError, match="no label has id 99"):
        vocab.decode([99])


def test_sentencepiece_bad_file(tmp_path):
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        SentencePieceVocabulary(tmp_path / "x.model")


def test_huggingface_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.add_special_tokens(["<s>", "</s>", "[UNK]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "[UNK]", "pad_token": None})
    )
    vocab = pickle.loads(pickle.dumps(HuggingFaceTokenizer(tmp_path)))
    assert vocab.encode("a b c") == [3, 4, 0, 2]
    assert vocab.decode([3, 4, 2]) == "a b"
    assert (vocab.bos_id, vocab.eos_id, vocab.unknown_id, vocab.pad_id, vocab.num_labels) == (1, 2, 0, None, 5)
    assert HuggingFaceTokenizer(tmp_path, map_bos_to_eos=True, add_special_tokens=False).bos_id == 2
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer.json"):
        HuggingFaceTokenizer(tmp_path / "bad.json")


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.text("'\"\\\n,]}#"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab'\"\\,] "), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(LITERALS)
def test_literals_come_back(value):
    """Whatever Python prints, with its types, also when it nearly is JSON."""
    assert parse_literal(repr(value), "test") == value
    assert type(parse_literal(repr(value), "test")) is type(value)
    assert parse_literal(f"[\n{value!r},\n]", "test") == [value]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{'a': 1,}", {"a": 1}),
        ("['it\\'s', \"it's\", 'a\"b']", ["it's", "it's", 'a"b']),
        ("['a' 'b', '''c''', r'\\n']", ["ab", "c", "\\n"]),
        ("[1, # 'comment\n 2]", [1, 2]),
        ("{'a': nan}", None),
        ("[np.float32(0.5), -inf, (1,), {2}]", [0.5, -float("inf"), (1,), {2}]),
        ("['a,]', ',}']", ["a,]", ",}"]),
    ],
)
def test_literals_that_are_written_otherwise(text, expected):
    found = parse_literal(text, "test")
    assert found == expected or (expected is None and np.isnan(found["a"]))


@pytest.mark.parametrize(
    "text", ["[1, 2", "__import__('os')", "[x for x in (1,)]", "{**{}}", "1 + 1", "", "f'{1}'", "a.b"]
)
def test_what_is_no_literal(text):
    with pytest.raises(DataError, match="test"):
        parse_literal(text, "test")
