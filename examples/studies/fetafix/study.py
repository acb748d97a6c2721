"""Makes the models of the study, each once: what the folder holds from an earlier run is taken as it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fetafix.cases import Case, Model
from fetafix.networks import FRONTS
from fetafix.pictures import pictures
from trueport import api, publish
from trueport.artifact import Artifact
from trueport.errors import TrueportError
from trueport.outcome import Failure, Stage
from trueport.routes import steps
from trueport.session import Session, framework_of

HERE = Path(__file__).resolve().parent
SIZES = {"mobilenet_v2": (64, 224), "resnet101": (64, 224), "inception_v3": (80, 299)}
"""Network -> side of the pictures: reduced, and native."""
FITTED, SEARCHED, HELD_OUT = 48, 24, 32
"""Pictures to which the weights are fitted, which a repair may see, and on which it is judged."""
SOURCES = ("networks.py", "pictures.py", "keras_side.py", "torch_side.py", "tflite_side.py")
"""What decides how models come out: a change of one of them makes all anew."""
CONVENTION = {"mobilenet_v2": "tf", "inception_v3": "tf", "resnet101": "caffe"}


@dataclass(slots=True)
class Workshop:
    """Builds models and pictures below `folder`. full: at the networks' native sizes. size: a side for all of them."""

    session: Session
    folder: Path
    full: bool = False
    size: int | None = None
    seed: int = 7

    def side(self, network: str) -> int:
        """Height and width of the pictures."""
        return self.size or SIZES[network][self.full]

    def home(self, network: str) -> Path:
        """Where the files of a network lie: a folder per size and per state of the code that makes them."""
        state = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:10]
        home = self.folder / f"{network}-{self.side(network)}-{self.seed}-{state}"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def inputs(self, case: Case, part: str) -> dict[str, np.ndarray]:
        """Pictures for a case's source: "search" or "held-out". Prepared, where the model does not prepare them itself."""
        count, offset = {"search": (SEARCHED, 1), "held-out": (HELD_OUT, 2)}[part]
        images = pictures(count, self.side(case.network), self.seed * 10 + offset)
        if not case.source.front:
            images = prepared(images, "torch" if case.source.zoo == "torch" else CONVENTION[case.network])
        return {"image": images.transpose(0, 3, 1, 2).copy() if case.source.zoo == "torch" else images}

    def fewest(self, case: Case) -> int:
        """The number of edits that undo the fault: the case's own, and one for every place that was spoiled."""
        if not case.wrong.spoiled:
            return case.fewest
        places = self.model(case.network, case.wrong).path.with_suffix(".places.json")
        return sum(json.loads(places.read_text(encoding="utf-8")).values())

    def model(self, network: str, wanted: Model) -> Artifact:
        """The file of a model. Raises TrueportError when a step does not make it."""
        plain = replace(wanted, spoiled=())
        if wanted.spoiled:
            return self._spoiled(network, wanted)
        if not wanted.route:
            return self._built(network, wanted)
        source = self.model(network, replace(plain, route="", precision="float32"))
        target_format = steps()[wanted.route.rpartition(",")[2]].target_format
        out = self.home(network) / f"{name(wanted)}{framework_of(target_format).SUFFIXES[target_format]}"
        if not out.exists():
            done = api.convert(source, to=target_format, out=out, route=wanted.route, precision=wanted.precision,
                               check=False, session=self.session)  # fmt: skip
            if done.chosen is None:
                failure = done.attempts[0].failure
                why = "no result" if failure is None else failure.message
                raise TrueportError(f"{wanted.route}: {why}")
        return Artifact.open(out, format=target_format)

    def weights(self, network: str, zoo: str) -> Path:
        """Random weights that fit the pictures."""
        out = self.home(network) / f"weights-{zoo}.npz"
        if not out.exists():
            images = self.home(network) / "fitted.npy"
            np.save(images, pictures(FITTED, self.side(network), self.seed * 10))
            partial = publish.partial_name(out).with_suffix(".npz")
            given = {"kind": network, "pictures": str(images), "out": str(partial), "seed": self.seed}
            self.call(zoo, "initialise", given)
            partial.rename(out)
        return out

    def _built(self, network: str, wanted: Model) -> Artifact:
        side, torch_weights = self.side(network), wanted.zoo in ("torch", "keras-port")
        out = self.home(network) / f"{name(wanted)}{'.pt2' if wanted.zoo in ('torch', 'torch-port') else '.keras'}"
        if out.exists():
            return Artifact.open(out)
        made = self.session.pool.fresh_folder("built") / out.name
        weights = self.weights(network, "torch" if torch_weights else "keras")
        given: dict[str, Any] = {"kind": network, "weights": str(weights), "size": [side + wanted.taller, side]}
        if wanted.zoo == "torch-port":
            table = made.with_name("weights.npz")
            told = self.call("keras", "plan", {**given, "out": str(table)})
            given = {"told": told, "weights": str(table), "front": wanted.front, "size": given["size"]}
            self.call("torch", "port", {**given, "out": str(made)})
        elif wanted.zoo == "keras-port":
            self.call("keras", "port", {**given, "out": str(made), "entry": wanted.entry, "front": wanted.front})
        else:
            extra = {} if wanted.epsilon is None else {"epsilon": wanted.epsilon}
            self.call(wanted.zoo, "save", {**given, "out": str(made), "front": wanted.front, **extra})
        publish.model(made, out)
        return Artifact.open(out)

    def _spoiled(self, network: str, wanted: Model) -> Artifact:
        """The right TFLite file, changed step by step."""
        right = self.model(network, replace(wanted, spoiled=()))
        out = self.home(network) / f"{name(wanted)}.tflite"
        if not out.exists():
            quantised = self.model(network, replace(wanted, spoiled=(), precision="int8-dynamic"))
            made = self.session.pool.fresh_folder("spoiled") / out.name
            given = {"path": str(right.path), "quantised": str(quantised.path), "out": str(made)}
            places = self.call("tflite", "spoil", {**given, "steps": list(wanted.spoiled)})
            publish.text(out.with_suffix(".places.json"), json.dumps(places))
            publish.model(made, out)
        return Artifact.open(out)

    def call(self, zoo: str, function: str, arguments: dict[str, Any]) -> Any:
        """Run a function of one of the worker-side files. Raises TrueportError."""
        toolchain = {"keras": "tensorflow", "torch": "torch", "tflite": "litert"}[zoo]
        environment = self.session.environment(toolchain)
        if isinstance(environment, Failure):
            raise TrueportError(environment.message)
        python = environment.value.python
        module = f"{zoo}_side"
        done = self.session.pool.call(python, module, function, arguments, stage=Stage.LOAD, paths=[str(HERE)])
        if isinstance(done, Failure):
            raise TrueportError(f"{module}.{function}: {done.message}\n{done.log[-2000:]}")
        return done.value.value


def prepared(images: np.ndarray, front: str) -> np.ndarray:
    """Pictures [N, H, W, 3] as a network without a preparation of its own gets them."""
    given = FRONTS[front]
    turned = images[..., ::-1] if given.get("reverse") else images
    return (turned * np.array(given["scale"]) + np.array(given["shift"])).astype(np.float32)


def name(model: Model) -> str:
    """A file name that tells models of one network apart."""
    parts = [model.zoo, model.front, f"taller{model.taller}" if model.taller else ""]
    parts += [f"epsilon{model.epsilon:g}" if model.epsilon is not None else ""]
    parts += [model.entry, model.precision if model.precision != "float32" else ""]
    return "-".join(filter(None, [*parts, *model.spoiled, model.route.replace(",", "+")]))
