"""N-gram language models inside of a search.

Legend: B sequences, K hypotheses, V labels, I labels so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, to_beam
from returnn_hydra.network.registry import register_layer
from returnn_hydra.search.word_model import WordModel, text_score, word_model

NO_LABEL = -1
"""A label of the history that adds nothing to the text."""


@register_layer("kenlm")
def kenlm(
    call: LayerCall,
    *,
    lm_file: str | Callable[[], str],
    vocab_file: str | None = None,
    vocab_unknown_label: str = "UNK",
    bpe_merge_symbol: str | None = None,
    axis: Any = None,
    input_step_offset: int = 0,
    dense_output: bool = False,
    debug: bool = False,
) -> NamedTensor:
    """What a label adds to the score of the text so far: (B, K) labels -> (B, K), natural logarithm.

    The text is that of all labels since the first frame, from frame `input_step_offset` on; with `bpe_merge_symbol`
    ("@@") parts of words are joined first. The last word counts even where it is not complete; </s> must be a label.

    dense_output: what every label would add behind the text, (B, K, V); a label that is itself not complete is looked
        up with its "@@".
    """
    del vocab_unknown_label, axis, debug  # every label has a name; the frames are those of the loop
    x = call.x
    if not call.stepping or call.finder.time(x) is not None:
        raise call.error("expects one label per step inside of a rec layer, e.g. from 'output' or 'prev:output'")
    if x.sparse_dim is None:
        raise call.error("needs class indices")
    texts = _Texts(call, lm_file, vocab_file, bpe_merge_symbol or "", x.sparse_dim)
    label = x.raw.cpu().to(torch.int32)
    assert call.scope.step is not None
    if call.scope.step.t < input_step_offset:
        label = torch.full_like(label, NO_LABEL)
    before = call.state()
    if before is not None and x.beam_axis is not None:
        before = {key: to_beam(value, x.beam_axis) for key, value in before.items()}
    axes = list(x.axes)
    history = label[..., None]
    if before is not None:
        past = before["labels"]
        history = torch.cat([past.expanded([*axes, past.axes[-1]]).cpu(), history], -1)
    rows = [tuple(row) for row in history.reshape(-1, history.shape[-1]).tolist()]
    scores = x.dense(_tensor(x, [texts.score(row) for row in rows]))
    steps = static_axis(f"{call.name}:labels", history.shape[-1])
    call.set_state({"labels": NamedTensor(history.to(x.raw.device), (*axes, steps)), "scores": scores})
    if dense_output:
        feature = call.new_feature(x.sparse_dim)
        table = torch.tensor([texts.following(row) for row in rows], device=x.raw.device)
        return x.dense(table.reshape(*x.raw.shape, -1), [*axes, feature], feature=feature)
    return scores if before is None else scores.dense(scores.raw - before["scores"].expanded(axes))


def _tensor(x: NamedTensor, values: list[float]) -> Tensor:
    return torch.tensor(values, device=x.raw.device).reshape(x.raw.shape)


class _Texts:
    """Texts of label histories, and what the model says about them; made once per network."""

    def __init__(
        self, call: LayerCall, lm_file: str | Callable[[], str], vocab_file: str | None, merge: str, classes: int
    ) -> None:
        memo = call.spec.memo
        if "model" not in memo:
            memo["model"] = word_model(lm_file() if callable(lm_file) else lm_file)
            memo["labels"] = _labels(call, vocab_file, classes)
        self.model: WordModel = memo["model"]
        self.labels: Sequence[str] = memo["labels"]
        self.merge = merge

    def text(self, row: tuple[int, ...]) -> str:
        """Every label and a space behind it; parts of words joined."""
        text = "".join(f"{self.labels[label]} " for label in row if label != NO_LABEL)
        return text.replace(f"{self.merge} ", "") if self.merge else text

    def score(self, row: tuple[int, ...]) -> float:
        return text_score(self.model, self.text(row))[0]

    def following(self, row: tuple[int, ...]) -> list[float]:
        """What every label would add."""
        complete, _, part = self.text(row).rpartition(" ")
        _, history = text_score(self.model, complete)
        base = self.model.score(history, part + self.merge)[0] if part else 0.0
        return [self.model.score(history, part + label)[0] - base for label in self.labels]


def _labels(call: LayerCall, vocab_file: str | None, classes: int) -> Sequence[str]:
    if vocab_file is None:
        raise call.error("option 'vocab_file' is missing: the names of the labels")
    reader = call.run.user.get("read_labels")
    if reader is None:
        raise call.error("the network was made without 'read_labels', which 'vocab_file' needs")
    labels: Sequence[str] = reader(vocab_file)
    if len(labels) != classes:
        raise call.error(f"vocab_file {vocab_file} has {len(labels)} labels, but the input has {classes} classes")
    return labels
