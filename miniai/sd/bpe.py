"""Byte-pair encoding: learn a vocabulary from captions, apply it to a word.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016), algorithm 1, on bytes.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from miniai.base.errors import UserError
from miniai.sd.clip_text import END_OF_WORD, byte_alphabet, normalise, split_words, word_symbols

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
_N_FIXED = 2 * 256 + 2  # every byte, every byte that ends a word, the two special tokens

Pair = tuple[str, str]


def apply_merges(symbols: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Merge neighbours, the pair of lowest rank first and the leftmost of equals, until none is left.

    A heap over a linked list: n log n, so that a "word" of a million letters is no way to hang the program.
    """
    parts: list[str | None] = list(symbols)  # None: merged into the part before it
    following = [*range(1, len(parts)), -1]
    preceding = [*range(-1, len(parts) - 1)]
    heap = [(ranks[pair], i) for i, pair in enumerate(zip(symbols, symbols[1:], strict=False)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, i = heapq.heappop(heap)
        j = following[i]
        left, right = parts[i], parts[j]
        if left is None or right is None or j < 0 or ranks.get((left, right)) != rank:
            continue  # one of the two has been merged since this was put on the heap
        parts[i], parts[j] = left + right, None
        following[i] = following[j]
        if following[i] >= 0:
            preceding[following[i]] = i
        for k in (preceding[i], i):
            if k >= 0 and following[k] >= 0:
                pair = (parts[k] or "", parts[following[k]] or "")
                if pair in ranks:
                    heapq.heappush(heap, (ranks[pair], k))
    return [part for part in parts if part is not None]


def train_bpe(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[Pair]]:
    """Vocabulary (token -> id) and merges in CLIP's order: bytes, bytes that end a word, merges, the special tokens.

    The most frequent pair is merged first; of equals, the first in code-point order, so that the same captions give the
    same vocabulary on any machine. A pair that occurs once is not merged: the vocabulary may come out smaller than
    `vocab_size`.
    """
    if vocab_size < _N_FIXED:
        raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes, alone and at a word's end, need {_N_FIXED}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(normalise(text)))
    alphabet = list(byte_alphabet().values())
    tokens = alphabet + [char + END_OF_WORD for char in alphabet]
    merges = list(islice(_merges_by_frequency(counts), vocab_size - _N_FIXED))
    tokens += [left + right for left, right in merges] + [START_OF_TEXT, END_OF_TEXT]
    return {token: i for i, token in enumerate(tokens)}, merges


def _merges_by_frequency(counts: Mapping[str, int]) -> Iterator[Pair]:
    """Yield pairs in the order in which they are merged; the counts of pairs are kept up to date, not counted anew.

    A token has one spelling: once "a" + "bc" is merged, "ab" + "c" is not. Else a pair with "abc" that was merged long
    ago could occur again, and the text would not be cut at inference as it was in training.
    """
    made: set[str] = set()
    words = [(word_symbols(word), n) for word, n in sorted(counts.items())]
    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, (symbols, n) in enumerate(words):
        for pair in zip(symbols, symbols[1:], strict=False):
            pair_counts[pair] += n
            words_with[pair].add(i)
    heap = [(-n, pair) for pair, n in pair_counts.items()]
    heapq.heapify(heap)
    while heap:
        negative_n, best = heapq.heappop(heap)
        if pair_counts[best] != -negative_n:  # its count has changed since it was put here
            continue
        if best[0] + best[1] in made:
            continue
        if -negative_n < 2:
            return
        made.add(best[0] + best[1])
        yield best
        changed: set[Pair] = set()
        for i in sorted(words_with.pop(best)):
            symbols, n = words[i]
            merged = _merge_everywhere(symbols, best)
            for pair in zip(symbols, symbols[1:], strict=False):
                pair_counts[pair] -= n
                changed.add(pair)
            for pair in zip(merged, merged[1:], strict=False):
                pair_counts[pair] += n
                words_with[pair].add(i)
                changed.add(pair)
            words[i] = (merged, n)
        for pair in changed - {best}:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))


def _merge_everywhere(symbols: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged
