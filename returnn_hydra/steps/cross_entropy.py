"""Training by cross entropy, by frame or by sequence."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from returnn_hydra.batch import Batch, Loss, TensorSpec, num_labels
from returnn_hydra.steps.classification import check_features_model, pair_items, run_model


class CrossEntropy:
    """Losses `ce` (nats per frame or sequence) and `error` (fraction of them whose best class is not the target).

    By frame if the targets have as many frames as the model's outputs; by sequence, from the mean of the logits over
    the frames, if there is one target per sequence.

    Args:
        data_key: stream of features.
        target_key: stream of class indices.
        label_smoothing: in training, this part of the target's probability is spread over all classes evenly
            (Szegedy et al. 2016, Rethinking the Inception Architecture, section 7); scores in evaluation are without.
        extern_data: descriptions of the streams (from the program); else the range of every target is looked at.
    """

    def __init__(
        self,
        data_key: str = "data",
        target_key: str = "classes",
        label_smoothing: float = 0.0,
        extern_data: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self.num_labels = num_labels(extern_data, target_key)
        self.data_key = data_key
        self.target_key = target_key
        self.label_smoothing = label_smoothing

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model is none of features."""
        check_features_model(self, model)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits, lengths = run_model(model, batch, self.data_key)
        items, targets, _ = pair_items(logits, lengths, batch, self.target_key, self.num_labels)
        smoothing = self.label_smoothing if model.training else 0.0
        loss = F.cross_entropy(items.float(), targets, label_smoothing=smoothing, reduction="sum")
        errors = (items.argmax(-1) != targets).sum()
        count = targets.shape[0]
        return {"ce": Loss(loss, count), "error": Loss(errors, count, as_error=True)}

    def log_likelihoods(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,): log p(targets | features), the sum over the frames of each sequence."""
        logits, lengths = run_model(model, batch, self.data_key)
        items, targets, sequences = pair_items(logits, lengths, batch, self.target_key, self.num_labels)
        scores = -F.cross_entropy(items.float(), targets, reduction="none")
        return scores.new_zeros(lengths.shape).index_add(0, sequences, scores)
