"""Strict configuration: frozen dataclasses to and from JSON, `a.b=c` overrides, and the difference of two.

A key nobody reads is an error that names the nearest ones; a value of the wrong type names its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from causvid.errors import UserError

C = TypeVar("C")


def to_json(cfg: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def from_json(cls: type[C], values: dict[str, Any], *, source: str = "the configuration") -> C:
    """Build `cls` from plain values; refuses unknown keys and wrong types, with their paths."""
    _refuse_unknown(cls, values, "", source)
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise UserError(f"{source}: {path}: {first['msg'].lower()}, got {first['input']!r}") from None


def completed(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """What was written before some fields existed, with their defaults; as it is, if `cls` no longer fits."""
    try:
        return to_json(from_json(cls, values))
    except UserError:
        return values


def override(cfg: C, assignments: Iterable[str]) -> C:
    """Apply `path.to.field=value`; values are read as JSON where they parse as JSON, as words otherwise."""
    values = to_json(cfg)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' is not of the form name=value")
        *parents, leaf = path.strip().split(".")
        place = values
        for depth, name in enumerate(parents):
            if not isinstance(place.get(name), dict):
                raise UserError(_unknown_key(".".join(parents[: depth + 1]), name, place, "--set"))
            place = place[name]
        if leaf not in place:
            raise UserError(_unknown_key(path.strip(), leaf, place, "--set"))
        place[leaf] = _parse(text.strip())
    return from_json(type(cfg), values, source="--set")


def difference(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Paths at which two configs (as JSON) differ; a missing side is None."""
    out: dict[str, tuple[Any, Any]] = {}
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            out |= difference(left, right, f"{prefix}{key}.")
        elif left != right:
            out[prefix + key] = (left, right)
    return out


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"none": None, "true": True, "false": False}.get(text.lower(), text)


def _refuse_unknown(cls: Any, values: Any, path: str, source: str) -> None:
    if not (dataclasses.is_dataclass(cls) and isinstance(values, dict)):
        return
    types = _field_types(cls)
    for key, value in values.items():
        if key not in types:
            raise UserError(_unknown_key(path + key, key, types, source))
        _refuse_unknown(types[key], value, f"{path}{key}.", source)


def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _unknown_key(path: str, name: str, known: Iterable[str], source: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{source}: there is no setting '{path}'; {hint}"
