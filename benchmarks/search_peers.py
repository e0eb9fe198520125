"""pyctcdecode and flashlight-text (torchaudio's CTC decoder) on the posteriors of `search.py`; runs in their
environment.

python search_peers.py POSTERIORS.npz SECONDS_OF_SPEECH
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import groupby

import numpy as np

BEAM = 16


def pyctcdecode_search(num_labels: int) -> Callable[[np.ndarray], list[int]]:
    """Without language model, and without its pruning of labels and beams; the label "a" is a space there."""
    from pyctcdecode import build_ctcdecoder

    names = [" ", *(chr(ord("a") + i) for i in range(1, num_labels))]
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
    audio = float(sys.argv[2])
    tables = [arrays[name] for name in arrays.files if name.startswith("arr_")]
    expected = [arrays[f"labels_{i}"].tolist() for i in range(len(tables))]
    for name, make in {"pyctcdecode": pyctcdecode_search, "flashlight-text": flashlight_search}.items():
        try:
            search = make(tables[0].shape[1] - 1)
        except ImportError as error:
            print(f"  {name:16} not installed ({error})")
            continue
        search(tables[0])
        start = time.process_time()
        found = [search(table) for table in tables]
        seconds = time.process_time() - start
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        speed = f"{seconds:8.3f} CPU s   {audio / seconds:8.0f} x faster than real time"
        print(f"  {name:16} {speed}; same result: {same} of {len(tables)}")


if __name__ == "__main__":
    main()
