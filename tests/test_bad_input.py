"""What a user can give wrongly: each ends with exit code 2 and one sentence, at once, with nothing half-written.

The rows are data: words of the command line, and what the sentence has to name. The files they speak of are made once.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trueport import cli
from trueport.frameworks import fake
from trueport.outcome import Failure, Stage

MODELS = str(Path(__file__).parent / "frameworks")
SUFFIXES = (".onnx", ".tflite", ".keras", ".h5", ".pt2", ".pt", ".pth", ".fake", ".safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory, pool, env):
    """A folder with a small real model of every format, as NAME `good.SUFFIX`, and damaged relatives of them."""
    folder = tmp_path_factory.mktemp("files")
    save_real(folder, pool, env)
    for good in sorted(folder.glob("good.*")):
        whole = good.read_bytes()
        for share in (0.1, 0.6, 0.95):
            (folder / f"cut{int(share * 100)}{good.suffix}").write_bytes(whole[: int(len(whole) * share)])
    for suffix in SUFFIXES:
        (folder / f"text{suffix}").write_text("this is not a model, it only bears the name of one\n" * 40)
        (folder / f"empty{suffix}").write_bytes(b"")
        (folder / f"zeros{suffix}").write_bytes(bytes(4096))
    (folder / "nosaved" / "variables").mkdir(parents=True)
    (folder / "nosaved" / "saved_model.txt").write_text("no")
    (folder / "badsaved").mkdir()
    (folder / "badsaved" / "saved_model.pb").write_text("not a protobuf at all")
    (folder / "hollow").mkdir()
    save_feeds(folder)
    save_bombs(folder)
    save_traps(folder, pool, env)
    return folder


def save_real(folder, pool, env) -> None:
    def make(name, module, function, **arguments):
        made = pool.call(env(name), module, function, arguments, stage=Stage.LOAD, paths=[MODELS])
        assert not isinstance(made, Failure), made
        return made.value.value

    torch = make("torch", "torch_models", "save", kind="residual", folder=str(folder), seed=0)
    Path(torch["pytorch"]).rename(folder / "good.pt2")
    Path(torch["torchscript"]).rename(folder / "good.pt")
    Path(make("tensorflow", "keras_models", "save", kind="residual", folder=str(folder), seed=0)).rename(
        folder / "good.keras"
    )
    (folder / "good.fake").write_text(fake.text_of(fake.network(seed=1)))
    context = {"signature": None, "example": {}, "calibration": {}, "trust": False}
    for step, out in (("tf2onnx-keras", "good.onnx"), ("tflite-keras", "good.tflite")):
        from trueport.routes import steps
        from trueport.session import converter_of

        known = steps()[step]
        reply = pool.call(env(known.toolchain), "trueport.frameworks.keras", "signature",
                          {"path": str(folder / "good.keras"), "trust": False}, stage=Stage.LOAD)  # fmt: skip
        assert not isinstance(reply, Failure), reply
        random = np.random.default_rng(0)
        spec = reply.value.value["inputs"][0]
        shape = [1 if not isinstance(dim, int) else dim for dim in spec["shape"]]
        example = {spec["name"]: random.normal(size=shape).astype(np.float32)}
        arguments = {
            "step": step, "source": str(folder / "good.keras"), "out": str(folder / out), "options": {},
            "context": {**context, "signature": reply.value.value, "example": example,
                        "calibration": {name: array[None] for name, array in example.items()}},
        }  # fmt: skip
        done = pool.call(env(known.toolchain), converter_of(known).__name__, "convert", arguments, stage=Stage.CONVERT)
        assert not isinstance(done, Failure), done


def save_feeds(folder: Path) -> None:
    """Inputs for `good.fake`, which takes x0 [batch, 6] float32."""
    good = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    np.savez(folder / "feeds.npz", x0=good)
    np.savez(folder / "feeds-two.npz", x0=good, other=good)
    np.savez(folder / "feeds-name.npz", wrong=good, other=good)
    np.savez(folder / "feeds-shape.npz", x0=good[:, :4])
    np.savez(folder / "feeds-rank.npz", x0=good[:, :, None, None, None])
    np.savez(folder / "feeds-text.npz", x0=np.array([["a"] * 6] * 5))
    np.savez(folder / "feeds-complex.npz", x0=good.astype(np.complex64))
    np.savez(folder / "feeds-zero.npz", x0=good[:0])
    np.savez(folder / "feeds-none.npz")
    np.savez(folder / "feeds-nan.npz", x0=np.where(np.arange(30).reshape(5, 6) == 8, np.nan, good))
    np.save(folder / "feeds-objects.npy", np.array([[{"a": 1}] * 6] * 2, dtype=object), allow_pickle=True)
    with zipfile.ZipFile(folder / "feeds-objects.npz", "w") as archive:
        archive.write(folder / "feeds-objects.npy", "x0.npy")
    whole = (folder / "feeds.npz").read_bytes()
    (folder / "feeds-cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "feeds-empty.npz").write_bytes(b"")
    (folder / "feeds-text-file.npz").write_text("not a zip")
    (folder / "feeds.xlsx").write_text("a table")
    (folder / "feeds-broken.jsonl").write_text('{"x0": [1, 2\n')
    (folder / "no-pictures").mkdir()
    (folder / "labels-short.npy").write_bytes(npy(np.arange(3)))
    (folder / "labels-float.npy").write_bytes(npy(np.full(5, 0.5)))
    (folder / "labels-words.txt").write_text("cat\ndog\n")
    (folder / "labels-2d.npy").write_bytes(npy(np.zeros((5, 2), np.int64)))
    (folder / "result.json").write_text(json.dumps({"format": "someone/else/1"}))
    (folder / "list.json").write_text("[1, 2]")
    (folder / "broken.json").write_text('{"format": ')


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


BOMB = 3 << 30


def save_bombs(folder: Path) -> None:
    """Small archives whose directory claims three GiB per entry; who believes it, or inflates it, is lost."""
    header = b"\x93NUMPY\x01\x00"
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({BOMB // 24}, 6), }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    entries = {
        "bomb.npz": {"x0.npy": header + struct.pack("<H", len(text)) + text},
        "bomb.keras": {"metadata.json": b"{}", "config.json": b'{"module": "keras", "class_name": "Functional"}', "model.weights.h5": b"\x89HDF"},
        "bomb.pt2": {"archive/archive_format": b"pt2", "archive/models/model.json": b"{}", "archive/version": b"0"},
    }  # fmt: skip
    for name, members in entries.items():
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                with archive.open(member, "w", force_zip64=True) as stream:
                    stream.write(data)
                    if member in ("x0.npy", "model.weights.h5", "archive/models/model.json"):
                        zeros = bytes(1 << 20)
                        for _ in range(64):
                            stream.write(zeros)
        claim_more(folder / name)


def claim_more(path: Path) -> None:
    """Make the zip directory say that its largest entry has BOMB bytes."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    data = bytearray(path.read_bytes())
    old, new = struct.pack("<I", largest.file_size), struct.pack("<I", BOMB)
    start = data.find(b"PK\x01\x02")
    while (found := data.find(old, start)) >= 0:
        data[found : found + 4] = new
        start = found + 4
    path.write_bytes(data)


