"""returnn.datasets.lm: cleaners of texts, and its data sets as names."""

from returnn_hydra.compat.shim.names_only import name_only
from returnn_hydra.data.text_cleaners import (
    basic_cleaners,
    collapse_whitespace,
    convert_to_ascii,
    english_cleaners,
    english_cleaners_keep_special,
    expand_abbreviations,
    get_remove_chars,
    get_replace,
    lowercase,
    lowercase_keep_special,
    normalize_numbers,
    text_cleaner,
    transliteration_cleaners,
)

LmDataset = name_only("returnn.datasets.lm", "LmDataset")
TranslationDataset = name_only("returnn.datasets.lm", "TranslationDataset")
get_post_processor_function = text_cleaner

__all__ = [
    "LmDataset",
    "TranslationDataset",
    "basic_cleaners",
    "collapse_whitespace",
    "convert_to_ascii",
    "english_cleaners",
    "english_cleaners_keep_special",
    "expand_abbreviations",
    "get_post_processor_function",
    "get_remove_chars",
    "get_replace",
    "lowercase",
    "lowercase_keep_special",
    "normalize_numbers",
    "transliteration_cleaners",
]
