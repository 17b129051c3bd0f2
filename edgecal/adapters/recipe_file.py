"""Reading a recipe file, JSON or YAML, from people one need not trust.

YAML is read with PyYAML's safe loader, cut down to what a recipe needs. No aliases: ten nested ones are a billion
strings. No key twice: readers disagree on which counts. The plain scalars of YAML 1.2 only (true, false, null,
numbers), so that an adapter called `no` keeps its name and 1e-3 is a number. The pure-Python parser has a limit of
depth where libyaml's recursion would have the stack's, and the limit of size keeps it under a second.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from edgecal_weights.files import kind_of, parse_json, read_text

from ..errors import RecipeError

_LARGEST = {"JSON": 1 << 20, "YAML": 1 << 16}


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in the file, JSON where it ends in .json and YAML otherwise. RecipeError names the file."""
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    text = read_text(path, _LARGEST[kind], error=RecipeError)
    try:
        values: Any = parse_json(text) if kind == "JSON" else yaml.load(text, _Loader)
    except RecursionError as error:
        raise RecipeError(f"{path} is not valid {kind}: nested too deep") from error
    except (ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} is not valid {kind}: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {kind_of(values)}, expected an object")
    return values


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own attribute, filled below

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: aliases (*name) have no place in a recipe; write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a key has to be a plain word")
            name = str(self.construct_object(key))
            if name in found:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {name!r} occurs twice")
            found[name] = self.construct_object(value, deep=True)
        return found

    def construct_plain_map(self, node: Any) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: expected a mapping")
        return self.construct_mapping(node)


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq")
}
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_plain_map)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers.pop("\0")


def _int(loader: Any, node: Any) -> int:
    """Decimal, as YAML 1.2 has it: 010 is ten."""
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def _one_line(error: Exception) -> str:
    """Of PyYAML's four lines what is wrong and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        what = ": ".join(part for part in (error.context, error.problem) if part)
        return f"line {error.problem_mark.line + 1}: {what}"
    return " ".join(str(error).split())
