"""Reading audio files, also those inside zip archives, through the soundfile library.

wav, flac, ogg, NIST SPHERE (.sph) and whatever else the installed libsndfile reads.

Legend: S samples, C channels.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import nearest
from returnn_hydra.extras import require

UNKNOWN_SIZE = 2**32 - 1
"""In the header of a wav file."""
LARGEST_PAGE = 65307
"""Bytes of an ogg page."""
LAST_PAGE = 4
"""Flag in the head of an ogg page."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says."""

    num_samples: int
    """Of each channel."""
    sample_rate: int
    """Hz."""


@dataclass(frozen=True)
class Segment:
    """A part of a recording."""

    offset: float
    """Seconds from the begin of the file."""
    duration: float
    """Seconds."""

    def samples(self, info: AudioInfo, where: str) -> tuple[int, int]:
        """First sample, and number of samples.

        Raises:
            DataError: the file ends before.
        """
        first, num = round(self.offset * info.sample_rate), round(self.duration * info.sample_rate)
        if first < 0 or first + num > info.num_samples:
            end, length = self.offset + self.duration, info.num_samples / info.sample_rate
            raise DataError(f"{where}: segment from {self.offset} s to {end} s of a file of {length} s")
        return first, num


def read_audio(data: bytes | Path, where: str, segment: Segment | None = None) -> tuple[np.ndarray, int]:
    """Samples, float64 between -1 and 1, (S,) or (S, C), and the sample rate in Hz.

    Args:
        data: the content of the file, or its path.
        where: begins the error message.
        segment: which part; None: all.

    Raises:
        DataError: it is no audio file, broken, or shorter than its header says.
    """
    soundfile = require("soundfile", extra="audio")
    try:
        with soundfile.SoundFile(_checked(data, where)) as file:
            expected, rate = file.frames, file.samplerate
            if segment is not None:
                first, expected = segment.samples(AudioInfo(expected, rate), where)
                file.seek(first)
            samples = file.read(expected, dtype="float64")
    except soundfile.SoundFileError as error:
        raise DataError(f"{where}: can't be read as audio: {error}") from error
    if len(samples) != expected:
        raise DataError(f"{where}: broken: {len(samples)} samples, but its header says {expected}")
    return samples, rate


def audio_info(data: bytes | Path, where: str) -> AudioInfo:
    """The header; errors as of `read_audio`."""
    soundfile = require("soundfile", extra="audio")
    try:
        with soundfile.SoundFile(_checked(data, where)) as file:
            return AudioInfo(file.frames, file.samplerate)
    except soundfile.SoundFileError as error:
        raise DataError(f"{where}: can't be read as audio: {error}") from error


def _checked(data: bytes | Path, where: str) -> Any:
    """What soundfile takes, if the file is there and complete."""
    if isinstance(data, bytes):
        _check_complete(io.BytesIO(data), len(data), where)
        return io.BytesIO(data)
    if not data.is_file():
        raise DataError(f"{where}: no such file")
    with data.open("rb") as file:
        _check_complete(file, data.stat().st_size, where)
    return str(data)


def _check_complete(file: BinaryIO, size: int, where: str) -> None:
    """A wav, SPHERE or ogg file that was cut off reads like a shorter one.

    Raises:
        DataError: it ends before what its last part (chunk, page) says, or an ogg file whose last page is not marked as
            such: it was cut between two pages, or its encoder marks none; nothing in the file tells these apart.
    """
    start = file.read(12)
    end = 0
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        end = _end_of_samples(file)
    elif start[:7] == b"NIST_1A":
        with contextlib.suppress(ValueError, IndexError):  # a broken header: libsndfile says what is wrong
            end = _end_of_sphere(file)
    elif start[:4] == b"OggS":
        end, is_last = _end_of_last_page(file, size)
        if end == size and not is_last:
            raise DataError(
                f"{where}: cut off: it ends with a page that is not marked as the last one; if its encoder marks none, "
                "write it anew (ffmpeg -i OLD.ogg -c copy NEW.ogg)"
            )
    if end > size:
        raise DataError(f"{where}: cut off: {size} bytes, but its header says {end}")


def _end_of_samples(file: BinaryIO) -> int:
    """Where the `data` chunk of a wav file ends; 0: unknown (written to a pipe)."""
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            return 0 if length == UNKNOWN_SIZE else file.tell() + length
        file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _end_of_sphere(file: BinaryIO) -> int:
    """Where the samples of a NIST SPHERE file end; 0: unknown (compressed)."""
    file.seek(0)
    header = file.read(1024).decode("latin-1")
    fields = {key: value for key, _, value in (line.split(" ", 2) for line in header.splitlines() if " -" in line)}
    if fields.get("sample_coding", "pcm") != "pcm":
        return 0
    samples = int(fields.get("sample_count", 0)) * int(fields.get("channel_count", 1))
    return int(header.splitlines()[1]) + samples * int(fields.get("sample_n_bytes", 2))


def _end_of_last_page(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Where the last page of an ogg file ends, and whether it says that it ends the stream (RFC 3533, section 6)."""
    begin = max(size - LARGEST_PAGE, 0)
    file.seek(begin)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 27 > len(tail) or page + 27 + tail[page + 26] > len(tail):
        return size + 1, False
    num_segments = tail[page + 26]
    end = begin + page + 27 + num_segments + sum(tail[page + 27 : page + 27 + num_segments])
    return end, bool(tail[page + 5] & LAST_PAGE)


class ZipFiles:
    """Files inside of zip archives; opened at the first use, and anew in every process."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._open: dict[int, zipfile.ZipFile] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def archive(self, number: int) -> zipfile.ZipFile:
        """The archive, open.

        Raises:
            DataError: there is no such file, or it is no zip archive.
        """
        if self._process != os.getpid():  # a forked process shares the position in the file with its parent
            self._open, self._process = {}, os.getpid()
        if number not in self._open:
            path = self.paths[number]
            try:
                self._open[number] = zipfile.ZipFile(path)
            except FileNotFoundError:
                raise DataError(f"{path}: no such file") from None
            except zipfile.BadZipFile as error:
                raise DataError(f"{path}: not a zip archive, or cut off: {error}") from error
        return self._open[number]

    def read(self, number: int, name: str) -> bytes:
        """The content of one file.

        Raises:
            DataError: the archive has no such file, or its content is broken.
        """
        archive = self.archive(number)
        try:
            return archive.read(name)
        except KeyError:
            raise DataError(f"{self.paths[number]}: has no file {name!r}{nearest(name, archive.namelist())}") from None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise DataError(f"{self.paths[number]}: file {name!r} is broken: {error}") from error
