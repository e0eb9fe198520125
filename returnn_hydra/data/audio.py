"""Speech: audio files with transcriptions, in a zip archive or in a folder.

Legend: N sequences, T frames, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.audio_file import AudioInfo, ZipFiles, audio_info, read_audio
from returnn_hydra.data.checks import did_you_mean, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.files import PathLike, decode_utf8, parse_literal, read_bytes, read_text
from returnn_hydra.data.perturb import change_speed, speed_length
from returnn_hydra.data.text_cleaners import CleanerLike, text_cleaner
from returnn_hydra.data.utterances import Utterance, exact_num_samples, parse_utterance, read_manifest
from returnn_hydra.data.views import Indices, as_array, renewed, tag_index
from returnn_hydra.data.vocab import Vocabulary

NUM_PROBES = 8
"""Files whose headers are compared with the list's durations before these are believed."""


class AudioDataset(Dataset):
    """Utterances of audio files; the base of AudioZipDataset and AudioFolderDataset.

    Streams: `data`, the features (if `audio`); `classes`, the text's labels (if `targets`); `orth`, its UTF-8 bytes;
        `raw`, the text.

    Args:
        audio: the features; None: text only.
        targets: the vocabulary; None: no labels.
        targets_post_process: str -> str, or the name of a cleaner (see text_cleaners.py), or several; applied to the
            text before it is encoded.
        speed_factors: one of them is drawn for every sequence in every epoch: the audio is played so many times as
            fast.
        seed: of all that is random here; draws depend on (seed, epoch, sequence) alone.
        lengths: how the frames of every sequence are found:
            header: from the headers of all audio files, at the first use;
            duration: from the list's durations, which must then be exact (an audio file that says otherwise is an
                error);
            auto: from durations that are whole numbers of samples, if the headers of some files agree, else from
                headers.
    """

    def __init__(
        self,
        audio: AudioFeatures | None,
        targets: Vocabulary | None,
        targets_post_process: CleanerLike | None,
        speed_factors: Sequence[float],
        seed: int,
        lengths: str,
    ) -> None:
        if lengths not in ("auto", "header", "duration"):
            raise DataError(f"lengths={lengths!r}{did_you_mean(lengths, ['auto', 'header', 'duration'])}")
        if speed_factors and audio is None:
            raise DataError("speed_factors without audio")
        self.audio = audio
        self.targets = targets
        self.targets_post_process = None if targets_post_process is None else text_cleaner(targets_post_process)
        self.speed_factors = list(speed_factors)
        self.seed = seed
        self.length_source = lengths
        self.epoch = 1
        self.streams = {
            "orth": TensorSpec(dim=256, sparse=True, dtype="uint8"),
            "raw": TensorSpec(shape=(), dtype="string"),
        }
        if targets is not None:
            self.streams = {"classes": TensorSpec(vocab=targets)} | self.streams
        if audio is not None:
            self.streams = {"data": audio.spec} | self.streams
        self._wanted = set(self.streams)

    def _utterances(self) -> Iterator[Utterance]:
        """All utterances of the list."""
        raise NotImplementedError

    def _content(self, utterance: Utterance) -> tuple[bytes | Path, str]:
        """The audio file of an utterance, and its name for error messages."""
        raise NotImplementedError

    @cached_property
    def _list(self) -> list[Utterance]:
        utterances = list(self._utterances())
        tag_index([utterance.seq_tag for utterance in utterances], self._name)
        if self.audio is not None and (missing := [u.seq_tag for u in utterances if u.file is None]):
            raise DataError(f"{self._name}: seq_tag {missing[0]!r} has no audio file")
        return utterances

    @property
    def _name(self) -> str:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._list)

    def seq_tags(self, indices: Indices) -> list[str]:
        return [self._list[i].seq_tag for i in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        stream_spec(self, stream)
        if stream == "data":
            return self._num_frames
        if stream == "classes":
            return self._num_labels
        return self._num_bytes if stream == "orth" else None

    def order_lengths(self) -> np.ndarray | None:
        """Hundredths of a second, of the list's durations."""
        durations = [utterance.duration for utterance in self._list]
        if None in durations:
            return super().order_lengths()
        return (np.array(durations, dtype=np.float64) * 100).astype(np.int64)

    @cached_property
    def _num_bytes(self) -> np.ndarray:
        return np.array([len(utterance.text.encode("utf-8")) for utterance in self._list], dtype=np.int64)

    @cached_property
    def _num_labels(self) -> np.ndarray | None:
        if self.targets is None or self.targets.is_random:
            return None
        return np.array([len(self._labels(i)) for i in range(len(self))], dtype=np.int64)

    @cached_property
    def _num_frames(self) -> np.ndarray | None:
        return self._frames_of_audio()

    def _frames_of_audio(self) -> np.ndarray | None:
        """Frames of every sequence, (N,), out of the number of its samples; None if only reading would tell."""
        assert self.audio is not None
        if self.audio.is_random or self.audio.post_process is not None:
            return None
        num_samples, rates = self._headers
        frames = np.zeros(len(self), dtype=np.int64)
        for rate in np.unique(rates).tolist():
            known = self.audio.num_frames(self._after_speed(num_samples), rate)
            assert known is not None
            frames = np.where(rates == rate, known, frames)
        return frames

    @cached_property
    def _speeds(self) -> np.ndarray | None:
        """Which of `speed_factors` every sequence has in this epoch, (N,)."""
        if not self.speed_factors:
            return None
        return np.random.default_rng([self.seed, self.epoch]).integers(len(self.speed_factors), size=len(self))

    def _after_speed(self, num_samples: np.ndarray) -> np.ndarray:
        if self._speeds is None:
            return num_samples
        return np.choose(self._speeds, [speed_length(num_samples, factor) for factor in self.speed_factors])

    @cached_property
    def _headers(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples and sample rate of every audio file, (N,) each."""
        if self.length_source != "header" and (believed := self._from_list()) is not None:
            return believed
        infos = [self._info(i) for i in range(len(self))]
        return (
            np.array([info.num_samples for info in infos], dtype=np.int64),
            np.array([info.sample_rate for info in infos], dtype=np.int64),
        )

    def _from_list(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Samples and rates out of the list, if it can be believed."""
        utterances = self._list
        must = self.length_source == "duration"
        if not utterances:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        probes = np.unique(np.linspace(0, len(utterances) - 1, 1 if must else NUM_PROBES).astype(int)).tolist()
        infos = [self._info(i) for i in probes]
        rate = infos[0].sample_rate
        samples = [exact_num_samples(utterance, rate) for utterance in utterances]
        if None in samples and must:
            raise DataError(
                f"{self._name}: seq_tag {utterances[samples.index(None)].seq_tag!r} has no duration, or no exact one"
            )
        agree = all(info == AudioInfo(samples[i] or 0, rate) for i, info in zip(probes, infos, strict=True))
        if None in samples or not (agree or must):
            return None
        return np.array(samples, dtype=np.int64), np.full(len(samples), rate, dtype=np.int64)

    def _info(self, index: int) -> AudioInfo:
        utterance = self._list[index]
        content, where = self._content(utterance)
        info = audio_info(content, where)
        if utterance.segment is None:
            return info
        return AudioInfo(utterance.segment.samples(info, where)[1], info.sample_rate)

    def read(self, indices: Indices) -> Examples:
        streams: dict[str, list[np.ndarray]] = {name: [] for name in self.streams if name in self._wanted}
        for i in as_array(indices).tolist():
            text = self._list[i].text
            if "data" in streams:
                streams["data"].append(self._features(i))
            if "classes" in streams:
                streams["classes"].append(np.array(self._labels(i), dtype=np.int32))
            if "orth" in streams:
                streams["orth"].append(np.frombuffer(text.encode("utf-8"), dtype=np.uint8).copy())
            if "raw" in streams:
                streams["raw"].append(np.array(text))
        return Examples(self.seq_tags(indices), streams)

    def _labels(self, index: int) -> list[int]:
        assert self.targets is not None
        utterance = self._list[index]
        text = utterance.text if self.targets_post_process is None else self.targets_post_process(utterance.text)
        try:
            return self.targets.encode(text, self._rng(index, 1) if self.targets.is_random else None)
        except DataError as error:
            raise DataError(f"{self._name}: seq_tag {utterance.seq_tag!r}: {error}") from error

    def _features(self, index: int) -> np.ndarray:
        assert self.audio is not None
        samples, rate, where = self._samples(index)
        if self._speeds is not None:
            samples = change_speed(samples, self.speed_factors[self._speeds[index]])
        rng = self._rng(index, 0) if self.audio.is_random else None
        try:
            features = self.audio(samples, rate, rng, self._list[index].seq_tag)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        known = self.__dict__.get("_num_frames")
        if known is not None and len(features) != known[index]:
            raise DataError(
                f"{where}: {len(features)} frames, but {known[index]} by the duration in {self._name}; "
                "correct the list, or set lengths=header"
            )
        return features

    def _samples(self, index: int) -> tuple[np.ndarray, int, str]:
        """The waveform, its sample rate, and words for error messages."""
        utterance = self._list[index]
        content, where = self._content(utterance)
        where = f"{where}, seq_tag {utterance.seq_tag!r}"
        return *read_audio(content, where, utterance.segment), where

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, index, purpose])

    def with_streams(self, names: Sequence[str]) -> Dataset:
        other = copy.copy(self)
        other._wanted = set(names)
        return other

    def at_epoch(self, epoch: int) -> Dataset:
        is_random = (self.audio is not None and self.audio.is_random) or (
            self.targets is not None and self.targets.is_random
        )
        if epoch == self.epoch or not (is_random or self.speed_factors):
            return self
        kept = {name: self.__dict__[name] for name in ("_list", "_num_bytes", "_headers") if name in self.__dict__}
        return renewed(self, epoch=epoch, **kept)


