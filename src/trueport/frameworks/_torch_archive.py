"""What a PyTorch file is, told from its zip directory, and whether loading it could run code. Standard library only.

Three things look alike: an exported program (`.pt2`), TorchScript (`.pt`) and a checkpoint (`.pth`), which holds
weights and no model. All newer ones are zip archives; only names and sizes are read to tell them apart.

`torch.export.load` unpickles freely, evaluates size expressions and looks operators up by dotted path, so a hostile
`.pt2` runs code on load. `code_that_loading_would_run` finds every place where that can happen; a file that
`torch.export.save` wrote from an ordinary model has none.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trueport.frameworks._base import BadModel

ZIP_MAGIC = b"PK\x03\x04"
MAX_ENTRIES = 1_000_000
"""More entries than that in the directory is not a model (the largest seen has some thousands)."""
MAX_PROGRAM = 1 << 30
"""Bytes of the program's text (`model.json`), weights apart; a ResNet-101 has 2 MB."""

_LEGACY_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def sniff(head: bytes, path: Path) -> str | None:
    """Return "pytorch" for an exported program, "torchscript", or None (a checkpoint is not a model)."""
    names = _names(head, path)
    if names is None:
        return None
    if any(_is_program(name) for name in names):
        return "pytorch"
    tails = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tails and "data.pkl" in tails and any(tail.startswith("code/") for tail in tails):
        return "torchscript"
    return None


def checkpoint_kind(head: bytes, path: Path) -> str | None:
    """Return "zip", "pickle" or "safetensors" if this file holds weights and no model, else None."""
    names = _names(head, path)
    if names is not None:
        tails = {name.partition("/")[2] for name in names}
        is_model = any(_is_program(name) for name in names) or any(tail.startswith("code/") for tail in tails)
        return "zip" if "data.pkl" in tails and not is_model else None
    if head.startswith(ZIP_MAGIC):
        return None
    if len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    # A pickle of PyTorch's before 1.6 starts with its magic number, a plain pickled dict names torch's rebuild function.
    if _LEGACY_PICKLE.match(head) and (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head[:32] or b"torch" in head):
        return "pickle"
    return None


def _names(head: bytes, path: Path) -> list[str] | None:
    if not head.startswith(ZIP_MAGIC) or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError):
        return _names_of_broken(head)
    return names if len(names) <= MAX_ENTRIES else None


def _names_of_broken(head: bytes) -> list[str] | None:
    """The entry names in the first 64 KiB: a truncated archive has lost its directory but not its beginning."""
    names = []
    for match in re.finditer(rb"PK\x03\x04.{22}(..)..", head, re.DOTALL):
        size = int.from_bytes(match.group(1), "little")
        names.append(head[match.end() : match.end() + size].decode("utf-8", "replace"))
    return names or None


def _is_program(name: str) -> bool:
    tail = name.partition("/")[2]
    return (
        (tail.startswith("models/") and tail.endswith(".json"))
        or tail.startswith("data/weights/")
        or name.endswith("serialized_exported_program.json")
    )


def open_archive(path: str) -> zipfile.ZipFile:
    """Open the zip archive. Raises BadModel when it is truncated or damaged."""
    try:
        archive = zipfile.ZipFile(path)
        if len(archive.infolist()) > MAX_ENTRIES:
            raise BadModel(f"{path}: the archive claims more than {MAX_ENTRIES} entries")
        for entry in archive.infolist():
            # PyTorch never compresses: an entry that grows on reading is not from it, and could be a bomb.
            if entry.file_size > 1024 * max(entry.compress_size, 1 << 16):
                raise BadModel(f"{path}: the entry {entry.filename} claims to grow to {entry.file_size} bytes")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadModel(f"{path}: the archive is truncated or damaged ({error}); save the model again") from error
    return archive


def read_program(path: str) -> dict[str, Any]:
    """Return the program's JSON. Raises BadModel when it is damaged or there is none."""
    with open_archive(path) as archive:
        entries = [item for item in archive.infolist() if _is_program(item.filename) and ".json" in item.filename]
        entries = [item for item in entries if "/data/" not in item.filename]
        if not entries:
            raise BadModel(f"{path}: the archive holds no exported program; write it with torch.export.save")
        return _read_json(archive, entries[0], path)


def _read_json(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str) -> dict[str, Any]:
    if entry.file_size > MAX_PROGRAM:
        raise BadModel(f"{path}: the program's text has {entry.file_size} bytes, which no model needs")
    try:
        value = json.loads(archive.read(entry))
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RecursionError) as error:
        raise BadModel(f"{path}: the entry {entry.filename} is damaged ({error}); save the model again") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path}: the entry {entry.filename} is not an exported program")
    return value


