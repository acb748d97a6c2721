"""Edits a Keras model as its configuration and its weights, both plain data, and writes the changed model. In a worker.

Works for Keras 3 and for Keras 2. The model is built anew from its configuration; every weight goes back to the layer
that it came from. What Keras does not keep of a model that it loads to run it (how it was compiled, the state of its
optimiser, its metadata) is copied from the old file, and no time of writing enters the new one, so that the same edits
give the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _keras_files as files
from trueport.frameworks import _keras_model as models
from trueport.frameworks._base import Unsupported

Place = tuple[str, int]
"""A weight: its layer's path, and its number among the weights of the layer."""


class Editor:
    """A model as plain data.

    configuration: as Keras serialises it, to change. arrays: weight name -> array; arrays are replaced, never written
    into. places: where in the model each array belongs; a weight without a place is looked up by its name.
    """

    def __init__(self, path: str, *, trust: bool = False) -> None:
        loaded = models.read(path, trust=trust)
        self.path, self.loaded, self.trust = path, loaded, trust
        self.keras, self.legacy = loaded.keras, loaded.legacy
        self.archive = Path(path).read_bytes()[:4] == files.ZIP
        try:
            self.configuration: dict[str, Any] = json.loads(loaded.model.to_json())
        except NotImplementedError:
            raise Unsupported("a subclassed model has no configuration that could be edited") from None
        if "layers" not in self.configuration.get("config", {}):
            raise Unsupported("only Functional and Sequential models can be edited, a subclassed one is its own code")
        self.arrays = {name: np.asarray(weight) for name, weight in models.weight_names(loaded).items()}
        owners = _places(loaded)
        self.places = {
            owners[id(weight)]: name for name, weight in models.weight_names(loaded).items() if id(weight) in owners
        }
        self.states = {place: np.asarray(state) for place, state in _states(loaded)}
        self.notes: list[str] = []

    def forget(self, path: str) -> list[str]:
        """Let a layer have no weights yet; returns the names of those that it had, in their order."""
        held = sorted(place for place in self.places if place[0] == path)
        self.states = {place: state for place, state in self.states.items() if place[0] != path}
        return [self.places.pop(place) for place in held]

    def put(self, path: str, arrays: list[np.ndarray]) -> None:
        """Give a layer that has no weights yet these, in the order in which Keras has them."""
        for index, array in enumerate(arrays):
            name = f"{path}/{index}"
            while name in self.arrays:
                name += "_"
            self.arrays[name] = array
            self.places[(path, index)] = name

    def build(self) -> Any:
        """Build the model that the configuration describes, with the arrays. Raises Unsupported when they do not fit."""
        try:
            with self._trusting():
                model = self.keras.models.model_from_json(json.dumps(_bare(self.configuration)))
            loaded = models.describe(model, self.keras, legacy=self.legacy)
        except Exception as error:  # whatever Keras says of a configuration that was changed
            raise Unsupported(f"Keras does not build it: {line(error)}") from error
        owners = _places(loaded)
        for name, weight in models.weight_names(loaded).items():
            place = owners.get(id(weight), ("", 0))
            array = self.arrays.get(self.places.get(place, name))
            if array is None:
                raise Unsupported(
                    f"the edited layer '{place[0]}' needs a weight {list(weight.shape)} that no edit gives"
                )
            if tuple(array.shape) != tuple(weight.shape):
                raise Unsupported(
                    f"'{name}' takes an array of shape {list(weight.shape)}, the one for it has {list(array.shape)}"
                )
            weight.assign(array)
        for place, state in _states(loaded):
            if place in self.states and tuple(state.shape) == self.states[place].shape:
                state.assign(self.states[place])
        self._assets(loaded)
        return model

    def _trusting(self) -> Any:
        """A context in which Keras takes code that the configuration carries, where the user allowed it."""
        if not self.trust:
            return contextlib.nullcontext()
        library = importlib.import_module(f"{self.keras.__name__}.src.saving.serialization_lib")
        return library.SafeModeScope(safe_mode=False)

    def _assets(self, loaded: models.Loaded) -> None:
        """Hand over what layers keep beside weights: vocabularies."""
        kept = dict(models.layers_of(self.loaded.model, legacy=self.legacy))
        for path, layer in models.layers_of(loaded.model, legacy=self.legacy):
            old = kept.get(path)
            if old is not None and hasattr(layer, "load_assets") and type(old) is type(layer):
                with tempfile.TemporaryDirectory() as folder:
                    old.save_assets(folder)
                    if any(Path(folder).iterdir()):
                        layer.load_assets(folder)

    def save(self, out: str) -> None:
        """Build and write the model, in the kind of file that the original is. Raises Unsupported."""
        model = self.build()
        made = Path(f"{out}.building.{'keras' if self.archive else 'h5'}")
        shapes = [[tuple(w.shape) for w in one.trainable_weights] for one in (self.loaded.model, model)]
        try:
            model.save(str(made))
            whole = shapes[0] == shapes[1]
            finish = _finish_archive if self.archive else _finish_h5
            kept = finish(Path(self.path), made, whole)
            made.replace(out)
        finally:
            made.unlink(missing_ok=True)
        if not kept:
            self.notes.append(
                "the shapes of the weights changed, so the optimiser's state and the training configuration were left "
                "out; compile the model again to train it"
            )


