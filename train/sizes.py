"""Sizes by table: nano, small and base swap the encoder rows and the fusion's widths of any recipe."""

from __future__ import annotations

from typing import Any

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.settings import AudioSettings, ImageSettings, Settings, SignalSettings, TextSettings

SIZES = ("nano", "small", "base")
# Family of encoders: its row and that row's width, for each size. The learning rate shrinks as the width grows
# (muP, Yang 2022): what trains a row of 96 channels makes one of 768 diverge. Batch norms keep MobileNet and the
# temporal convolutions at one rate.
ROWS: dict[str, dict[str, tuple[str, int]]] = {
    "mobilenet": {
        "nano": ("mobilenet_v3_small", 1),
        "small": ("mobilenet_v3_small", 1),
        "base": ("mobilenet_v3_large", 1),
    },
    "conformer": {"nano": ("conformer_nano", 96), "small": ("conformer_small", 144), "base": ("conformer_base", 256)},
    "distilbert": {
        "nano": ("distilbert_nano", 128),
        "small": ("distilbert_small", 256),
        "base": ("distilbert_base", 768),
    },
    "tcn": {"nano": ("tcn_nano", 1), "small": ("tcn_small", 1), "base": ("tcn_base", 1)},
}
SECTIONS: dict[str, type[Settings]] = {
    "image": ImageSettings,
    "audio": AudioSettings,
    "text": TextSettings,
    "signal": SignalSettings,
}
FUSION: dict[str, dict[str, int]] = {
    "nano": {"dim": 64, "hidden": 128},
    "small": {"dim": 128, "hidden": 256},
    "base": {"dim": 256, "hidden": 512},
}


def resize(document: dict[str, Any], size: str) -> None:
    """Change a recipe's document to `size`; an encoder that no family of the table has (a hub's) stays as it is.

    Raises:
        RecipeError: there is no such size.
    """
    if size not in SIZES:
        raise RecipeError(f"size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    for modality, settings in SECTIONS.items():
        section = document.get(modality)
        if not isinstance(section, dict):
            continue
        now, rate = section.get("encoder", settings.model_fields["encoder"].default), section.get("rate", 1.0)
        for rows in ROWS.values():
            width_of = dict(rows.values())
            if now in width_of:
                section["encoder"], width = rows[size]
                section["rate"] = rate * width_of[now] / width if isinstance(rate, (int, float)) else rate
    fusion = document.get("fusion")
    document["fusion"] = {**(fusion if isinstance(fusion, dict) else {}), **FUSION[size]}
