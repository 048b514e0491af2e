"""Text to WordPiece ids of fixed length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _WordPiece

from edgefuse.runtime.errors import BundleError, MediaError

PAD_TOKEN, MASK_TOKEN = "[PAD]", "[MASK]"


class Tokenizer:
    """WordPiece ids of fixed length, from the bundle's tokenizer.json.

    Args:
        document: the content of a tokenizer.json.
        max_tokens: length that every text is cut or padded to.

    Raises:
        BundleError: the document is not a tokenizer, or has no [PAD] token.
    """

    def __init__(self, document: bytes, max_tokens: int) -> None:
        try:
            self._pieces = _WordPiece.from_str(document.decode())
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"tokenizer.json cannot be read ({error}); export the bundle again") from None
        pad_id = self._pieces.token_to_id(PAD_TOKEN)
        if pad_id is None:
            raise BundleError(f"tokenizer.json has no {PAD_TOKEN} token; use a WordPiece tokenizer")
        self.pad_id = int(pad_id)
        self.mask_id: int | None = self._pieces.token_to_id(MASK_TOKEN)
        self._pieces.enable_truncation(max_tokens)
        self._pieces.enable_padding(length=max_tokens, pad_id=pad_id, pad_token=PAD_TOKEN)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._pieces.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids and attention mask of `texts`, int32 [B, max_tokens] each.

        Raises:
            MediaError: a text holds half a surrogate pair, as bytes that are not UTF-8 do on the command line.
        """
        try:
            encodings = self._pieces.encode_batch(list(texts))
        except TypeError:
            raise MediaError("a text is not valid Unicode; give it as UTF-8") from None
        ids = np.array([encoding.ids for encoding in encodings], np.int32)  # [B, L]
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int32)  # [B, L]
        return ids, mask

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """Each word of `text` with the places of its pieces among the ids; none where the text is cut before it."""
        encoding = self._pieces.encode(text)
        spans: dict[int, list[int]] = {}  # word -> where it begins and ends in the text
        places: dict[int, list[int]] = {}
        for part in (encoding, *encoding.overflowing):
            for place, (word, (start, end)) in enumerate(zip(part.word_ids, part.offsets, strict=True)):
                if word is None:  # padding, [CLS], [SEP]
                    continue
                span = spans.setdefault(word, [start, end])
                span[:] = min(span[0], start), max(span[1], end)
                places.setdefault(word, []).extend([place] if part is encoding else [])
        return [(text[slice(*spans[word])], places[word]) for word in spans]
