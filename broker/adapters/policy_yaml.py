"""Strict YAML: text in, plain values out with the line of each, or every problem with its line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from broker.errors import ConfigInvalid

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_PROBLEMS = 100
# Not 010, which is 8 to one reader and 10 to another, nor 1_0 nor 0x10.
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,14}", re.ASCII)

# PyYAML on libyaml reads a policy of 10,000 principals in a tenth of the time, where it is built in.
# Their stubs share no type with those of the loaders in Python.
_FASTER: Any = getattr(yaml, "CSafeLoader", None)

Path = tuple[str | int, ...]
"""Where a value is: names and positions from the document's root."""


def shown(text: str) -> str:
    """Return a name as it is; anything else short and quoted, so that it cannot forge a line."""
    if re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", text, re.ASCII):
        return text
    return ascii(text if len(text) <= 40 else text[:40] + "...")  # noqa: PLR2004 - the sum of it


def unusable(problems: Iterable[tuple[Path, str]], lines: Mapping[Path, int], source: str) -> ConfigInvalid:
    """Return the failure that tells `problems`, the first hundred of them, each with its line."""
    told = [f"{source}:{_line(lines, path)}: {_dotted(path)}: {problem}" for path, problem in problems]
    beyond = len(told) - MAX_PROBLEMS
    if beyond > 0:
        told[MAX_PROBLEMS:] = [f"{source}:1: document: has {beyond} more problems; mend these first"]
    return ConfigInvalid(source, tuple(told))


def read_yaml(document: str, source: str) -> tuple[Any, Mapping[Path, int]]:
    """Return the document's value and the line of each part of it.

    Raises:
        ConfigInvalid: It is not YAML, or plays a trick that no policy needs.
    """
    if len(document.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigInvalid(source, (f"{source}:1: document: is larger than {MAX_BYTES} bytes; shorten it",))
    if _FASTER is not None:
        # What libyaml does not read is judged, and told, by the loader that every installation has.
        with suppress(yaml.YAMLError, UnicodeError):
            return _built(_root(document, _FASTER), source)
    try:
        root = _root(document, yaml.SafeLoader)
    except yaml.YAMLError as bad:
        raise ConfigInvalid(source, (f"{source}:{_line_of(bad, document)}: document: {_told(bad)}",)) from bad
    return _built(root, source)


def _root(document: str, loader_class: Any) -> yaml.Node | None:
    _refuse_tricks(document, loader_class)
    loader = loader_class(document)
    try:
        root: yaml.Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    return root


def _built(root: yaml.Node | None, source: str) -> tuple[Any, Mapping[Path, int]]:
    lines: dict[Path, int] = {}
    problems: list[tuple[Path, str]] = []

    def build(node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        lines[path] = line
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key, child in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                    where = (*path, _as_written(key))
                    problems.append((where, "a name must be text; put it in quotes"))
                    lines[where] = key.start_mark.line + 1
                    continue
                where = (*path, key.value)
                if key.value in mapping:
                    problems.append((where, "is there twice; remove one"))
                mapping[key.value] = build(child, where)
                lines[where] = key.start_mark.line + 1
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [build(child, (*path, position)) for position, child in enumerate(node.value)]
        return _scalar(node)

    value = build(root, ()) if root is not None else None
    if value is None:
        raise ConfigInvalid(source, (f"{source}:1: document: is empty; an empty policy allows nothing",))
    if problems:
        raise unusable(problems, lines, source)
    return value, lines


def _line_of(bad: yaml.YAMLError, document: str) -> int:
    mark = getattr(bad, "problem_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    return document.count("\n", 0, getattr(bad, "position", 0)) + 1


def _told(bad: yaml.YAMLError) -> str:
    if isinstance(bad, _Refused):
        return f"{bad.problem}; {bad.fix}"
    what = getattr(bad, "problem", None) or str(bad).splitlines()[0]
    return f"{what}; mend the YAML"


def _as_written(key: yaml.Node) -> str:
    return str(key.value) if isinstance(key, yaml.ScalarNode) else "?"


class _Refused(yaml.YAMLError):
    """YAML that could be read, and must not be."""

    def __init__(self, problem: str, fix: str, event: yaml.Event) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
        self.problem_mark = event.start_mark


def _refuse_tricks(document: str, loader_class: Any) -> None:
    # A few lines of aliases can stand for gigabytes, a tag can name code, and brackets cost the square of their depth.
    depth = 0
    for event in yaml.parse(document, Loader=loader_class):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _Refused("is nested too deeply", "no field lies so deep", event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused("anchors and aliases are not allowed", "write it out where it is needed", event)
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
            raise _Refused("tags are not allowed", "remove it", event)


def _scalar(node: yaml.Node) -> Any:
    if node.tag == "tag:yaml.org,2002:int" and _WHOLE.fullmatch(node.value):
        return int(node.value)
    if node.tag == "tag:yaml.org,2002:null":
        return None
    if node.tag == "tag:yaml.org,2002:bool":
        # YAML 1.1 reads `no` and `on` as booleans; as names they are what they look like.
        return node.value if node.value.lower() not in ("true", "false") else node.value.lower() == "true"
    return node.value


def _line(lines: Mapping[Path, int], path: Path) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{shown(part)}"
    return text or "document"
