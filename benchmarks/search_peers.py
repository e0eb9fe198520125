"""pyctcdecode and flashlight-text (torchaudio's CTC decoder) on the posteriors of `search.py`; runs in their
environment.

python search_peers.py POSTERIORS.npz RESULTS.json

Both keep a prefix that ends with blank and the same prefix that ends with its label as two hypotheses, each with its
own score and place in the beam; the best one of them wins, not the best sum.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np

BEAM = 16


def pyctcdecode_search(num_labels: int) -> Callable[[np.ndarray], list[int]]:
    """Without language model and pruning of labels and beams; no label is its space, of which it drops some."""
    from pyctcdecode import build_ctcdecoder

    names = [chr(ord("A") + i) for i in range(num_labels)]
    decoder = build_ctcdecoder([*names, ""])

    def search(table: np.ndarray) -> list[int]:
        text = decoder.decode(table, beam_width=BEAM, beam_prune_logp=-1e9, token_min_logp=-1e9)
        return [names.index(letter) for letter in text]

    return search


def flashlight_search(num_labels: int) -> Callable[[np.ndarray], list[int]]:
    """Without lexicon and language model, sums over paths (log_add)."""
    from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions, ZeroLM

    options = LexiconFreeDecoderOptions(
        beam_size=BEAM,
        beam_size_token=num_labels + 1,
        beam_threshold=1e9,
        lm_weight=0.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=CriterionType.CTC,
    )
    decoder = LexiconFreeDecoder(options, ZeroLM(), -1, num_labels, [])

    def search(table: np.ndarray) -> list[int]:
        table = np.ascontiguousarray(table, dtype=np.float32)
        best = decoder.decode(table.ctypes.data, *table.shape)[0]
        path = [label for label in best.tokens if label >= 0]
        return [label for label, _ in groupby(path) if label != num_labels]

    return search


def main() -> None:
    arrays = np.load(sys.argv[1])
    tables = [arrays[name] for name in arrays.files]
    results = {}
    for name, make in {"pyctcdecode": pyctcdecode_search, "flashlight-text": flashlight_search}.items():
        try:
            search = make(tables[0].shape[1] - 1)
        except ImportError as error:
            print(f"  {name:16} not installed ({error})")
            continue
        search(tables[0])
        start = time.process_time()
        found = [search(table) for table in tables]
        results[name] = {"seconds": time.process_time() - start, "labels": found}
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
