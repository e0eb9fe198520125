"""Cuts of the lhotse library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.audio import AudioDataset
from returnn_hydra.data.audio_file import AudioInfo
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.files import PathLike
from returnn_hydra.data.utterances import Utterance
from returnn_hydra.data.vocab import Vocabulary
from returnn_hydra.extras import require


class LhotseDataset(AudioDataset):
    """The cuts of a manifest: parts of recordings, with the text of their supervisions.

    Streams: as of AudioDataset.

    Args:
        cuts: a manifest of a CutSet (.jsonl.gz, ...), or the CutSet.
        stored_features: the dimension of features that are stored with the cuts, to be used as `data` instead of
            `audio`.
        others: as of AudioDataset.

    Raises:
        DataError: lhotse is not installed, or a cut has no audio or features.
    """

    def __init__(
        self,
        cuts: Any,
        audio: AudioFeatures | None = None,
        stored_features: int | None = None,
        targets: Vocabulary | None = None,
        targets_post_process: Callable[[str], str] | None = None,
        speed_factors: Sequence[float] = (),
        seed: int = 1,
    ) -> None:
        super().__init__(audio, targets, targets_post_process, speed_factors, seed, lengths="header")
        if stored_features is not None:
            if audio is not None:
                raise DataError("LhotseDataset: either audio or stored_features")
            self.streams = {"data": TensorSpec(dim=stored_features), **self.streams}
            self._wanted.add("data")
        self.source = cuts

    @property
    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, str | Path) else "CutSet"

    @cached_property
    def _cuts(self) -> list[Any]:
        return list(_open(self.source) if isinstance(self.source, str | Path) else self.source)

    def _utterances(self) -> Iterator[Utterance]:
        for cut in self._cuts:
            text = " ".join(supervision.text for supervision in cut.supervisions if supervision.text)
            yield Utterance(cut.id, text, float(cut.duration), cut.id)

    def _info(self, index: int) -> AudioInfo:
        cut = self._cuts[index]
        if cut.num_samples is None:
            raise DataError(f"{self._name}: cut {cut.id!r} has no audio")
        return AudioInfo(cut.num_samples, cut.sampling_rate)

    def _samples(self, index: int) -> tuple[np.ndarray, int, str]:
        cut = self._cuts[index]
        where = f"{self._name}: cut {cut.id!r}"
        try:
            audio = cut.load_audio()
        except Exception as error:  # lhotse raises whatever its readers raise
            raise DataError(f"{where}: {type(error).__name__}: {error}") from error
        if audio is None:
            raise DataError(f"{where} has no audio")
        return (audio[0] if len(audio) == 1 else audio.T).astype(np.float64), cut.sampling_rate, where

    @cached_property
    def _num_frames(self) -> np.ndarray | None:
        if self.audio is not None:
            return self._frames_of_audio()
        missing = [cut.id for cut in self._cuts if not cut.has_features]
        if missing:
            raise DataError(f"{self._name}: cut {missing[0]!r} has no stored features")
        return np.array([cut.num_frames for cut in self._cuts], dtype=np.int64)

    def _features(self, index: int) -> np.ndarray:
        if self.audio is not None:
            return super()._features(index)
        cut = self._cuts[index]
        features = cut.load_features()
        if features is None or features.shape[1:] != (self.streams["data"].dim,):
            found = "none" if features is None else f"shape {features.shape}"
            raise DataError(
                f"{self._name}: cut {cut.id!r}: stored features: {found}, expected {self.streams['data'].dim} of them"
            )
        return features.astype(np.float32)


def _open(path: PathLike) -> Any:
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    cut_set = require("lhotse", extra="lhotse").CutSet
    try:
        return cut_set.from_file(path)
    except Exception as error:  # lhotse raises whatever its readers raise
        raise DataError(f"{path}: can't be read as a CutSet: {type(error).__name__}: {error}") from error
