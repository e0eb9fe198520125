"""Forward step: how likely a sequence's targets are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from returnn_hydra.batch import Batch, Output


class Criterion(Protocol):
    """A train step that knows the probability of its targets."""

    def log_likelihoods(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,): of all targets of each sequence, in nats."""


class LogLikelihood:
    """Output `log_likelihood`, (B,): log p(targets | features) in nats, of the whole sequence.

    Args:
        criterion: the train step that says what the probability of the targets is: the sum over the frames (cross
            entropy), over all alignments (CTC, transducer), over the labels and the end (attention, language models).

    Raises:
        ValueError: another train step.
    """

    def __init__(self, criterion: Criterion) -> None:
        if not hasattr(criterion, "log_likelihoods"):
            raise ValueError(
                f"log_likelihood needs a train step with a method log_likelihoods (criterion: cross_entropy, ctc, "
                f"attention, ...), got {type(criterion).__name__}"
            )
        self.criterion = criterion

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the criterion can't use the model."""
        check = getattr(self.criterion, "check_model", None)
        if check is not None:
            check(model)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        return {"log_likelihood": Output(self.criterion.log_likelihoods(model, batch))}
