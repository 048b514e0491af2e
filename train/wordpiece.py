"""The tokenizer of a run: learned from its training texts, or taken from the hub or a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.tokenizer import PAD_TOKEN
from edgefuse.train.recipe import TextSettings

SPECIAL_TOKENS = (PAD_TOKEN, "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer_document(settings: TextSettings, texts: Iterable[str]) -> bytes:
    """The tokenizer.json of a recipe.

    Raises:
        RecipeError: the named tokenizer is neither on disk nor on the hub.
    """
    name = settings.tokenizer
    if name == "corpus" and settings.weights and Path(settings.weights).is_dir():
        name = settings.weights  # a run, whose text encoder knows its own pieces
    if name == "corpus":
        return learn_wordpiece(texts, settings.vocabulary).to_str().encode()
    path = Path(name)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        loaded = Tokenizer.from_file(str(path)) if path.exists() else Tokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises bare Exception
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"text.tokenizer {name!r} is neither a folder, a tokenizer.json nor on the hub ({reason}); "
            "'corpus' learns one from the training texts"
        ) from None
    return loaded.to_str().encode()


def learn_wordpiece(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A lower-casing BERT WordPiece of at most `vocabulary` pieces, [CLS] and [SEP] round each text.

    The same texts give the same ids. The trainer numbers inner letters ("##a") in the order of a hash table, and ties
    between merges go by number; so it is given those letters as special tokens, whose numbers are fixed.
    """
    texts = sorted(set(texts))
    draft = _untrained(models.WordPiece(unk_token="[UNK]"))
    words = [word for text in texts for word, _ in _words(draft, text)]
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *inner], show_progress=False, min_frequency=1
    )
    draft.train_from_iterator(texts, trainer)
    tokenizer = _untrained(models.WordPiece(draft.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _untrained(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    """The words of a text, each with its place, before they fall into pieces."""
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    return tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
