"""Texts to WordPiece ids, against the tokenizers package."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as WordPiece
from tokenizers import models, pre_tokenizers

from edgefuse.runtime.errors import BundleError, MediaError
from edgefuse.runtime.tokenizer import Tokenizer


def wordpiece(*words: str) -> bytes:
    vocabulary = {word: number for number, word in enumerate(("[UNK]", *words))}
    pieces = WordPiece(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    return pieces.to_str().encode()


def test_texts_are_cut_and_padded_to_one_length():
    tokenizer = Tokenizer(wordpiece("a", "b", "[PAD]"), 3)

    ids, mask = tokenizer.encode(["a b a b a", "b", "unheard of"])

    assert (ids.dtype, mask.dtype, tokenizer.vocabulary_size) == (np.int32, np.int32, 4)
    np.testing.assert_array_equal(ids, [[1, 2, 1], [2, 3, 3], [0, 0, 3]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0], [1, 1, 0]])


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_has_ids_or_is_refused(texts):
    tokenizer = Tokenizer(wordpiece("a", "[PAD]"), 3)

    ids, mask = tokenizer.encode(texts)

    assert ids.shape == mask.shape == (len(texts), 3)


@given(st.text(alphabet="ab #?\u00e9", max_size=12))
def test_words_lie_in_the_text_in_order_and_their_pieces_are_the_ids(text):
    tokenizer = Tokenizer(wordpiece("a", "b", "##a", "##b", "?", "[PAD]"), 4)
    pieces = WordPiece.from_str(wordpiece("a", "b", "##a", "##b", "?", "[PAD]").decode())
    _, mask = tokenizer.encode([text])

    words = tokenizer.words(text)

    assert [word for word, _ in words] == [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]
    read = [place for _, places in words for place in places]
    assert read == list(range(int(mask.sum())))
    counts = [len(pieces.encode(word).ids) for word, _ in words]
    assert len(read) == min(sum(counts), 4)
    assert all(len(places) <= count for (_, places), count in zip(words, counts, strict=True))


def test_words_behind_the_end_have_no_places():
    tokenizer = Tokenizer(wordpiece("a", "b", "##b", "[PAD]", "[MASK]"), 3)

    assert tokenizer.words("a ab b a") == [("a", [0]), ("ab", [1, 2]), ("b", []), ("a", [])]
    assert (tokenizer.pad_id, tokenizer.mask_id) == (4, 5)


def test_a_text_that_is_not_unicode_is_refused():
    with pytest.raises(MediaError, match="not valid Unicode"):
        Tokenizer(wordpiece("[PAD]"), 3).encode(["half a pair: \ud800"])


@pytest.mark.parametrize(
    ("document", "message"),
    [(b"{}", "cannot be read"), (b"\xff", "cannot be read"), (wordpiece("a"), r"has no \[PAD\] token")],
)
def test_a_useless_tokenizer_is_refused(document, message):
    with pytest.raises(BundleError, match=message):
        Tokenizer(document, 3)
