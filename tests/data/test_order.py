"""Orders against RETURNN's own, and what must hold for every one of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.data.order import FORMS, SeqOrder, bin_bounds, parse_ordering, stable_argsort

GOLDEN = json.loads((Path(__file__).parent / "golden" / "seq_order.json").read_text())
LENS = [5, 3, 9, 1, 7, 3, 8, 2, 6, 4]
RENAMED = {"_num_shards": "num_shards", "_shard_index": "shard_index"}
MODES = ["default", "reverse", "sorted", "sorted_reverse", "random", "random:7", "laplace", "laplace:3", "laplace:.4"]
MODES += ["sort_bin_shuffle", "sort_bin_shuffle:.3", "sort_bin_shuffle_x2:3", "bucket", "bucket:.5"]


def order(mode, epoch=1, lens=LENS, **options):
    return SeqOrder(mode, **options).indices(epoch, np.array(lens)).tolist()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['lens']} {case['kwargs']}")
def test_returnn(case):
    options = {RENAMED.get(name, name): value for name, value in case["kwargs"].items()}
    lens = np.array(GOLDEN["lens"][case["lens"]])
    for epoch, expected in case["orders"].items():
        if isinstance(expected, dict) and "error" in expected:
            with pytest.raises(ValueError, match="unknown mode"):
                SeqOrder(**options)
            continue
        found = SeqOrder(random_argument="epochs", **options).indices(int(epoch), lens)
        if isinstance(expected, list):
            assert found.tolist() == expected
        else:
            assert (len(found), found[:10].tolist()) == (expected["len"], expected["head"])
            hashes = [hashlib.sha1(found.astype(kind).tobytes()).hexdigest() for kind in (np.int32, np.int64)]
            assert expected["sha1"] in [*hashes, hashlib.sha1(str(found.tolist()).encode()).hexdigest()]


@pytest.mark.parametrize("case", [case for case in GOLDEN["extra_cases"] if "filter_tags" in case], ids=str)
def test_filter_like_returnn_up_to_the_split(case):
    """RETURNN filters behind the split into epochs, we before it: the whole pass is the same."""
    lens = np.array(GOLDEN["lens"][case["lens"]])
    keep = np.isin(np.arange(len(lens)), case["filter_tags"])
    parts = case["kwargs"]["partition_epoch"]
    seq_order = SeqOrder(**case["kwargs"])
    ours = [seq_order.indices(epoch, lens, keep) for epoch in range(1, parts + 1)]
    expected = [i for epoch in range(1, parts + 1) for i in case["orders"][str(epoch)]]
    assert np.concatenate(ours).tolist() == expected
    assert max(map(len, ours)) - min(map(len, ours)) <= 1


def test_lengths_of_another_file():
    case = next(case for case in GOLDEN["extra_cases"] if "seq_lens_file" in case)
    lens = np.array(list(case["seq_lens_file"].values()))
    for epoch, expected in case["orders"].items():
        assert SeqOrder(**case["kwargs"]).indices(int(epoch), lens).tolist() == expected


def test_vectors_of_the_spec():
    assert order("random") == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
    assert order("random", 3) == [5, 4, 1, 2, 9, 6, 7, 0, 3, 8]
    assert order("random", 1, fixed_random_seed=42) == [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]
    assert order("random", 1, random_seed_offset=41) == [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]
    assert order("laplace:.3", 2) == [1, 5, 4, 2, 0, 7, 3, 9, 8, 6]
    assert order("laplace:.5:2", 2) == order("laplace:2", 1)
    assert order("laplace:.5:2", 3) == order("laplace:2", 2)
    assert order("sort_bin_shuffle_x2:3", 1) == [2, 8, 4, 6, 7, 1, 3, 0, 5, 9]
    assert order("default_every_n:3") == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert order("random", 4, partition_epoch=3) == [4, 1, 5, 0]
    assert order("sorted", repeat_epoch=2) == order("sorted") * 2


def test_random_with_a_seed():
    """The documented meaning: that seed, in every epoch; and RETURNN's for its configs."""
    expected = np.random.RandomState(7).permutation(10).tolist()
    assert order("random:7") == order("random:7", 5) == expected
    assert order("random:7", 5, seed=3) == expected
    assert order("random:2", 1, random_argument="epochs") == order("random:2", 2, random_argument="epochs")
    assert order("random", 3, keep_epochs=2) == order("random:2", 3, random_argument="epochs") == order("random", 2)


def test_seed_of_the_experiment():
    orders = {tuple(order("random", epoch, seed=seed)) for epoch in range(1, 6) for seed in range(1, 6)}
    assert len(orders) == 25


