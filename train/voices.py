"""Who speaks in the corpora: eSpeak NG voices, the variants of training, validation and test disjoint, and Pico's."""

from __future__ import annotations

import random
from collections.abc import Sequence

from edgefuse.train.speech import PicoVoice, Voice

ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
PICO_ACCENTS = ("en-US", "en-GB")
# eSpeak NG's own voice variants, split by hand so that no test variant has a near twin in training (steph, steph2).
TEST_VARIANTS = ("Andrea", "Denis", "Mike", "ed", "f2", "f4", "grandma", "klatt3", "m3", "m7", "paul", "steph")
VAL_VARIANTS = ("Alicia", "Storm", "benjamin", "f5", "klatt5", "m5", "rob", "steph2", "steph3")
TRAIN_VARIANTS = (
    *("Alex", "Andy", "Annie", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Mario", "Michael", "Nguyen"),
    *("Reed", "Tweaky", "UniRobot", "adam", "anika", "announcer", "antonio", "aunty", "belinda", "boris", "caleb"),
    *("croak", "david", "edward", "f1", "f3", "gustave", "ian", "iven", "iven3", "john", "kaukovalta", "klatt"),
    *("klatt2", "klatt4", "klatt6", "linda", "m1", "m2", "m4", "m6", "m8", "marcelo", "max", "michel", "miguel"),
    *("mike2", "norbert", "pablo", "pedro", "quincy", "robert", "robosoft", "robosoft4", "sandro", "shelby"),
    *("travis", "victor", "whisper", "whisperf", "zac"),
)


def draw_voices(variants: Sequence[str], count: int, seed: int) -> list[Voice]:
    """`count` eSpeak NG voices: every variant in turn, with accent, rate, pitch and intonation drawn from `seed`."""
    draw = random.Random(seed)
    return [
        Voice(
            name=f"{draw.choice(ACCENTS)}+{variants[index % len(variants)]}",
            rate=draw.randint(150, 215),
            pitch=draw.randint(30, 75),
            range=draw.randint(20, 90),
        )
        for index in range(count)
    ]


def draw_pico_voices(count: int, seed: int) -> list[PicoVoice]:
    """`count` SVOX Pico voices: both accents in turn, with rate and pitch drawn from `seed`."""
    draw = random.Random(seed)
    return [
        PicoVoice(PICO_ACCENTS[index % len(PICO_ACCENTS)], rate=draw.randint(80, 160), pitch=draw.randint(55, 160))
        for index in range(count)
    ]
