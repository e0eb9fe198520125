"""What a forward callback of a RETURNN config derives from."""

from __future__ import annotations

from typing import Any

from returnn_hydra.frontend.tensor_dict import TensorDict


class ForwardCallbackIface:
    """Gets the outputs of the forward task, sequence after sequence."""

    def init(self, *, model: Any) -> None:
        """Before the first sequence."""

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """One sequence; outputs have no batch axis and no padding, their raw tensors are numpy arrays."""
        raise NotImplementedError

    def finish(self) -> None:
        """After the last sequence."""
