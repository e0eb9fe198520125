"""RETURNN's `self` and `network` as functions of configs see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.expressions import Facade
from returnn_hydra.network.named_tensor import NamedTensor, to_beam
from returnn_hydra.network.tf_face.data import UserData
from returnn_hydra.network.tf_face.tensor import tf_tensor

if TYPE_CHECKING:
    from returnn_hydra.network.call import LayerCall
    from returnn_hydra.network.scope import Scope


class UserConfig(Facade):
    """`network.get_config()`: what the config defines."""

    expression_attributes = frozenset("typed_value typed_dict float int bool value has".split())

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.typed_dict = dict(options)

    def typed_value(self, key: str, default: Any = None) -> Any:
        if key not in self.typed_dict and default is None:
            raise NetworkError(f"the config has no {key!r}{nearest(key, self.typed_dict)}")
        return self.typed_dict.get(key, default)

    def has(self, key: str) -> bool:
        return key in self.typed_dict

    def value(self, key: str, default: Any = None) -> Any:
        return self.typed_dict.get(key, default)

    def float(self, key: str, default: Any) -> Any:
        return float(self.typed_dict.get(key, default))

    def int(self, key: str, default: Any) -> Any:
        return int(self.typed_dict.get(key, default))

    def bool(self, key: str, default: Any) -> Any:
        return bool(self.typed_dict.get(key, default))


class UserNetwork(Facade):
    """`self.network`: the modes of the pass, and other layers."""

    expression_attributes = frozenset(
        "get_config train_flag global_train_step cond_on_train get_layer layers get_root_network "
        "get_data_batch_dim eval_flag search_flag epoch get_rec_step_index is_inside_rec_layer parent_net "
        "extern_data".split()
    )

    def __init__(self, call: LayerCall | _Outside) -> None:
        self._call = call
        run = call.run
        self.train_flag = run.train
        self.search_flag = run.search
        self.eval_flag = run.with_losses
        self.epoch = run.epoch

    @property
    def global_train_step(self) -> Tensor:
        return tf_tensor(torch.tensor(self._call.run.step, dtype=torch.int64))

    def get_config(self) -> UserConfig:
        return UserConfig(self._call.run.user.get("config", {}))

    def get_root_network(self) -> UserNetwork:
        """The same: modes and steps are those of the whole pass, and layers are looked up from here."""
        return self

    def cond_on_train(self, fn_train: Callable[[], Any], fn_eval: Callable[[], Any]) -> Any:
        return fn_train() if self.train_flag else fn_eval()

    def get_data_batch_dim(self) -> int:
        return self._call.run.batch.size

    def get_rec_step_index(self) -> Tensor:
        return tf_tensor(self._call.scope.step_index().raw)

    @property
    def parent_net(self) -> UserNetwork:
        """The network around the rec layer or sub-network."""
        outside = self._call.scope.parent
        if outside is None:
            raise NetworkError(f"{self._call.path}: there is no network around this one (parent_net)")
        return UserNetwork(_Outside(outside, self._call.path))

    @property
    def extern_data(self) -> _Streams:
        return _Streams(self._call)

    def is_inside_rec_layer(self) -> bool:
        return self._call.stepping or self._call.loop_axis is not None

    def get_layer(self, name: str) -> UserSource:
        return UserSource(self._call, name)

    @property
    def layers(self) -> _Layers:
        return _Layers(self._call)


class _Outside:
    """What `UserNetwork` needs of a layer, for a network around it."""

    stepping = False

    def __init__(self, scope: Scope, path: str) -> None:
        self.scope = scope
        self.run = scope.run
        self.path = path
        self.layer = scope.get
        self.loop_axis = scope.loop_axis


class _Streams(Facade):
    """`network.extern_data`."""

    expression_attributes = frozenset(("data",))

    def __init__(self, call: LayerCall | _Outside) -> None:
        self.data = _StreamTable(call)


class _StreamTable:
    def __init__(self, call: LayerCall | _Outside) -> None:
        self._call = call

    def __getitem__(self, key: str) -> UserData:
        return UserData(self._call.scope.data(key), self._call.scope.all_hidden)


class _Layers:
    def __init__(self, call: LayerCall | _Outside, path: str = "") -> None:
        self._call = call
        self._path = path

    def __getitem__(self, name: str) -> UserSource:
        return UserSource(self._call, self._path + name)


class UserSource(Facade):
    """Another layer: `.output` is its data."""

    expression_attributes = frozenset(("output", "subnetwork", "name", "search_choices"))

    def __init__(self, call: LayerCall | _Outside, name: str) -> None:
        self._call = call
        self.name = name
        self.output = UserData(call.layer(name), call.scope.all_hidden)

    @property
    def search_choices(self) -> UserSearch:
        return UserSearch(self.output.named, self.name)

    @property
    def subnetwork(self) -> UserSubnetwork:
        return UserSubnetwork(self._call, f"{self.name}/")


class UserSearch(Facade):
    """Scores of the hypotheses of a layer: (B, K)."""

    expression_attributes = frozenset(("beam_scores", "src_beams"))

    def __init__(self, value: NamedTensor, name: str) -> None:
        decided = (value.parts or {}).get("beam_scores")
        step: Any = value.beam_axis.choice if value.beam_axis is not None else None
        if decided is None and step is None:
            raise NetworkError(f"layer {name!r} comes from no search (search_choices)")
        self.beam_scores = tf_tensor(decided.raw[:, None] if decided is not None else step.final_scores.raw)
        self.src_beams = tf_tensor(step.source_beams.raw) if step is not None else None


class UserSubnetwork(Facade):
    """The network inside of a layer."""

    expression_attributes = frozenset(("layers",))

    def __init__(self, call: LayerCall | _Outside, path: str) -> None:
        self.layers = _Layers(call, path)


class UserLayer(Facade):
    """`self` in an expression."""

    expression_attributes = frozenset(("network", "name", "sources", "get_batch_dim"))

    def __init__(self, call: LayerCall) -> None:
        self._call = call
        self.network = UserNetwork(call)
        self.name = call.name

    @property
    def sources(self) -> list[UserSource]:
        return [UserSource(self._call, name) for name in self._call.spec.sources]

    def get_batch_dim(self) -> int:
        return self._call.run.batch.size


class UserChoice(UserLayer):
    """The `choice` layer as its `custom_score_combine` sees it."""

    def __init__(self, call: LayerCall, sources: Sequence[str], dim: int) -> None:
        super().__init__(call)
        self.explicit_search_sources = [_BeamSource(call, name) for name in sources]
        self.output = _Labels(dim)


@dataclass(frozen=True)
class _Labels:
    """`layer.output` while the labels are still being chosen."""

    dim: int


class _BeamSource(UserSource):
    """A layer for the hypotheses that the search goes on from."""

    def __init__(self, call: LayerCall, name: str) -> None:
        self._call = call
        self.name = name
        value = call.layer(name)
        beam = call.scope.step.beam if call.scope.step is not None else None
        self.output = UserData(value if beam is None else to_beam(value, beam), call.scope.all_hidden)
