"""Models by name: `zoo:COLLECTION/ARCHITECTURE[?OPTION=VALUE&...]`, made once, kept in the cache, then files like others.

The architectures are those of keras.applications, torchvision, timm and transformers, built by their own constructors in
a worker of a toolchain that has them, with random weights that data have scaled (`frameworks/_zoo_scale`) or with the
collection's pretrained ones. What was made is found again by name, options, and the digest of the toolchain.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, quote

from trueport import toolchains
from trueport.artifact import Artifact
from trueport.envs import Environment, Variant, digest
from trueport.errors import UsageError
from trueport.frameworks import _zoo_keras, _zoo_torch
from trueport.outcome import Failure, Kind, Stage
from trueport.session import Session

PREFIX = "zoo:"
VERSION = 2
"""Changes when models come out differently: it is part of every key in the cache."""
RECORD = "zoo.json"
WEIGHTS = ("random", "hub")


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def read(self, text: str) -> int:
        """Raises ValueError with what is wanted."""
        if re.fullmatch(r"\d{1,12}", text) is None or not self.least <= int(text) <= self.most:
            raise ValueError(f"a whole number from {self.least} to {self.most}")
        return int(text)


@dataclass(frozen=True, slots=True)
class Factor:
    """A number above zero, at most `most`."""

    most: float

    def read(self, text: str) -> float:
        """Raises ValueError with what is wanted."""
        if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", text) is None or not 0 < float(text) <= self.most:
            raise ValueError(f"a number above 0, at most {self.most:g}")
        return float(text)


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, text: str) -> str:
        """Raises ValueError with what is wanted."""
        if text not in self.words:
            raise ValueError(" or ".join(self.words))
        return text


Kinds = Mapping[str, Whole | Factor | Word]

COMMON: Kinds = {"weights": Word(WEIGHTS), "seed": Whole(0, 2**31 - 1), "batch": Whole(1, 256)}
PICTURES: Kinds = {**COMMON, "size": Whole(8, 1024), "classes": Whole(2, 100_000)}
TRANSFORMERS: Kinds = {
    **PICTURES,
    "length": Whole(2, 100_000),
    "layers": Whole(1, 96),
    "width": Whole(8, 8192),
    "heads": Whole(1, 128),
    "vocabulary": Whole(16, 300_000),
}
BUILT = ("classes", "alpha", "layers", "width", "heads", "vocabulary", "seed")
"""Options that say how a network is built: pretrained weights fit one way only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Where the architectures of a collection are made, in what file, and which options they have."""

    toolchain: str
    maker: ModuleType
    suffix: str
    options: Kinds
    some: tuple[str, ...]
    """A few names, for people who ask what there is."""


COLLECTIONS: Mapping[str, Collection] = {
    "keras": Collection(
        toolchain="tensorflow",
        maker=_zoo_keras,
        suffix=".keras",
        options={**PICTURES, "alpha": Factor(4), "activation": Word(("softmax", "linear"))},
        some=("MobileNetV2", "ResNet50", "EfficientNetB0", "ConvNeXtTiny"),
    ),
    "torchvision": Collection(
        toolchain="zoo-vision",
        maker=_zoo_torch,
        suffix=".pt2",
        options=PICTURES,
        some=("resnet18", "mobilenet_v3_small", "vit_b_16", "deeplabv3_resnet50"),
    ),
    "timm": Collection(
        toolchain="zoo-vision",
        maker=_zoo_torch,
        suffix=".pt2",
        options=PICTURES,
        some=("resnet10t", "convnext_atto", "vit_tiny_patch16_224", "mobilevit_xxs"),
    ),
    "transformers": Collection(
        toolchain="zoo-transformers",
        maker=_zoo_torch,
        suffix=".pt2",
        options=TRANSFORMERS,
        some=("bert", "gpt2", "t5-encoder", "vit"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A zoo name that was read: the architecture is not yet known to exist."""

    collection: str
    architecture: str
    options: Mapping[str, int | float | str]

    def __str__(self) -> str:
        """The name with its options sorted, and without those that say what is so anyway."""
        told = {key: value for key, value in sorted(self.options.items()) if (key, value) != ("weights", "random")}
        query = "&".join(f"{key}={quote(str(value))}" for key, value in told.items())
        return f"{PREFIX}{self.collection}/{self.architecture}" + (f"?{query}" if query else "")

    @property
    def stem(self) -> str:
        """What a file of this model is called, without suffix."""
        return re.sub(r"[^\w-]", "_", self.architecture)


def is_name(model: object) -> bool:
    """Whether a caller means a model of the zoo (or the zoo's list)."""
    return isinstance(model, str) and model.startswith(PREFIX)


def is_list(model: object) -> bool:
    """Whether a caller names no model, but asks what there is: `zoo:`, `zoo:keras` or `zoo:keras/`."""
    return is_name(model) and "/" not in str(model).rstrip("/") and "?" not in str(model)


def parse(text: str) -> Name:
    """Read `zoo:COLLECTION/ARCHITECTURE[?OPTION=VALUE&...]`. Raises UsageError with the cure."""
    body, _, query = text.removeprefix(PREFIX).partition("?")
    collection, _, architecture = body.partition("/")
    _collection(collection)
    if not architecture or re.fullmatch(r"[\w.-]+", architecture) is None:
        raise UsageError(f"{text}: name an architecture, such as {_example(collection)}")
    return Name(collection=collection, architecture=architecture, options=_options(text, collection, query))


