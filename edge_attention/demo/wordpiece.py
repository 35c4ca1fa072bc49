"""BERT's tokens: words, lower-cased and without accents, in the longest pieces that the vocabulary has.

As `BasicTokenizer` and `WordpieceTokenizer` of Devlin et al. (2018) do it, for texts and a vocabulary of the
uncased kind.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.tensors import Array

__all__ = ["BertPieces"]

_LONGEST = 100
"""Characters of a word; a longer one is unknown."""


@dataclass(frozen=True)
class BertPieces:
    """A vocabulary: piece -> id. A piece within a word begins with `##`."""

    ids: Mapping[str, int]

    @classmethod
    def of_file(cls, text: str) -> BertPieces:
        """From what a `tokenizer.json` holds.

        Raises:
            InvalidArgument: it is of another kind of tokens.
        """
        try:
            model = json.loads(text)["model"]
            ids = {str(piece): int(number) for piece, number in model["vocab"].items()}
            found = cls(ids)
            for piece in ("[CLS]", "[SEP]", "[UNK]", "[PAD]"):
                found.ids[piece]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidArgument("tokenizer.json holds no vocabulary of word pieces") from None
        return found

    def pieces(self, text: str) -> list[int]:
        """Ids of a text, between those of [CLS] and [SEP]."""
        found = [self.ids["[CLS]"]]
        for word in _words(text):
            found += self._of_word(word)
        return [*found, self.ids["[SEP]"]]

    def batch(self, texts: Sequence[str], tokens: int = 0) -> dict[str, Array]:
        """Texts as a model's inputs.

        Args:
            tokens: of each text, what is beyond is cut off; 0: as many as the longest has.

        Returns:
            `input_ids`, filled up with [PAD], and `attention_mask`, int64 [texts, tokens].
        """
        rows = [self.pieces(text) for text in texts]
        width = tokens or max(map(len, rows))
        rows = [row if len(row) <= width else [*row[: width - 1], row[-1]] for row in rows]
        ids = np.full((len(rows), width), self.ids["[PAD]"], np.int64)
        seen = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            seen[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": seen}

    def _of_word(self, word: str) -> list[int]:
        if len(word) > _LONGEST:
            return [self.ids["[UNK]"]]
        found: list[int] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            for stop in range(len(word), start, -1):
                number = self.ids.get(mark + word[start:stop])
                if number is not None:
                    break
            else:
                return [self.ids["[UNK]"]]
            found.append(number)
            start = stop
        return found


def _words(text: str) -> Iterator[str]:
    """Words, and each mark of punctuation and each Chinese character as a word."""
    word = ""
    for char in unicodedata.normalize("NFD", "".join(map(str.lower, text))):
        kind = unicodedata.category(char)
        if kind == "Mn" or (kind in ("Cc", "Cf") and char not in "\t\n\r") or char == "\ufffd":
            continue
        if char.isspace() or _alone(char):
            if word:
                yield word
            word = ""
            if not char.isspace():
                yield char
        else:
            word += char
    if word:
        yield word


def _alone(char: str) -> bool:
    """Punctuation, with all of ASCII's signs, and the blocks of Chinese characters."""
    code = ord(char)
    sign = 33 <= code <= 126 and not char.isalnum()
    blocks = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))
    return (
        sign or unicodedata.category(char)[0] == "P" or any(first <= code <= last for first, last in blocks)
    )
