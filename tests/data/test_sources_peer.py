# ruff: noqa: E501  (options as RETURNN writes them)
"""The same options given to the installed RETURNN: the same sequences, in the same order, with the same numbers.

Run with RETURNN_PYTHON=<interpreter of an environment with RETURNN> and `-m peer`.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.data.audio import AudioZipDataset
from returnn_hydra.data.bpe import BytePairEncoding, SamplingBytePairEncoding
from returnn_hydra.data.combine import CombinedDataset
from returnn_hydra.data.concat import ConcatSeqsDataset
from returnn_hydra.data.distribute import DistributeFilesDataset
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.filter import RandomSubset
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.meta import MetaDataset
from returnn_hydra.data.ordered import OrderedDataset
from returnn_hydra.data.orth_vocab import OrthVocabulary
from returnn_hydra.data.text import LmDataset, TextDictDataset, TranslationDataset
from returnn_hydra.data.variable import MultiEpochDataset
from returnn_hydra.data.vocab import CharacterVocabulary, Utf8Bytes, Vocabulary

pytestmark = pytest.mark.peer
DATA = Path(__file__).parent / "golden" / "data"
EPOCHS = 4

SCRIPT = """if True:
    import sys, numpy
    from returnn.config import Config, set_global_config
    from returnn.datasets.basic import init_dataset
    from returnn.log import log
    set_global_config(Config({}))
    log.initialize(verbosity=[0])
    def sub_epoch(files):
        return {"class": "HDFDataset", "files": files, "seq_ordering": "default"}
    if __name__ == "__main__":
        dataset = init_dataset(eval(sys.argv[1]))
        out = {}
        for epoch in range(1, int(sys.argv[3]) + 1):
            dataset.init_seq_order(epoch=epoch)
            keys, tags, i = dataset.get_data_keys(), [], 0
            while dataset.is_less_than_num_seqs(i):
                dataset.load_seqs(i, i + 1)
                tags.append(dataset.get_tag(i))
                for key in keys:
                    out["%i/%i/%s" % (epoch, i, key)] = dataset.get_data(i, key)
                i += 1
            out["%i/tags" % epoch] = numpy.array(tags, dtype=str)
        out = {k: v.astype(str) if v.dtype.kind in "OU" else v for k, v in out.items()}
        numpy.savez(sys.argv[2], **out)
        dataset.finish_epoch(free_resources=True)
