"""Looking a variant up by its name."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from vae_jax.errors import UserError

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, option: str) -> T:
    """The registry's entry called `name`.

    Raises:
        UserError: if there is none; names the option, the choices and the nearest one.
    """
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(str(name), registry, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"{option}: expected one of {', '.join(registry)}; found {name!r}{hint}")
