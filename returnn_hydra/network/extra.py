"""Networks beside the main one: `extra.search:output` is `output` once more, in search, with the same parameters.

An extra network lies over the main one: it computes the layers that are asked for under its prefix, and reads all
others from the main network. A key of the network dict with the prefix gives a layer other options there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.net import Net, split_extra
from returnn_hydra.network.parameters import ParameterStore
from returnn_hydra.network.run_state import RunState
from returnn_hydra.network.scope import Scope

SEARCH = "extra.search"
T = TypeVar("T")


class MainScope(Scope):
    """The whole network, and the extra ones beside it."""

    def __init__(self, net: Net, run: RunState, store: ParameterStore) -> None:
        super().__init__(net, run, store)
        self.extras: dict[str, ExtraScope] = {}

    def extra(self, prefix: str, inside: bool = False) -> ExtraScope:
        """The network under a prefix; see `ExtraScope`."""
        if prefix not in self.extras:
            self.extras[prefix] = ExtraScope(self, prefix, inside)
        return self.extras[prefix]

    def get(self, ref: Any) -> NamedTensor:
        split = split_extra(ref)
        return self.extra(split[0]).own(split[1]) if split else super().get(ref)

    def release(self) -> None:
        super().release()
        for scope in self.extras.values():
            scope.release()
        self.extras.clear()


class ExtraScope(Scope):
    """The layers of one extra network.

    Args:
        main: the whole network.
        prefix: `extra`, or `extra.NAME`; with `.search` in it, `choice` layers search.
        inside: layers that the main network has not computed are computed here, too.
    """

    is_extra = True

    def __init__(self, main: MainScope, prefix: str, inside: bool) -> None:
        given: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for name, options in main.net.layers.items():
            split = split_extra(name)
            if split is None:
                plain[name] = options
            elif split[0] == prefix:
                given[split[1]] = options
        net = main.net.memo.setdefault(("extra", prefix), Net({**plain, **given}, path=f"{prefix}:"))
        super().__init__(net, replace(main.run, search=".search" in prefix), main.store)
        self.main = main
        self.given = given.keys()
        self.inside = inside

    def get(self, ref: Any) -> NamedTensor:
        name = ref.partition("/")[0] if isinstance(ref, str) else ""
        own = name in self.values or name in self.given or (self.inside and name not in self.main.values)
        if split_extra(ref) or (name in self.net and not own):
            return self.main.get(ref)
        return super().get(ref)

    def own(self, ref: str) -> NamedTensor:
        """A layer that was asked for under the prefix: it is computed here in any case."""
        name = ref.partition("/")[0]
        if name in self.net:
            self.layer(name)
        return super().get(ref)

    def release(self) -> None:
        super().release()
        del self.main


def plain_names(by_path: Mapping[str, T]) -> dict[str, T]:
    """Losses of extra networks under the layer's own name, where no other loss has it."""
    own = {path: (split_extra(path) or ("", path))[1] for path in by_path}
    uses = Counter(own.values())
    return {own[path] if uses[own[path]] == 1 else path: value for path, value in by_path.items()}
