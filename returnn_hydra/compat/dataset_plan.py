"""What a RETURNN dataset dict asks for: a source, an order, and what concerns the batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Node = dict[str, Any]
DATA = "returnn_hydra.data."
ORDER = ("seq_ordering", "partition_epoch", "repeat_epoch", "fixed_random_seed", "random_seed_offset")
PLAIN_ORDER = {"seq_ordering", "partition_epoch", "repeat_epoch"}


@dataclass
class DatasetPlan:
    """What a dataset dict asks for."""

    source: Node
    order: dict[str, Any] = field(default_factory=dict)
    """Arguments of SeqOrder."""
    batching: dict[str, Any] = field(default_factory=dict)
    """`chunking`, `min_chunk_size`."""
    num_workers: int = 0
    notes: list[str] = field(default_factory=list)
    """Options without effect."""
    tags_file: Any = None
    """The wanted sequences (`seq_list_filter_file`)."""

    @property
    def unordered(self) -> Node:
        """The wanted sequences of the source, whatever their order."""
        return self.source if self.tags_file is None else filtered(self.source, self.tags_file)

    def node(self) -> Node:
        """The source in its own order, as a part of another data set.

        As in RETURNN, all sequences are put in order before the wanted ones are picked, unless they are partitioned.
        """
        if not self.order or self.order == {"seq_ordering": "default"}:
            return self.unordered
        first = self.order.get("partition_epoch", 1) > 1
        source = self.unordered if first else self.source
        ordered = {"_target_": DATA + "ordered.OrderedDataset", "dataset": source, **self.order}
        return ordered if first or self.tags_file is None else filtered(ordered, self.tags_file)

    def conf(self) -> dict[str, Any]:
        """The entry `datasets.<name>` of our configuration; orders are RETURNN's, whatever the run's seed."""
        conf: dict[str, Any] = {**self.batching, "num_workers": self.num_workers, "seed": 1}
        if set(self.order) <= PLAIN_ORDER and self.tags_file is None:
            return {"source": self.source, **self.order, **conf}
        return {"source": self.node(), **conf}


def filtered(source: Node, file: Any) -> Node:
    """Only the sequences whose tags are in the file."""
    return {
        "_target_": DATA + "filter.FilterDataset",
        "dataset": source,
        "seq_list_filter_file": file,
        "require_all": False,
    }
