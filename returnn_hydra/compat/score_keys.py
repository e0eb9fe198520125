"""RETURNN's names of scores, and its choice of the score that decides.

Here a score is `dev/ce`. RETURNN's torch engine writes `dev_loss_ce`, its TensorFlow engine `dev_score_output` and
`dev_error_output`, or just `dev_score` when there is one loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence


def to_returnn_key(name: str) -> str:
    """`dev/ce` as `dev_loss_ce`; a name that isn't of that form stays."""
    dataset, slash, loss = name.partition("/")
    return f"{dataset}_loss_{loss}" if slash else name


def flatten_scores(scores: Mapping[str, float | Mapping[str, float]]) -> dict[str, float]:
    """RETURNN's TensorFlow scores of several losses, as it stores them.

    `{"dev_score": {"cost:output": 1.0, "cost:ctc": 2.0}}` is `{"dev_score_output": 1.0, "dev_score_ctc": 2.0}`; with a
    single loss the name has no suffix.
    """
    flat: dict[str, float] = {}
    for key, value in scores.items():
        if not isinstance(value, Mapping):
            flat[key] = value
        elif len(value) == 1:
            flat[key] = next(iter(value.values()))
        else:
            flat.update({f"{key}_{loss.partition(':')[2] or loss}": number for loss, number in value.items()})
    return flat


def error_key(names: Iterable[str], measure: str | Sequence[str] | None = None) -> str | None:
    """The score that RETURNN's learning-rate control looks at.

    The first that exists of: every `measure`, plain and with `_output`; `dev_score`; `dev_score_output`; the first
    `dev_score_output/...`; the first `dev_*` (alphabetically); `train_score`; `train_score_output`; the first of all.
    An unknown measure is passed over silently, as RETURNN does.

    Args:
        names: RETURNN's keys of one epoch; `:meta:*` are ignored.
        measure: `learning_rate_control_error_measure`.
    """
    known = sorted(name for name in names if not name.startswith(":meta:"))
    wanted = [measure] if isinstance(measure, str) else list(measure or ())
    for key in [*(key + suffix for key in wanted for suffix in ("", "_output")), "dev_score", "dev_score_output"]:
        if key in known:
            return key
    for prefix in ("dev_score_output/", "dev_"):
        found = next((name for name in known if name.startswith(prefix)), None)
        if found:
            return found
    for key in ("train_score", "train_score_output"):
        if key in known:
            return key
    return known[0] if known else None


def returnn_choice(measure: str | Sequence[str] | None = None) -> Callable[[Sequence[str]], str | None]:
    """`error_key` as the `score` of a LearningRateControl, over our names (`dev/ce`)."""

    def choose(names: Sequence[str]) -> str | None:
        by_key = {to_returnn_key(name): name for name in names}
        key = error_key(by_key, measure)
        return by_key[key] if key else None

    return choose
