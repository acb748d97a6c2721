"""What the conformance kit looks at, one function per promise of `trueport.frameworks._base`, as two literal tables."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trueport.errors import BadModelError
from trueport.frameworks._base import EDIT_KINDS
from trueport.outcome import Stage
from trueport.plugins import outside
from trueport.testing.conformance import LeftOut, NotKept, Subject, head_of

CLOSE = 1e-3
"""Share of an output's size by which equally right ways of computing it may differ: rounding in float32 through some tens
of layers stays well below, another axis, pad or order of channels does not."""

SAME = 1e-5
"""Share by which one and the same computation may differ when it is done in other portions."""

GARBAGE: Mapping[str, bytes] = {
    "nothing": b"",
    "zeros": b"\0" * 64,
    "text": b"a line of text\n",
    "an empty JSON object": b"{}",
    "a bare archive": b"PK\x03\x04" + b"\0" * 60,
    "bytes of all kinds": bytes(range(256)),
}
"""Files that are no model."""

LIGHT = frozenset({"numpy", "trueport"})
"""What the parent may import with a framework file, beside the standard library and the file's own package."""


# -- the file itself ------------------------------------------------------------------------------------------------------


def constants(module: ModuleType) -> None:
    """The constants are there, and of the kinds that the contract names."""
    if not isinstance(module.NAME, str) or not module.NAME:
        raise NotKept("NAME is no text")
    for table in ("FORMATS", "SUFFIXES"):
        found = getattr(module, table, None)
        if not isinstance(found, Mapping) or not found or not all(isinstance(item, str) for item in found.values()):
            raise NotKept(f"{table} is no table of texts")
    if set(module.FORMATS) != set(module.SUFFIXES):
        raise NotKept("FORMATS and SUFFIXES name different formats")
    for names in ("VARIANTS", "PRECISIONS"):
        found = getattr(module, names, None)
        if not isinstance(found, tuple) or not found or len(set(found)) != len(found):
            raise NotKept(f"{names} is no tuple of different names")
    if "float32" not in module.PRECISIONS:
        raise NotKept("PRECISIONS lacks float32")
    unknown = set(getattr(module, "EDITS", ())) - set(EDIT_KINDS)
    if unknown:
        raise NotKept(f"EDITS has kinds that there are not: {', '.join(sorted(unknown))}")
    beside = Path(str(module.__file__)).parent
    lost = [name for name in getattr(module, "EDIT_FILES", ()) if not (beside / f"{name}.py").is_file()]
    if lost:
        raise NotKept(f"EDIT_FILES names what does not lie beside the file: {', '.join(lost)}")


