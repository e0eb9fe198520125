"""Files and error rates of a search."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.callbacks.search_output import SearchOutput
from returnn_hydra.data.vocab import CharacterVocabulary
from returnn_hydra.engine.forwarder import forward
from returnn_hydra.search.ctc_steps import CTCPrefix
from returnn_hydra.search.result import Hypothesis, pack

VOCAB = CharacterVocabulary(labels=["A", "B", "C", " "])
RESULTS = {
    "utt'1": [Hypothesis([0, 1, 3, 2], -1.5, [(0, 2), (2, 3), (3, 4), (5, 7)]), Hypothesis([0], -2.25, [(0, 7)])],
    'utt"2': [Hypothesis([2, 2], -0.5, [(0, 1), (2, 4)])],
}
REFERENCES = {"utt'1": [0, 1, 3, 2], 'utt"2': [2, 3, 1]}


def run(callback: SearchOutput, *, with_reference: bool = True) -> SearchOutput:
    callback.init(nn.Identity())
    for seq_tag, hyps in RESULTS.items():
        outputs = {name: output.per_sequence()[0] for name, output in pack([hyps]).items()}
        if with_reference:
            outputs["reference"] = np.array(REFERENCES[seq_tag], dtype=np.int32)
        callback.process_seq(seq_tag, outputs)
    callback.finish()
    return callback


def test_all_formats(tmp_path: Path) -> None:
    run(SearchOutput(tmp_path, "dev", VOCAB, formats=["py", "txt", "jsonl", "ctm"], frame_shift=0.1))
    text = (tmp_path / "dev.py").read_text()
    assert text == """{\n"utt'1": 'AB C',\n'utt"2': 'CC',\n}\n"""
    assert ast.literal_eval(text) == {"utt'1": "AB C", 'utt"2': "CC"}
    assert (tmp_path / "dev.txt").read_text() == "AB C\nCC\n"
    records = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    assert [record["seq_tag"] for record in records] == list(RESULTS)
    assert [len(record["hypotheses"]) for record in records] == [2, 1]
    assert records[1]["reference"] == "C B"
    assert (tmp_path / "dev.ctm").read_text().splitlines() == [
        "utt'1 1 0.000 0.300 AB",
        "utt'1 1 0.500 0.200 C",
        'utt"2 1 0.000 0.400 CC',
    ]


def test_hypotheses_with_scores(tmp_path: Path) -> None:
    run(SearchOutput(tmp_path, "dev", VOCAB, formats=["py"], num_best=True))
    assert ast.literal_eval((tmp_path / "dev.py").read_text()) == {
        "utt'1": [(-1.5, "AB C"), (-2.25, "A")],
        'utt"2': [(-0.5, "CC")],
    }


def test_packed_file_with_a_name(tmp_path: Path) -> None:
    callback = run(SearchOutput(tmp_path, "dev", VOCAB, formats=["txt"], file=str(tmp_path / "mine.txt.gz")))
    assert gzip.decompress((tmp_path / "mine.txt.gz").read_bytes()) == b"AB C\nCC\n"
    assert not list(tmp_path.glob("*.tmp"))
    assert callback.scores["wer"] == pytest.approx(2 / 4)


def test_error_rates(tmp_path: Path) -> None:
    callback = run(SearchOutput(tmp_path, "dev", VOCAB, formats=["txt"], error_units=["word", "char", "label"]))
    assert callback.scores == pytest.approx({"wer": 2 / 4, "cer": 2 / 7, "ler": 2 / 7})
    summary = json.loads((tmp_path / "dev.errors.json").read_text())
    assert summary["wer"]["substitutions"] + summary["wer"]["deletions"] == 2
    assert "hyp: CC" in (tmp_path / "dev.errors.word.txt").read_text()


def test_without_vocabulary_and_reference(tmp_path: Path) -> None:
    callback = run(SearchOutput(tmp_path, "dev", formats=["py", "txt"]), with_reference=False)
    assert ast.literal_eval((tmp_path / "dev.py").read_text()) == {"utt'1": [0, 1, 3, 2], 'utt"2': [2, 2]}
    assert (tmp_path / "dev.txt").read_text() == "[0, 1, 3, 2]\n[2, 2]\n"
    assert callback.scores == {}
    assert not list(tmp_path.glob("*errors*"))


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'json' is not one of py, txt, jsonl, ctm"):
        SearchOutput(tmp_path, "dev", VOCAB, formats=["json"])
    with pytest.raises(ValueError, match="exactly one format"):
        SearchOutput(tmp_path, "dev", VOCAB, file="x.py")
    with pytest.raises(ValueError, match=r"needs? .*vocab"):
        SearchOutput(tmp_path, "dev", formats=["ctm"])
    callback = SearchOutput(tmp_path, "dev", formats=["txt"], error_units=["word"])
    with pytest.raises(ValueError, match="they have no vocab"):
        run(callback)


class Speller(nn.Module):
    """The features are the logits; the last class is the blank."""

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features, lengths


def test_a_search_runs_as_forward_step(tmp_path: Path) -> None:
    """Batches in any order; files and error rates in corpus order."""
    texts = ["AB", "C A", "", "BB C"]
    classes = [VOCAB.encode(text) for text in texts]
    paths = [[label for labels in zip(ids, [4] * len(ids), strict=True) for label in labels] or [4] for ids in classes]
    corpus = list(zip([f"seq-{i}" for i in range(4)], paths, classes, strict=True))
    batches = []
    for positions in ([3, 1], [0, 2]):
        data, targets = ([torch.tensor(corpus[i][part]) for i in positions] for part in (1, 2))
        pad = torch.nn.utils.rnn.pad_sequence
        features = 20 * torch.nn.functional.one_hot(pad(data, batch_first=True), 5).float()
        lengths = {"data": torch.tensor([len(x) for x in data]), "classes": torch.tensor([len(x) for x in targets])}
        tensors = {"data": features, "classes": pad(targets, batch_first=True).int()}
        batches.append((np.array(positions), Batch(tensors, lengths, [corpus[i][0] for i in positions])))
    callback = SearchOutput(tmp_path, "dev", VOCAB, formats=["txt", "py", "ctm"], frame_shift=0.5)
    step = CTCPrefix(num_best=2, with_times=True, target_key="classes")
    assert forward(Speller(), step, batches, callback, torch.device("cpu"), {}) == 4
    assert (tmp_path / "dev.txt").read_text().splitlines() == texts
    assert ast.literal_eval((tmp_path / "dev.py").read_text()) == {f"seq-{i}": text for i, text in enumerate(texts)}
    assert callback.scores == {"wer": 0.0, "cer": 0.0}
    assert (tmp_path / "dev.ctm").read_text().splitlines()[:2] == ["seq-0 1 0.000 1.500 AB", "seq-1 1 0.000 0.500 C"]
