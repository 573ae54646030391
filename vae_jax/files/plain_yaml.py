"""YAML for options: a number is what it looks like, no name comes twice, and there are no references."""

import functools
import math
import re
from typing import Any

PARTS_LIMIT = 10_000  # names, values and brackets in a text: more would take seconds


@functools.cache
def _loader(literal: bool = False) -> Any:
    """A loader that reads a number as it looks, as YAML 1.2 does; if `literal`, it reads everything as text.

    YAML 1.1 reads 017 as 15, 1:30 as 90, 1e-3 as text and 2024-01-01 as a date.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

    if literal:
        Loader.yaml_implicit_resolvers = {}
        return Loader
    replaced = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    numbers = {
        "int": r"[-+]?(0|[1-9][0-9_]*)",
        "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }
    for kind, pattern in numbers.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), list("-+.0123456789"))
    return Loader


@functools.cache
def _dumper() -> Any:
    """The loader's inverse: quotes every text that it or YAML 1.1 would not read as text."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    for first, resolvers in _loader().yaml_implicit_resolvers.items():
        for tag, pattern in resolvers:
            Dumper.add_implicit_resolver(tag, pattern, [first])
    return Dumper


def load(text: str, literal: bool = False) -> Any:
    """The value of a YAML text without references and repeated names.

    Args:
        text: to read.
        literal: keep every value as the text it is written as.

    Raises:
        ValueError: if it is not such a text; the message is PyYAML's, or names the line.
    """
    import yaml

    try:
        return _load(yaml, text, literal)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _load(yaml: Any, text: str, literal: bool) -> Any:
    depth, loader = 0, _loader(literal)
    # Checked before anything is built: aliases and depth can make a short text a large structure.
    for number, event in enumerate(yaml.parse(text, Loader=loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        more = isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None)
        if more or depth > 3 or number > PARTS_LIMIT:
            raise ValueError(f"expected plain options by section; found something else in {_line(event)}")
    read = loader(text)
    try:
        root = read.get_single_node()
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.SequenceNode):
                nodes += node.value
            elif isinstance(node, yaml.MappingNode):
                names = set()
                for key, value in node.value:
                    if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                        raise ValueError(f"expected plain options by section; found something else in {_line(key)}")
                    if key.value in names:
                        raise ValueError(f"expected each option once; found {key.value!r:.60} again in {_line(key)}")
                    names.add(key.value)
                    nodes.append(value)
        return None if root is None else read.construct_document(root)
    finally:
        read.dispose()


def _line(part: Any) -> str:
    return f"line {part.start_mark.line + 1}"


def dump(value: Any) -> str:
    """A mapping as the text that `load` reads."""
    import yaml

    return yaml.dump(value, Dumper=_dumper(), sort_keys=False, width=math.inf)
