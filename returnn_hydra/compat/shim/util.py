"""returnn.util, returnn.util.basic: the helpers that configs use."""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from returnn_hydra.compat.shim.numbers_dict import NumbersDict
from returnn_hydra.compat.shim.root import __long_version__
from returnn_hydra.compat.shim.util_math import ceil_div, next_power_of_two
from returnn_hydra.frontend.ambient import NEWEST_BEHAVIOR_VERSION, ambient
from returnn_hydra.frontend.tensor_template import NotSpecified

__all__ = [
    "BehaviorVersion",
    "NotSpecified",
    "NumbersDict",
    "OptionalNotImplementedError",
    "Stats",
    "ceil_div",
    "cf",
    "describe_returnn_version",
    "get_fwd_compat_kwargs",
    "get_login_username",
    "hms",
    "hms_fraction",
    "human_bytes_size",
    "load_json",
    "model_epoch_from_filename",
    "next_power_of_two",
    "prod",
]


class OptionalNotImplementedError(NotImplementedError):
    """Something optional is not there."""


def cf(filename: str) -> str:
    """The file itself: there is no cache manager."""
    return filename


def get_login_username() -> str:
    """Name of the user."""
    return getpass.getuser()


def describe_returnn_version() -> str:
    """This project's version, in RETURNN's words."""
    return __long_version__


def get_fwd_compat_kwargs() -> dict[str, Any]:
    """An argument that no function knows: whoever calls a config's function with it makes sure of its `**kwargs`."""
    return {"__fwd_compat_random_arg_0": None}


def hms(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def hms_fraction(seconds: float, decimals: int = 4) -> str:
    """With a fraction of the second."""
    return hms(seconds) + f"{seconds - int(seconds):.{decimals}f}"[1:]


def human_bytes_size(size: float) -> str:
    """1536 -> "1.5KB"."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(size) < 1024 or unit == "TB":
            return f"{size:.1f}{unit}" if unit != "B" else f"{size}B"
        size /= 1024
    raise AssertionError


def load_json(filename: str | None = None, content: str | None = None) -> Any:
    """A JSON file or text; // comments are allowed."""
    if content is None:
        assert filename is not None
        with open(filename, encoding="utf8") as file:
            content = file.read()
    return json.loads(re.sub(r"^\s*//.*$", "", content, flags=re.MULTILINE))


def model_epoch_from_filename(filename: str) -> int:
    """The epoch in a checkpoint's name: "model.012.pt" -> 12.

    Raises:
        ValueError: there is none.
    """
    numbers = re.findall(r"\.(?:pretrain\.)?(\d{3,})(?=\.|$)", os.path.basename(filename))
    if not numbers:
        raise ValueError(f"'{filename}' has no epoch in its name (as in model.012.pt)")
    return int(numbers[-1])


def prod(numbers: Iterable[Any]) -> Any:
    """Product."""
    result: Any = 1
    for number in numbers:
        result = result * number
    return result


class Stats:
    """Mean, variance, extremes of vectors that come one by one."""

    def __init__(self, format_str: Any = None) -> None:
        self.min: Any = None
        self.max: Any = None
        self.total_data_len = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def collect(self, data: Any) -> None:
        """Rows of vectors, or numbers."""
        for row in np.asarray(data, dtype="float64"):
            self.total_data_len += 1
            deviation = row - self._mean
            self._mean = self._mean + deviation / self.total_data_len
            self._squares = self._squares + deviation * (row - self._mean)
            self.min = row if self.min is None else np.minimum(self.min, row)
            self.max = row if self.max is None else np.maximum(self.max, row)

    def get_mean(self) -> Any:
        return self._mean

    def get_std_dev(self) -> Any:
        return np.sqrt(self._squares / max(self.total_data_len, 1))


class BehaviorVersion:
    """RETURNN's switch of old and new behaviour: the config's `behavior_version`."""

    _latest_behavior_version = NEWEST_BEHAVIOR_VERSION

    @classmethod
    def get(cls) -> int:
        """The version in force."""
        return ambient.behavior

    @classmethod
    def is_set(cls) -> bool:
        return ambient.behavior_version is not None

    @classmethod
    def set(cls, version: int) -> None:
        """Raises ValueError for a version that does not exist."""
        if not 0 <= version <= NEWEST_BEHAVIOR_VERSION:
            raise ValueError(f"behavior_version {version} is not in 0..{NEWEST_BEHAVIOR_VERSION}")
        ambient.behavior_version = version

    @classmethod
    def set_min_behavior_version(cls, version: int) -> None:
        """At least this one."""
        cls.set(max(version, cls.get()))

    @classmethod
    def require(cls, condition: bool, message: str, version: int) -> None:
        """Raises ValueError if the condition does not hold although the version is at least `version`."""
        if not condition and cls.get() >= version:
            raise ValueError(f"{message} (since behavior_version {version})")