"""


def returnn(tmp_path, options):
    """{epoch: (tags, {stream: arrays})} of RETURNN."""
    python = os.environ.get("RETURNN_PYTHON")
    if not python:
        pytest.skip("set RETURNN_PYTHON to a Python that has the `returnn` package")
    (tmp_path / "peer.py").write_text(SCRIPT)
    command = [python, str(tmp_path / "peer.py"), options, str(tmp_path / "out.npz"), str(EPOCHS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=DATA, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = {}
    with np.load(tmp_path / "out.npz") as out:
        for epoch in range(1, EPOCHS + 1):
            tags = out[f"{epoch}/tags"].tolist()
            names = {key.split("/")[2] for key in out.files if key.startswith(f"{epoch}/") and key.count("/") == 2}
            found[epoch] = tags, {name: [out[f"{epoch}/{i}/{name}"] for i in range(len(tags))] for name in names}
    return found


def hdf(*names):
    return HDFDataset([DATA / f"{name}.hdf" for name in names])


def peer_hdf(*names, **options):
    return repr({"class": "HDFDataset", "files": [f"{name}.hdf" for name in names], **options})


FEATURES = {"features": "mfcc", "num_feature_filters": 13, "norm_mean": "per_seq", "join_frames": 2}
BPE = {"class": "BytePairEncoding", "bpe_file": "bpe.codes", "vocab_file": "bpe.vocab", "unknown_label": None}
WORDS = "'orth_symbols_map_file': 'vocab.txt', 'word_based': True, 'seq_end_symbol': '</s>', 'unknown_symbol': '<unk>'"
META = "'data_map': {'data': ('f', 'data'), 'classes': ('a', 'data')}, 'seq_order_control_dataset': 'f'"
COMBINED = f"'class': 'CombinedDataset', 'datasets': {{'x': {peer_hdf('feat2')}, 'y': {peer_hdf('part1')}}}, "
COMBINED += "'data_map': {('x', 'data'): 'data', ('y', 'data'): 'other'}"


def ordered(dataset, seq_ordering="default", **options):
    return OrderedDataset(dataset, seq_ordering=seq_ordering, random_argument="epochs", **options)


def meta():
    return MetaDataset({"f": hdf("feat"), "a": hdf("align")}, {"data": ["f", "data"], "classes": ["a", "data"]}, "f")


def combined(**options):
    sets = {"x": hdf("feat2"), "y": hdf("part1")}
    return CombinedDataset(sets, {"x": {"data": "data"}, "y": {"data": "other"}}, **options)


def words(**options):
    names = {
        "word_based": True,
        "seq_end_symbol": "</s>",
        "unknown_symbol": "<unk>",
        "auto_replace_unknown_symbol": True,
    }
    return OrthVocabulary(DATA / "vocab.txt", **(names | options))


def ogg(**options):
    return AudioZipDataset(DATA / "ogg.zip", **options)


CASES = {
    "meta, laplace in parts": (
        f"{{'class': 'MetaDataset', 'datasets': {{'f': {peer_hdf('feat', seq_ordering='laplace:.4', partition_epoch=2)}, "
        f"'a': {peer_hdf('align')}}}, {META}}}",
        lambda: ordered(meta(), "laplace:.4", partition_epoch=2),
    ),
    "meta, list of tags": (
        f"{{'class': 'MetaDataset', 'seq_list_file': 'tags_subset.txt', 'seq_ordering': 'random', 'datasets': "
        f"{{'f': {peer_hdf('feat')}, 'a': {peer_hdf('align')}}}, 'data_map': {{'data': ('f', 'data'), 'classes': ('a', 'data')}}}}",
        lambda: ordered(
            MetaDataset(
                {"f": hdf("feat"), "a": hdf("align")},
                {"data": ["f", "data"], "classes": ["a", "data"]},
                seq_list_file=DATA / "tags_subset.txt",
            ),
            "random",
        ),
    ),
    "combined, random data set": (
        f"{{{COMBINED}, 'seq_ordering': 'random_dataset'}}",
        lambda: combined(mixing="random_dataset"),
    ),
    "combined, interleaved by chance": (
        f"{{{COMBINED}, 'seq_ordering': 'interleave', 'interleave_gumbel_scale': 1.0}}",
        lambda: combined(mixing="interleave", interleave_gumbel_scale=1.0),
    ),
    "combined, less and less chance": (
        f"{{{COMBINED}, 'seq_ordering': 'interleave', 'interleave_gumbel_scale': 'remaining'}}",
        lambda: combined(mixing="interleave", interleave_gumbel_scale="remaining"),
    ),
    "combined, laplace in parts": (
        f"{{{COMBINED}, 'seq_ordering': 'laplace:3', 'partition_epoch': 2}}",
        lambda: ordered(combined(), "laplace:3", partition_epoch=2),
    ),
    "concat seqs": (
        f"{{'class': 'ConcatSeqsDataset', 'dataset': {peer_hdf('feat', cache_byte_size=0)}, 'seq_list_file': 'concat_list.txt', "
        "'seq_len_file': 'seq_lens.txt', 'seq_ordering': 'sorted', 'repeat_in_between_last_frame_up_to_multiple_of': {'data': 4}}",
        lambda: ordered(
            ConcatSeqsDataset(
                hdf("feat"),
                DATA / "concat_list.txt",
                DATA / "seq_lens.txt",
                repeat_in_between_last_frame_up_to_multiple_of={"data": 4},
            ),
            "sorted",
        ),
    ),
    "files by chance": (
        "{'class': 'DistributeFilesDataset', 'files': ['part%i.hdf' % i for i in range(4)], 'get_sub_epoch_dataset': sub_epoch, "
        "'partition_epoch': 2, 'seq_ordering': 'random'}",
        lambda: DistributeFilesDataset(
            [DATA / f"part{i}.hdf" for i in range(4)], lambda f: HDFDataset(f), partition_epoch=2
        ),
    ),
    "several epochs as one": (
        f"{{'class': 'MultiEpochDataset', 'multi_epoch': 2, 'dataset': "
        f"{peer_hdf('feat', seq_ordering='random', partition_epoch=2, cache_byte_size=0)}}}",
        lambda: MultiEpochDataset(ordered(hdf("feat"), "random", partition_epoch=2), 2),
    ),
    "ogg zip, mfcc": (
        repr(
            {
                "class": "OggZipDataset",
                "path": "ogg.zip",
                "audio": FEATURES,
                "targets": BPE,
                "seq_ordering": "laplace:.2",
            }
        ),
        lambda: ordered(
            ogg(audio=AudioFeatures(**FEATURES), targets=BytePairEncoding(DATA / "bpe.vocab", DATA / "bpe.codes")),
            "laplace:.2",
        ),
    ),
    "ogg zip, raw": (
        repr(
            {
                "class": "OggZipDataset",
                "path": "ogg.zip",
                "audio": {"features": "raw", "preemphasis": 0.97},
                "targets": {"class": "CharacterTargets", "vocab_file": "chars.txt", "unknown_label": "<unk>"},
                "seq_ordering": "sorted_reverse",
                "fixed_random_subset": 3,
            }
        ),
        lambda: ordered(
            RandomSubset(
                ogg(
                    audio=AudioFeatures("raw", preemphasis=0.97),
                    targets=CharacterVocabulary(DATA / "chars.txt", unknown_label="<unk>"),
                ),
                3,
            ),
            "sorted_reverse",
        ),
    ),
    "lm, words": (
        f"{{'class': 'LmDataset', 'corpus_file': ['lm.txt', 'lm.txt.gz'], {WORDS}, 'auto_replace_unknown_symbol': True, "
        "'add_delayed_seq_data': True, 'delayed_seq_data_start_symbol': '<s>', 'seq_ordering': 'laplace:2'}",
        lambda: ordered(
            LmDataset(
                [DATA / "lm.txt", DATA / "lm.txt.gz"],
                words(),
                add_delayed_seq_data=True,
                delayed_seq_data_start_symbol="<s>",
                dtype="smallest",
            ),
            "laplace:2",
        ),
    ),
    "lm, characters": (
        "{'class': 'LmDataset', 'corpus_file': 'lm.txt', 'orth_symbols_map_file': 'chars.txt', 'seq_end_symbol': '</s>', "
        "'word_end_symbol': \"'\", 'skip_empty_lines': False, 'seq_ordering': 'sorted'}",
        lambda: ordered(
            LmDataset(
                DATA / "lm.txt",
                OrthVocabulary(DATA / "chars.txt", seq_end_symbol="</s>", word_end_symbol="'"),
                skip_empty_lines=False,
                dtype="smallest",
            ),
            "sorted",
        ),
    ),
    "lm, bytes": (
        "{'class': 'LmDataset', 'corpus_file': 'lm.txt.gz', 'orth_vocab': {'class': 'Utf8ByteTargets'}, 'seq_end_symbol': None, "
        "'seq_ordering': 'random', 'partition_epoch': 2}",
        lambda: ordered(LmDataset(DATA / "lm.txt.gz", Utf8Bytes(), dtype="smallest"), "random", partition_epoch=2),
    ),
    "translation": (
        "{'class': 'TranslationDataset', 'path': '.', 'file_postfix': 'tr', 'target_postfix': ' </S>', 'unknown_label': '<UNK>', "
        "'seq_ordering': 'sorted'}",
        lambda: ordered(
            TranslationDataset(
                DATA / "source.tr.gz",
                Vocabulary(DATA / "source.vocab.pkl", unknown_label="<UNK>"),
                DATA / "target.tr.gz",
                Vocabulary(DATA / "target.vocab.pkl", unknown_label="<UNK>"),
                target_postfix=" </S>",
            ),
            "sorted",
        ),
    ),
    "text dict": (
        "{'class': 'TextDictDataset', 'filename': 'text_dict.py.txt', 'item_format': 'single', 'vocab': "
        "{'class': 'Utf8ByteTargets'}, 'seq_ordering': 'sorted'}",
        lambda: ordered(TextDictDataset(DATA / "text_dict.py.txt", Utf8Bytes(), "single"), "sorted"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_sequences(tmp_path, name):
    options, make = CASES[name]
    expected = returnn(tmp_path, options)
    for epoch, (tags, streams) in expected.items():
        dataset = make().at_epoch(epoch)
        examples = dataset.read(range(len(dataset)))
        assert examples.seq_tags == tags, epoch
        assert set(streams) == set(examples.streams)
        for stream, arrays in streams.items():
            for found, array in zip(examples.streams[stream], arrays, strict=True):
                if array.dtype.kind == "U":
                    assert str(found) == str(array)
                    continue
                assert (found.dtype, found.shape) == (array.dtype, array.shape)
                np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-5)


def test_same_draws_of_sampling_bpe(tmp_path):
    python = os.environ.get("RETURNN_PYTHON")
    if not python:
        pytest.skip("set RETURNN_PYTHON to a Python that has the `returnn` package")
    code = """if True:
        from returnn.datasets.util.vocabulary import Vocabulary
        vocab = Vocabulary.create_vocab(
            **{"class": "SamplingBytePairEncoding", "vocab_file": "bpe.vocab", "breadth_prob": 0.4, "unknown_label": None})
        vocab.set_random_seed(5)
        print([[int(i) for i in vocab.get_seq("hello world again and the cat")] for _ in range(20)])
    """
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=200, cwd=DATA, check=True)
    rng = np.random.RandomState(5)
    vocab = SamplingBytePairEncoding(DATA / "bpe.vocab", breadth_prob=0.4)
    found = [vocab.encode("hello world again and the cat", rng) for _ in range(20)]
    assert repr(found) == result.stdout.strip().splitlines()[-1]
