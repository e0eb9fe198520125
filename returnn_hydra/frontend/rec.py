"""Recurrent layers. Gates of `ff_weight` (4 out, in), `rec_weight` (4 out, out), `bias` (4 out) in torch's order
i, f, c, o."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from returnn_hydra.frontend.create import zeros
from returnn_hydra.frontend.dim import Dim, single_step_dim
from returnn_hydra.frontend.init import Glorot
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.rand import dropout_broadcast_default
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.state import LstmState
from returnn_hydra.frontend.tensor import Tensor


class _LstmBase(Module):
    """Parameters and the way from named axes to (T, N, F) and back."""

    def __init__(self, in_dim: Dim, out_dim: Dim, *, with_bias: bool = True) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        gates = 4 * out_dim
        self.ff_weight = Parameter([gates, in_dim], initial=Glorot())
        self.rec_weight = Parameter([gates, out_dim], initial=Glorot())
        self.bias = Parameter([gates], initial=0.0) if with_bias else None

    def default_initial_state(self, *, batch_dims: Sequence[Dim]) -> LstmState:
        """Zeros."""
        dims = [*batch_dims, self.out_dim]
        device = next(self.parameters()).device
        return LstmState(
            h=zeros(dims, feature_dim=self.out_dim, device=device),
            c=zeros(dims, feature_dim=self.out_dim, device=device),
        )

    def __call__(self, source: Tensor, *, state: LstmState, spatial_dim: Dim) -> tuple[Tensor, LstmState]:
        """(..., T, in) -> (..., T, out) and the state after every sequence's last frame; one step with
        single_step_dim."""
        step = spatial_dim == single_step_dim
        batch = [d for d in source.dims if d != self.in_dim and (step or d != spatial_dim)]
        extra = [d for d in state.h.dims if d != self.out_dim and d not in batch]
        batch += extra
        h, c = (
            t.copy_compatible_to_dims_raw([*batch, self.out_dim], unbroadcast=True).flatten(0, -2) if batch
            else t.raw_tensor[None]
            for t in (state.h, state.c)
        )  # fmt: skip
        shape = [d.get_dim_value() for d in batch]
        if step:
            x = source.copy_compatible_to_dims_raw([*batch, self.in_dim], unbroadcast=True).reshape(
                1, -1, source_size(self.in_dim)
            )
            lengths = None
        else:
            x = source.copy_compatible_to_dims_raw([spatial_dim, *batch, self.in_dim], unbroadcast=True)
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            lengths = self._flat_lengths(spatial_dim, batch, shape)
        y, h, c = self._run(x, h, c, lengths)
        out_dims = [*batch, self.out_dim]

        def named(raw: torch.Tensor, name: str) -> Tensor:
            return Tensor(
                name,
                dims=out_dims,
                dtype=source.dtype,
                feature_dim=self.out_dim,
                raw_tensor=raw.reshape([*shape, raw.shape[-1]]),
            )

        new_state = LstmState(h=named(h, "h"), c=named(c, "c"))
        if step:
            return named(y[0], "output"), new_state
        raw = y.reshape(y.shape[0], *shape, y.shape[-1])
        out = Tensor(
            "lstm", dims=[spatial_dim, *out_dims], dtype=source.dtype, feature_dim=self.out_dim, raw_tensor=raw
        )
        return out, new_state

    def _flat_lengths(self, dim: Dim, batch: list[Dim], shape: list[int]) -> torch.Tensor | None:
        if not dim.need_masking():
            return None
        lengths = dim.get_size_tensor()
        return lengths.copy_compatible_to_dims_raw(batch).expand(shape).reshape(-1).long()

    def _run(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T, N, in), (N, out), (N, out), (N,) -> (T, N, out), (N, out), (N, out)."""
        raise NotImplementedError


def source_size(dim: Dim) -> int:
    """The static size of a dim."""
    return dim.get_dim_value()