def _places(loaded: models.Loaded) -> dict[int, Place]:
    """id of a weight -> its innermost layer, and its number there."""
    return {
        id(weight): (path, index)
        for path, layer in models.layers_of(loaded.model, legacy=loaded.legacy)
        for index, weight in enumerate(getattr(layer, "weights", ()))
    }


def _states(loaded: models.Loaded) -> Iterator[tuple[Place, Any]]:
    """Variables that are no weights: states of random generators."""
    for path, layer in models.layers_of(loaded.model, legacy=loaded.legacy):
        own = {id(weight) for weight in getattr(layer, "weights", ())}
        others = [state for state in getattr(layer, "variables", ()) if id(state) not in own]
        yield from (((path, index), state) for index, state in enumerate(others))


def _bare(value: Any) -> Any:
    """The configuration without the shapes with which layers were built: an edit may have changed them."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if key not in ("build_config", "build_input_shape")}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _finish_archive(old: Path, made: Path, whole: bool) -> bool:
    """Give a written archive the old one's metadata, training state and times. False: the training state was left out."""
    before: dict[str, Any] = files.config(old)
    compiled = before.get("compile_config")
    with zipfile.ZipFile(old) as archive:
        stamps = {entry.filename: entry for entry in archive.infolist()}
        metadata = archive.read("metadata.json") if "metadata.json" in stamps else b""
    any_stamp = next(iter(stamps.values()))
    with zipfile.ZipFile(made) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    if compiled and whole:
        configuration = json.loads(entries["config.json"])
        entries["config.json"] = json.dumps({**configuration, "compile_config": compiled}).encode()
        entries["model.weights.h5"] = _with_optimiser(old, entries["model.weights.h5"])
    if metadata:
        entries["metadata.json"] = metadata
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in entries.items():
            like = stamps.get(name, any_stamp)
            entry = zipfile.ZipInfo(name, like.date_time)
            entry.compress_type, entry.external_attr = like.compress_type, like.external_attr
            archive.writestr(entry, data)
    return whole or not compiled


def _with_optimiser(old: Path, weights: bytes) -> bytes:
    """The weights file with the optimiser's variables of the old one."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        place, source = Path(folder) / "new.h5", Path(folder) / "old.h5"
        with zipfile.ZipFile(old) as archive:
            if "model.weights.h5" not in archive.namelist():
                return weights
            source.write_bytes(archive.read("model.weights.h5"))
        place.write_bytes(weights)
        with h5py.File(source, "r") as before, h5py.File(place, "a") as after:
            if "optimizer" in before:
                if "optimizer" in after:
                    del after["optimizer"]
                before.copy("optimizer", after)
        return place.read_bytes()


def _finish_h5(old: Path, made: Path, whole: bool) -> bool:
    """Give a written HDF5 file the old one's training state. False: it was left out."""
    import h5py

    with h5py.File(old, "r") as before, h5py.File(made, "a") as after:
        for name in ("keras_version", "backend"):
            if name in before.attrs:
                after.attrs[name] = before.attrs[name]
        if not whole:
            return "training_config" not in before.attrs
        if "training_config" in before.attrs:
            after.attrs["training_config"] = before.attrs["training_config"]
        if "optimizer_weights" in before:
            if "optimizer_weights" in after:
                del after["optimizer_weights"]
            before.copy("optimizer_weights", after)
    return True


def line(error: BaseException) -> str:
    """The first line of what an error says; Keras names the layer first and the reason behind it."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    return lines[0][:200] if lines else type(error).__name__
