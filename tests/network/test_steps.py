"""The steps that the engine calls."""

from __future__ import annotations

from typing import Any

import pytest

from returnn_hydra.network import NetworkError
from returnn_hydra.network.steps import forward_step, search_step, train_step


def test_train_and_forward(make_case: Any) -> None:
    case = make_case("loss_two")
    losses = train_step(case.model, case.batch)
    assert set(losses) == {"cost:aux", "cost:output", "error:aux", "error:output"}
    assert losses["cost:aux"].scale == 0.3 and losses["error:aux"].as_error
    outputs = forward_step(case.model, case.batch, ["output", "a"])
    assert [row.shape for row in outputs["a"].per_sequence()] == [(6, 4), (4, 4), (5, 4)]


def test_search(make_case: Any) -> None:
    case = make_case("att_encdec_search")
    beams = search_step(case.model, case.batch)
    best = search_step(case.model, case.batch, "decision")
    assert [len(beam) for beam in beams] == [4, 4, 4]
    for beam, decided in zip(beams, best, strict=True):
        scores = [hypothesis.score for hypothesis in beam]
        assert scores == sorted(scores, reverse=True)
        assert decided[0].labels == beam[0].labels
    with pytest.raises(NetworkError, match="no sequence of class indices"):
        search_step(case.model, case.batch, "enc_value")
    found = search_step(case.model, case.batch, "encoder")  # scores of classes: the best one of every frame
    scores = case.model(case.batch, search=True, layers=["encoder"]).outputs["encoder"].batch_major()
    lengths = scores.time_axis.lengths.tolist()
    expected = [rows[:length].argmax(-1).tolist() for rows, length in zip(scores.raw, lengths, strict=True)]
    assert [hypotheses[0].labels for hypotheses in found] == expected
