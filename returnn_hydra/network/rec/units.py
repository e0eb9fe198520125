"""Recurrent units under RETURNN's and TensorFlow's names.

Legend: N rows (sequences, hypotheses), T frames, F input features, H units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest

State = dict[str, Tensor]


class Unit(Protocol):
    """A recurrent unit with its parameters."""

    state_keys: tuple[str, ...]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(N, F) and the state, (N, H) each -> (N, H) and the new state."""

    def sequence(
        self, x: Tensor, lengths: Tensor, state: State | None, need_state: bool
    ) -> tuple[Tensor, State | None]:
        """(T, N, F), lengths (N,) on the CPU -> (T, N, H), zero at the padding, and the state behind the last."""


def zero_state(unit: Unit, rows: int, size: int, like: Tensor) -> State:
    return {key: like.new_zeros(rows, size) for key in unit.state_keys}


def _inside(x: Tensor, lengths: Tensor) -> Tensor:
    """True at real frames: (T, N, 1)."""
    return (torch.arange(x.shape[0])[:, None] < lengths)[:, :, None].to(x.device)


class _Stepwise:
    """Runs a cell over a sequence frame by frame; the state stops changing behind the end."""

    state_keys: tuple[str, ...] = ("c", "h")
    size: int

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        raise NotImplementedError

    def sequence(
        self, x: Tensor, lengths: Tensor, state: State | None, need_state: bool
    ) -> tuple[Tensor, State | None]:
        del need_state
        state = state or zero_state(self, x.shape[1], self.size, x)
        outputs = []
        inside = _inside(x, lengths)
        for t in range(x.shape[0]):
            y, new = self.step(x[t], state)
            keep = inside[t]
            state = {key: torch.where(keep, new[key], state[key]) for key in state}
            outputs.append(y * keep)
        if not outputs:
            return x.new_zeros(0, x.shape[1], self.size), state
        return torch.stack(outputs), state


class NativeLstm(_Stepwise):
    """c = sigma(f) c + sigma(i) tanh(z), h = sigma(o) tanh(c); columns of W in the order z, i, f, o; no forget bias."""

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        self.size = size
        gates = [size] * 4
        recurrent_init = call.given("recurrent_weights_init", weights_init)
        self.weight = call.param("rec/W", (size_in, 4 * size), weights_init, blocks=[[size_in], gates])
        self.recurrent = call.param("rec/W_re", (size, 4 * size), recurrent_init, blocks=[[size], gates])
        self.bias = call.param("rec/b", (4 * size,), call.given("bias_init", 0.0), blocks=[gates])
        drop = options.pop("rec_weight_dropout", 0.0)
        options.pop("rec_weight_dropout_shape", None)
        options.pop("forget_bias", None)
        if drop and call.train and not call.run.building:
            self.recurrent = torch.nn.functional.dropout(self.recurrent, drop)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        z, i, f, o = (x @ self.weight + state["h"] @ self.recurrent + self.bias).chunk(4, -1)
        c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, {"c": c, "h": h}

    def sequence(
        self, x: Tensor, lengths: Tensor, state: State | None, need_state: bool
    ) -> tuple[Tensor, State | None]:
        if x.shape[0] == 0:
            return super().sequence(x, lengths, state, need_state)
        weights = self._torch_weights()
        if x.is_cuda or need_state:
            return self._packed(x, lengths, state, weights)
        # padded input reaches torch's fast CPU kernel; what comes behind the end changes nothing before it
        h0, c0 = self._start(x, state)
        outputs = torch.lstm(x, [h0, c0], weights, True, 1, 0.0, False, False, False)[0]
        return outputs * _inside(x, lengths), None

    def _torch_weights(self) -> list[Tensor]:
        """The same in torch's layout: rows in the order i, f, z, o, all bias with the input."""
        blocks = [self._reordered(w) for w in (self.weight.t(), self.recurrent.t(), self.bias)]
        return [*blocks, torch.zeros_like(blocks[2])]

    @staticmethod
    def _reordered(rows: Tensor) -> Tensor:
        z, i, f, o = rows.chunk(4, 0)
        return torch.cat([i, f, z, o], 0)

    def _start(self, x: Tensor, state: State | None) -> tuple[Tensor, Tensor]:
        state = state or zero_state(self, x.shape[1], self.size, x)
        return state["h"][None].contiguous(), state["c"][None].contiguous()

    def _packed(self, x: Tensor, lengths: Tensor, state: State | None, weights: list[Tensor]) -> tuple[Tensor, State]:
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
        order, back = packed.sorted_indices, packed.unsorted_indices
        assert order is not None and back is not None
        h0, c0 = (part.index_select(1, order) for part in self._start(x, state))
        weights = [weight.contiguous() for weight in weights]
        data, h, c = torch.lstm(packed.data, packed.batch_sizes, [h0, c0], weights, True, 1, 0.0, False, False)
        result = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        outputs, _ = pad_packed_sequence(result, total_length=x.shape[0])
        final = {"c": c[0].index_select(0, back), "h": h[0].index_select(0, back)}
        empty = (lengths == 0).to(x.device)[:, None]
        start = state or zero_state(self, x.shape[1], self.size, x)
        final = {key: torch.where(empty, start[key], value) for key, value in final.items()}
        return outputs * _inside(x, lengths), final


