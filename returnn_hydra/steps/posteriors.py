"""Forward step: class probabilities."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from returnn_hydra.batch import Batch, Output
from returnn_hydra.steps.classification import check_features_model, mean_over_frames, run_model


class Posteriors:
    """Output `output`: log probabilities of the classes for every frame (B, T, C), or for every sequence (B, C).

    Args:
        data_key: stream of features.
        log: natural logarithms; False: the probabilities.
        per_sequence: one distribution per sequence, from the mean of the logits over its frames.
        output_key: name of the output.
    """

    def __init__(
        self, data_key: str = "data", log: bool = True, per_sequence: bool = False, output_key: str = "output"
    ) -> None:
        self.data_key = data_key
        self.log = log
        self.per_sequence = per_sequence
        self.output_key = output_key

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model is none of features."""
        check_features_model(self, model)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        logits, lengths = run_model(model, batch, self.data_key)
        if self.per_sequence:
            logits = mean_over_frames(logits, lengths)
        log_probs = F.log_softmax(logits.float(), dim=-1)
        values = log_probs if self.log else log_probs.exp()
        return {self.output_key: Output(values, None if self.per_sequence else lengths)}
