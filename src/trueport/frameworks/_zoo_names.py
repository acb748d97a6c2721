"""What the makers of zoo models say when a name is unknown or pretrained weights cannot be fetched."""

from __future__ import annotations

import difflib
import socket
from collections.abc import Callable, Sequence
from typing import Any

from trueport.frameworks._base import BadModel, Unsupported

PATIENCE = 20.0
"""Seconds that one connection may take before pretrained weights count as out of reach."""


def unknown(collection: str, name: str, known: Sequence[str]) -> BadModel:
    """What to raise for an architecture that a collection does not have."""
    lower = {one.lower(): one for one in known}
    near = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    return BadModel(
        f"{collection} has no architecture '{name}'{hint} `trueport inspect zoo:{collection}/` lists all {len(known)}"
    )


def fetched(collection: str, name: str, load: Callable[[], Any]) -> Any:
    """The pretrained model that `load` gives. Raises Unsupported with one sentence when it cannot be had."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        return load()
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(
            f"the pretrained weights of zoo:{collection}/{name} could not be fetched ({line(error)}); "
            "they need the network, and weights=random does not"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
