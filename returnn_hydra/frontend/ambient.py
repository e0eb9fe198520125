"""The frontend's one piece of ambient state: run context, default device, default dtypes, behaviour version.

RETURNN's functions take none of these as arguments, so they have to live somewhere; everything else in the project gets
what it needs as arguments. Nothing outside `frontend/` and `compat/` reads this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NEWEST_BEHAVIOR_VERSION = 38
UNSET_BEHAVIOR_VERSION = 16
"""What RETURNN's frontend uses when a config says nothing (measured)."""


@dataclass
class Ambient:
    """Everything that RETURNN's frontend functions look up instead of being told."""

    run_ctx: Any = None
    device: str | None = None
    float_dtype: str = "float32"
    behavior_version: int | None = None
    """None: the config did not say."""
    static_seed: int = 42
    static_rng: np.random.RandomState = field(default_factory=lambda: np.random.RandomState(42))
    """Where the seeds of initial parameters (and of `rf.random(static=True)`) come from, as in RETURNN."""
    options: dict[str, Any] = field(default_factory=dict)
    """Config entries that frontend functions look up: `rf_att_dropout_broadcast` and the like."""
    parameter_copies: str = "copy_init"
    """What copies of parameters are: new ones (copy_init) or the same (share)."""
    amp_policy: Any = None
    static_traceable: bool = False
    control_flow_ctx: Any = None
    make_vocab: Callable[[Any], Any] | None = None
    """Makes a vocabulary of a tensor's option dict `vocab`."""

    @property
    def behavior(self) -> int:
        return UNSET_BEHAVIOR_VERSION if self.behavior_version is None else self.behavior_version


ambient = Ambient()


def behavior_at_least(version: int, option: str | None = None) -> bool:
    """Whether the config asked for RETURNN's behaviour version `version` or a newer one.

    Args:
        option: the config key that decides on its own, if it is set.
    """
    chosen = ambient.options.get(option) if option is not None else None
    return ambient.behavior >= version if chosen is None else bool(chosen)


def use_mask_default(
    *,
    default: bool | None = None,
    default_false_for_behavior_version_up_to: int | None = None,
    func_name: str | None = None,
) -> bool | None:
    """Whether a function masks padding if it is not told: by the config's `rf_use_mask` or `rf_use_mask_<func_name>`,
    else no up to that behaviour version, else `default`."""
    for option in ("rf_use_mask", f"rf_use_mask_{func_name}"):
        if ambient.options.get(option) is not None:
            return bool(ambient.options[option])
    last_false = default_false_for_behavior_version_up_to
    return False if last_false is not None and not behavior_at_least(last_false + 1) else default


@contextlib.contextmanager
def ambient_state(**values: Any) -> Iterator[Ambient]:
    """Set fields of the ambient state for a while; all of it is restored afterwards, whatever the body did."""
    saved = dict(vars(ambient))
    for name, value in values.items():
        setattr(ambient, name, value)
    try:
        yield ambient
    finally:
        for name, value in saved.items():
            setattr(ambient, name, value)


def get_default_device() -> str | None:
    """Where new tensors go; None: torch's own default."""
    return ambient.device


def set_default_device(device: str | None) -> None:
    """Where new tensors go from now on."""
    ambient.device = device


@contextlib.contextmanager
def set_default_device_ctx(device: str | None) -> Iterator[None]:
    """Where new tensors go inside the `with` block."""
    with ambient_state(device=device):
        yield


def get_default_float_dtype() -> str:
    """Dtype of new float tensors."""
    return ambient.float_dtype


def set_default_float_dtype(dtype: str) -> None:
    """Dtype of new float tensors from now on."""
    ambient.float_dtype = dtype


@contextlib.contextmanager
def set_default_float_dtype_ctx(dtype: str) -> Iterator[None]:
    """Dtype of new float tensors inside the `with` block."""
    with ambient_state(float_dtype=dtype):
        yield


def get_default_int_dtype() -> str:
    """Dtype of new integer tensors."""
    return "int32"


def get_default_array_index_dtype() -> str:
    """Dtype of new index tensors."""
    return "int32"


def get_default_dim_size_device() -> str:
    """Sequence lengths live on the CPU: reading them costs no synchronisation."""
    return "cpu"


def is_executing_eagerly() -> bool:
    """Always: there are no graphs here."""
    return True


def is_float_dtype(dtype: str) -> bool:
    """float32, bfloat16, ..."""
    return dtype.startswith(("float", "bfloat"))


def select_backend_torch() -> None:
    """There is no other backend; accepted so that RETURNN code runs unchanged."""


def get_selected_backend() -> str:
    """The name of the only backend."""
    return "torch"


def select_backend(name: str) -> None:
    """Accepts "torch".

    Raises:
        ValueError: any other backend.
    """
    if name != "torch":
        raise ValueError(f"backend '{name}' is not available; this frontend runs on torch")
