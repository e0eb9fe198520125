"""returnn.datasets.util.vocabulary"""

from __future__ import annotations

from typing import Any

from returnn_hydra.compat.dataset_dicts import build_node
from returnn_hydra.compat.vocab_dicts import vocab_node
from returnn_hydra.data.bpe import BytePairEncoding, SamplingBytePairEncoding
from returnn_hydra.data.subword_models import SentencePieceVocabulary as SentencePieces
from returnn_hydra.data.vocab import Vocabulary as _Vocabulary

__all__ = ["BytePairEncoding", "SamplingBytePairEncoding", "SentencePieces", "Vocabulary"]


class Vocabulary(_Vocabulary):
    """The vocabulary of words, with RETURNN's ways to make one."""

    @classmethod
    def create_vocab(cls, **options: Any) -> Any:
        """From RETURNN's options ("class" says which).

        Raises:
            ConfigError: a class or option that does not exist.
        """
        return build_node(vocab_node(options, "vocab"))
