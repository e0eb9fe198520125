"""The label that begins and ends a sequence."""

from __future__ import annotations


def boundary_label(num_labels: int, eos_id: int | None) -> tuple[int, int]:
    """Number of classes, and the label that stands for begin and end of a sequence.

    Args:
        num_labels: of the vocabulary.
        eos_id: its sentence end; None: it has none, so a further class is added behind the others.

    Raises:
        ValueError: `eos_id` is no label.
    """
    if eos_id is None:
        return num_labels + 1, num_labels
    if not 0 <= eos_id < num_labels:
        raise ValueError(f"eos_id={eos_id}: expected a label in 0..{num_labels - 1}")
    return num_labels, eos_id
