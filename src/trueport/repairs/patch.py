"""A repair as a script of its own: one Python file that makes the same changes to the same model, anywhere.

It carries the edits as readable JSON with the explanation above them, the arrays that they name (in a file beside it
where they are large), and the text of those of our modules that write edits into this format. It needs Python 3.9,
NumPy and the format's own library.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from trueport import frameworks
from trueport.frameworks._base import EditDict
from trueport.session import framework_of

SMALL = 1_000_000
"""Bytes of arrays up to which they stand in the script itself."""
WIDTH = 110

Step = tuple[Sequence[EditDict], Mapping[str, np.ndarray]]
"""Edits that are applied together, and their arrays; what `editing.packed` gives."""


class Library(NamedTuple):
    """What a format's files are written with: the module, and the packages to install."""

    module: str
    packages: str


LIBRARIES = {
    "onnx": Library("onnx", "onnx"),
    "openvino": Library("openvino", "openvino"),
    "tflite": Library("ai_edge_litert.interpreter", "ai-edge-litert"),
    "coreml": Library("coremltools", "coremltools"),
    "executorch": Library("executorch", "executorch torch"),
    "tvm": Library("tvm", "apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post0"),
    "pytorch": Library("torch", "torch"),
    "keras": Library("keras", "keras tensorflow"),
    "savedmodel": Library("tensorflow", "tensorflow"),
}


@dataclass(frozen=True, slots=True)
class Patch:
    """A script, and the bytes of the .npz that must lie beside it under the script's own name (NAME.npz for NAME.py)."""

    script: str
    arrays: bytes | None = None


def script(
    format: str,
    steps: Sequence[Step],
    *,
    explanation: str,
    source_sha256: str,
    result_sha256: str,
    versions: Mapping[str, str] | None = None,
) -> Patch:
    """The script that applies `steps`, each to the file that the one before gave.

    source_sha256, result_sha256: as `Artifact.sha256`. versions: package -> version that the edits were written with.
    Raises ValueError for a format into which no edits are written, and for arrays that .npy cannot hold.
    """
    if format not in LIBRARIES:
        raise ValueError(f"no edits are written into files of {format}")
    framework, library = framework_of(format), LIBRARIES[format]
    listed, arrays = _named(steps)
    large = sum(array.nbytes for array in arrays.values()) >= SMALL
    packed = _npz(arrays) if large else None
    facts = {
        "format": format,
        "suffix": framework.SUFFIXES[format],
        "library": library.module,
        "needs": " ".join(_pinned(package, versions or {}) for package in library.packages.split()),
        "source": source_sha256,
        "result": result_sha256,
        "beside": hashlib.sha256(packed).hexdigest() if packed is not None else "",
    }
    stored = {} if large else {name: _npy(array) for name, array in arrays.items()}
    text = _HEAD.format(
        format=format,
        needs=facts["needs"],
        explanation=_commented(explanation),
        sizes=_sizes(arrays, large=large),
        steps=_quoted(json.dumps(listed, indent=1).replace("'", "\\u0027")),
        facts=_literal(facts),
        stored=_stored(stored),
    )
    for name, source in _sources(framework):
        text += f"SOURCES[{name!r}] = {_quoted(source)}\n"
    return Patch(text + _TAIL.format(last=framework.EDIT_FILES[-1]), packed)


def _pinned(package: str, versions: Mapping[str, str]) -> str:
    return f"{package}=={versions[package].partition('+')[0]}" if package in versions else package


def _named(steps: Sequence[Step]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The steps as JSON, in which keys of arrays point to names that are unique among all, and those arrays."""
    arrays: dict[str, np.ndarray] = {}
    listed = []
    for edits, given in steps:
        names = {key: f"array_{len(arrays) + number}" for number, key in enumerate(given)}
        for key, name in names.items():
            array = np.asarray(given[key])
            if array.dtype.hasobject or array.dtype.kind == "V":
                raise ValueError(f"the array '{key}' of type {array.dtype} cannot be stored in a script")
            arrays[name] = array
        listed.append({"edits": [dict(edit) for edit in edits], "arrays": names})
    return listed, arrays


def _npy(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _sources(framework: ModuleType) -> list[tuple[str, str]]:
    """(name, text) of the modules that a script carries, in order of import."""
    folder = Path(frameworks.__path__[0])
    found = [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in ("_base", *framework.EDIT_FILES)]
    main = Path(__file__).with_name("_patch_main.py").read_text(encoding="utf-8")
    return [*found, ("_patch_main", main)]


# -- Python text ----------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """A text as a literal that can be read: raw and over lines where that is possible."""
    if "'''" in text or text.endswith(("\\", "'")):
        return repr(text)
    return f"r'''{text}'''"


def _commented(text: str) -> str:
    lines = [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, WIDTH) or [""]]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _literal(values: Mapping[str, Any]) -> str:
    return "\n".join(f"    {key!r}: {value!r}," for key, value in values.items())


def _stored(values: Mapping[str, str]) -> str:
    lines = []
    for name, text in values.items():
        lines += [f"    {name!r}: (", *(f"        '{part}'" for part in textwrap.wrap(text, WIDTH)), "    ),"]
    return "\n".join(lines)


def _sizes(arrays: Mapping[str, np.ndarray], *, large: bool) -> str:
    if not arrays:
        return "# The edits name no arrays."
    where = "in the .npz file beside this script" if large else "below"
    shown = "; ".join(f"{name}: {array.dtype.name} {list(array.shape)}" for name, array in arrays.items())
    return _commented(f"Arrays, {where}: {shown}.")


_HEAD = '''#!/usr/bin/env python3
"""Mends one {format} model: python THIS_FILE MODEL OUT [--force]

MODEL is only read, OUT appears whole or not at all. Needs Python 3.9 or later, numpy, and: {needs}
Made by trueport (Apache License 2.0), of which the modules at the end are a part.
"""

from __future__ import annotations

import json
import sys
import types

# -- What is wrong with the model, and what is changed --
#
{explanation}
#
{sizes}

STEPS = json.loads(
    {steps}
)

FACTS = {{
{facts}
}}

ARRAYS = {{
{stored}
}}

# -- How such changes are written into a file --

SOURCES = {{}}
'''

_TAIL = '''

def load(name):
    """Make a module of one of the texts above, under the name by which the others import it."""
    full = "trueport.frameworks." + name
    module = types.ModuleType(full)
    module.__file__ = "<" + full + ">"
    sys.modules[full] = module
    setattr(sys.modules["trueport.frameworks"], name, module)
    exec(compile(SOURCES[name], module.__file__, "exec"), module.__dict__)
    return module


def writer():
    """The function that writes edits into a file."""
    for package in ("trueport", "trueport.frameworks"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = []
    sys.modules["trueport"].frameworks = sys.modules["trueport.frameworks"]
    modules = [load(name) for name in SOURCES if name != "_patch_main"]
    assert modules[-1].__name__.endswith({last!r})
    return modules[-1].apply


if __name__ == "__main__":
    runner = types.ModuleType("_patch_main")
    sys.modules["_patch_main"] = runner
    exec(compile(SOURCES["_patch_main"], "<_patch_main>", "exec"), runner.__dict__)
    facts = runner.Facts(steps=STEPS, stored=ARRAYS, **FACTS)
    sys.exit(runner.main(facts, __file__, writer, sys.argv[1:]))
'''
