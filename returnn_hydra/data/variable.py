"""Data sets that are others in other epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from returnn_hydra.data.checks import spec_differences
from returnn_hydra.data.concat import ConcatDataset
from returnn_hydra.data.dataset import DataError, Dataset
from returnn_hydra.data.ordered import EpochDataset
from returnn_hydra.data.views import ComposedDataset


class VariableDataset(EpochDataset):
    """What a function returns for the epoch.

    Args:
        get_dataset: epoch -> data set; a pure function, with the same streams in every epoch.

    Raises:
        DataError: the streams change between epochs.
    """

    def __init__(self, get_dataset: Callable[..., Dataset]) -> None:
        self.get_dataset = get_dataset
        self.streams = get_dataset(epoch=1).streams
        self._current: tuple[int, Dataset] | None = None

    def _of_epoch(self, epoch: int) -> Dataset:
        if self._current is None or self._current[0] != epoch:
            dataset = self.get_dataset(epoch=epoch)
            if not isinstance(dataset, Dataset):
                raise DataError(
                    f"get_dataset returned a {type(dataset).__name__} for epoch {epoch}, expected a data set"
                )
            check_streams(self, dataset, f"get_dataset, epoch {epoch}")
            self._current = epoch, dataset
        return self._current[1].at_epoch(epoch)


def in_turn(datasets: Sequence[Dataset], epoch: int) -> Dataset:
    """The first in epoch 1, the next in epoch 2, ..., and the first again after the last; for VariableDataset."""
    return datasets[(epoch - 1) % len(datasets)]


def check_streams(expected: Dataset, dataset: Dataset, where: str) -> None:
    """Raise an error if the data sets have unlike streams."""
    if set(expected.streams) != set(dataset.streams):
        raise DataError(f"{where}: streams {sorted(dataset.streams)}, expected {sorted(expected.streams)}")
    for name, spec in expected.streams.items():
        if difference := spec_differences(dataset.streams[name], spec):
            raise DataError(f"{where}: stream {name!r} is unlike before: {difference}")


class MultiEpochDataset(ComposedDataset, EpochDataset):
    """Several epochs of another data set as one.

    Args:
        dataset: the data set; useful if its sequences depend on the epoch, e.g. an OrderedDataset with partition_epoch.
        multi_epoch: how many.
    """

    def __init__(self, dataset: Dataset, multi_epoch: int) -> None:
        if multi_epoch < 1:
            raise DataError(f"MultiEpochDataset: multi_epoch={multi_epoch}: must be at least 1")
        self.dataset = dataset
        self.streams = dataset.streams
        self.multi_epoch = multi_epoch

    def _of_epoch(self, epoch: int) -> Dataset:
        first = (epoch - 1) * self.multi_epoch + 1
        epochs = {f"epoch {i}": self.dataset.at_epoch(i) for i in range(first, first + self.multi_epoch)}
        distinct = ConcatDataset(epochs)
        try:
            distinct.seq_tags([])
        except DataError:
            return ConcatDataset(epochs, prefix_tags=True)
        return distinct
