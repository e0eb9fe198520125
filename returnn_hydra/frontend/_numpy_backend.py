"""The name under which `rf.convert_to_tensor(..., _backend=NumpyBackend)` asks for values as numpy arrays."""

from __future__ import annotations


class NumpyBackend:
    """Only a name: functions run on torch."""

    name = "numpy"