class TfLstm(_Stepwise):
    """TensorFlow's LSTM cells: one kernel for (x, h), gates i, j, f, o, and `forget_bias` added to f."""

    cell_name = "lstm_cell"

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        self.size = size
        self.forget_bias = options.pop("forget_bias", 1.0)
        self.kernel = call.param(f"rec/{self.cell_name}/kernel", (size_in + size, 4 * size), weights_init)
        self.bias = call.param(f"rec/{self.cell_name}/bias", (4 * size,), 0.0)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        i, j, f, o = (torch.cat([x, state["h"]], -1) @ self.kernel + self.bias).chunk(4, -1)
        c = torch.sigmoid(f + self.forget_bias) * state["c"] + torch.sigmoid(i) * torch.tanh(j)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, {"c": c, "h": h}

    def sequence(
        self, x: Tensor, lengths: Tensor, state: State | None, need_state: bool
    ) -> tuple[Tensor, State | None]:
        if type(self).step is not TfLstm.step:
            return super().sequence(x, lengths, state, need_state)
        return _as_native(self, x.shape[-1]).sequence(x, lengths, state, need_state)


def _as_native(cell: TfLstm, size_in: int) -> NativeLstm:
    """The same LSTM with the forget bias in the bias, for the fast kernels."""
    native = NativeLstm.__new__(NativeLstm)
    order = [1, 0, 2, 3]  # i, j, f, o -> z, i, f, o
    kernel = torch.cat([cell.kernel.chunk(4, 1)[k] for k in order], 1)
    bias = [cell.bias.chunk(4)[k] for k in order]
    bias[2] = bias[2] + cell.forget_bias
    native.size = cell.size
    native.weight, native.recurrent, native.bias = kernel[:size_in], kernel[size_in:], torch.cat(bias)
    return native


class BasicLstm(TfLstm):
    cell_name = "basic_lstm_cell"


class ZoneoutLstm(TfLstm):
    """An LSTM whose state keeps some of its old entries: at random in training, on average otherwise."""

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        super().__init__(call, size_in, size, weights_init, options)
        self.factor_cell = float(options.pop("zoneout_factor_cell", 0.0))
        self.factor_output = float(options.pop("zoneout_factor_output", 0.0))
        if not 0 <= self.factor_cell <= 1 or not 0 <= self.factor_output <= 1:
            raise call.error("zoneout factors must be in [0, 1]")
        default = call.run.user.get("behavior_version", 0) >= 17
        self.zoned_output = bool(options.pop("use_zoneout_output", default))
        self.train = call.train

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, new = super().step(x, state)
        c = self._mixed(new["c"], state["c"], self.factor_cell)
        mixed = self._mixed(new["h"], state["h"], self.factor_output)
        return (mixed if self.zoned_output else h), {"c": c, "h": mixed}

    def _mixed(self, new: Tensor, old: Tensor, factor: float) -> Tensor:
        if not self.train or factor in (0.0, 1.0):
            return (1 - factor) * new + factor * old
        return torch.where(torch.rand_like(new) < factor, old, new)


