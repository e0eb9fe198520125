"""Estimation of n-gram models from text, and ARPA files of them."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from returnn_hydra.search.ngram import BEGIN, END, ArpaModel, Context

Counts = dict[Context, Counter[str]]
"""Context -> word -> count."""


def estimate_ngrams(sentences: Iterable[Sequence[str]], order: int) -> ArpaModel:
    """Interpolated Kneser-Ney model with one discount per order.

    p(w | c) = max(n(c w) - D, 0) / n(c) + D * (different words behind c) / n(c) * p(w | c without its first word),
    where the n of the highest order (and of n-grams that begin with <s>) are counts, the others the number of
    different words before the n-gram, and D = n1 / (n1 + 2 n2) from the numbers of n-grams with n = 1 and 2 (Kneser &
    Ney 1995; Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 2.7 and
    eq. 26). The lowest order goes over to a uniform distribution. Words that are not in the sentences have no
    probability.

    Arguments:
        sentences: lists of words (or other labels), without <s> and </s>.
        order: longest n-grams.

    Raises:
        ValueError: no sentences, an order below 1, or a sentence that holds <s>, </s> or a word with white space.
    """
    if order < 1:
        raise ValueError(f"the order of an n-gram model must be at least 1, got {order}")
    levels = _counts(sentences, order)
    words = sorted(levels[0].get((), ()))
    if not words:
        raise ValueError("no sentences to estimate an n-gram model from")
    log_probs: dict[Context, dict[str, float]] = {}
    backoffs: dict[Context, float] = {}
    probs: dict[Context, dict[str, float]] = {}
    for level in levels:
        discount = _discount(level)
        for context, counter in level.items():
            total, rest = counter.total(), discount * len(counter) / counter.total()
            if context:
                lower = probs[context[1:]]
                found = {w: max(n - discount, 0.0) / total + rest * lower[w] for w, n in counter.items()}
                backoffs[context] = math.log(rest)
            else:
                found = {w: max(n - discount, 0.0) / total + rest / len(words) for w, n in counter.items()}
            probs[context] = found
            log_probs[context] = {word: math.log(prob) for word, prob in found.items()}
    return ArpaModel(order, log_probs, backoffs)


def _counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counts]:
    """For each order the counts that Kneser-Ney uses."""
    counts: list[Counts] = [{} for _ in range(order)]
    for sentence in sentences:
        for word in sentence:
            if word in (BEGIN, END) or len(word.split()) != 1:
                raise ValueError(
                    f"{word!r} can't be a word of an n-gram model, in the sentence {' '.join(sentence)[:200]!r}"
                )
        words = [BEGIN, *sentence, END]
        for end in range(1, len(words)):
            for size in range(min(order, end + 1)):
                context = tuple(words[end - size : end])
                counts[size].setdefault(context, Counter())[words[end]] += 1
    for size in range(order - 1):  # from the counts of the order above: how many different words precede
        before: Counts = {}
        for context, counter in counts[size + 1].items():
            for word in counter:
                before.setdefault(context[1:], Counter())[word] += 1
        counts[size] = {
            context: counter if context[:1] == (BEGIN,) else before[context]
            for context, counter in counts[size].items()
        }
    return counts


def _discount(level: Counts) -> float:
    ones = sum(n == 1 for counter in level.values() for n in counter.values())
    twos = sum(n == 2 for counter in level.values() for n in counter.values())
    return ones / (ones + 2 * twos) if ones and twos else 0.5


def write_arpa(model: ArpaModel, path: str | Path) -> None:
    """Write an ARPA file (base-10 logarithms); `.gz` packs. Contexts that are no n-grams with a probability get one of
    -99 (as <s> does).
    """
    ngrams: dict[Context, float] = {(*c, w): p for c, row in model.log_probs.items() for w, p in row.items()}
    for context in model.backoffs:
        ngrams.setdefault(context, -99 * math.log(10))
    by_order = [sorted(ngram for ngram in ngrams if len(ngram) == n) for n in range(1, model.order + 1)]
    open_file = gzip.open if str(path).endswith(".gz") else open
    with open_file(path, "wt", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(rows)}\n" for n, rows in enumerate(by_order, 1)))
        for n, rows in enumerate(by_order, 1):
            file.write(f"\n\\{n}-grams:\n")
            for ngram in rows:
                fields = [f"{ngrams[ngram] / math.log(10):.7f}", " ".join(ngram)]
                if ngram in model.backoffs:
                    fields.append(f"{model.backoffs[ngram] / math.log(10):.7f}")
                file.write("\t".join(fields) + "\n")
        file.write("\n\\end\\\n")