class LSTM(_LstmBase):
    """A unidirectional LSTM, computed by torch."""

    def _run(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = [self.ff_weight.raw_tensor, self.rec_weight.raw_tensor]
        bias = self.bias
        has_bias = bias is not None
        if bias is not None:
            weights += [bias.raw_tensor, torch.zeros_like(bias.raw_tensor)]
        h, c = h.to(x.dtype)[None].contiguous(), c.to(x.dtype)[None].contiguous()
        if lengths is None:
            y, h, c = torch._VF.lstm(x, (h, c), weights, has_bias, 1, 0.0, False, False, False)
            return y, h[0], c[0]
        empty = lengths == 0
        packed = pack_padded_sequence(x, lengths.clamp(min=1), enforce_sorted=False)
        order, back = packed.sorted_indices, packed.unsorted_indices
        assert order is not None
        assert back is not None
        data, new_h, new_c = torch._VF.lstm(
            packed.data, packed.batch_sizes, (h[:, order], c[:, order]), weights, has_bias, 1, 0.0, False, False
        )
        y, _ = pad_packed_sequence(PackedSequence(data, packed.batch_sizes, order, back), total_length=x.shape[0])
        new_h, new_c = new_h[0][back], new_c[0][back]
        if bool(empty.any()):
            nothing = empty.to(x.device)[:, None]
            new_h, new_c = torch.where(nothing, h[0], new_h), torch.where(nothing, c[0], new_c)
        return y, new_h, new_c


class ZoneoutLSTM(_LstmBase):
    """LSTM with zoneout (Krueger et al. 2017): some cells and outputs keep their value of the step before.

    In training at random, by default the same features for the whole batch, as RETURNN draws them; else the mixture
    with the probabilities as weights.

    Args:
        use_zoneout_output: the output has zoneout too; False: only what goes to the next step.
        forget_bias: added to the forget gate.
        parts_order: order of the gates in the weights: i(nput), f(orget), c(ell, also j), o(utput).
    """

    def __init__(
        self,
        in_dim: Dim,
        out_dim: Dim,
        *,
        with_bias: bool = True,
        zoneout_factor_cell: float = 0.0,
        zoneout_factor_output: float = 0.0,
        use_zoneout_output: bool = True,
        forget_bias: float = 0.0,
        parts_order: str = "ifco",
    ) -> None:
        super().__init__(in_dim, out_dim, with_bias=with_bias)
        self.zoneout_factor_cell = zoneout_factor_cell
        self.zoneout_factor_output = zoneout_factor_output
        self.use_zoneout_output = use_zoneout_output
        self.forget_bias = forget_bias
        self.dropout_broadcast = dropout_broadcast_default()
        self.parts_order = parts_order.replace("j", "c")
        if sorted(self.parts_order) != sorted("ifco"):
            raise ValueError(f"ZoneoutLSTM: parts_order '{parts_order}' must have each of i, f, c (or j), o once")

    def _run(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = torch.nn.functional.linear(x, self.ff_weight.raw_tensor)
        if self.bias is not None:
            inputs = inputs + self.bias.raw_tensor
        frames = []
        for index, frame in enumerate(inputs):
            output, new_h, new_c = self._step(frame, h, c)
            if lengths is not None:
                active = (lengths > index).to(x.device)[:, None]
                new_h, new_c = torch.where(active, new_h, h), torch.where(active, new_c, c)
            h, c = new_h, new_c
            frames.append(output)
        return torch.stack(frames) if frames else x.new_zeros(0, *h.shape), h, c

    def _step(
        self, frame: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gates = frame + h @ self.rec_weight.raw_tensor.t()
        part = dict(zip(self.parts_order, gates.chunk(4, dim=-1), strict=True))
        new_c = torch.sigmoid(part["f"] + self.forget_bias) * c + torch.sigmoid(part["i"]) * torch.tanh(part["c"])
        output = torch.sigmoid(part["o"]) * torch.tanh(new_c)
        new_c = self._zoneout(c, new_c, self.zoneout_factor_cell)
        new_h = self._zoneout(h, output, self.zoneout_factor_output)
        return (new_h if self.use_zoneout_output else output), new_h, new_c

    def _zoneout(self, before: torch.Tensor, after: torch.Tensor, factor: float) -> torch.Tensor:
        if factor == 0:
            return after
        if get_run_ctx().is_train_flag_enabled(func=ZoneoutLSTM.__call__):
            shape = after.shape[-1:] if self.dropout_broadcast else after.shape
            return torch.where(torch.rand(shape, device=after.device) < factor, before, after)
        return before * factor + after * (1.0 - factor)