def test_function_of_the_epoch():
    curriculum = SeqOrder(lambda epoch, **_: "sorted" if epoch == 1 else "random")
    assert curriculum.indices(1, np.array(LENS)).tolist() == order("sorted")
    assert curriculum.indices(2, np.array(LENS)).tolist() == order("random", 2)
    assert SeqOrder(lambda full_epoch: "reverse", partition_epoch=2).indices(1, 10).tolist() == [9, 8, 7, 6, 5]
    with pytest.raises(ValueError, match=r"did you mean laplace:.200"):
        SeqOrder(lambda: "laplace.200").indices(1, np.array(LENS))
    with pytest.raises(ValueError, match="returned 3 for epoch 1"):
        SeqOrder(lambda: 3).indices(1, np.array(LENS))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("laplace.1000", "did you mean laplace:.1000?"),
        ("laplace:.", "expected laplace"),
        ("laplace:0", "must be a whole number from 1"),
        ("laplace:.0", "must be a whole number from 1"),
        ("laplace:-3", "must be a whole number from 1"),
        ("laplace:1:2:3", "expected laplace"),
        ("Random", "did you mean random?"),
        ("randm:5", "did you mean random:5?"),
        ("random:x", "must be a number"),
        ("random:4294967296", "must be a number"),
        ("sorted:3", "expected sorted"),
        ("sort-reverse", "did you mean sorted_reverse?"),
        ("default_every_n", "expected default_every_n:<n>"),
        ("alternate", "unknown mode"),
        ("", "unknown mode"),
    ],
)
def test_wrong_modes(text, words):
    with pytest.raises(ValueError) as error:
        SeqOrder(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"partition_epoch": 0},
        {"repeat_epoch": 2, "partition_epoch": 2},
        {"num_shards": 2, "shard_index": 2},
        {"random_argument": "seeds"},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SeqOrder("random", **options)


def test_lengths_are_needed():
    with pytest.raises(ValueError, match="needs the lengths"):
        SeqOrder("laplace").indices(1, 10)
    assert sorted(SeqOrder("random").indices(1, 10)) == list(range(10))


@settings(max_examples=200, deadline=None)
@given(
    lens=st.lists(st.integers(0, 30), max_size=40),
    mode=st.sampled_from(MODES),
    parts=st.integers(1, 5),
    shards=st.integers(1, 3),
    full_epoch=st.integers(1, 4),
    seed=st.integers(1, 5),
    data=st.data(),
)
def test_every_pass_holds_every_sequence_once(lens, mode, parts, shards, full_epoch, seed, data):
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(lens), max_size=len(lens))), bool)
    found = []
    for part in range(parts):
        epoch = (full_epoch - 1) * parts + part + 1
        for shard in range(shards):
            seq_order = SeqOrder(mode, seed=seed, partition_epoch=parts, num_shards=shards, shard_index=shard)
            found.append(seq_order.indices(epoch, np.array(lens, np.int64), keep).tolist())
    assert sorted(i for part in found for i in part) == np.nonzero(keep)[0].tolist()
    assert max(map(len, found)) - min(map(len, found)) <= 1


@settings(max_examples=100, deadline=None)
@given(lens=st.lists(st.integers(0, 9), min_size=1, max_size=40), bins=st.integers(1, 6), epoch=st.integers(1, 5))
def test_laplace_goes_up_and_down(lens, bins, epoch):
    found = np.array(lens)[order(f"laplace:{bins}", epoch, lens)]
    members = np.random.RandomState(epoch).permutation(len(lens))
    bounds = bin_bounds(len(lens), bins)
    expected = []
    for i in range(bins):
        expected += sorted(np.array(lens)[members[bounds[i] : bounds[i + 1]]].tolist(), reverse=i % 2 == 1)
    assert found.tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 5), max_size=50), st.booleans())
def test_stable_argsort(values, descending):
    expected = sorted(range(len(values)), key=values.__getitem__, reverse=descending)
    assert stable_argsort(np.array(values, np.int64), descending).tolist() == expected
    assert stable_argsort(np.array(values, np.float64) % 7, descending).tolist() == sorted(
        range(len(values)), key=(np.array(values, np.float64) % 7).__getitem__, reverse=descending
    )


def test_bucket_sorts_within_the_epoch_and_mixes_ties():
    lens = [3, 1, 3, 2, 3, 1, 2, 3, 1, 1, 2, 2]
    first, second = order("bucket", 1, lens, partition_epoch=2), order("bucket", 2, lens, partition_epoch=2)
    assert [lens[i] for i in first] == sorted(lens[i] for i in first)
    assert sorted(first + second) == list(range(12))
    assert order("bucket", 1, [1] * 30) != order("bucket", 2, [1] * 30)
    assert SeqOrder("bucket").shuffles_batches(1, 5)
    assert not SeqOrder("laplace").shuffles_batches(1, 5)


def test_same_tags_only_once():
    tag_ids = np.array([0, 1, 0, 2, 1])
    assert SeqOrder("reverse").indices(1, 5, tag_ids=tag_ids).tolist() == [4, 3, 2]
    assert SeqOrder("default", partition_epoch=2).indices(1, 5, tag_ids=tag_ids).tolist() == [0, 1]


def test_every_mode_is_documented():
    for mode in FORMS:
        assert parse_ordering(mode + (":2" if mode == "default_every_n" else "")).mode == mode
