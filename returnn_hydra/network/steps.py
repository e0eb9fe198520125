"""Train, forward and search steps for network dicts.

Legend: B sequences, K hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from returnn_hydra.batch import Batch, Loss, Output
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.model import NetworkModel, NetworkResult
from returnn_hydra.network.named_tensor import NamedTensor


def train_step(model: NetworkModel, batch: Batch) -> dict[str, Loss]:
    """`cost:LAYER` and `error:LAYER` of every layer with a loss, and `constraints` (L2).

    Each loss is a sum over `count` frames; RETURNN optimises the scaled sums themselves, not their means.
    """
    return model(batch).all_losses()


def forward_step(model: NetworkModel, batch: Batch, layers: Sequence[str] = ("output",)) -> dict[str, Output]:
    """The outputs of some layers; targets are not needed."""
    result = model(batch, with_losses=False, layers=layers)
    return {name: model.layer_output(result, name) for name in layers}


@dataclass(frozen=True)
class Hypothesis:
    """Labels that a search found, with their log score (length-normalised if the `choice` layer says so)."""

    labels: list[int]
    score: float


def search_step(model: NetworkModel, batch: Batch, layer: str = "output") -> list[list[Hypothesis]]:
    """Search a batch; see `hypotheses_of`."""
    return hypotheses_of(model(batch, search=True, with_losses=False, layers=[layer]), layer)


def hypotheses_of(result: NetworkResult, layer: str = "output") -> list[list[Hypothesis]]:
    """The hypotheses of every sequence, best first: all of a beam, or the one that a `decide` layer left.

    A layer with scores of classes, such as a softmax over frames, gives the best class of every frame.

    Raises:
        NetworkError: the layer is no sequence of class indices or of scores.
    """
    value = result.outputs[layer].batch_major()
    if value.feature is not None and value.beam_axis is None and len(value.axes) == 3:
        rest = [axis for axis in value.axes if axis is not value.feature]
        best = value.ordered([*rest, value.feature]).raw.argmax(-1)
        value = NamedTensor(best, tuple(rest), sparse_dim=value.feature.size, time=value.time)
    time, beam = value.time_axis, value.beam_axis
    if value.sparse_dim is None or time is None or time.lengths is None or len(value.axes) > 3:
        raise NetworkError(f"search: layer {layer!r} with axes {list(value.axes)} is no sequence of class indices")
    if beam is None:
        rows = zip(value.raw.tolist(), time.lengths.tolist(), strict=True)
        return [[Hypothesis(labels[:length], 0.0)] for labels, length in rows]
    batch_axis = value.axes[0]
    scores = beam.choice.final_scores.raw.tolist()
    lengths = time.lengths.unsqueeze(-1) if beam not in time.over else time.lengths
    lengths = lengths.expand(batch_axis.size, beam.size)
    found = []
    for labels_of, lengths_of, scores_of in zip(value.raw.tolist(), lengths.tolist(), scores, strict=True):
        beam_of = zip(labels_of, lengths_of, scores_of, strict=True)
        hypotheses = [Hypothesis(labels[:length], score) for labels, length, score in beam_of]
        found.append(sorted(hypotheses, key=lambda hypothesis: -hypothesis.score))
    return found
