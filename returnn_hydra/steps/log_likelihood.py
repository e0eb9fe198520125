"""Forward step: how likely a sequence's targets are."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from returnn_hydra.batch import Batch, Output
from returnn_hydra.steps.classification import pair_items, run_model


class LogLikelihood:
    """Output `log_likelihood`, (B,): log p(targets | features) in nats, the sum over the frames of each sequence.

    Args:
        data_key: stream of features.
        target_key: stream of class indices, one per frame or one per sequence.
    """

    def __init__(self, data_key: str = "data", target_key: str = "classes") -> None:
        self.data_key = data_key
        self.target_key = target_key

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        logits, lengths = run_model(model, batch, self.data_key)
        items, targets, sequences = pair_items(logits, lengths, batch, self.target_key)
        scores = -F.cross_entropy(items.float(), targets, reduction="none")
        return {"log_likelihood": Output(scores.new_zeros(lengths.shape).index_add(0, sequences, scores))}