def _collection(name: str) -> Collection:
    if name not in COLLECTIONS:
        raise UsageError(f"the zoo has no collection '{name}'; it has {', '.join(COLLECTIONS)}, as in {_example()}")
    return COLLECTIONS[name]


def _example(collection: str | None = None) -> str:
    collection = collection or next(iter(COLLECTIONS))
    return f"{PREFIX}{collection}/{COLLECTIONS[collection].some[0]}"


def _options(text: str, collection: str, query: str) -> dict[str, int | float | str]:
    kinds = COLLECTIONS[collection].options
    found: dict[str, int | float | str] = {"weights": "random"}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise UsageError(f"{text}: options are written as ?size=96&classes=10") from None
    for key, value in pairs:
        if key not in kinds:
            raise UsageError(f"{text}: {collection} models have no option '{key}'; they have {', '.join(kinds)}")
        try:
            found[key] = kinds[key].read(value)
        except ValueError as error:
            raise UsageError(f"{text}: {key} must be {error}, not '{value}'") from None
    surplus = [key for key in BUILT if key in found]
    if found["weights"] == "hub" and surplus:
        raise UsageError(f"{text}: pretrained weights come with their own {surplus[0]}; leave it out")
    return found


def listing(session: Session, text: str) -> str:
    """What there is, for people: of a whole collection, or the collections with a few examples. Raises UsageError."""
    wanted = text.removeprefix(PREFIX).rstrip("/")
    if not wanted:
        lines = [
            f"{PREFIX}COLLECTION/ARCHITECTURE[?OPTION=VALUE&...] names a model; `inspect zoo:COLLECTION/` lists all."
        ]
        lines += [
            f"{name}: {', '.join(item.some)}, ...; options {', '.join(item.options)}"
            for name, item in COLLECTIONS.items()
        ]
        return "\n".join(lines)
    collection = _collection(wanted)
    environment = _environment(session, collection)
    done = session.call(environment, collection.maker, "names", {"collection": wanted}, stage=Stage.LOAD)
    if isinstance(done, Failure):
        raise UsageError(f"the names of {wanted} cannot be had: {done.message}")
    return "\n".join(f"{PREFIX}{wanted}/{name}" for name in done.value.value)


def open_name(session: Session, text: str) -> Artifact:
    """Find the model in the cache, or make it. Raises UsageError."""
    if is_list(text):
        raise UsageError(f"{text} names no model; {_example()} is one, and `trueport inspect {text}` lists more")
    name = parse(text)
    collection = _collection(name.collection)
    python = session.settings.python
    environment = _environment(session, collection)
    if python is not None:  # its packages may change at any time: nothing is kept
        made = _make(session, environment, name)
        return _artifact(made, name, {"python": str(python)})
    kept = toolchains.cache_folder().absolute() / "zoo" / f"{name.stem}-{_key(name, collection)}"
    if not (kept / RECORD).is_file():
        session.progress(f"making {name}")
        _keep(_make(session, environment, name), kept)
    return _artifact(kept, name, {})


def _environment(session: Session, collection: Collection) -> Environment:
    python = session.settings.python
    found = session.environment(collection.toolchain, variant=None if python is None else Variant(python=python))
    if isinstance(found, Failure):
        raise UsageError(found.message)
    return found.value


def _key(name: Name, collection: Collection) -> str:
    """16 hexadecimal digits over everything that decides what the model is."""
    toolchain = toolchains.toolchains()[collection.toolchain]
    parts = [VERSION, str(name), digest(toolchain, toolchains.PLAIN, None)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _make(session: Session, environment: Environment, name: Name) -> Path:
    """Make the model in a fresh folder, with a record beside it of what was made."""
    collection = _collection(name.collection)
    if name.options["weights"] == "hub" and session.settings.offline:
        raise UsageError(f"{name}: pretrained weights need the network, and --offline was given; leave out weights=hub")
    folder = session.pool.fresh_folder("zoo")
    arguments = {
        "collection": name.collection,
        "name": name.architecture,
        "options": dict(name.options),
        "out": str(folder / f"{name.stem}{collection.suffix}"),
    }
    done = session.call(environment, collection.maker, "make", arguments, stage=Stage.LOAD)
    if isinstance(done, Failure):
        cure = " (see the log)" if done.kind == Kind.CRASHED else ""
        raise UsageError(f"{name} cannot be made ({done.kind}): {done.message}{cure}")
    value = done.value.value
    record = {
        "name": str(name),
        "file": Path(value["path"]).name,
        "notes": list(value["notes"]),
        "variation": dict(value["variation"]),
        "versions": dict(done.value.versions),
        "seconds": round(done.seconds, 1),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return folder


def _keep(made: Path, kept: Path) -> None:
    """Put what was made into the cache, whole or not at all; another process may have been quicker."""
    partial = kept.with_name(f"{kept.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, partial)
        with contextlib.suppress(OSError):
            partial.rename(kept)
        if not (kept / RECORD).is_file():
            raise UsageError(f"{kept} is in the way; remove it")
    except OSError as error:
        raise UsageError(f"the cache folder '{kept.parent}' cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)


def _artifact(folder: Path, name: Name, extra: Mapping[str, Any]) -> Artifact:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        path = folder / record["file"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder} is damaged; remove it, and {name} is made again") from error
    made_by = {"factory": str(name), "versions": record["versions"], "notes": record["notes"], **extra}
    return Artifact.open(path, made_by=made_by)
