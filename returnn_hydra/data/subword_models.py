"""Vocabularies of other libraries: SentencePiece models and HuggingFace tokenizers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import PathLike, read_literal
from returnn_hydra.data.vocab import Rng, Vocabulary
from returnn_hydra.extras import require

_SEED_LOCK = threading.Lock()


class SentencePieceVocabulary(Vocabulary):
    """Subword units of a SentencePiece model (unigram or BPE).

    Args:
        model_file: the .model file.
        add_bos, add_eos: put the model's begin / end label around every encoded sequence.
        reverse: encode sequences backwards.
        enable_sampling: draw a segmentation instead of the best one.
        alpha: smoothing for unigram models, dropout probability of merges for BPE models.
        nbest_size: for unigram models: draw from so many best segmentations; below 0: from all.
        control_symbols: further roles, {role: label}.

    Raises:
        DataError: sentencepiece is not installed, or the file is not a model.
    """

    def __init__(
        self,
        model_file: PathLike,
        add_bos: bool = False,
        add_eos: bool = False,
        reverse: bool = False,
        enable_sampling: bool = False,
        alpha: float = 0.1,
        nbest_size: int = -1,
        control_symbols: dict[str, str | int] | None = None,
    ) -> None:
        if not Path(model_file).is_file():
            raise DataError(f"{model_file}: no such file")
        self._options = {"add_bos": add_bos, "add_eos": add_eos, "reverse": reverse}
        self._sampling = (
            {"enable_sampling": True, "alpha": alpha, "nbest_size": nbest_size} if enable_sampling else None
        )
        self._model = Path(model_file).read_bytes()
        model = self._load(str(model_file))
        super().__init__(
            labels=[model.id_to_piece(index) for index in range(model.get_piece_size())],
            unknown_label=model.unk_id(),
            bos_label=model.bos_id(),
            eos_label=model.eos_id(),
            pad_label=model.pad_id(),
            control_symbols=control_symbols,
        )
        self.name = str(model_file)
        self._sp = model

    @property
    def is_random(self) -> bool:
        return self._sampling is not None

    def _load(self, where: str) -> Any:
        try:
            return require("sentencepiece", extra="text").SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise DataError(f"{where}: not a SentencePiece model: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_sp"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._sp = self._load(self.name)

    def encode(self, text: str, rng: Rng | None = None) -> list[int]:
        if self._sampling is None:
            return self._sp.encode(text, out_type=int, **self._options)
        if rng is None:
            raise DataError(f"{self.name}: enable_sampling needs a random generator")
        return self._sample(text, seed=int(rng.random() * 2**32))

    def _sample(self, text: str, seed: int) -> list[int]:
        """Draw a segmentation, in a new thread: the library's seed counts for threads that begin after it was set."""
        result: list[list[int]] = []
        thread = threading.Thread(
            target=lambda: result.append(self._sp.encode(text, out_type=int, **self._options, **(self._sampling or {})))
        )
        with _SEED_LOCK:
            require("sentencepiece", extra="text").set_random_generator_seed(seed)
            thread.start()
            thread.join()
        return result[0]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(index) for index in ids]
        self.to_labels(ids)  # the library ends the process at an unknown id
        return self._sp.decode(ids)


class HuggingFaceTokenizer(Vocabulary):
    """A tokenizer of the `tokenizers` library.

    Args:
        tokenizer_file: tokenizer.json, or the folder of a model that holds it; the roles of the labels (bos, eos, ...)
            are read from tokenizer_config.json beside it.
        add_special_tokens: let the tokenizer put its special labels around the sequence, as it was trained.
        map_bos_to_eos: begin with the label that ends a sequence.
        bos_label, eos_label, unknown_label, pad_label: the roles, where no tokenizer_config.json tells them.

    Raises:
        DataError: tokenizers is not installed, or the file is not a tokenizer.
    """

    def __init__(
        self,
        tokenizer_file: PathLike,
        add_special_tokens: bool = True,
        map_bos_to_eos: bool = False,
        unknown_label: str | None = None,
        bos_label: str | None = None,
        eos_label: str | None = None,
        pad_label: str | None = None,
    ) -> None:
        path = Path(tokenizer_file)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"{path}: no such file; a tokenizer of transformers is saved with save_pretrained(folder)")
        roles = _token_roles(path.with_name("tokenizer_config.json"))
        self._json = path.read_text(encoding="utf-8")
        self._add_special_tokens = add_special_tokens
        tokenizer = self._load(str(path))
        eos_label = eos_label or roles.get("eos_token")
        super().__init__(
            labels=[tokenizer.id_to_token(index) or f"<unused {index}>" for index in range(tokenizer.get_vocab_size())],
            unknown_label=unknown_label or roles.get("unk_token"),
            bos_label=eos_label if map_bos_to_eos else (bos_label or roles.get("bos_token")),
            eos_label=eos_label,
            pad_label=pad_label or roles.get("pad_token"),
        )
        self.name = str(path)
        self._tokenizer = tokenizer

    def _load(self, where: str) -> Any:
        try:
            return require("tokenizers", extra="text").Tokenizer.from_str(self._json)
        except DataError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{where}: not a tokenizer.json: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer = self._load(self.name)

    def encode(self, text: str, rng: Rng | None = None) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=self._add_special_tokens).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text, without special labels."""
        return self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=True)


def _token_roles(config_file: Path) -> dict[str, str]:
    """{role: label} of a tokenizer_config.json, if there is one."""
    if not config_file.is_file():
        return {}
    config = read_literal(config_file)
    roles: Sequence[str] = ("unk_token", "bos_token", "eos_token", "pad_token")
    tokens = {role: config.get(role) for role in roles}
    return {role: token["content"] if isinstance(token, dict) else token for role, token in tokens.items() if token}