class Gru(_Stepwise):
    """TensorFlow's GRU cell: h = u h + (1 - u) tanh([x, r h] K), the reset before the product."""

    state_keys = ("state",)

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        del options
        self.size = size
        self.gates = call.param("rec/gru_cell/gates/kernel", (size_in + size, 2 * size), weights_init)
        self.gates_bias = call.param("rec/gru_cell/gates/bias", (2 * size,), 1.0)
        self.candidate = call.param("rec/gru_cell/candidate/kernel", (size_in + size, size), weights_init)
        self.candidate_bias = call.param("rec/gru_cell/candidate/bias", (size,), 0.0)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = state["state"]
        r, u = torch.sigmoid(torch.cat([x, h], -1) @ self.gates + self.gates_bias).chunk(2, -1)
        c = torch.tanh(torch.cat([x, r * h], -1) @ self.candidate + self.candidate_bias)
        new = u * h + (1 - u) * c
        return new, {"state": new}


class BasicRnn(_Stepwise):
    """h = tanh([x, h] K + b)."""

    state_keys = ("state",)

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        del options
        self.size = size
        self.kernel = call.param("rec/basic_rnn_cell/kernel", (size_in + size, size), weights_init)
        self.bias = call.param("rec/basic_rnn_cell/bias", (size,), 0.0)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = torch.tanh(torch.cat([x, state["state"]], -1) @ self.kernel + self.bias)
        return h, {"state": h}


class Rhn(_Stepwise):
    """Recurrent highway network (Zilly et al., 2017, eq. 6-9, carry gate 1 - t): `depth` layers in every frame.

    `dropout` on the state has one mask for all frames.
    """

    state_keys = ("state",)

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        self.call, self.size = call, size
        self.rate = float(options.pop("dropout", 0.0)) if call.train and not call.run.building else 0.0
        options.pop("dropout", None)
        options.pop("dropout_seed", None)
        start = torch.zeros(2 * size)
        start[size:] = options.pop("transform_bias", None) or 0.0
        self.weight = call.param("rec/W", (size_in, 2 * size), weights_init)
        self.bias = call.param("rec/b", (2 * size,), start)
        depth = int(options.pop("depth", 5))
        names = [f"rec/rhn_cell/depth_{i}/W" for i in range(depth)]
        self.recurrent = [call.param(name, (size, 2 * size), weights_init) for name in names]
        self.mask: Tensor | None = None

    def _dropped(self, state: Tensor) -> Tensor:
        if not self.rate:
            return state
        if self.mask is None:
            self.mask = torch.empty_like(state).bernoulli_(1 - self.rate) / (1 - self.rate)
        return state * self.mask

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        now = state["state"]
        below: Tensor | float = x @ self.weight + self.bias
        for weight in self.recurrent:
            h, t = (self._dropped(now) @ weight + below).chunk(2, -1)
            now = now + torch.sigmoid(t) * (torch.tanh(h) - now)
            below = 0.0
        return now, {"state": now}


