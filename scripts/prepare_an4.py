#!/usr/bin/env python3
"""Make the files of the AN4 recipes out of the corpus as it is distributed.

    python scripts/prepare_an4.py PATH/TO/an4 data/an4

The corpus (CMU, 1991; http://www.speech.cs.cmu.edu/databases/an4/) has `etc/an4_train.fileids`,
`etc/an4_train.transcription` and `wav/<id>` with the ending .flac, .sph or .wav. Written are

    train.hdf, train.speed0.9.hdf, train.speed1.1.hdf   848 utterances, and the same ones played slower and faster
    dev.hdf                                             the first 100 utterances of an4_train.fileids
    test.hdf                                            the official test part (an4_test.*), if it is there
    vocab.txt                                           the characters, one per line
    train.txt, dev.txt, test.txt                        the transcriptions
    train.tags, dev.tags, test.tags                     the names of the utterances in the .hdf files, one per line
    lm.char.arpa, lm.word.arpa, lexicon.txt             Kneser-Ney models and spelled words, of train.txt alone
    bpe.model, lm.bpe.arpa                              with `--bpe 80`: that many subword units (SentencePiece)

The features are 40 log-mel energies every 10 ms of the pre-emphasized waveform, with mean 0 and variance 1 over all of
the speaker's utterances in the file; no labels are needed for that. They are decibels because `log_mel_filterbank`, as
RETURNN defines it, has a floor that two thirds of AN4's energies are below; here the floor is about where the noise is.
Everything that is written is a function of the corpus.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.audio_file import read_audio
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.perturb import change_speed
from returnn_hydra.data.subword_models import SentencePieceVocabulary
from returnn_hydra.data.vocab import CharacterVocabulary
from returnn_hydra.extras import require
from returnn_hydra.search.ngram import SPACE
from returnn_hydra.search.ngram_estimate import estimate_ngrams, write_arpa
from returnn_hydra.usage import UsageError

NUM_DEV = 100
"""Utterances of the dev set, as in ESPnet's recipe."""
SAMPLE_RATE = 16_000
NUM_MELS = 40
PREEMPHASIS = 0.97
FLOOR = 5e-5
"""Smallest energy before the logarithm, of a waveform with peak 1."""
SPEEDS = (1.0, 0.9, 1.1)
CHAR_ORDER, WORD_ORDER, UNIT_ORDER = 8, 5, 6
NEVER = -99 * math.log(10)
"""Log probability of what does not occur, as ARPA files have it."""
ENDINGS = (".flac", ".sph", ".wav")


@dataclass(frozen=True)
class Utterance:
    """An utterance of the corpus; `tag` is its name in the transcriptions."""

    tag: str
    file: Path
    text: str

    @property
    def speaker(self) -> str:
        """The folder of the audio file."""
        return self.file.parent.name


def read_part(corpus: Path, part: str) -> list[Utterance]:
    """The utterances of `train` or `test`, in the order of the fileids.

    Raises:
        UsageError: no lists, or such that don't fit together, a line that can't be read, or no audio file.
    """
    id_file = corpus / "etc" / f"an4_{part}.fileids"
    if not id_file.is_file():
        raise UsageError(f"{id_file}: no such file; expected the folder of AN4, with etc/ and wav/")
    ids = id_file.read_text().split()
    list_file = corpus / "etc" / f"an4_{part}.transcription"
    lines = list_file.read_text().splitlines()
    if len(ids) != len(lines):
        raise UsageError(f"{list_file}: {len(lines)} lines, but there are {len(ids)} fileids")
    return [_utterance(corpus, name, line, list_file) for name, line in zip(ids, lines, strict=True)]


def _utterance(corpus: Path, name: str, line: str, list_file: Path) -> Utterance:
    found = re.fullmatch(r"(?:<s>)?(.*?)(?:</s>)?\s*\((\S+)\)\s*", line)
    tag = name.rsplit("/", 1)[-1]
    if found is None or found.group(2) != tag:
        raise UsageError(f"{list_file}: expected `<s> WORDS </s> ({tag})`, got {line!r}")
    files = [corpus / "wav" / (name + ending) for ending in ENDINGS]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UsageError(f"no audio file {files[0]}, nor with {' or '.join(ENDINGS[1:])}")
    return Utterance(tag, file, " ".join(found.group(1).split()))


