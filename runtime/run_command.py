"""The options of `edgefuse run`, as the command line takes them; cli.py makes a verb of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgefuse.runtime.shared_options import Backend
from edgefuse.runtime.verbs import run_verb


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", show_default=False)],
    camera: Annotated[
        str | None,
        typer.Option(help="Number of a camera, video, picture, folder of pictures, rtsp://..., or GStreamer pipeline."),
    ] = None,
    mic: Annotated[
        str | None, typer.Option(help="Number or name of a microphone, default, a sound file, or - for PCM on stdin.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Words, or - for the lines of stdin.")] = None,
    signal: Annotated[
        str | None, typer.Option(help="A table of numbers (.csv, .npy), or - for lines of CSV on stdin, names first.")
    ] = None,
    gate: Annotated[
        str,
        typer.Option(
            help="What sound counts: off (all of it), or sentences found by energy, silero or silero=MODEL.onnx; a "
            "sentence counts for 10 s, with --limit audio=none until the next one."
        ),
    ] = "off",
    backend: Backend = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="Milliseconds after which a reading is missing; may be repeated.",
            show_default="image=1000 audio=1000 text=none signal=1000",
        ),
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(help="Most decisions per second; the newest readings win.", show_default="no limit")
    ] = None,
    alarm: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL>START, then /STOP, @WINDOWms and +HOLDms where wanted, as yes>0.8/0.5@2000ms; may be repeated."
        ),
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that alarms are POSTed to.")] = None,
    mqtt: Annotated[str | None, typer.Option(help="Topic to begin each line with; alarms get TOPIC/alarm.")] = None,
    record: Annotated[Path | None, typer.Option(help="New folder to keep all readings in, 4 GB at most.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Recording, or .jsonl, to play in place of sensors; lines then have no stages_ms."),
    ] = None,
    speed: Annotated[float, typer.Option(min=0, help="Of a replay: 1 as recorded, 0 as fast as it goes.")] = 0.0,
    web: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of a page to watch it on.")] = None,
    web_host: Annotated[str, typer.Option(help="Address that the page listens on.")] = "127.0.0.1",
    count: Annotated[int | None, typer.Option(min=1, help="End after so many decisions.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores but one.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as the last line of stdout.")] = False,
) -> None:
    """Answer all the time from camera, microphone, text and signal: a JSON line for each decision."""
    sensors = {"camera": camera, "mic": mic, "text": text, "signal": signal}
    reading = {"gate": gate, "limits": limit or (), "record": record}
    outputs = {"alarms": alarm or (), "webhook": webhook, "mqtt": mqtt, "web": web, "web_host": web_host}
    ways = {"backend": backend, "threads": threads, "replay": replay, "speed": speed, "max_rate": max_rate}
    options = {**sensors, **reading, **outputs, **ways, "count": count, "ends_with_json": as_json}
    run_verb("runtime.console:run_lines", False, bundle, **options)