def light_import(module: ModuleType) -> None:
    """Importing the file brings in the standard library and NumPy alone."""
    own = module.__name__.split(".")[0]
    package = outside(module.__name__)
    code = (
        "import sys; sys.path[:0] = {paths!r}; import numpy, trueport.frameworks._base; before = set(sys.modules);"
        "import {module}; print(sorted({{name.split('.')[0] for name in set(sys.modules) - before}}))"
    )
    filled = code.format(paths=[] if package is None else [str(package.parent)], module=module.__name__)
    done = subprocess.run([sys.executable, "-c", filled], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise NotKept(f"it cannot be imported alone: {done.stderr.strip().splitlines()[-1]}")
    brought = set(json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"')))
    heavy = brought - LIGHT - {own} - set(sys.stdlib_module_names)
    if heavy:
        raise NotKept(f"importing it imports {', '.join(sorted(heavy))}; import frameworks inside functions")


# -- reading -----------------------------------------------------------------------------------------------------------------


def sniffing(subject: Subject) -> None:
    """The sample is recognised, and what is no model is not."""
    path = subject.artifact.path
    found = subject.module.sniff(head_of(path), path)
    if found not in subject.module.FORMATS:
        raise NotKept(f"sniff says {found!r} of the sample; FORMATS has {', '.join(subject.module.FORMATS)}")
    folder = subject.session.pool.fresh_folder("garbage")
    for what, content in GARBAGE.items():
        file = folder / "no-model"
        file.write_bytes(content)
        claimed = subject.module.sniff(content, file)
        if claimed is not None:
            raise NotKept(f"sniff takes {what} for a model ({claimed!r})")
    empty = folder / "empty"
    empty.mkdir()
    if subject.module.sniff(b"", empty) is not None:
        raise NotKept("sniff takes an empty folder for a model")


def signature(subject: Subject) -> None:
    """The signature has every key of its kind, and names the sample's inputs."""
    told = subject.signature
    for key in ("inputs", "outputs", "meta"):
        if key not in told:
            raise NotKept(f"the signature has no '{key}'")
    for side in ("inputs", "outputs"):
        names = [spec["name"] for spec in told[side]]
        if not names or len(set(names)) != len(names):
            raise NotKept(f"the {side} have no names, or one name twice: {names}")
        for spec in told[side]:
            _check_spec(side, spec)
    for key in ("precision", "operators", "parameters"):
        if key not in told["meta"]:
            raise NotKept(f"meta has no '{key}'")
    inputs = {spec["name"] for spec in told["inputs"]}
    if inputs != set(subject.sample.inputs):
        raise NotKept(f"the signature's inputs are {sorted(inputs)}, the sample's {sorted(subject.sample.inputs)}")


def _check_spec(side: str, spec: Mapping[str, Any]) -> None:
    if spec["dtype"] != "str":
        try:
            np.dtype(spec["dtype"])
        except TypeError as error:
            raise NotKept(f"{side} '{spec['name']}': NumPy has no type {spec['dtype']!r}") from error
    shape = spec["shape"]
    if shape is not None and not all(size is None or isinstance(size, (int, str)) for size in shape):
        raise NotKept(f"{side} '{spec['name']}': the shape {shape} holds neither numbers, names nor None")


def damaged(subject: Subject) -> None:
    """Of a file cut in half the user gets one sentence (BadModel), not a crash and not a model."""
    cut = subject.session.pool.fresh_folder("damaged") / subject.artifact.path.name
    if subject.artifact.path.is_dir():
        shutil.copytree(subject.artifact.path, cut)
        victim = max((item for item in cut.rglob("*") if item.is_file()), key=lambda item: item.stat().st_size)
    else:
        shutil.copy2(subject.artifact.path, cut)
        victim = cut
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    try:
        subject.ask("signature", stage=Stage.LOAD, path=cut)
        subject.run(path=cut)
    except BadModelError:
        return
    except LeftOut as reason:
        raise NotKept(f"a file cut in half is called unsupported ({reason}); raise BadModel") from reason
    except NotKept as reason:
        raise NotKept(f"a file cut in half is no BadModel: {reason}") from reason
    raise NotKept("a file cut in half loads and runs")


# -- running -----------------------------------------------------------------------------------------------------------------


def running(subject: Subject) -> None:
    """The outputs have the names and types of the signature, and the run axis."""
    runs = {array.shape[0] for array in subject.sample.inputs.values()}
    declared = {spec["name"]: spec for spec in subject.signature["outputs"]}
    if set(subject.outputs) != set(declared):
        raise NotKept(f"run gives {sorted(subject.outputs)}, the signature says {sorted(declared)}")
    for name, array in subject.outputs.items():
        if array.shape[:1] != tuple(runs):
            raise NotKept(f"output '{name}' has shape {array.shape}: its first axis is not that of the runs")
        if str(array.dtype) != declared[name]["dtype"] and declared[name]["dtype"] != "str":
            raise NotKept(f"output '{name}' is {array.dtype}, the signature says {declared[name]['dtype']}")
        shape = declared[name]["shape"]
        if shape is not None and len(shape) != array.ndim - 1:
            raise NotKept(f"output '{name}' has shape {array.shape[1:]}, the signature says {shape}")


def repeated(subject: Subject) -> None:
    """The same inputs give the same outputs."""
    _alike(subject.outputs, subject.run(), SAME, "a second time")


def apart(subject: Subject) -> None:
    """Every run is by itself: alone and in another order it gives the same."""
    inputs, whole = subject.sample.inputs, subject.outputs
    last = {name: array[-1:] for name, array in inputs.items()}
    _alike({name: array[-1:] for name, array in whole.items()}, subject.run(last), SAME, "the last run alone")
    turned = subject.run({name: array[::-1].copy() for name, array in inputs.items()})
    _alike({name: array[::-1] for name, array in whole.items()}, turned, SAME, "the runs in reversed order")


def differing(subject: Subject) -> None:
    """Different inputs give different outputs."""
    if next(iter(subject.sample.inputs.values())).shape[0] < 2:
        raise NotKept("the sample has one run; two or more are needed")
    if all(np.array_equal(array[0], array[-1]) for array in subject.outputs.values()):
        raise NotKept("all outputs are the same for the first run and the last")


def expected(subject: Subject) -> None:
    """The outputs are those of the independent implementation."""
    if subject.sample.expected is None:
        raise LeftOut("the sample comes without the values that are expected")
    _alike(subject.sample.expected, subject.outputs, CLOSE, "an independent implementation")


def variants(subject: Subject) -> None:
    """Every variant is an equally right way to run the model."""
    for name in subject.module.VARIANTS[1:]:
        try:
            found = subject.run(variant=name)
        except LeftOut:
            continue
        _alike(subject.outputs, found, CLOSE, f"variant '{name}'")


def double(subject: Subject) -> None:
    """float64 gives the same outputs, only finer."""
    if "float64" not in subject.module.PRECISIONS:
        raise LeftOut("PRECISIONS has no float64")
    _alike(subject.outputs, subject.run(precision="float64"), CLOSE, "float64")


# -- looking inside ----------------------------------------------------------------------------------------------------------


def graph(subject: Subject) -> None:
    """Names are unique, every operand is known before it is read, and the outputs are made."""
    found = subject.graph
    known = {*found["inputs"], *found["constants"], ""}
    seen: set[str] = set()
    for node in found["nodes"]:
        if node["name"] in seen:
            raise NotKept(f"two nodes are called '{node['name']}'")
        seen.add(node["name"])
        lost = [name for name in node["inputs"] if name not in known]
        if lost:
            raise NotKept(f"node '{node['name']}' reads '{lost[0]}', which nothing before it makes")
        known |= set(node["outputs"])
    if set(found["inputs"]) != {spec["name"] for spec in subject.signature["inputs"]}:
        raise NotKept(f"the graph's inputs {found['inputs']} are not the signature's")
    lost = [name for name in found["outputs"] if name not in known]
    if lost or not found["outputs"]:
        raise NotKept(f"the graph's outputs {found['outputs']} are not made by its nodes")


def names(subject: Subject) -> None:
    """Every name stands for a value of the graph, once, and the outputs are among them."""
    found = subject.ask("names", stage=Stage.TRACE)
    made = {name for node in subject.graph["nodes"] for name in node["outputs"]} | set(subject.graph["inputs"])
    unknown = [name for name in found if name not in made]
    if unknown:
        raise NotKept(f"names has '{unknown[0]}', which the graph does not show")
    if len(set(found)) != len(found):
        raise NotKept("names has a name twice")
    lost = set(subject.graph["outputs"]) - set(found) - set(subject.graph["inputs"])
    if lost:
        raise NotKept(f"names lacks the outputs {sorted(lost)}")


def parameters(subject: Subject) -> None:
    """Every constant of the graph is given, as the graph describes it."""
    given = subject.ask("parameters", stage=Stage.TRACE, emit=True)[1]
    declared = subject.graph["constants"]
    if set(given) != set(declared):
        raise NotKept(f"parameters and the graph's constants differ: {sorted(set(given) ^ set(declared))[:3]}")
    for name, array in given.items():
        if list(array.shape) != list(declared[name]["shape"]) or str(array.dtype) != declared[name]["dtype"]:
            raise NotKept(f"parameter '{name}' is {array.dtype} {array.shape}, the graph says {declared[name]}")


def tracing(subject: Subject) -> None:
    """The traced outputs are those of a run, and every wanted value is given with the run axis."""
    wanted = subject.ask("names", stage=Stage.TRACE)
    found = subject.traced()
    lost = [name for name in wanted if name not in found]
    if lost:
        raise NotKept(f"trace does not give '{lost[0]}', which names lists")
    runs = next(iter(subject.sample.inputs.values())).shape[0]
    short = [name for name, array in found.items() if array.shape[:1] != (runs,)]
    if short:
        raise NotKept(f"the traced '{short[0]}' has shape {found[short[0]].shape}: no run axis in front")
    for place, name in enumerate(subject.graph["outputs"]):
        result = subject.signature["outputs"][place]["name"]
        if name in found:
            _alike({name: subject.outputs[result]}, {name: found[name]}, CLOSE, "the traced output")


def bounded(subject: Subject) -> None:
    """With the smallest budget the traced values are the same."""
    _alike(subject.traced(), subject.traced(budget=1), SAME, "a budget of one byte")


def replaying(subject: Subject) -> None:
    """A value that is put in is what its consumers read; its own producer is asked for what it computes."""
    place = _middle(subject)
    values, inputs = subject.traced(), dict(subject.sample.inputs)
    outputs = [name for name in subject.graph["outputs"] if name in values]
    given: dict[str, Any] = {"inputs": inputs, "wanted": [place, *outputs], "variant": "", "budget": 1 << 28}
    kept = subject.ask("replay", given={place: values[place]}, stage=Stage.TRACE, emit=True, **given)[1]
    _alike({name: values[name] for name in kept}, kept, SAME, f"'{place}' put in as it is")
    moved = values[place] + np.asarray(1, values[place].dtype)
    changed = subject.ask("replay", given={place: moved}, stage=Stage.TRACE, emit=True, **given)[1]
    if place not in changed:
        raise NotKept(f"'{place}' stands in given and in wanted, and replay does not say what its producer computes")
    _alike({place: values[place]}, {place: changed[place]}, SAME, f"what the producer of '{place}' computes")
    if all(np.array_equal(changed[name], values[name]) for name in outputs if name in changed):
        raise NotKept(f"another value for '{place}' is put in, and no output changes")


def _middle(subject: Subject) -> str:
    """A float value between inputs and outputs, on which an output depends."""
    values, shown = subject.traced(), subject.graph
    ends = {*shown["inputs"], *shown["outputs"]}
    between = [name for node in shown["nodes"] for name in node["outputs"] if name in values and name not in ends]
    between = [name for name in between if values[name].dtype.kind == "f"]
    behind: set[str] = set(shown["outputs"])
    for node in reversed(shown["nodes"]):
        if behind & set(node["outputs"]):
            behind |= set(node["inputs"])
    between = [name for name in between if name in behind]
    if not between:
        raise LeftOut("the sample has no float value between its inputs and its outputs")
    return str(between[len(between) // 2])


# -- changing ----------------------------------------------------------------------------------------------------------------


def editing(subject: Subject) -> None:
    """A parameter is changed in a copy; the original and every other parameter stay as they were."""
    if "set-parameter" not in getattr(subject.module, "EDITS", ()):
        raise LeftOut("EDITS has no set-parameter")
    before = subject.ask("parameters", stage=Stage.TRACE, emit=True)[1]
    digest = subject.artifact.sha256
    node, name = _float_parameter(subject, before)
    out = subject.session.pool.fresh_folder("edited") / subject.artifact.path.name
    change = {"kind": "set-parameter", "node": node, "parameter": name, "array": "new"}
    new = before[name] * np.asarray(1.5, before[name].dtype) + np.asarray(0.25, before[name].dtype)
    subject.ask("edit", edits=[change], arrays={"new": new}, out=str(out), stage=Stage.CONVERT)
    if type(subject.artifact).open(subject.artifact.path, format=subject.artifact.format).sha256 != digest:
        raise NotKept("edit changed the original")
    after = subject.ask("parameters", stage=Stage.TRACE, emit=True, path=out)[1]
    stale = after.get(name)
    changed = [key for key, array in after.items() if key in before and not np.array_equal(array, before[key])]
    if changed and changed != [name] and not (stale is None or np.array_equal(stale, before[name])):
        raise NotKept(f"edit was to change '{name}' alone, and changed {changed[:3]}")
    found = subject.run(path=out)
    if all(np.array_equal(found[key], array) for key, array in subject.outputs.items()):
        raise NotKept(f"parameter '{name}' was changed, and no output is")


def _float_parameter(subject: Subject, arrays: Mapping[str, np.ndarray]) -> tuple[str, str]:
    for node in subject.graph["nodes"]:
        for name in node["inputs"]:
            if name in arrays and arrays[name].dtype.kind == "f" and arrays[name].ndim >= 1 and arrays[name].size > 1:
                return str(node["name"]), name
    raise LeftOut("no node of the sample reads a float parameter")


def _alike(wanted: Mapping[str, Any], found: Mapping[str, Any], share: float, what: str) -> None:
    for name, message in _differences(wanted, found, share):
        raise NotKept(f"{what}: '{name}' {message}")


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], share: float) -> Iterator[tuple[str, str]]:
    for name, array in wanted.items():
        one, other = np.asarray(array), np.asarray(found.get(name))
        if name not in found:
            yield name, "is missing"
        elif one.shape != other.shape:
            yield name, f"has shape {other.shape}, not {one.shape}"
        elif one.dtype.kind in "fiub":
            a, b = one.astype(np.float64), other.astype(np.float64)
            size = float(np.sqrt(np.mean(np.square(a)))) if a.size else 0.0
            with np.errstate(invalid="ignore"):  # an infinity less an infinity; equal arrays are asked for below
                gap = float(np.abs(a - b).max()) if a.size else 0.0
            if not gap <= share * max(size, 1e-30) and not np.array_equal(a, b, equal_nan=True):
                yield name, f"differs by {gap:.3g}, {gap / max(size, 1e-30):.2g} of its size"
        elif not np.array_equal(one, other):
            yield name, "differs"


ONCE: tuple[tuple[str, Callable[[ModuleType], None]], ...] = (("constants", constants), ("light-import", light_import))
"""Checks of the file itself."""

CHECKS: tuple[tuple[str, Callable[[Subject], None]], ...] = (
    ("sniff", sniffing),
    ("signature", signature),
    ("damaged-file", damaged),
    ("run", running),
    ("run-repeated", repeated),
    ("runs-apart", apart),
    ("runs-differ", differing),
    ("expected", expected),
    ("variants", variants),
    ("float64", double),
    ("graph", graph),
    ("names", names),
    ("parameters", parameters),
    ("trace", tracing),
    ("trace-budget", bounded),
    ("replay", replaying),
    ("edit", editing),
)
"""Checks of every sample."""
