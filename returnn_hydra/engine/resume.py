"""Whether a run may go on under the present configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from returnn_hydra.engine.errors import ChangedConfigError

ABSENT = "(not set)"


def refuse_changes(saved: Mapping[str, Any], present: Mapping[str, Any], allowed: Collection[str] = ()) -> None:
    """Compare the fingerprint in a checkpoint with that of the present run.

    Args:
        saved, present: dotted key (`model.hidden_dim`, `datasets.train.source.file`) to a JSON value.
        allowed: keys that may differ; `model` stands for everything below `model.` too.

    Raises:
        ChangedConfigError: lists every other key that differs, with both values.
    """
    differences = [
        f"{key}: {saved.get(key, ABSENT)} -> {present.get(key, ABSENT)}"
        for key in sorted({*saved, *present})
        if saved.get(key, ABSENT) != present.get(key, ABSENT)
        and not any(key == name or key.startswith(f"{name}.") for name in allowed)
    ]
    if differences:
        keys = ",".join(difference.split(":", 1)[0] for difference in differences)
        raise ChangedConfigError(
            "the configuration differs from that of the run so far (saved -> now): "
            + "; ".join(differences)
            + f". Use another run folder for another experiment, or allow it: allow_changed=[{keys}]"
        )
