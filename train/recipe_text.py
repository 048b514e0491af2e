"""A recipe as commented YAML: every key with its default, meaning and range, read from the settings' own code."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.train.recipe import Recipe
from edgefuse.train.settings import Settings

WIDTH = 120  # columns; a comment that would reach over it stands above its key
BOUNDS = {  # of JSON schema
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
}


def commented(sensors: Sequence[str], values: Mapping[str, Any]) -> str:
    """The YAML of a recipe that reads `sensors`.

    Args:
        sensors: modalities; the sections of the others are left out.
        values: what differs from the defaults, nested as in the file, such as {"name": ..., "data": {"manifest": ...}}.
    """
    left_out = set(MODALITIES) - set(sensors)
    return "\n".join(_lines(Recipe, values, left_out)) + "\n"


def meanings(settings: type[BaseModel]) -> dict[str, str]:
    """The comment of every field of a class: the lines right above it and what stands behind it."""
    source = textwrap.dedent(inspect.getsource(settings))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: (t.start[1], t.string.lstrip("# ")) for t in tokens if t.type == tokenize.COMMENT}
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in comments and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            numbers = [*range(first, node.lineno), *range(node.lineno, (node.end_lineno or node.lineno) + 1)]
            found[node.target.id] = " ".join(comments[n][1] for n in numbers if n in comments)
    return found


def ranges(settings: type[BaseModel]) -> dict[str, str]:
    """What values every field may have, in words; empty where its type says it all."""
    schema = settings.model_json_schema()
    return {name: _range(field) for name, field in schema["properties"].items()}


def _lines(settings: type[BaseModel], values: Mapping[str, Any], left_out: set[str]) -> Iterator[str]:
    """The lines of one section; sections within it are indented."""
    said, allowed = meanings(settings), ranges(settings)
    for name, field in settings.model_fields.items():
        if name in left_out:
            continue
        section = _section(field.annotation)
        if section is not None:
            yield f"{name}:" + f"  # {(section.__doc__ or '').strip().splitlines()[0]}"
            yield from (f"  {line}" for line in _lines(section, values.get(name) or {}, set()))
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        comment = "; ".join(filter(None, (said[name].rstrip("."), allowed[name])))
        yield from _entry(name, values.get(name, default), comment)


def _entry(name: str, value: Any, comment: str) -> Iterator[str]:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    line = f"{name}: {text.removesuffix(chr(10)).removesuffix('...').strip()}"
    if comment and len(line) + len(comment) + 6 > WIDTH:
        yield from (f"# {part}" for part in textwrap.wrap(comment, WIDTH - 6))
        yield line
    else:
        yield f"{line}  # {comment}" if comment else line


def _section(annotation: Any) -> type[Settings] | None:
    """The section that a field such as `ImageSettings | None` holds; none where it is a value or a table."""
    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and not hasattr(each, "__origin__") and issubclass(each, Settings):
            return None if getattr(annotation, "__origin__", None) in (dict, tuple, list) else each
    return None


def _range(field: Mapping[str, Any]) -> str:
    """Of a field's JSON schema."""
    if "anyOf" in field:
        return " | ".join(filter(None, (_range(each) for each in field["anyOf"])))
    if field.get("type") == "null":
        return "null"
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if field.get("type") == "boolean":
        return "true | false"
    return ", ".join(words.format(field[bound]) for bound, words in BOUNDS.items() if bound in field)
