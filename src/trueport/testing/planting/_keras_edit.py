"""Edits a Keras model as its configuration and its weights, both plain data, and builds the changed model. Runs in a worker.

Works for Keras 3 and for Keras 2. Layers keep their names, so that the place of a planted fault can be told by name.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _keras_files as files
from trueport.frameworks import _keras_model as models
from trueport.frameworks import _keras_trace as traces
from trueport.frameworks import keras as framework

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


class Editor:
    """A model as plain data: `configuration`, `arrays` (weight name -> array), its native nodes, and a random generator."""

    def __init__(self, path: str, seed: int) -> None:
        loaded = models.read(path, trust=False)
        self.path, self.rng = path, np.random.default_rng(seed)
        self.keras, self.legacy = loaded.keras, loaded.legacy
        self.configuration: dict[str, Any] = json.loads(loaded.model.to_json())
        self.arrays = {name: np.asarray(weight) for name, weight in traces.weight_names(loaded).items()}
        self.graph = traces.graph(loaded, traces.watch(loaded))
        self.signature = framework.signature(path, trust=False)

    def copy(self, seed: int) -> Editor:
        """A copy to change; arrays are replaced, never written into."""
        fresh = copy.copy(self)
        fresh.configuration = copy.deepcopy(self.configuration)
        fresh.arrays = dict(self.arrays)
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

    # -- building -----------------------------------------------------------------------------------------------

    def build(self) -> Any:
        """Build the model that the configuration describes, with the arrays. Raises SkipPlace when they do not fit."""
        try:
            model = self.keras.models.model_from_json(json.dumps(self.configuration))
            loaded = models.describe(model, self.keras, legacy=self.legacy)
        except Exception as error:  # whatever Keras says of a configuration that we broke
            raise SkipPlace(f"Keras does not build it: {_line(error)}") from error
        for name, weight in traces.weight_names(loaded).items():
            array = self.arrays.get(name)
            if array is None or tuple(array.shape) != tuple(weight.shape):
                raise SkipPlace(f"the weights no longer fit ({name})")
            weight.assign(array)
        return model

    def save(self, out: str) -> None:
        """Build and write the model, in the kind of file that the original is."""
        archive = Path(self.path).read_bytes()[:4] == files.ZIP
        made = f"{out}.building.{'keras' if archive else 'h5'}"
        self.build().save(made)
        Path(made).replace(out)

    # -- changing -----------------------------------------------------------------------------------------------

    def put_front(self, name: str, kind: str, config: dict[str, Any]) -> list[str]:
        """Let all that read the input `name` read it through a new layer; returns its name and its readers' nodes."""
        layers = self.configuration["config"]["layers"]
        place = next((i for i, whole in enumerate(layers) if whole["config"]["name"] == name), None)
        if place is None or "inbound_nodes" not in layers[-1]:
            raise SkipPlace("the model is no graph of layers with a named input")
        for whole in layers:
            whole["inbound_nodes"] = _redirected(whole["inbound_nodes"], name, FRONT)
        source = layers[place]
        inbound: Any = [[[name, 0, 0, {}]]]
        if not self.legacy:
            tensor = {"shape": source["config"]["batch_shape"], "dtype": "float32", "keras_history": [name, 0, 0]}
            inbound = [{"args": [{"class_name": "__keras_tensor__", "config": tensor}], "kwargs": {}}]
        layers.insert(
            place + 1,
            {
                "module": "keras.layers",
                "class_name": kind,
                "config": {"name": FRONT, "trainable": True, "dtype": "float32", **config},
                "registered_name": None,
                "name": FRONT,
                "inbound_nodes": inbound,
            },
        )
        readers = [node["name"] for node in self.graph["nodes"] if name in node["inputs"]]
        return [FRONT, *readers]


def _redirected(value: Any, old: str, new: str) -> Any:
    """References to a layer's output in `inbound_nodes`, turned to another layer."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            history = value["config"]["keras_history"]
            return {
                **value,
                "config": {
                    **value["config"],
                    "keras_history": [new if history[0] == old else history[0], *history[1:]],
                },
            }
        return {key: _redirected(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        if len(value) >= 3 and value[0] == old and value[1] == 0 and value[2] == 0:
            return [new, *value[1:]]  # Keras 2: [layer, call, output, keywords]
        return [_redirected(item, old, new) for item in value]
    return value


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


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
