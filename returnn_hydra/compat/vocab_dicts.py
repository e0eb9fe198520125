"""RETURNN's vocabulary dicts (`{"class": "BytePairEncoding", ...}`) as nodes of our vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.compat.dataset_options import Options
from returnn_hydra.config.errors import ConfigError, nearest

Node = dict[str, Any]
_COMMON = ("vocab_file", "labels", "bos_label", "eos_label", "pad_label", "control_symbols", "seq_postfix")
_WORDS = (*_COMMON, "single_whitespace_split")
_TARGETS = {
    "Vocabulary": "returnn_hydra.data.vocab.Vocabulary",
    "CharacterTargets": "returnn_hydra.data.vocab.CharacterVocabulary",
    "Utf8ByteTargets": "returnn_hydra.data.vocab.Utf8Bytes",
    "BytePairEncoding": "returnn_hydra.data.bpe.BytePairEncoding",
    "SamplingBytePairEncoding": "returnn_hydra.data.bpe.SamplingBytePairEncoding",
    "SentencePieces": "returnn_hydra.data.subword_models.SentencePieceVocabulary",
    "HuggingFaceTokenizer": "returnn_hydra.data.subword_models.HuggingFaceTokenizer",
}


def vocab_node(value: Any, path: str) -> Any:
    """The node for a vocabulary dict; None and vocabulary objects stay.

    Without a class it is a BytePairEncoding if there is a `bpe_file`, else a Vocabulary.

    Raises:
        ConfigError: an unknown class or option.
    """
    if not isinstance(value, Mapping):
        return value
    options = Options(value, path)
    name = options.take("class", "BytePairEncoding" if value.get("bpe_file") else "Vocabulary")
    if name not in _TARGETS:
        raise ConfigError(f"{path}.class={name!r}: no such vocabulary{nearest(str(name), _TARGETS)}")
    options.idle("files are read where they are", ["use_cache_manager"])
    options.idle("only names labels that the model file has anyway", ["user_defined_symbols"])
    node: Node = {"_target_": _TARGETS[name], **_ARGUMENTS[name](options)}
    options.finish()
    return node


def _words(options: Options) -> Node:
    return {"unknown_label": options.take("unknown_label", "UNK"), **options.some(*_WORDS)}


def _characters(options: Options) -> Node:
    return {"unknown_label": options.take("unknown_label", "@"), **options.some(*_COMMON)}


def _bytes(options: Options) -> Node:
    return options.some("seq_postfix")


def _bpe(options: Options) -> Node:
    return {
        "unknown_label": options.take("unknown_label", "UNK"),
        "bpe_file": options.need("bpe_file"),
        **options.some(*_COMMON),
    }


def _sampling_bpe(options: Options) -> Node:
    names = ("breadth_prob", "label_postfix_merge_symbol", "word_prefix_symbol")
    return {"unknown_label": options.take("unknown_label", "UNK"), **options.some(*_COMMON, *names)}


def _sentence_pieces(options: Options) -> Node:
    names = ("add_bos", "add_eos", "reverse", "enable_sampling", "alpha", "nbest_size", "control_symbols")
    return {"model_file": options.need("model_file"), **options.some(*names)}


def _tokenizer(options: Options) -> Node:
    return {"tokenizer_file": options.need("huggingface_repo_dir"), **options.some("map_bos_to_eos")}


_ARGUMENTS = {
    "Vocabulary": _words,
    "CharacterTargets": _characters,
    "Utf8ByteTargets": _bytes,
    "BytePairEncoding": _bpe,
    "SamplingBytePairEncoding": _sampling_bpe,
    "SentencePieces": _sentence_pieces,
    "HuggingFaceTokenizer": _tokenizer,
}
