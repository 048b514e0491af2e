"""The verbs of `edgefuse data`: make a manifest, or check one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefuse.runtime.shared_options import Json
from edgefuse.runtime.verbs import run_verb

data = typer.Typer(help="Make a manifest out of public or generated data, or check one's own.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the corpus.")]
Voices = Annotated[int, typer.Option(min=1, help="Training voices that speak every sentence.")]
Pico = Annotated[int, typer.Option(min=0, help="Training voices of a second synthesizer, SVOX Pico.")]


@data.command("easy-vqa")
def easy_vqa(out: Out, voices: Voices = 120, pico: Pico = 0, as_json: Json = False) -> None:
    """Spoken easy-VQA: pictures, and questions as text and as speech."""
    run_verb("train.corpora:easy_vqa", as_json, out, voices, pico)


@data.command("relational-vqa")
def relational_vqa(out: Out, voices: Voices = 60, as_json: Json = False) -> None:
    """Generated pictures with questions on how objects stand to each other, typed and spoken (Sort-of-CLEVR)."""
    run_verb("train.corpora:relational_vqa", as_json, out, voices)


@data.command("av-digits")
def av_digits(out: Out, voices: Voices = 60, as_json: Json = False) -> None:
    """Noisy audio-visual digits: handwritten and spoken by synthesizers."""
    run_verb("train.corpora:av_digits", as_json, out, voices)


@data.command("fsdd")
def fsdd(
    recordings: Annotated[Path, typer.Option("--from", help="Folder of the dataset's recordings.")],
    out: Annotated[Path, typer.Option(help="Folder of the manifests.")],
    voices: Annotated[int, typer.Option(min=0, help="Synthesized voices that training hears too.")] = 150,
    pico: Pico = 0,
    as_json: Json = False,
) -> None:
    """Spoken digits of people (Free Spoken Digit Dataset, on your disk): a manifest for each speaker left out."""
    run_verb("train.fsdd:fsdd", as_json, recordings, out, voices, pico)


@data.command("home-commands")
def home_commands(out: Out, voices: Voices = 48, as_json: Json = False) -> None:
    """Generated rooms and commands, typed and spoken: what is to be done depends on the state of the room."""
    run_verb("train.home_commands:home_commands", as_json, out, voices)


@data.command("security-events")
def security_events(out: Out, voices: Voices = 24, as_json: Json = False) -> None:
    """Generated camera pictures and sounds by day and night: what happens is told by both together."""
    run_verb("train.security_events:security_events", as_json, out, voices)


@data.command("triage")
def triage(out: Out, as_json: Json = False) -> None:
    """Generated skin patches and notes, a toy without any medical meaning: urgency follows from both together."""
    run_verb("train.triage:triage", as_json, out)


@data.command("driving")
def driving(out: Out, as_json: Json = False) -> None:
    """Generated streets and radar, a toy that no car may be driven by: what is to be done follows from both."""
    run_verb("train.driving:driving", as_json, out)


@data.command("check")
def check(
    manifest: Annotated[Path, typer.Argument(help="The .jsonl file.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Page to write, as .html, with pictures of the worst.", show_default="none")
    ] = None,
    as_json: Json = False,
) -> None:
    """Counts, balance, sizes, lengths, duplicates across splits, and every unreadable file. Exit 1 if there is one."""
    run_verb("train.data_check:check", as_json, manifest, out)


@data.command("shard")
def shard(
    manifest: Annotated[Path, typer.Argument(help="The .jsonl file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    size: Annotated[int, typer.Option(min=1, help="Megabytes that a shard holds.")] = 256,
    as_json: Json = False,
) -> None:
    """Pack a manifest's files into tar shards; their index.json, also as a URL, then is a recipe's data.manifest."""
    run_verb("train.shard:shard", as_json, manifest, out, size)
