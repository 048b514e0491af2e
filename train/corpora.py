"""Makes manifests out of public data that installs by name: spoken easy-VQA here, audio-visual digits in digits.py.

Pictures and questions are those of the easy-vqa package (4,000 + 1,000 pictures; 38,575 + 9,673 questions). Each
question stands in the manifest as text and as speech. The speech is synthesized: training, validation and test have
disjoint sets of eSpeak NG voice variants, and `test_flite.jsonl` asks the test questions in the voices of another
synthesizer where flite is installed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefuse.runtime.errors import MissingExtraError
from edgefuse.runtime.files import write_atomic
from edgefuse.train.digits import av_digits
from edgefuse.train.relational import relational_vqa
from edgefuse.train.spoken import Spoken, speak_all, write_manifests

__all__ = ["av_digits", "easy_vqa", "relational_vqa"]

TRAIN_VOICES = 120  # draws of accent, variant, rate and pitch; each speaks every sentence once

VAL_EVERY = 20  # one training picture in 20 is held out for validation


def easy_vqa(out: Path, voices: int = TRAIN_VOICES, pico: int = 0) -> dict[str, Any]:
    """Write spoken easy-VQA to `out`: images/, sounds/, manifest.jsonl and, with flite, test_flite.jsonl.

    Sounds that are already there are kept, so a second call is quick.

    Args:
        out: the folder of the corpus.
        voices: how many training voices are drawn.
        pico: how many voices of a second synthesizer, SVOX Pico, training hears too.

    Returns:
        The manifests' paths and the number of lines and sounds.

    Raises:
        MissingExtraError: easy-vqa or espeakng-loader is not installed, or Pico is to speak and ttspico is not.
    """
    try:
        import easy_vqa as package
    except ImportError:
        raise MissingExtraError("this corpus needs easy-vqa: pip install 'edgefuse[demo]'") from None
    questions = [
        *_questions("train", package.get_train_image_paths(), *package.get_train_questions()),
        *_questions("test", package.get_test_image_paths(), *package.get_test_questions()),
    ]
    sentences = sorted({question.text for question in questions})
    for picture in {question.picture for question in questions}:
        _copy_once(picture, out / _image_name(picture))
    spoken = speak_all(out, sentences, voices, pico)
    manifests = write_manifests(out, _rows(questions, spoken), spoken)
    return {"manifests": manifests, "lines": len(questions), "sounds": spoken.count}


@dataclass(frozen=True)
class _Question:
    picture: Path
    text: str
    answer: str
    split: str


def answer_type(answer: str) -> str:
    """What kind of answer it is: yes/no, shape or color."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"


def _questions(
    split: str, pictures: dict[int, str], texts: Sequence[str], answers: Sequence[str], picture_ids: Sequence[int]
) -> list[_Question]:
    """The package's parallel lists as rows; one training picture in VAL_EVERY is held out."""
    rows = []
    for text, answer, picture_id in zip(texts, answers, picture_ids, strict=True):
        held_out = split == "train" and picture_id % VAL_EVERY == 0
        rows.append(_Question(Path(pictures[picture_id]), text, answer, "val" if held_out else split))
    return rows


def _image_name(picture: Path) -> str:
    return f"images/{picture.parts[-3]}_{picture.name}"  # the package has data/<split>/images/<id>.png


def _copy_once(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, source.read_bytes())


def _rows(questions: Sequence[_Question], spoken: Spoken) -> list[dict[str, str]]:
    """One line a question; the voice that asks it is drawn with a fixed seed."""
    draw = random.Random(0)
    return [
        {
            "image": _image_name(question.picture),
            "audio": spoken.sound(draw, question.split, question.text),
            "text": question.text,
            "label": question.answer,
            "split": question.split,
            "answer_type": answer_type(question.answer),
        }
        for question in questions
    ]
