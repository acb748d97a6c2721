"""What the planters of faults into Keras files share: the editor of configurations with a view of the nodes. In a worker.

Layers keep their names, so that the place of a planted fault can be told by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _keras_edit as editing
from trueport.frameworks import _keras_trace as traces
from trueport.frameworks import _keras_wiring as wiring
from trueport.frameworks import keras as framework
from trueport.frameworks._base import Unsupported

FRONT = "planted_front"
"""Name of a layer that is put before an input."""


class SkipPlace(Exception):
    """This place cannot take this fault; the message says why."""


class Entry(NamedTuple):
    """One layer in the configuration: `whole` as it stands there, and the nodes of `graph` that it is or holds."""

    path: str
    whole: dict[str, Any]
    nodes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Its class."""
        return str(self.whole["class_name"])

    @property
    def config(self) -> dict[str, Any]:
        """Its hyperparameters."""
        found: dict[str, Any] = self.whole["config"]
        return found


class Editor(editing.Editor):
    """A model as plain data, with its native nodes and a random generator."""

    def __init__(self, path: str, seed: int) -> None:
        super().__init__(path)
        self.rng = np.random.default_rng(seed)
        self.graph = traces.graph(self.loaded, traces.watch(self.loaded))
        self.signature = framework.signature(path, trust=False)

    def copy(self, seed: int) -> Editor:
        """A copy to change; arrays are replaced, never written into."""
        fresh = copy.copy(self)
        fresh.configuration = copy.deepcopy(self.configuration)
        fresh.arrays, fresh.places, fresh.notes = dict(self.arrays), dict(self.places), []
        fresh.rng = np.random.default_rng(seed)
        return fresh

    # -- reading ------------------------------------------------------------------------------------------------

    def entries(self, *kinds: str) -> list[Entry]:
        """The layers of these classes that compute something; all without an argument. Wrapped layers are included."""
        found = self._walk(self.configuration["config"], "")
        return [entry for entry in found if entry.nodes and (not kinds or entry.kind in kinds)]

    def _walk(self, config: dict[str, Any], prefix: str) -> Iterator[Entry]:
        for whole in config.get("layers", ()):
            path = f"{prefix}{whole['config']['name']}"
            entry = Entry(path, whole, self.nodes_of(path))
            yield entry
            yield from self._walk(whole["config"], f"{path}/")
            inner = whole["config"].get("layer")
            if isinstance(inner, dict) and "class_name" in inner:
                yield Entry(f"{path}/{inner['config']['name']}", inner, entry.nodes)

    def nodes_of(self, path: str) -> tuple[str, ...]:
        """The nodes that a layer is or holds."""
        names = [node["name"] for node in self.graph["nodes"]]
        return tuple(n for n in names if n.split("@")[0] == path or n.startswith(f"{path}/"))

    def around(self, entry: Entry) -> list[str]:
        """The nodes that read what a layer computes, then those that make what it reads."""
        own = [node for node in self.graph["nodes"] if node["name"] in entry.nodes]
        made = {name for node in own for name in node["outputs"]}
        read = {name for node in own for name in node["inputs"]}
        after = [node["name"] for node in self.graph["nodes"] if made & set(node["inputs"])]
        before = [node["name"] for node in self.graph["nodes"] if read & set(node["outputs"])]
        return [name for name in [*after, *before] if name not in entry.nodes]

    def weights(self) -> Iterator[tuple[Any, str]]:
        """Every (node, weight) of the model, each weight once."""
        for node in self.graph["nodes"]:
            for name in node["inputs"]:
                if name in self.arrays:
                    yield node, name

    # -- building and changing ------------------------------------------------------------------------------------

    def build(self) -> Any:
        """Build the model that the configuration describes, with the arrays. Raises SkipPlace when they do not fit."""
        try:
            return super().build()
        except Unsupported as error:
            raise SkipPlace(str(error)) from error

    def put_front(self, name: str, kind: str, config: dict[str, Any], *arrays: np.ndarray) -> list[str]:
        """Let all that read the input `name` read it through a new layer; returns its name and its readers' nodes."""
        top = wiring.Wiring(self).top
        if "input_layers" not in top.config or top.layer(name) is None:
            raise SkipPlace("the model is no graph of layers with a named input")
        piece = wiring.Piece(kind, config, arrays=arrays)
        made = top.add(self, FRONT, piece, [(name, 0, 0)])
        top.redirect((name, 0, 0), made, skip=(FRONT,))
        readers = [node["name"] for node in self.graph["nodes"] if name in node["inputs"]]
        return [FRONT, *readers]


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` edits the model at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[Editor], Sequence[Any]]
    change: Callable[[Editor, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


def told(nodes: Sequence[str], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side."""
    return {"nodes": list(dict.fromkeys(nodes)), "what": what, "source_value": source, "target_value": target}


def shown(array: np.ndarray) -> str:
    """An array in a few words."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    return f"{size}, rms {float(np.sqrt(np.mean(np.square(array.astype(np.float64))))):.5g}"