class Payload:
    """Unpickling this creates the file TRAP in the current folder."""

    def __reduce__(self):
        return exec, ("open('TRAP', 'w').close()",)


def save_traps(folder: Path, pool, env) -> None:
    """Files that would run code of their own when they are loaded."""
    (folder / "trap.pth").write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
    with zipfile.ZipFile(folder / "trap-zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(), protocol=2))
        archive.writestr("archive/version", "3\n")
    (folder / "trap.npy").write_bytes(npy_objects())
    (folder / "trap.fake").write_text(fake.text_of(fake.network(runs_code=True)))
    (folder / "trapfactory.py").write_text("open('TRAP', 'w').close()\n\ndef build():\n    return None\n")
    code = "import keras\n\ndef save(path):\n    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])\n    model.save(path)\n"
    (folder / "lambda_maker.py").write_text(code)
    made = pool.call(env("tensorflow"), "lambda_maker", "save", {"path": str(folder / "lambda.keras")},
                     stage=Stage.LOAD, paths=[str(folder)])  # fmt: skip
    assert not isinstance(made, Failure), made


def npy_objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload()], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.fixture
def trueport(files, monkeypatch, capsys):
    """trueport(words) -> (exit code, stdout, stderr) of the real entry point, run in this process in `files`."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str | list[str]) -> tuple[int, str, str]:
        words = line if isinstance(line, list) else line.split()
        monkeypatch.setattr(sys, "argv", ["trueport", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return run


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in str(path)}


def refused(trueport, files, line, says) -> None:
    before = listing(files)
    code, out, err = trueport(line)
    lines = [one for one in err.strip().splitlines() if one]
    told = next((one for one in lines if one.lower().startswith("error")), err)
    assert code == 2, f"exit {code}\n{out}\n{err}"
    assert re.search(says, err, flags=re.I), err
    assert "Traceback" not in err
    assert sum(one.lower().startswith("error") for one in lines) <= 1, err
    assert not re.search(r"/trueport-\w+/", err), f"names a temporary folder: {err}"
    assert len(told) < 600, f"no sentence but a speech: {told}"
    assert out == ""
    assert listing(files) == before, listing(files) - before


FORMATS = [".onnx", ".tflite", ".keras", ".pt2", ".pt"]

UNREADABLE = [
    ("missing.onnx", "no such file"),
    *((f"empty{suffix}", "empty") for suffix in SUFFIXES),
    *((f"text{suffix}", "not a model|only weights|not a|no ") for suffix in SUFFIXES),
    *((f"zeros{suffix}", "not a model|damaged|not a|no ") for suffix in SUFFIXES),
    *((f"cut{share}{suffix}", ".") for suffix in [*FORMATS, ".fake"] for share in (10, 60, 95)),
    ("nosaved", "not a model"),
    ("hollow", "not a model"),
    ("badsaved", "badsaved|saved_model"),
    ("bomb.keras", "bomb"),
    ("bomb.pt2", "bomb"),
    ("feeds.npz", "not a model"),
    ("trap.pth", "not a model"),
    ("trap-zip.pth", "weights|--checkpoint|--trust|not a model"),
    ("trap.fake", "runs code"),
    ("lambda.keras", "--trust"),
    ("trapfactory:build", "--trust"),
]


COMMANDS = {
    "inspect": "inspect {}",
    "convert": "convert {} --to onnx -o o.onnx",
    "source": "verify {} good.fake",
    "target": "verify good.fake {}",
}
EVERYWHERE = (
    "missing.onnx",
    "empty.keras",
    "text.keras",
    "cut60.onnx",
    "hollow",
    "trap.pth",
    "trap.fake",
    "trapfactory:build",
)
"""What every command is tried on; the rest takes the same way and is tried on one."""

READ = [
    (command.replace("--to onnx -o o.onnx", "--to fake -o o") if ".fake" in name else command, name, says)
    for name, says in UNREADABLE
    for command in (COMMANDS.values() if name in EVERYWHERE else [COMMANDS["inspect"]])
]


@pytest.mark.parametrize(("command", "name", "says"), READ, ids=[command.format(name) for command, name, _ in READ])
def test_an_unreadable_model_is_one_sentence(trueport, files, command, name, says):
    refused(trueport, files, command.format(name), says)
    assert not (files / "TRAP").exists()


def test_a_bomb_is_not_inflated(trueport, files):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for line in ("inspect bomb.keras", "inspect bomb.pt2", "verify good.fake good.fake --inputs bomb.npz"):
        assert trueport(line)[0] == 2, line
    grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
    assert grown * 1024 < BOMB / 2


C = "convert good.fake --to fake -o o.fake"
V = "verify good.fake good.fake"
R = "repair good.fake good.fake -o fixed.fake"

REQUESTS = [
    ("convert good.fake --to nonsense", "'nonsense' is not known.*onnx"),
    ("convert good.fake --to onnx", "no route from fake to onnx"),
    ("convert good.fake --to fake --precision int8", "no route .* int8"),
    ("convert good.fake --to fake --precision banana", "banana"),
    ("convert good.fake", "--to"),
    ("convert", "SOURCE"),
    ("frobnicate", "frobnicate"),
    (f"{C} --frobnicate", "--frobnicate"),
    (f"{C} --route nonsense", "no conversion step 'nonsense'.*trueport routes"),
    (f"{C} --route tf2onnx-keras", "goes from keras to onnx"),
    (f"{C} --option fake-copy", "STEP.key=value"),
    (f"{C} --option fake-copy.nonsense=1", "no option 'nonsense'; it takes misbehave"),
    (f"{C} --option nonsense.key=1", "no conversion step 'nonsense'"),
    (f"{C} --max-routes 0", "max-routes"),
    (f"{C} --with torch", "PACKAGE==VERSION, not 'torch'"),
    (f"{C} --with torch>=2", "PACKAGE==VERSION"),
    (f"{C} --as-of yesterday", "YYYY-MM-DD, not 'yesterday'"),
    (f"{C} --as-of 2025-13-01", "YYYY-MM-DD"),
    (f"{C} --python /no/such/python", "no such interpreter"),
    (f"{C} --timeout 0", "--timeout"),
    (f"{C} --timeout -5", "--timeout"),
    (f"{C} --timeout nan", "--timeout"),
    (f"{C} --timeout soon", "--timeout"),
    (f"{C} --memory 0", "--memory"),
    (f"{C} --memory nan", "--memory"),
    (f"{C} --seed x", "--seed"),
    (f"{C} --checkpoint trap.pth", "--checkpoint goes with"),
    (f"{C} --source-format nonsense", "'nonsense' is not known"),
    (f"{C} --task nonsense", "nonsense"),
    ("convert good.fake --to fake -o good.fake", "is the source itself"),
    ("convert good.fake --to fake -o hollow", "is a folder"),
    ("convert good.fake --to fake -o good.keras/o.fake", "is no folder"),
    ("convert good.fake --to fake -o /proc/none/o.fake", "cannot be written"),
    (f"{C} --json hollow", "hollow cannot be written: it is a folder"),
    (f"{C} --json /proc/none/r.json", "cannot be written"),
    (f"{C} --json good.keras/r.json", "is no folder"),
    (f"{C} --report good.keras", "good.keras"),
    (f"{V} --json /proc/none/r.json", "cannot be written"),
    (f"{V} --task nonsense", "nonsense"),
    (f"{V} --precision nonsense", "nonsense"),
    (f"{V} --source-format nonsense", "nonsense"),
    (f"{V} --source-format onnx", "good.fake"),
    (f"{V} --inputs missing.npz", "no such file"),
    (f"{V} --inputs feeds.xlsx", "inputs come as"),
    (f"{V} --inputs feeds-empty.npz", "empty"),
    (f"{V} --inputs feeds-cut.npz", "no readable .npz"),
    (f"{V} --inputs feeds-text-file.npz", "no readable .npz"),
    (f"{V} --inputs feeds-none.npz", "no arrays|no readable"),
    (f"{V} --inputs feeds-name.npz", "x0"),
    (f"{V} --inputs feeds-two.npz", "other"),
    (f"{V} --inputs feeds-shape.npz", "x0"),
    (f"{V} --inputs feeds-rank.npz", "x0"),
    (f"{V} --inputs feeds-text.npz", "x0"),
    (f"{V} --inputs feeds-complex.npz", "x0"),
    (f"{V} --inputs feeds-objects.npz", "pickle|objects"),
    (f"{V} --inputs trap.npy", "pickle|objects|allow_pickle"),
    (f"{V} --inputs feeds-zero.npz", "no sample|0 |empty|zero"),
    (f"{V} --inputs bomb.npz", "bomb"),
    (f"{V} --inputs feeds-nan.npz", "NaN at"),
    (f"{V} --inputs feeds-broken.jsonl", "."),
    (f"{V} --inputs no-pictures", "."),
    (f"{V} --inputs feeds.npz --preprocess size=3x3", "preprocess"),
    (f"{V} --labels labels-short.npy", "--labels needs --inputs"),
    (f"{V} --inputs feeds.npz --labels labels-short.npy", "3.*5|5.*3"),
    (f"{V} --inputs feeds.npz --labels labels-float.npy", "label|class"),
    (f"{V} --inputs feeds.npz --labels labels-words.txt", "label|class|cat"),
    (f"{V} --inputs feeds.npz --labels labels-2d.npy", "label|class"),
    (f"{V} --inputs feeds.npz --labels missing.npy", "no such file"),
    ("verify good.fake", "TARGET"),
    ("verify trapfactory:build good.fake --trust --checkpoint missing.pth", "no such file"),
    ("repair good.fake", "TARGET"),
    ("repair good.fake missing.fake", "no such file"),
    ("repair good.fake text.fake", "not a model"),
    ("repair good.fake cut60.fake", "not a whole model"),
    ("repair good.fake trap.fake", "runs code"),
    ("repair trapfactory:build good.fake", "--trust"),
    ("repair good.fake good.fake -o good.fake", "the source itself|never written to"),
    ("repair good.keras good.fake -o good.fake", "never written to"),
    ("repair good.fake good.fake -o hollow", "is a folder"),
    ("repair good.fake good.fake -o o.onnx", "would be a .fake file"),
    ("repair good.fake good.fake -o good.keras/o.fake", "is no folder"),
    ("repair good.fake good.fake -o /proc/none/o.fake", "cannot be written"),
    (f"{R} --patch fix.txt", "ends with .py"),
    (f"{R} --patch feeds.py", "feeds.npz is in the way"),
    (f"{R} --patch /proc/none/fix.py", "cannot be written"),
    (f"{R} --seconds 0", "--seconds"),
    (f"{R} --seconds nan", "--seconds"),
    (f"{R} --attempts 0", "--attempts"),
    (f"{R} --attempts many", "--attempts"),
    (f"{R} --inputs feeds-name.npz", "x0"),
    (f"{R} --json hollow", "is a folder"),
    (f"{R} --to onnx", "--to"),
    ("report missing.json -o r", "no such file"),
    ("report good.fake -o r", "not a stored result"),
    ("report good.keras -o r", "not a stored result"),
    ("report result.json -o r", "not a stored result"),
    ("report list.json -o r", "not a stored result"),
    ("report broken.json -o r", "not a stored result"),
    ("report hollow -o r", "not a stored result"),
    ("routes nonsense --to onnx", "no such file|not known"),
    ("routes good.fake --to nonsense", "not known"),
    ("envs create nonsense", "no toolchain 'nonsense'; known are"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "says"), REQUESTS, ids=[line for line, _ in REQUESTS])
def test_a_wrong_request_is_one_sentence(trueport, files, line, says):
    refused(trueport, files, line, says)
    assert not (files / "TRAP").exists()


def test_a_payload_would_have_run(files, monkeypatch):
    """The trap works: whoever unpickles it has the file."""
    monkeypatch.chdir(files)
    pickle.loads((files / "trap.pth").read_bytes())
    assert (files / "TRAP").exists()
    (files / "TRAP").unlink()


def test_a_good_model_of_every_format_is_read(trueport, files):
    for suffix in [*FORMATS, ".fake"]:
        code, out, err = trueport(f"inspect good{suffix}")
        assert code == 0, err
        assert out


@pytest.mark.skipif(os.getuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_without_permission_is_told(trueport, files):
    locked = files / "locked"
    locked.mkdir(mode=0o555)
    refused(trueport, files, "convert good.fake --to fake -o locked/o.fake", "Permission denied")
