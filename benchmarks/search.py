"""What the searches cost, as ratios within one run, in CPU time.

    python benchmarks/search.py [--threads 1] [--peer-python PYTHON_WITH_PYCTCDECODE_AND_FLASHLIGHT_TEXT]

1. Label-synchronous beam search on a transformer decoder, against the same search with one hypothesis at a time, and
   against one that runs the decoder over all labels so far in every step. All three must find the same.
2. CTC prefix search on posteriors like those of AN4 (28 characters, 33 frames per second), against real time.
3. The same posteriors through other decoders, in their own environment; and which labels are more probable.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from returnn_hydra.models.transformer_decoder import TransformerDecoder
from returnn_hydra.search.ctc_best_path import ctc_best_path
from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.label_sync import LabelSyncSearch
from returnn_hydra.search.ngram import ArpaModel, NgramScorer
from returnn_hydra.search.scorer import Encoded
from returnn_hydra.search.step_scorer import DecoderScorer

FRAMES_PER_SECOND = 100 / 3
NUM_CLASSES = 29
"""26 letters, apostrophe, space, blank."""


class OneByOne:
    """Steps a decoder with one hypothesis at a time."""

    def __init__(self, decoder: TransformerDecoder) -> None:
        self.decoder = decoder

    def initial_state(self, encoder_out: Tensor, encoder_lengths: Tensor) -> Any:
        return self.decoder.initial_state(encoder_out, encoder_lengths)

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [
            self.decoder.step(labels[i : i + 1], {name: tensor[i : i + 1] for name, tensor in state.items()})
            for i in range(len(labels))
        ]
        changed = {name for name in state if name.startswith("cache")}
        new_state = {
            name: torch.cat([row[name] for _, row in rows]) if name in changed else tensor
            for name, tensor in state.items()
        }
        return torch.cat([log_probs for log_probs, _ in rows]), new_state


class Recompute:
    """Runs a decoder over all labels so far in every step."""

    def __init__(self, decoder: TransformerDecoder) -> None:
        self.decoder = decoder

    def initial_state(self, encoder_out: Tensor, encoder_lengths: Tensor) -> dict[str, Tensor]:
        labels = torch.zeros(len(encoder_out), 0, dtype=torch.long)
        return {"labels": labels, "encoder": encoder_out, "lengths": encoder_lengths}

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        history = torch.cat([state["labels"], labels[:, None]], dim=1)
        lengths = torch.full((len(history),), history.shape[1])
        logits = self.decoder(history, lengths, state["encoder"], state["lengths"])
        return logits[:, -1].log_softmax(-1), {**state, "labels": history}


def cpu_seconds(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """CPU time of one call, and what it returned."""
    start = time.process_time()
    for _ in range(repeats):
        result = function()
    return (time.process_time() - start) / repeats, result


def label_synchronous(num_seqs: int, num_labels: int) -> None:
    """Part 1."""
    torch.manual_seed(0)
    decoder = TransformerDecoder(256, 100, model_dim=256, num_layers=4, num_heads=4).eval()
    with torch.no_grad():
        decoder.output.weight *= 3
        decoder.output.bias[decoder.eos_id] = -4.0  # long hypotheses, as with a trained model on real speech
    lengths = torch.tensor([num_labels * 2 - 3 * b for b in range(num_seqs)])
    encoded = Encoded(lengths, torch.randn(num_seqs, int(lengths[0]), 256))
    seconds, results = {}, {}
    for name, module in {"batched": decoder, "one by one": OneByOne(decoder), "recomputed": Recompute(decoder)}.items():
        search = LabelSyncSearch(
            DecoderScorer(module, decoder.num_classes),
            bos=decoder.bos_id,
            eos=decoder.eos_id,
            beam_size=12,
            max_labels_per_frame=0.5,
        )
        search(Encoded(lengths[-1:] // 4, encoded.encoder[-1:, : int(lengths[-1]) // 4]))  # warm up
        seconds[name], results[name] = cpu_seconds(lambda search=search: search(encoded))
    found = [hyps[0].labels for hyps in results["batched"]]
    assert all([hyps[0].labels for hyps in other] == found for other in results.values())
    print(f"label-synchronous, beam 12, {num_seqs} sequences, {np.mean([len(labels) for labels in found]):.0f} labels")
    for name, value in seconds.items():
        print(f"  {name:12} {value:8.2f} CPU s   {value / seconds['batched']:6.1f} x")


def posteriors(num_seqs: int, seed: int = 0) -> list[np.ndarray]:
    """Log posteriors (T, C) of utterances of 1 to 6 seconds with 12 characters per second: mostly blanks, peaks with
    some doubt.
    """
    rng = np.random.default_rng(seed)
    utterances = []
    for seconds in rng.uniform(1.0, 6.0, num_seqs):
        frames = int(seconds * FRAMES_PER_SECOND)
        logits = rng.normal(size=(frames, NUM_CLASSES))
        logits[:, -1] += 6.0
        peaks = rng.choice(frames, int(seconds * 12), replace=False)
        labels = rng.integers(0, NUM_CLASSES - 1, len(peaks))
        logits[peaks, labels] += rng.uniform(5.0, 12.0, len(peaks))
        utterances.append(torch.from_numpy(logits).log_softmax(-1).numpy())
    return utterances


def character_trigrams() -> NgramScorer:
    """A random 3-gram model of the characters."""
    rng = np.random.default_rng(1)
    names = [chr(ord("a") + i) for i in range(NUM_CLASSES - 1)]
    words = [*names, "</s>"]
    log_probs: dict[tuple[str, ...], dict[str, float]] = {(): dict.fromkeys(words, -float(np.log(len(words))))}
    for first in ["<s>", *names]:
        for context in ((first,), *((first, second) for second in names)):
            chosen = rng.choice(len(words), 8, replace=False)
            log_probs[context] = {words[i]: float(np.log(0.1)) for i in chosen}
    return NgramScorer(ArpaModel(3, log_probs, dict.fromkeys(log_probs, -2.0)), [*names, "</s>"], 28, 28)


def ctc(utterances: list[np.ndarray], batch_size: int) -> None:
    """Part 2."""
    audio = sum(map(len, utterances)) / FRAMES_PER_SECOND
    ordered = sorted(utterances, key=len)
    batches = []
    for start in range(0, len(ordered), batch_size):
        part = [torch.from_numpy(table) for table in ordered[start : start + batch_size]]
        lengths = torch.tensor([len(table) for table in part])
        batches.append(Encoded(lengths, None, nn.utils.rnn.pad_sequence(part, batch_first=True)))
    trigrams = character_trigrams()
    searches = {
        "best path": lambda e: ctc_best_path(e.ctc_log_probs, e.lengths),
        "prefix, beam 16": CTCPrefixSearch(beam_size=16),
        "with 3-grams": CTCPrefixSearch(beam_size=16, lm=trigrams, lm_scale=0.5, lm_bos=28, lm_eos=28),
    }
    print(f"CTC, {len(utterances)} utterances, {audio:.0f} s of speech, batches of {batch_size}")
    for name, search in searches.items():
        search(batches[0])
        seconds, _ = cpu_seconds(lambda search=search: [search(batch) for batch in batches])
        print(f"  {name:16} {seconds:8.3f} CPU s   {audio / seconds:8.0f} x faster than real time")


def log_likelihood(table: np.ndarray, labels: list[int]) -> float:
    """The exact log p(labels | table), summed over all paths."""
    args = torch.from_numpy(table)[:, None], torch.tensor([labels]), (len(table),), (len(labels),)
    return -float(nn.functional.ctc_loss(*args, blank=NUM_CLASSES - 1, reduction="sum"))


def peers(utterances: list[np.ndarray], python: str) -> None:
    """Part 3: `search_peers.py` in another environment; where it finds other labels, which are more probable?"""
    own = CTCPrefixSearch(beam_size=16)
    audio = sum(map(len, utterances)) / FRAMES_PER_SECOND

    def one_at_a_time() -> list[list[int]]:
        tables = (torch.from_numpy(table)[None] for table in utterances)
        return [own(Encoded(torch.tensor([table.shape[1]]), None, table))[0][0].labels for table in tables]

    def speed(name: str, seconds: float) -> str:
        return f"  {name:16} {seconds:8.3f} CPU s   {audio / seconds:8.0f} x faster than real time"

    seconds, found = cpu_seconds(one_at_a_time)
    print("CTC, beam 16, one utterance at a time")
    print(speed("returnn-hydra", seconds), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tables, results = Path(folder) / "posteriors.npz", Path(folder) / "results.json"
        np.savez(tables, *utterances)
        command = [python, str(Path(__file__).with_name("search_peers.py")), str(tables), str(results)]
        subprocess.run(command, check=True)
        theirs = json.loads(results.read_text())
    for name, result in theirs.items():
        pairs = list(zip(utterances, found, result["labels"], strict=True))
        gains = [log_likelihood(x, ours) - log_likelihood(x, other) for x, ours, other in pairs if ours != other]
        better = sum(gain > 0 for gain in gains)
        print(speed(name, result["seconds"]), end=f"; same labels: {len(pairs) - len(gains)} of {len(pairs)}; ")
        print(f"of the others ours are more probable in {better}, by {np.median(gains):.2g} (median, log)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seqs", type=int, default=8, help="sequences of part 1")
    parser.add_argument("--labels", type=int, default=50, help="labels of the longest sequence of part 1")
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--peer-python", help="interpreter with pyctcdecode and flashlight-text")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    label_synchronous(args.seqs, args.labels)
    utterances = posteriors(args.utterances)
    ctc(utterances, batch_size=8)
    if args.peer_python:
        peers(utterances, args.peer_python)


if __name__ == "__main__":
    main()