class AudioZipDataset(AudioDataset):
    """Audio files in zip archives: RETURNN's OggZip layout.

    `NAME.zip` holds the files as `NAME/path`, and `NAME.txt`, a list (Python literal or JSON) of
    {"text": ..., "duration": seconds, "file": path, "seq_name": tag}; without seq_name the tag is `file`.

    Args:
        path: NAME.zip, or several; or the folder NAME, with the list beside it as NAME.txt. A `NAME.txt.gz` among
            several takes the place of the list in NAME.zip.
        content_name: NAME inside of the archives, if it differs from their file names.
        zip_audio_files_have_name_as_prefix: false: the files are at `path` in the archive, not at `NAME/path`.
        others: as of AudioDataset.

    Raises:
        DataError: a broken archive or list, or a file that it does not have.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        audio: AudioFeatures | None = None,
        targets: Vocabulary | None = None,
        targets_post_process: CleanerLike | None = None,
        content_name: str | Sequence[str] | None = None,
        zip_audio_files_have_name_as_prefix: bool = True,
        speed_factors: Sequence[float] = (),
        seed: int = 1,
        lengths: str = "auto",
    ) -> None:
        super().__init__(audio, targets, targets_post_process, speed_factors, seed, lengths)
        paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]  # type: ignore[union-attr]
        self._name_as_prefix = zip_audio_files_have_name_as_prefix
        self._folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        lists = {p.name.removesuffix(".txt.gz"): p for p in paths if p.name.endswith(".txt.gz")}
        archives = [p for p in paths if p.name.removesuffix(".txt.gz") not in lists or p.suffix == ".zip"]
        if self._folder is None and (wrong := [p for p in archives if p.suffix != ".zip"]):
            raise DataError(f"{wrong[0]}: expected a .zip, or one folder with its list {wrong[0].name}.txt beside it")
        self._names = [p.name if self._folder else p.stem for p in archives]
        if content_name is not None:
            self._names = [content_name] * len(archives) if isinstance(content_name, str) else list(content_name)
        self._lists = lists
        self._zips = ZipFiles(archives)

    @property
    def _name(self) -> str:
        return ", ".join(map(str, self._zips.paths))

    def _utterances(self) -> Iterator[Utterance]:
        for number, name in enumerate(self._names):
            text, where = self._list_text(number, name)
            entries = parse_literal(text, where)
            if not isinstance(entries, list) or not entries:
                raise DataError(f"{where}: expected a list of utterances, got {type(entries).__name__}")
            for position, entry in enumerate(entries):
                yield parse_utterance(entry, f"{where}: entry {position}", number)

    def _list_text(self, number: int, name: str) -> tuple[str, str]:
        if name in self._lists:
            return decode_utf8(read_bytes(self._lists[name]), str(self._lists[name])), str(self._lists[name])
        path = self._zips.paths[number]
        if self._folder is not None:
            return read_text(path.with_name(f"{name}.txt")), str(path.with_name(f"{name}.txt"))
        where = f"{path}: {name}.txt"
        return decode_utf8(self._zips.read(number, f"{name}.txt"), where), where

    def _content(self, utterance: Utterance) -> tuple[bytes | Path, str]:
        assert utterance.file is not None
        path = self._zips.paths[utterance.archive]
        if self._folder is not None:
            return path / utterance.file, str(path / utterance.file)
        name = f"{self._names[utterance.archive]}/{utterance.file}" if self._name_as_prefix else utterance.file
        return self._zips.read(utterance.archive, name), f"{path}: {name}"


class AudioFolderDataset(AudioDataset):
    """Audio files named in a manifest.

    Args:
        manifest: .jsonl, one {"file": path, "text": ..., "duration": seconds, "seq_name": tag} per line; or .tsv
            with these names in its first line. All but file may be missing; `num_samples` may be there, and is
            believed; so may `offset`, and then the utterance is that part of the file. Default tag: the file.
        root: the folder that the paths are in; default: the manifest's.
        others: as of AudioDataset.

    Raises:
        DataError: a line that can't be read, or a file that does not exist.
    """

    def __init__(
        self,
        manifest: PathLike,
        root: PathLike | None = None,
        audio: AudioFeatures | None = None,
        targets: Vocabulary | None = None,
        targets_post_process: CleanerLike | None = None,
        speed_factors: Sequence[float] = (),
        seed: int = 1,
        lengths: str = "auto",
    ) -> None:
        super().__init__(audio, targets, targets_post_process, speed_factors, seed, lengths)
        self.manifest = Path(manifest)
        self.root = self.manifest.parent if root is None else Path(root)

    @property
    def _name(self) -> str:
        return str(self.manifest)

    def _utterances(self) -> Iterator[Utterance]:
        return read_manifest(self.manifest)

    def _content(self, utterance: Utterance) -> tuple[bytes | Path, str]:
        assert utterance.file is not None
        return self.root / utterance.file, str(self.root / utterance.file)
