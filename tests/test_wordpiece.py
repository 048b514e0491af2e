"""The tokenizer of a run: learned alike every time, taken from disk, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pieces
from transformers import BertTokenizer

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.preprocess import Tokenizer
from edgefuse.train.recipe import TextSettings
from edgefuse.train.wordpiece import SPECIAL_TOKENS, learn_wordpiece, tokenizer_document

TEXTS = ["Does the image contain a red circle?", "What shape is in the image?", "Is there no blue shape?"]


def test_the_same_texts_in_any_order_give_the_same_tokenizer() -> None:
    documents = {learn_wordpiece(texts, 200).to_str() for texts in (TEXTS, TEXTS[::-1], TEXTS * 3) for _ in range(3)}
    assert len(documents) == 1


def test_a_text_is_lower_cased_and_stands_between_cls_and_sep() -> None:
    pieces = learn_wordpiece(TEXTS, 8000)
    encoding = pieces.encode("WHAT Shape?")
    assert encoding.tokens == ["[CLS]", "what", "shape", "?", "[SEP]"]
    assert [pieces.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_what_the_training_never_had_becomes_unknown() -> None:
    assert learn_wordpiece(TEXTS, 8000).encode("日本").tokens == ["[CLS]", "[UNK]", "[UNK]", "[SEP]"]


def test_the_vocabulary_stays_within_its_limit() -> None:
    assert learn_wordpiece([" ".join(f"word{i}" for i in range(500))], 100).get_vocab_size() <= 100


def test_no_text_at_all_leaves_the_special_tokens() -> None:
    assert learn_wordpiece([], 100).get_vocab_size() == len(SPECIAL_TOKENS)


def test_the_ids_are_those_of_transformers_bert_tokenizer() -> None:
    pieces = learn_wordpiece(TEXTS, 60)  # small enough for words to fall into pieces
    bert = BertTokenizer(vocab=pieces.get_vocab(), do_lower_case=True)
    texts = [*TEXTS, "a Redder CIRCLE, isn't it?", "unseen wördś", "tab\tand\nline"]
    expected = bert(texts, padding="max_length", truncation=True, max_length=16)
    ids, mask = Tokenizer(pieces.to_str().encode(), 16).encode(texts)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])


@given(st.text(max_size=40))
def test_any_text_becomes_ids_of_the_vocabulary(text: str) -> None:
    tokenizer = Tokenizer(learn_wordpiece(TEXTS, 100).to_str().encode(), 8)
    ids, mask = tokenizer.encode([text])
    assert ids.shape == mask.shape == (1, 8)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocabulary_size
    assert mask.sum() >= 2


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_tokenizer_is_taken_from_a_file_or_a_folder(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "tokenizer.json"
    learn_wordpiece(TEXTS, 100).save(str(path))
    settings = TextSettings(tokenizer=str(tmp_path if is_folder else path))
    document = tokenizer_document(settings, ["other words"])
    assert json.loads(document) == json.loads(path.read_bytes())


def test_the_corpus_tokenizer_learns_from_the_texts() -> None:
    document = tokenizer_document(TextSettings(vocabulary=100), iter(TEXTS))
    assert Pieces.from_str(document.decode()).token_to_id("circle") is not None


@pytest.mark.parametrize("content", [b"", b"not json", b"{}"])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"neither a folder, a tokenizer\.json nor on the hub") as caught:
        tokenizer_document(TextSettings(tokenizer=str(path)), [])
    assert "\n" not in str(caught.value)


def test_a_name_that_the_hub_does_not_have_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> Pieces:
        raise Exception(f"{name}: connection refused\nsecond line")  # as tokenizers does

    monkeypatch.setattr(Pieces, "from_pretrained", staticmethod(unreachable))
    with pytest.raises(RecipeError, match=r"'nobody/nothing' is neither .* \(nobody/nothing: connection refused\)"):
        tokenizer_document(TextSettings(tokenizer="nobody/nothing"), [])
