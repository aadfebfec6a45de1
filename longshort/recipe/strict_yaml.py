"""Strict YAML, and errors that a person can act on. Knows nothing of the settings in `longshort.recipe.schema`."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from longshort.types import LongShortError


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-6` as a number (YAML 1.1 does not) and refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} appears twice; keep one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _refuse_tag(loader: _Loader, tag: str, node: yaml.Node) -> None:
    fault = f"the tag {tag!r} is refused: a recipe holds plain values only"
    raise yaml.constructor.ConstructorError(None, None, fault, node.start_mark)


_Loader.add_multi_constructor("", _refuse_tag)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$"
        r"|^[-+]?\.[0-9_]+([eE][-+]?[0-9]+)?$"
        r"|^[-+]?[0-9][0-9_]*\.[0-9_]*$"
    ),
    list("-+0123456789."),
)


def read_yaml(text: str | bytes, source: str) -> Any:
    """Return the plain values in `text`. LongShortError, with the line, for bad YAML, a tag or a repeated key."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise LongShortError(f"{source}{line}: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise LongShortError(f"{source}: not valid YAML, or not UTF-8: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # 2001-99-99, an integer of 5,000 digits, a thousand brackets
        raise LongShortError(f"{source}: a value cannot be read ({error}); put text between quotes") from error


def override(tree: dict[str, Any], text: str, schema: type[BaseModel]) -> None:
    """Set the value of `key.sub=value` in the tree, adding sections that are missing.

    The value of a text setting is what is written, whatever it would be in YAML: `#1: yes`, 2024; quotes around all of
    it are left out. Any other value is YAML. `key=` is empty text where text may stand; `key=null` is null everywhere.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise LongShortError(f"override {text!r} must look like key.sub=value")
    *sections, leaf = key.split(".")
    for name in sections:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise LongShortError(f"override {text!r}: {name!r} holds a value, not a section")
    kinds, value = _kinds(schema, [*sections, leaf]), value.strip()
    text_alone = str in kinds and kinds <= {str, type(None)}
    as_written = text_alone and value.lower() != "null" and not re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL)
    empty = not value and (str in kinds or Any in kinds)
    tree[leaf] = value if as_written or empty else read_yaml(value, f"override {text!r}")


def _kinds(annotation: Any, keys: Sequence[str]) -> set[Any]:
    """Return the types that the setting under these keys may have; none if there is no such setting."""
    kinds = list(_alternatives(annotation))
    if not keys:
        return set(kinds)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and (field := kind.model_fields.get(keys[0])):
            return _kinds(field.annotation, keys[1:])
        if get_origin(kind) is dict:
            return _kinds(get_args(kind)[1], keys[1:])
    return set()


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, else the type itself."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    yield from (part for each in parts for part in _alternatives(each))
    if not parts:
        yield get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def explain(error: ValidationError, schema: type[BaseModel], source: str) -> str:
    """Describe the mistakes of a recipe, one line each: where, what, the value; for an unknown key the nearest one."""
    lines = [line for item in error.errors() for line in _explain_one(item, list(_keys(schema)), source)]
    return "\n".join(dict.fromkeys(lines))


def _explain_one(item: Mapping[str, Any], known: Sequence[str], source: str) -> Iterator[str]:
    # Pydantic's location also names union branches ("list[str]"), which mean nothing to a reader.
    path = ".".join(str(part) for part in item["loc"] if "[" not in str(part))
    if item["type"] != "extra_forbidden":
        message = ": ".join(filter(None, (source, path, item["msg"].removeprefix("Value error, "))))
        # An error between two settings names both values already; the whole section would bury it.
        between_settings = isinstance(item["input"], dict) and item["type"] == "value_error"
        yield message if between_settings else f"{message} (got {reprlib.repr(item['input'])})"
        return
    for unknown in _expand(path, item["input"]):
        yield f"{source}: unknown key {unknown!r}; {_suggest(unknown, known)}"


def _suggest(unknown: str, known: Sequence[str]) -> str:
    """Suggest the same setting elsewhere in the recipe, else a similar path, else list the section's keys."""
    leaf, section = unknown.rsplit(".", 1)[-1], unknown.rpartition(".")[0]
    siblings = [path.removeprefix(f"{section}.") for path in known if path.rpartition(".")[0] == section]
    near = sorted((path for path in known if path.rsplit(".", 1)[-1] == leaf), key=lambda path: path.count("."))
    near = near or [f"{section}.{name}".lstrip(".") for name in difflib.get_close_matches(leaf, siblings, n=1)]
    near = near or difflib.get_close_matches(unknown, known, n=1, cutoff=0.8)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known keys here: {', '.join(siblings or [path for path in known if '.' not in path])}"


def _expand(path: str, value: Any) -> Iterator[str]:
    """Yield the dotted keys under an unknown one: `train: {max_steps: 3}` -> "train.max_steps"."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _expand(f"{path}.{key}", inner)
    else:
        yield path


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the schema."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every setting in a nested dict."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
