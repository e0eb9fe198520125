"""Batches against RETURNN's own, a brute-force batcher, and what must hold for all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.data.batches import Batches
from returnn_hydra.data.batching import Batching, Filler, parse_chunking
from returnn_hydra.data.dataset import DataError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "batching.json").read_text())
DYNAMIC = {
    "lambda *, epoch_continuous, **_: 100 if epoch_continuous < 0.5 else 300": (
        lambda *, epoch_continuous, **_: 100 if epoch_continuous < 0.5 else 300
    ),
    "lambda *, seq_idx, **_: 2 if seq_idx < 5 else 4": lambda *, seq_idx, **_: 2 if seq_idx < 5 else 4,
}
CASES = GOLDEN["torch_cases"]


def lists(batches: Batches) -> list[list[int]]:
    return [piece.indices.tolist() for piece in batches]


def make(lens, **options):
    lens = np.array(lens, np.int64)
    return Batching(**options).make(np.arange(len(lens)), {"data": lens})


@pytest.mark.parametrize("case", CASES + GOLDEN["torch_dynamic"], ids=lambda case: str({**case, "batches": ...}))
def test_returnn(case):
    lengths = {name: np.array(lens) for name, lens in GOLDEN["seqs"][case["seqs"]].items()}
    options = {name: case[name] for name in case if name not in ("seqs", "batches", "error", "torch_batching")}
    for name in ("batch_size", "max_seqs"):
        if isinstance(options.get(name), str):
            options[name] = DYNAMIC[options[name]]
    if "torch_batching" in case:
        options["buckets"] = case["torch_batching"]["buckets"]
        options["random_bucket_prob"] = case["torch_batching"].get("random_bucket_prob", 0.0)
    batching = Batching(**options)
    keep = batching.passes(lengths)
    indices = np.arange(len(lengths["data"])) if keep is None else np.nonzero(keep)[0]
    if "error" in case:
        with pytest.raises(DataError, match="expected the same number"):
            batching.make(indices, lengths)
        return
    rng = np.random.RandomState(case.get("torch_batching", {}).get("seed"))
    batches = batching.make(indices, lengths, rng=rng)
    if "chunking" not in case:
        assert lists(batches) == case["batches"]
        return
    found = []
    for piece in batches:
        columns = [piece.indices]
        for name, lens in lengths.items():
            columns += [piece.starts.get(name, 0 * piece.indices), piece.ends.get(name, lens[piece.indices])]
        found.append(np.stack(columns, 1).tolist())
    assert found == case["batches"]


@pytest.mark.parametrize("case", GOLDEN["online_shuffle"], ids=lambda case: case["buffer_size"])
def test_shuffling_in_blocks_is_that_of_returnn(case):
    lengths = {name: np.array(lens) for name, lens in GOLDEN["seqs"][case["seqs"]].items()}
    batching = Batching(batch_size=case["batch_size"], max_seqs=case["max_seqs"])
    batches = batching.make(np.arange(len(lengths["data"])), lengths)
    shuffled = batches.shuffled(np.random.RandomState(case["seed"]), case["buffer_size"])
    assert [[f"seq-{i}" for i in batch] for batch in lists(shuffled)] == case["batches_tags"]


def brute_force(lens, batch_size, max_seqs):
    """Sequence after sequence, as the rule says it."""
    batches = []
    for seq in range(len(lens["a"])):
        now = batches[-1] + [seq] if batches else []
        fits = now and len(now) <= (max_seqs or len(now))
        for name, limit in batch_size.items():
            fits = fits and max(lens[name][i] for i in now) * len(now) <= limit
        if fits:
            batches[-1] = now
        else:
            batches.append([seq])
    return batches


@st.composite
def corpora(draw):
    num = draw(st.integers(0, 30))
    one = st.lists(st.integers(0, 40), min_size=num, max_size=num)
    return {"a": draw(one), "b": draw(one)}


@settings(max_examples=300, deadline=None)
@given(corpora(), st.integers(1, 100), st.integers(1, 100), st.none() | st.integers(1, 6))
def test_brute_force(lens, limit_a, limit_b, max_seqs):
    limits = {"a": limit_a, "b": limit_b}
    arrays = {name: np.array(values, np.int64) for name, values in lens.items()}
    batching = Batching(batch_size=limits, max_seqs=max_seqs)
    batches = batching.make(np.arange(len(lens["a"])), arrays)
    assert lists(batches) == brute_force(lens, limits, max_seqs)
    filler = Filler(batching)
    one_by_one = [filler.starts_new_batch({"a": a, "b": b}) for a, b in zip(lens["a"], lens["b"], strict=True)]
    assert np.nonzero(one_by_one)[0].tolist() == batches.offsets[:-1].tolist()


def test_long_corpus_in_blocks(monkeypatch):
    lens = np.random.RandomState(1).randint(1, 50, 1000)
    whole = make(lens, batch_size=200)
    monkeypatch.setattr("returnn_hydra.data.batching.BLOCK", 7)
    assert np.array_equal(make(lens, batch_size=200).offsets, whole.offsets)


def test_too_long():
    lens = [3, 20, 4, 30, 2]
    assert lists(make(lens, batch_size=10)) == [[0], [1], [2], [3], [4]]
    assert make(lens, batch_size=10).report.num_too_long == 2
    skipped = make(lens, batch_size=10, on_too_long="skip")
    assert lists(skipped) == [[0, 2], [4]]
    assert (skipped.report.num_too_long, skipped.report.num_skipped) == (2, 2)
    assert skipped.report.warnings() == ["2 sequences longer than batch_size (on_too_long)", "2 of them skipped"]
    with pytest.raises(DataError, match=r"'rec-1' is longer .frames of data: 20"):
        Batching(batch_size=10, on_too_long="error").make(
            np.arange(5), {"data": np.array(lens)}, tag=lambda index: f"rec-{index}"
        )


def test_length_filter():
    lengths = {"data": np.array([1, 5, 9]), "classes": np.array([1, 2, 3])}
    assert Batching().passes(lengths) is None
    assert Batching(min_seq_length=2).passes(lengths).tolist() == [False, True, True]
    assert Batching(min_seq_length=2, max_seq_length={"data": 8}).passes(lengths).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="no stream 'clases'"):
        Batching(max_seq_length={"clases": 8}).passes(lengths)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 12), st.integers(1, 12), st.integers(0, 8))
def test_chunks(lens, size, step, smallest):
    batches = make(lens, chunking=[size, step], min_chunk_size=smallest, max_seqs=3)
    expected = [
        (seq, start, min(start + size, length))
        for seq, length in enumerate(lens)
        for start in range(0, length, step)
        if min(start + size, length) - start >= smallest
    ]
    entries = zip(batches.indices.tolist(), batches.starts["data"].tolist(), batches.ends["data"].tolist(), strict=True)
    assert list(entries) == expected
    assert batches.report.num_without_chunk == len(set(range(len(lens))) - {seq for seq, _, _ in expected})


@pytest.mark.parametrize(
    "wrong", ["10:", "ten", [10], [0, 5], -3, {"data": 0}, [{"data": 5}, {"classes": 5}], [5, None]]
)
def test_wrong_chunking(wrong):
    with pytest.raises(ValueError, match="chunking="):
        Batching(chunking=wrong)


def test_chunking_forms():
    assert parse_chunking("0") is None
    assert parse_chunking(7) == parse_chunking("7") == parse_chunking("7:7") == (7, 7)
    assert parse_chunking("100:50") == parse_chunking([100, 50]) == (100, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": {"data": -1}},
        {"max_seqs": 0},
        {"batch_size": 1.5},
        {"on_too_long": "drop"},
        {"buckets": [(0, 3)]},
        {"random_bucket_prob": 2, "buckets": [(9, 3)]},
        {"random_bucket_prob": 0.5},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Batching(**options)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 5), st.integers(1, 60))
def test_ranks(lens, world_size, batch_size):
    """Every rank the same number of batches; nothing twice; nothing lost, but what is reported."""
    batches = make(lens, batch_size=batch_size)
    dealt = [batches.deal(rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in dealt}) == 1
    seen = np.concatenate([part.indices for part in dealt])
    left_out = dealt[0].report.num_left_out
    assert len(set(seen.tolist())) == len(seen)
    if left_out == 0:
        assert sorted(seen.tolist()) == list(range(len(lens)))
    else:
        assert left_out < world_size
        assert len(batches.indices) - len(seen) == batches.sizes()[-left_out:].sum()
        assert np.count_nonzero(batches.sizes() > 1) < -len(batches) % world_size
    for part in dealt:
        for piece in part:
            own = [lens[i] for i in piece.indices]
            assert len(own) == 1 or max(own) * len(own) <= batch_size


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=60), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=3))
def test_other_numbers_of_ranks_within_an_epoch(lens, stages):
    """Whatever numbers of ranks train an epoch, one after the other: no sequence twice, none lost but as reported."""
    batches = make(lens, batch_size=60)
    seen, done, begun = [], [], 0
    for num_ranks, more in [*stages, (2, None)]:
        parts = [batches.deal_rest(done, rank, num_ranks) for rank in range(num_ranks)]
        assert len({len(part) for part in parts}) == 1
        assert all(len(part[index].indices) == 0 for part in parts for index in range(begun))
        until = len(parts[0]) if more is None else min(begun + more, len(parts[0]))
        seen += [int(i) for part in parts for index in range(begun, until) for i in part[index].indices]
        done.append((num_ranks, until))
        begun = until
    assert len(set(seen)) == len(seen)
    left_out = parts[0].report.num_left_out
    assert left_out <= 1
    assert left_out == 1 or sorted(seen) == list(range(len(lens)))


def test_shuffling():
    batches = make(range(1, 101), batch_size=150)
    rng = np.random.RandomState(3)
    shuffled = batches.shuffled(rng)
    assert lists(shuffled) != lists(batches)
    assert sorted(lists(shuffled)) == sorted(lists(batches))
    blocks = batches.shuffled(rng, block=4)
    for start in range(0, len(batches), 4):
        assert sorted(lists(blocks)[start : start + 4]) == lists(batches)[start : start + 4]


def test_select_keeps_chunks():
    batches = make([10, 5, 7], chunking="4:2", max_seqs=2)
    back = batches.select(np.arange(len(batches))[::-1])
    for i in range(len(batches)):
        a, b = batches[i], back[len(batches) - 1 - i]
        assert (a.indices.tolist(), a.starts["data"].tolist()) == (b.indices.tolist(), b.starts["data"].tolist())
        assert a.ends["data"].tolist() == b.ends["data"].tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 60))
def test_frames(lens, batch_size):
    batches = make(lens, batch_size=batch_size)
    real, padded = batches.num_frames(np.array(lens, np.int64), "data")
    assert real == sum(lens)
    assert padded == sum(max(lens[i] for i in piece) * len(piece) for piece in lists(batches))


def test_linear_time():
    """A million sequences within seconds, also where every batch holds very many."""
    lens = np.random.RandomState(1).randint(1, 50, 1_000_000)
    assert len(make(lens, batch_size=10_000)) > 1000
    assert len(make(lens)) == 1


def test_index_out_of_range():
    with pytest.raises(IndexError, match="batch 3 of 3"):
        make([1, 1, 1], max_seqs=1)[3]


def test_buckets_of_another_stream():
    lengths = {"data": np.array([9, 9, 9, 9]), "classes": np.array([1, 5, 2, 9])}
    batching = Batching(buckets=[(3, 2), (6, 1)], bucket_stream="classes")
    made = batching.make(np.arange(4), lengths, 1)
    assert [batch.indices.tolist() for batch in made] == [[1], [0, 2]]
    with pytest.raises(ValueError, match=r"bucket_stream='words': no stream .*there is: data, classes"):
        Batching(buckets=[(3, 2)], bucket_stream="words").make(np.arange(4), lengths, 1)