def write_features(path: Path, utterances: Sequence[Utterance], vocab: CharacterVocabulary, speed: float = 1.0) -> None:
    """An HDF file with the streams `data` (T, 40) and `classes`, the characters."""
    extract = AudioFeatures(
        features="db_mel_filterbank",
        num_feature_filters=NUM_MELS,
        feature_options={"min_amp": FLOOR},
        preemphasis=PREEMPHASIS,
        sample_rate=SAMPLE_RATE,
    )
    by_speaker: dict[str, list[np.ndarray]] = {}
    for utterance in utterances:
        audio, rate = read_audio(utterance.file, str(utterance.file))
        features = extract(change_speed(audio, speed), rate, seq_tag=utterance.tag)
        by_speaker.setdefault(utterance.speaker, []).append(features)
    normalised = {speaker: iter(normalise(features)) for speaker, features in by_speaker.items()}
    specs = {"data": extract.spec, "classes": TensorSpec(vocab=vocab)}
    with HDFWriter(path, specs, overwrite=True) as writer:
        for utterance in utterances:
            streams = {"data": next(normalised[utterance.speaker]), "classes": vocab.encode(utterance.text)}
            writer.write(tag_at(utterance, speed), streams)


def tag_at(utterance: Utterance, speed: float) -> str:
    """The sequence's name in the files."""
    return utterance.tag if speed == 1.0 else f"{utterance.tag}-speed{speed}"


def speeds(part: str) -> Sequence[float]:
    return SPEEDS if part == "train" else SPEEDS[:1]


def normalise(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every feature with mean 0 and variance 1 over all frames: arrays (T, 40) of one speaker."""
    frames = np.concatenate(features)
    mean, scale = frames.mean(0), np.maximum(frames.std(0), 1.0)
    return [(utterance - mean) / scale for utterance in features]


def write_text(target: Path, part: str, utterances: Sequence[Utterance]) -> None:
    (target / f"{part}.txt").write_text("".join(f"{utterance.text}\n" for utterance in utterances))
    tags = [tag_at(utterance, speed) for speed in speeds(part) for utterance in utterances]
    (target / f"{part}.tags").write_text("".join(f"{tag}\n" for tag in tags))


def write_language_models(target: Path, texts: Sequence[str]) -> None:
    """N-gram models over characters (white space is <space>) and words, and how the words are spelled."""
    characters = [[char if char.strip() else SPACE for char in text] for text in texts]
    write_arpa(estimate_ngrams(characters, CHAR_ORDER), target / "lm.char.arpa")
    write_arpa(estimate_ngrams([text.split() for text in texts], WORD_ORDER), target / "lm.word.arpa")
    words = sorted({word for text in texts for word in text.split()})
    (target / "lexicon.txt").write_text("".join(f"{word} {' '.join(word)}\n" for word in words))


def write_subwords(target: Path, texts: Sequence[str], size: int) -> None:
    """Byte-pair encoding with `size` units, the unknown one included, and an n-gram model over them."""
    trainer = require("sentencepiece", extra="text").SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(target / "bpe"),
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    vocab = SentencePieceVocabulary(target / "bpe.model")
    model = estimate_ngrams((vocab.to_labels(vocab.encode(text)) for text in texts), UNIT_ORDER)
    unigrams = model.log_probs[()]
    unigrams |= {unit: NEVER for unit in vocab.labels if unit not in unigrams}  # those that only make up larger ones
    write_arpa(model, target / "lm.bpe.arpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="the folder with etc/ and wav/")
    parser.add_argument("target", type=Path, help="folder to write to")
    parser.add_argument("--bpe", type=int, metavar="UNITS", help="write subword units too (needs the extra `text`)")
    arguments = parser.parse_args()
    corpus, target = arguments.corpus, arguments.target
    official = read_part(corpus, "train")
    target.mkdir(parents=True, exist_ok=True)
    parts = {"train": official[NUM_DEV:], "dev": official[:NUM_DEV]}
    if (corpus / "etc" / "an4_test.fileids").is_file():
        parts["test"] = read_part(corpus, "test")
    train_texts = [utterance.text for utterance in parts["train"]]
    labels = sorted(set("".join(train_texts)))
    (target / "vocab.txt").write_text("".join(f"{label}\n" for label in labels))
    vocab = CharacterVocabulary(labels=labels)
    for part, utterances in parts.items():
        write_text(target, part, utterances)
        for speed in speeds(part):
            name = f"{part}.hdf" if speed == 1.0 else f"{part}.speed{speed}.hdf"
            write_features(target / name, utterances, vocab, speed)
            print(f"{name}: {len(utterances)} utterances", flush=True)
    write_language_models(target, train_texts)
    if arguments.bpe:
        write_subwords(target, train_texts, arguments.bpe)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"ERROR: {error}")
