"""The options that say what a revocation or a block is about."""

import functools
import shlex
from typing import Any

from broker.edge.cli.command import Callback, named
from broker.edge.cli.problems import Misused
from broker.v1 import selector_pb2

_HELP = {
    "realm": "Realm.",
    "partner": "Partner.",
    "user": "Human.",
    "workload": "Program.",
    "environment": "Environment of the partner.",
    "model": "Model; a bare name covers its instances.",
    "run": "Run id.",
    "test": "Test name.",
    "token": "Token id (`broker token inspect` shows it), never the token.",
    "parent": "Id of the token that the dead ones were derived from.",
    "key": "Thumbprint of a signing key; alone, all that it ever signed.",
    "label": "Label, `name=value`.",
}


def selector_options(callback: Callback) -> Callback:
    """Add one option for each dimension; the callback gets a `Selector` as `selector`."""

    @functools.wraps(callback)
    def wrapped(*args: Any, **rest: Any) -> int | None:
        selector = selector_pb2.Selector(**{name: rest.pop(name) for name in _HELP})
        if not selector.ListFields():
            raise Misused("the selector is empty, which would be everything", hint="give at least one of its options")
        return callback(*args, selector=selector, **rest)

    result: Callback = wrapped
    for name, text in reversed(_HELP.items()):
        result = named(f"--{name}", text)(result)
    return result


def selector_fields(selector: selector_pb2.Selector) -> dict[str, str]:
    """Return the dimensions that are set, in their order."""
    return {name: value for name in _HELP if (value := getattr(selector, name))}


def selector_text(selector: selector_pb2.Selector) -> str:
    """Return `partner=acme model=mythos`."""
    return " ".join(f"{name}={value}" for name, value in selector_fields(selector).items())


def selector_flags(selector: selector_pb2.Selector) -> str:
    """Return `--partner acme --model mythos`."""
    return " ".join(f"--{name} {shlex.quote(value)}" for name, value in selector_fields(selector).items())