class LayerNormLstm(_Stepwise):
    """LSTM with layer normalisation in several places (`LayerNormVariantsLSTM`); gates i, j, f, o."""

    def __init__(self, call: LayerCall, size_in: int, size: int, weights_init: Any, options: dict[str, Any]) -> None:
        self.call, self.size, self.weights_init = call, size, weights_init
        defaults: dict[str, Any] = {
            "norm_gain": 1.0,
            "norm_shift": 0.0,
            "forget_bias": 0.0,
            "dropout": 0.0,
            "dropout_h": 0.0,
            "with_concat": False,
            "global_norm": True,
            "global_norm_joined": False,
            "per_gate_norm": False,
            "cell_norm": True,
            "cell_norm_in_output": True,
            "hidden_norm": False,
            "variance_epsilon": 1e-12,
        }
        self.o = {key: options.pop(key, value) for key, value in defaults.items()}
        if self.o["global_norm"] and (self.o["global_norm_joined"] or self.o["per_gate_norm"] or self.o["with_concat"]):
            raise call.error("global_norm goes with neither global_norm_joined, per_gate_norm nor with_concat")
        self.masks: dict[str, Tensor] = {}

    def _param(self, name: str, shape: tuple[int, ...], init: Any) -> Tensor:
        return self.call.param(f"rec/{name}", shape, init)

    def _norm(self, x: Tensor, name: str, beta: bool = True, forget: bool = False) -> Tensor:
        size = x.shape[-1]
        gamma = self._param(f"gamma_{name}", (size,), self.o["norm_gain"])
        shift = self.o["norm_shift"] + (self.o["forget_bias"] if forget else 0.0)
        bias = self._param(f"beta_{name}", (size,), shift) if beta else None
        return torch.nn.functional.layer_norm(x, (size,), gamma, bias, self.o["variance_epsilon"])

    def _linear(self, x: Tensor, name: str, bias: bool, forget: bool = False) -> Tensor:
        weight = self._param(f"W_{name}", (x.shape[-1], 4 * self.size), self.weights_init)
        if not bias:
            return x @ weight
        start = torch.zeros(4 * self.size)
        if forget:
            start[2 * self.size : 3 * self.size] = self.o["forget_bias"]
        return x @ weight + self._param(f"bias_{name}", (4 * self.size,), start)

    def _dropped(self, x: Tensor, name: str) -> Tensor:
        rate = self.o[name]
        if not rate or not self.call.train or self.call.run.building:
            return x
        if name not in self.masks or self.masks[name].shape != x.shape:
            self.masks[name] = torch.empty_like(x).bernoulli_(1 - rate) / (1 - rate)
        return x * self.masks[name]

    def _gates(self, x: Tensor, h: Tensor) -> Tensor:
        o = self.o
        if o["with_concat"]:
            biased = not o["per_gate_norm"] and not o["global_norm_joined"]
            return self._linear(torch.cat([x, h], -1), "ff_re", biased, forget=True)
        biased = not (o["global_norm"] or o["global_norm_joined"] or o["per_gate_norm"])
        below = self._linear(x, "ff", biased, forget=not o["per_gate_norm"])
        if o["global_norm"]:
            below = self._norm(below, "input_below", forget=True)
        state_below = self._linear(h, "re", False)
        if o["global_norm"]:
            state_below = self._norm(state_below, "state_below", beta=False)
        return below + state_below

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        o = self.o
        gates = self._gates(x, self._dropped(state["h"], "dropout_h"))
        if o["global_norm_joined"]:
            gates = self._norm(gates, "lstm_in", forget=True)
        parts = dict(zip("ijfo", gates.chunk(4, -1), strict=True))
        if o["per_gate_norm"]:
            parts = {key: self._norm(part, f"{key}_gate", forget=key == "f") for key, part in parts.items()}
        g = self._dropped(torch.tanh(parts["j"]), "dropout")
        c = torch.sigmoid(parts["f"]) * state["c"] + torch.sigmoid(parts["i"]) * g
        shown = c
        if o["cell_norm"]:
            c = self._norm(c, "new_c")
            shown = c if o["cell_norm_in_output"] else shown
        h = torch.sigmoid(parts["o"]) * torch.tanh(shown)
        if o["hidden_norm"]:
            h = self._norm(h, "new_h")
        return h, {"c": c, "h": h}


Make = Callable[[LayerCall, int, int, Any, dict[str, Any]], Any]
UNITS: dict[str, Make] = {
    **dict.fromkeys(("lstm", "lstmp", "nativelstm", "nativelstm2", "nativelstmlowmem", "cudnnlstm"), NativeLstm),
    # over whole sequences, current RETURNN takes its own LSTM for these; only as a cell they are TensorFlow's
    "lstmblock": NativeLstm,
    "lstmblockfused": NativeLstm,
    "standardlstm": TfLstm,
    "basiclstm": BasicLstm,
    "zoneoutlstm": ZoneoutLstm,
    "layernormvariantslstm": LayerNormLstm,
    "gru": Gru,
    "rnn": BasicRnn,
    "basicrnn": BasicRnn,
    "rhn": Rhn,
}


def make_unit(call: LayerCall, name: str, size_in: int, size: int, options: dict[str, Any] | None, init: Any) -> Unit:
    """A unit by its name, in any case, with or without `Cell`; `rnn_cell` layers take TensorFlow's LSTM for LSTMBlock.

    Raises:
        NetworkError: unknown unit or option.
    """
    key = str(name).lower().removesuffix("cell")
    if key not in UNITS:
        raise call.error(f"unit {name!r} is not supported{nearest(key, UNITS)}")
    if call.spec.known.name == "rnn_cell" and key in ("lstmblock", "lstmblockfused"):
        key = "standardlstm"
    rest = dict(options or {})
    unit = UNITS[key](call, size_in, size, init, rest)
    if rest:
        option = next(iter(rest))
        raise call.error(f"unit {name!r}: option {option!r} = {rest[option]!r} is not supported")
    return unit


def state_keys(name: str) -> tuple[str, ...]:
    key = str(name).lower().removesuffix("cell")
    return ("state",) if key in ("gru", "rnn", "basicrnn", "rhn") else ("c", "h")
