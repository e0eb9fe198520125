"""An exact LSTM on padded batches, several times faster on CPU than torch's over packed sequences.

Legend: B sequences, T frames, F input features, H hidden units, D directions (1 or 2), L layers.

torch runs packed sequences on CPU step by step in its generic kernels; only padded input reaches the fused oneDNN
layer. A forward LSTM on padded input is exact at the real frames, as the padding comes after them. The backward
direction is made a forward one: reverse every sequence within its own length, run forward, reverse the outputs back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from returnn_hydra.batch import sequence_mask

State = tuple[Tensor, Tensor]


class LSTM(nn.LSTM):
    """`nn.LSTM` over padded sequences: same parameters and names, same outputs and gradients as over packed ones.

    Args:
        input_size: F.
        hidden_size: H.
        num_layers: L; each reads the outputs of the one below.
        bidirectional: a second LSTM per layer that runs from the last frame to the first.
        dropout: on the outputs of all layers but the last, in training.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if num_layers == 1:
            dropout = 0.0  # there is nothing between layers; torch warns about it
        super().__init__(input_size, hidden_size, num_layers, dropout=dropout, bidirectional=bidirectional)
        self.output_size = hidden_size * (2 if bidirectional else 1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Outputs of the top layer, zero at the padding, and the lengths as they came.

        Args:
            features: (B, T, F); what stands in the padding does not matter, if it is finite.
            lengths: (B,) frames.

        Returns:
            (B, T, D*H) and (B,).

        Raises:
            ValueError: another number of features than `input_size` (the fast kernel would read other memory).
        """
        if features.shape[-1] != self.input_size:
            raise ValueError(f"LSTM: {features.shape[-1]} features, but input_size={self.input_size}")
        if features.is_cuda:  # cuDNN has fused kernels for packed sequences
            return self.forward_with_state(features, lengths)[0], lengths
        time_major = features.transpose(0, 1)
        outputs = self._run_layers(time_major, lengths).transpose(0, 1)
        return outputs * sequence_mask(lengths, features.shape[1])[:, :, None], lengths

    def forward_with_state(self, features: Tensor, lengths: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The same with initial and final states, which the fast way cannot give for sequences of different lengths.

        Args:
            features: (B, T, F).
            lengths: (B,).
            state: (h, c) before the first frame, each (L*D, B, H) as in nn.LSTM; default zeros.

        Returns:
            (B, T, D*H), and (h, c) after the last real frame of each sequence (backward direction: the first frame).
        """
        size = (self.num_layers * (2 if self.bidirectional else 1), features.shape[0], self.hidden_size)
        h, c = state if state is not None else (features.new_zeros(size), features.new_zeros(size))
        packed = pack_padded_sequence(
            features.transpose(0, 1), lengths.clamp(min=1).cpu(), enforce_sorted=False
        )  # it knows no empty sequences: they get one frame, undone below
        packed_outputs, (h_n, c_n) = super().forward(packed, (h, c))
        outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=features.shape[1])
        outputs = outputs * sequence_mask(lengths, features.shape[1])[:, :, None]
        empty = (lengths == 0)[None, :, None]
        return outputs, (torch.where(empty, h, h_n), torch.where(empty, c, c_n))

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """One frame (unidirectional): (N, F) and (h, c), each (L, N, H) -> (N, H) and the new state."""
        outputs, new_state = super().forward(inputs[None], state)
        return outputs[0], new_state

    def _run_layers(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(T, B, F) -> (T, B, D*H); the padding holds rubbish."""
        rows = _reversal(lengths, features.shape[0]) if self.bidirectional else None
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0.0:
                features = F.dropout(features, self.dropout, self.training)
            outputs = self._run_direction(features, f"l{layer}")
            if rows is not None:
                reverse = self._run_direction(_take_rows(features, rows), f"l{layer}_reverse")
                outputs = torch.cat([outputs, _take_rows(reverse, rows)], dim=-1)
            features = outputs
        return features

    def _run_direction(self, features: Tensor, name: str) -> Tensor:
        """One layer, one direction, from the first frame to the last: (T, B, F) -> (T, B, H)."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self, f"{weight}_{name}") for weight in names]
        zeros = features.new_zeros(1, features.shape[1], self.hidden_size)
        # arguments: has_biases, num_layers, dropout, train, bidirectional, batch_first
        outputs, _, _ = torch.lstm(features, [zeros, zeros], weights, True, 1, 0.0, self.training, False, False)
        return outputs


def _reversal(lengths: Tensor, max_length: int) -> Tensor:
    """Rows of a flattened (T, B) array in the order that reverses each sequence within its length: (T*B,)."""
    frame = torch.arange(max_length, device=lengths.device)[:, None]
    source = torch.where(frame < lengths, lengths - 1 - frame, frame)  # (T, B)
    return (source * lengths.shape[0] + torch.arange(lengths.shape[0], device=lengths.device)).flatten()


def _take_rows(features: Tensor, rows: Tensor) -> Tensor:
    """(T, B, F) with its T*B rows in another order."""
    return features.reshape(-1, features.shape[2]).index_select(0, rows).view(features.shape)