def written_by(program: dict[str, Any]) -> str:
    """The version of torch that wrote the program, without its build ("2.13.0"), or "" where the file does not say."""
    return str(program.get("torch_version", "")).partition("+")[0]


# An operator is a dotted path below `torch`, `_operator` or `math`, resolved attribute by attribute.
_OPERATOR = re.compile(
    r"torch\.ops\.(?!load_library|import_module|loaded_libraries)[a-zA-Z]\w*\.(__(and|or|xor|[ir]?lshift|[ir]?rshift|[ir]?and|[ir]?or|[ir]?xor)__|[a-zA-Z_]\w*)(\.[a-zA-Z_]\w*)?"
    r"|_operator\.(?!attrgetter|methodcaller|itemgetter|call|setitem|delitem)[a-z_]+"
    r"|math\.[a-z0-9]+"
    r"|torch\.(sym_\w+|_sym_\w+|_higher_order_ops\.\w+(\.\w+)?|amp\.autocast_mode\._(enter|exit)_autocast)"
    r"|torch\._C\._set_grad_enabled|#[\w:.]+"
)
_DUNDER = re.compile(r"__(?!and__|or__|xor__|[ir]?(lshift|rshift|and|or|xor)__)\w*__")
# Sizes are sympy expressions: numbers, symbols such as s23 or u0, and calls of CamelCase functions. No other word, no
# attribute and no other string may stand in them, so nothing that they could call is reachable.
_EXPRESSION = re.compile(
    r"(?:[\s+\-*/%(),<>=!&|~]|\d+\.?\d*(?:e[+-]?\d+)?(?!\w)|'[a-z]{1,4}\d+'"
    r"|\b(?:Symbol|Integer|Float|Rational|True|False|positive|nonnegative|negative|integer|real|finite|oo|int_oo|zoo|nan"
    r"|[suzf]{1,4}\d+|Max|Min|Mod|Mul|Add|Pow|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Xor|ITE|Piecewise|floor|ceiling|sqrt"
    r"|Equality|Unequality|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|true|false"
    r"|PythonMod|ModularIndexing|Where|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|TruncToInt|RoundToInt|TruncToFloat"
    r"|RoundDecimal|ToFloat|Identity|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|BitwiseFn_\w+"
    r"|IsNonOverlappingAndDenseIndicator|OpaqueUnaryFn_\w+)\b)*"
)


def code_that_loading_would_run(path: str) -> str | None:
    """Say in one clause what in this `.pt2` could run code on load, or None when nothing can."""
    with open_archive(path) as archive:
        if len(set(archive.namelist())) != len(archive.namelist()):
            return "it holds two entries of one name"
        for entry in archive.infolist():
            tail = entry.filename.partition("/")[2]
            if tail.startswith("data/aotinductor/"):
                return "it holds compiled code (AOTInductor)"
            if tail.endswith("_config.json") and tail.startswith("data/"):
                config = _read_json(archive, entry, path).get("config", {})
                if not all(_is_raw_tensor(row) for row in config.values()):
                    return "it stores tensors or objects as pickles"
            if entry.filename in ("version", "serialized_exported_program.json"):
                return "it is of the format before PyTorch 2.8, which is a pickle"
            if tail.startswith("models/") and tail.endswith(".json"):
                found = _code_in_program(_read_json(archive, entry, path))
                if found is not None:
                    return found
    return None


def _is_raw_tensor(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("use_pickle"):
        return False
    return str(row.get("path_name", "")).startswith(("weight_", "tensor_"))


def _code_in_program(program: dict[str, Any]) -> str | None:
    for item in _dicts(program):
        calls = [item.get("as_operator"), item.get("target") if "inputs" in item else None]
        for text in calls:
            if not isinstance(text, str) or not text.startswith(("torch", "_operator", "math", "#")):
                continue  # the loader keeps it as plain text
            if not _OPERATOR.fullmatch(text) or _DUNDER.search(text):
                return f"it calls {text[:60]!r}, which is no operator"
        text = item.get("expr_str")
        if isinstance(text, str) and ("__" in text or not _EXPRESSION.fullmatch(text)):
            return f"it evaluates {text[:60]!r}, which is no size"
    return None


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects inside a JSON value, without recursion (a hostile file may nest deeply)."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def sample_inputs(path: str) -> Iterator[bytes]:
    """The pickled sample inputs, which the caller must try with `weights_only=True` before it loads the program."""
    with open_archive(path) as archive:
        for entry in archive.infolist():
            if entry.filename.partition("/")[2].startswith("data/sample_inputs/"):
                yield archive.read(entry)
