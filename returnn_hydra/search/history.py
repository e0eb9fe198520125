"""Scores of label histories of different lengths, for searches that go through time and not label by label.

Legend: B sequences, V labels of the scorer.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from returnn_hydra.search.scorer import Encoded, LabelScorer, State


class Histories:
    """A tree of histories, with the scores of the next label behind each.

    Node b < B is the empty history of sequence b. A history is scored once, when it is first asked for; its state is
    kept only while it may still grow.
    """

    def __init__(self, scorer: LabelScorer, encoded: Encoded, bos: int) -> None:
        self.scorer = scorer
        self.device = encoded.device
        self._children: dict[tuple[int, int], int] = {}
        self._depth = [0] * encoded.num_seqs
        self._pending: dict[int, tuple[int, int]] = {}  # node -> parent, label
        self._states: dict[int, tuple[State, int]] = {}  # node -> state of a group of nodes, and its place in there
        self._table: np.ndarray | None = None
        self._rows: dict[int, int] = {}  # node -> row in the table
        self._free: list[int] = []
        roots = list(range(encoded.num_seqs))
        self._score(roots, [bos] * len(roots), scorer.initial_state(encoded))

    def child(self, node: int, label: int) -> int:
        """The history that is one label longer."""
        key = (node, label)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = len(self._depth)
            self._depth.append(self._depth[node] + 1)
        if found not in self._rows:
            self._pending[found] = key
        return found

    def rows(self, nodes: list[int]) -> np.ndarray:
        """Rows of the table for these nodes; those not scored yet are scored together, all of the same length at
        once.
        """
        while self._pending:
            depth = min(self._depth[node] for node in self._pending)
            group = [node for node in self._pending if self._depth[node] == depth]
            parents, labels = zip(*(self._pending.pop(node) for node in group), strict=True)
            self._score(group, list(labels), self._gather(parents))
        return np.array([self._rows[node] for node in nodes], dtype=np.int64)

    def scores(self, rows: np.ndarray, labels: np.ndarray | slice | int) -> np.ndarray:
        """Scores of labels behind the histories in these rows, broadcast against each other."""
        assert self._table is not None
        return self._table[rows, labels]

    def retain(self, nodes: Iterable[int]) -> None:
        """Forget the scores and states of all other nodes."""
        live = set(nodes)
        for node in [node for node in self._rows if node not in live]:
            self._free.append(self._rows.pop(node))
            del self._states[node]

    def _gather(self, parents: tuple[int, ...]) -> State:
        """The states of these nodes, which have equally many labels."""
        groups: dict[int, tuple[State, list[int], list[int]]] = {}
        for place, parent in enumerate(parents):
            state, row = self._states[parent]
            _, rows, places = groups.setdefault(id(state), (state, [], []))
            rows.append(row)
            places.append(place)
        parts = [self.scorer.keep(state, torch.tensor(rows, device=self.device)) for state, rows, _ in groups.values()]
        if len(parts) == 1:
            return parts[0]
        order = np.argsort([place for _, _, places in groups.values() for place in places])
        return self.scorer.keep(self.scorer.concat(parts), torch.from_numpy(order).to(self.device))

    def _score(self, nodes: list[int], labels: list[int], state: State) -> None:
        log_probs, state = self.scorer.score(torch.tensor(labels, device=self.device)[:, None], state)
        table = np.empty((0, log_probs.shape[-1])) if self._table is None else self._table
        missing = len(nodes) - len(self._free)
        if missing > 0:
            size, grown = len(table), max(missing, len(table))
            table = np.concatenate([table, np.empty((grown, table.shape[1]))])
            self._free += range(size + grown - 1, size - 1, -1)
        rows = [self._free.pop() for _ in nodes]
        table[rows] = log_probs[:, 0].double().cpu().numpy()
        self._table = table
        for place, (node, row) in enumerate(zip(nodes, rows, strict=True)):
            self._rows[node] = row
            self._states[node] = (state, place)
