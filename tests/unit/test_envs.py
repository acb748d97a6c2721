"""Environments built for real, from wheels that the tests make: what is built, shared, kept, refused and removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import wheelhouse

from trueport import envbuild, envs
from trueport.envs import EnvStore, Variant
from trueport.errors import UsageError
from trueport.outcome import Failure, Kind, Ok, Stage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals and paths")

BUILDER = """
import json, sys
from pathlib import Path
from trueport.envs import EnvStore, Toolchain
row = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(sys.argv[2]).items()}
store = EnvStore(Path(sys.argv[1]), progress=lambda line: print(line, flush=True), table={row["name"]: Toolchain(**row)})
outcome = store.get(row["name"])
print("RESULT", getattr(outcome, "message", None) or outcome.value.python)
"""


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with tiny 1.0 and 2.0, dep 1.0 and 2.0; uv sees nothing else."""
    folder = tmp_path / "wheels"
    wheelhouse.isolate(monkeypatch, folder)
    for version in ("1.0", "2.0"):
        wheelhouse.wheel(folder, "tiny", version, requires=["dep"], code=TINY, scripts=["tiny-where = tiny:where"])
        wheelhouse.wheel(folder, "dep", version)
    return folder


TINY = """
def where():
    import subprocess, sys
    code = "import sys, tiny; print(sys.prefix); print(tiny.__file__)"
    print(sys.executable)
    subprocess.run([sys.executable, "-c", code], check=True)
"""


class Lines(list):
    """Progress lines, kept."""

    def __call__(self, line):
        self.append(line)

    def about(self, words):
        return [line for line in self if words in line]


@pytest.fixture
def lines():
    return Lines()


def make_store(tmp_path, lines, *rows, **options):
    rows = rows or (wheelhouse.toolchain(),)
    return EnvStore(tmp_path / "cache", progress=lines, table={row.name: row for row in rows}, **options)


@pytest.fixture
def store(tmp_path, wheels, lines):
    return make_store(tmp_path, lines)


def built(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value


def failed(outcome):
    assert isinstance(outcome, Failure), outcome
    assert (outcome.stage, outcome.kind) == (Stage.ENVIRONMENT, Kind.UNAVAILABLE)
    return outcome


def say(python, code):
    return subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def leftovers(tmp_path):
    return sorted(
        path.name for path in (tmp_path / "cache" / "envs").glob("*") if path.suffix in (".partial", ".removed")
    )


def test_an_environment_holds_what_its_lock_says_not_what_is_newest(store, lines, tmp_path):
    found = built(store.get("tiny"))
    assert say(found.python, "import tiny, dep; print(tiny.VERSION, dep.VERSION)") == "1.0 1.0"
    marker = json.loads((found.python.parents[1] / envbuild.MARKER).read_text())
    assert marker["format"] == "trueport/env/1"
    assert marker["toolchain"] == "tiny"
    assert marker["versions"] == {"dep": "1.0", "tiny": "1.0"}
    assert marker["variant"] == {"packages": [], "as_of": None}
    assert marker["built"].endswith("+00:00")
    assert marker["seconds"] > 0
    assert leftovers(tmp_path) == []
    assert lines.about("creating it with Python")
    assert lines.about("Installed 2 packages")


def test_the_second_call_builds_nothing_and_notes_the_use(store, lines):
    folder = built(store.get("tiny")).python.parents[1]
    os.utime(folder / envs.LAST_USED, (1, 1))
    lines.clear()
    built(store.get("tiny"))
    assert lines == []
    assert time.time() - (folder / envs.LAST_USED).stat().st_mtime < 60


def test_scripts_and_subprocesses_work_where_the_environment_was_renamed_to(store):
    folder = built(store.get("tiny")).python.parents[1]
    script = folder / "bin" / "tiny-where"
    said = subprocess.run([script], capture_output=True, text=True, check=True).stdout.split()
    assert [Path(word).is_relative_to(folder) for word in said] == [True, True, True], said
    text = "".join(
        path.read_text(errors="ignore")
        for path in (folder / "bin").iterdir()
        if path.is_file() and not path.is_symlink()
    )
    assert ".partial" not in text


def test_an_unknown_toolchain_is_the_users_mistake(store):
    with pytest.raises(UsageError, match="no toolchain 'teeny'; known are tiny"):
        store.get("teeny")


def test_a_variant_changes_its_package_and_keeps_the_rest_of_the_lock(store):
    found = built(store.get("tiny", Variant(packages=("tiny==2.0",))))
    assert say(found.python, "import tiny, dep; print(tiny.VERSION, dep.VERSION)") == "2.0 1.0"
    assert found.python != built(store.get("tiny")).python
    assert say(built(store.get("tiny")).python, "import tiny; print(tiny.VERSION)") == "1.0"


def test_a_variant_may_add_a_package(store, wheels):
    wheelhouse.wheel(wheels, "extra", "3.1")
    found = built(store.get("tiny", Variant(packages=("extra==3.1",))))
    assert say(found.python, "import tiny, extra; print(tiny.VERSION, extra.VERSION)") == "1.0 3.1"


def test_where_a_variant_clashes_with_the_lock_the_lock_is_left_and_that_is_said(store, wheels, lines):
    wheelhouse.wheel(wheels, "tiny", "3.0", requires=["dep>=2"])
    found = built(store.get("tiny", Variant(packages=("tiny==3.0",))))
    assert say(found.python, "import tiny, dep; print(tiny.VERSION, dep.VERSION)") == "3.0 2.0"
    assert len(lines.about("tiny==3.0 does not go with the locked versions")) == 1
    assert [info.locked for info in store.list()] == [False]


def test_order_and_spelling_of_a_variant_make_no_second_environment(store, lines):
    first = built(store.get("tiny", Variant(packages=("tiny==2.0", "dep==2.0"))))
    lines.clear()
    assert built(store.get("tiny", Variant(packages=("DEP==2.0", " Tiny==2.0 ")))).python == first.python
    assert lines == []


def test_a_version_that_does_not_exist(store, lines, tmp_path):
    failure = failed(store.get("tiny", Variant(packages=("tiny==99",))))
    assert "there is no version tiny==99" in failure.message
    assert "'tiny' with tiny==99" in failure.message
    assert "No solution found" in failure.log
    assert not lines.about("without the lock")
    assert leftovers(tmp_path) == []


def test_versions_that_cannot_go_together(store, wheels):
    wheelhouse.wheel(wheels, "tiny", "3.0", requires=["dep>=2"])
    failure = failed(store.get("tiny", Variant(packages=("tiny==3.0", "dep==1.0"))))
    assert "no set of versions satisfies all requirements" in failure.message
    assert "dep" in failure.log


def test_a_damaged_wheel(store, wheels, tmp_path):
    (wheels / "tiny-1.0-py3-none-any.whl").write_bytes(b"no zip file")
    failure = failed(store.get("tiny"))
    assert "is damaged" in failure.message
    assert leftovers(tmp_path) == []


def test_a_package_that_does_not_import_fails_the_health_check(store, wheels, tmp_path):
    wheelhouse.wheel(wheels, "tiny", "1.0", requires=["dep"], code="raise ImportError('no such symbol: frobnicate')")
    failure = failed(store.get("tiny"))
    assert "does not work (ImportError: no such symbol: frobnicate)" in failure.message
    assert "Traceback" in failure.log
    assert leftovers(tmp_path) == []
    assert store.list() == []
    wheelhouse.wheel(wheels, "tiny", "1.0", requires=["dep"])
    shutil.rmtree(tmp_path / "uv-cache")
    built(store.get("tiny"))


def test_a_health_check_that_never_ends(store, tmp_path, wheels, lines, monkeypatch):
    monkeypatch.setattr(envbuild, "HEALTH_TIMEOUT", 0.5)
    row = wheelhouse.toolchain(health="import time; time.sleep(60)")
    assert "did not answer its health check" in failed(make_store(tmp_path, lines, row).get("tiny")).message


def test_no_interpreter_of_that_version(tmp_path, wheels, lines, monkeypatch):
    monkeypatch.delenv("TRUEPORT_PYTHON_3_4", raising=False)
    failure = failed(make_store(tmp_path, lines, wheelhouse.toolchain(python="3.4")).get("tiny"))
    assert "needs Python 3.4, and none was found" in failure.message
    assert "uv python install 3.4" in failure.message
    assert "TRUEPORT_PYTHON_3_4" in failure.message


def test_a_cache_folder_that_cannot_be_a_folder(tmp_path, wheels, lines):
    (tmp_path / "cache").write_text("a file is in the way")
    failure = failed(make_store(tmp_path, lines).get("tiny"))
    assert "cannot be written" in failure.message
    assert "TRUEPORT_CACHE" in failure.message


def test_uv_is_missing(store, monkeypatch):
    def nowhere():
        raise FileNotFoundError("no uv here")

    monkeypatch.setattr("uv.find_uv_bin", nowhere)
    assert "uv, which comes with trueport, is missing" in failed(store.get("tiny")).message


def fake_uv(tmp_path, monkeypatch, body):
    """Put a script in uv's place; it knows `real` (uv's path) and `arguments`, and its calls are recorded."""
    import uv

    script, record = tmp_path / "fake-uv", tmp_path / "calls"
    record.write_text("")
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nreal, arguments = {uv.find_uv_bin()!r}, sys.argv[1:]\n"
        f"open({str(record)!r}, 'a').write(json.dumps([arguments, dict(os.environ)]) + '\\n')\n"
        f"{body}\nos.execv(real, [real, *arguments])\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(script))
    return lambda: [json.loads(line) for line in record.read_text().splitlines()]


def test_a_full_disk_as_uv_reports_it(store, tmp_path, monkeypatch):
    words = (
        "error: Failed to install: tiny\\n  cause: failed to write to file `x`: No space left on device (os error 28)"
    )
    fake_uv(tmp_path, monkeypatch, f"if arguments[0] == 'pip': sys.exit('{words}')")
    failure = failed(store.get("tiny"))
    assert "the disk is full; free some space" in failure.message
    assert "os error 28" in failure.log
    assert leftovers(tmp_path) == []


def in_small_tmpfs(command, folder, size):
    """Run a command with a small file system of its own mounted at `folder`; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    mount = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"',
        "sh",
    ]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mount, size, str(folder), "true"], capture_output=True).returncode
    ):
        pytest.skip("no private file system can be mounted here")
    return subprocess.run([*mount, size, str(folder), *command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("size", ["64k", "200k", "600k"])
def test_a_disk_that_is_really_full(tmp_path, wheels, size):
    wheelhouse.wheel(wheels, "tiny", "1.0", requires=["dep"], code=f"x = '{'x' * 2_000_000}'")
    row = builder_arguments(tmp_path, wheelhouse.toolchain())
    done = in_small_tmpfs(row, tmp_path / "cache", size)
    said = done.stdout.strip().splitlines()[-1]
    assert said.startswith("RESULT"), done.stderr
    assert "full; free some" in said


def test_the_folder_is_read_only(tmp_path, wheels):
    row = builder_arguments(tmp_path, wheelhouse.toolchain())
    done = in_small_tmpfs(
        ["sh", "-c", 'mount -o remount,ro "$1" && shift && exec "$@"', "sh", str(tmp_path / "cache"), *row],
        tmp_path / "cache",
        "1m",
    )
    assert "cannot be written (Read-only file system)" in done.stdout, done.stderr


def test_offline_without_the_downloads(tmp_path, wheels, lines, monkeypatch):
    monkeypatch.delenv("UV_CONFIG_FILE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    failure = failed(make_store(tmp_path, lines, offline=True).get("tiny"))
    assert "cannot be completed offline" in failure.message
    assert "without --offline" in failure.message


def test_offline_with_the_downloads(tmp_path, wheels, lines, monkeypatch):
    files = dict.fromkeys(wheels.iterdir(), "2020-01-01T00:00:00Z")
    with wheelhouse.Index(files) as index:
        monkeypatch.delenv("UV_CONFIG_FILE")
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.address)
        built(make_store(tmp_path, lines).get("tiny"))
        shutil.rmtree(tmp_path / "cache")
        index.asked.clear()
        built(make_store(tmp_path, lines, offline=True).get("tiny"))
        assert not index.asked.is_set()


@pytest.mark.parametrize("index", ["http://127.0.0.1:9/simple", "http://no-such-host.invalid/simple"])
def test_an_index_that_cannot_be_reached(tmp_path, wheels, lines, monkeypatch, index):
    monkeypatch.delenv("UV_CONFIG_FILE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    failure = failed(make_store(tmp_path, lines).get("tiny"))
    assert "the package index cannot be reached" in failure.message
    assert leftovers(tmp_path) == []


def test_as_of_a_day_leaves_the_lock_and_takes_what_was_there(tmp_path, wheels, lines, monkeypatch):
    day = {"tiny-1.0": "2020-01-01", "dep-1.0": "2020-01-01", "tiny-2.0": "2021-06-30", "dep-2.0": "2021-06-30"}
    files = {path: f"{day['-'.join(path.name.split('-')[:2])]}T23:30:00Z" for path in wheels.iterdir()}
    with wheelhouse.Index(files) as index:
        monkeypatch.delenv("UV_CONFIG_FILE")
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.address)
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")
        store = make_store(tmp_path, lines)
        code = "import tiny, dep; print(tiny.VERSION, dep.VERSION)"
        assert say(built(store.get("tiny", Variant(as_of="2021-06-29"))).python, code) == "1.0 1.0"
        assert say(built(store.get("tiny", Variant(as_of="2021-06-30"))).python, code) == "2.0 2.0"
        pinned = Variant(packages=("tiny==1.0",), as_of="2021-06-30")
        assert say(built(store.get("tiny", pinned)).python, code) == "1.0 2.0"
        failure = failed(store.get("tiny", Variant(as_of="2019-01-01")))
        assert "no fitting version of tiny had been published on that day" in failure.message


PROBE_FAILS = """
if '--torch-backend' in arguments:
    sys.exit('error: Failed to fetch\\n  cause: dns error')
"""
PROBE_WORKS = """
if '--torch-backend' in arguments:
    at = arguments.index('--torch-backend')
    del arguments[at:at + 2]
"""


def torch_calls(calls):
    installs = [(arguments, environ) for arguments, environ in calls() if arguments[:2] == ["pip", "install"]]
    return [
        ("cpu" if "--torch-backend" in one else "plain") + (" dry" if "--dry-run" in one else "") for one, _ in installs
    ]


@pytest.mark.parametrize(
    ("body", "row", "variables", "expected"),
    [
        (PROBE_WORKS, {}, {}, ["cpu dry", "cpu"]),
        (PROBE_FAILS, {}, {}, ["cpu dry", "plain"]),
        (PROBE_FAILS, {}, {"UV_TORCH_BACKEND": "cu128"}, ["plain"]),
        (PROBE_FAILS, {}, {"PIP_FIND_LINKS": "local"}, ["plain"]),
        (PROBE_FAILS, {}, {"UV_FIND_LINKS": "local"}, ["plain"]),
        (PROBE_FAILS, {"lock": ("torch==9.9",)}, {"PIP_FIND_LINKS": "local"}, ["cpu dry", "plain"]),
        (PROBE_FAILS, {"registry_torch": True}, {"PIP_FIND_LINKS": "local"}, ["cpu dry", "plain"]),
        (PROBE_FAILS, {"torch": False}, {}, ["plain"]),
    ],
)
def test_where_pytorch_comes_from(tmp_path, wheels, lines, monkeypatch, body, row, variables, expected):
    tag = "cp" + wheelhouse.PYTHON.replace(".", "")
    wheelhouse.wheel(tmp_path / "local", "torch", "1.5+cpu", tag=f"{tag}-none-any")
    wheelhouse.wheel(wheels, "torch", "9.9")
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if "UV_TORCH_BACKEND" in variables:
        body = "os.environ.pop('UV_TORCH_BACKEND', None)"
    calls = fake_uv(tmp_path, monkeypatch, body)
    given = {"requirements": ("torch",), "lock": (), "health": "import torch", "torch": True}
    built(make_store(tmp_path, lines, wheelhouse.toolchain(**(given | row))).get("tiny"))
    assert torch_calls(calls) == expected
    assert bool(lines.about("CPU build cannot be had")) == (expected == ["cpu dry", "plain"])
    retries = [environ.get("UV_HTTP_RETRIES") for arguments, environ in calls() if "--dry-run" in arguments]
    assert set(retries) <= {"0"}
    links = [environ.get("UV_FIND_LINKS") for arguments, environ in calls() if arguments[0] == "pip"]
    offered = bool({"PIP_FIND_LINKS", "UV_FIND_LINKS"} & variables.keys()) and not row.get("registry_torch")
    assert set(links) == {str(tmp_path / "local") if offered else None}


def test_the_users_choice_of_pytorch_makes_an_environment_of_its_own(tmp_path, lines, monkeypatch):
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    store = make_store(tmp_path, lines)
    for torch, same in ((True, False), (False, True)):
        row = wheelhouse.toolchain(torch=torch)
        plain = store._final(row, Variant())
        with monkeypatch.context() as patch:
            patch.setenv("UV_TORCH_BACKEND", "cu128")
            assert (store._final(row, Variant()) == plain) is same


def builder_arguments(tmp_path, row):
    text = json.dumps({name: getattr(row, name) for name in row.__slots__})
    return [sys.executable, "-c", BUILDER, str(tmp_path / "cache"), text]


@pytest.fixture
def start_builder(tmp_path):
    """start_builder(row) -> a process that builds the toolchain; none outlives the test."""
    with ExitStack() as stack:

        def start(row):
            command = builder_arguments(tmp_path, row)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def wait_for(condition, what):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def gated(tmp_path):
    """Return a toolchain whose health check waits for a file, and that file."""
    gate = tmp_path / "gate"
    # it gives up by itself, so that a failing test leaves nothing running
    code = (
        "import tiny, time, pathlib\nlimit = time.monotonic() + 40\n"
        f"while not pathlib.Path({str(gate)!r}).exists() and time.monotonic() < limit: time.sleep(0.02)"
    )
    return wheelhouse.toolchain(health=code), gate


def test_two_processes_that_build_one_environment_share_it(start_builder, tmp_path, wheels):
    row, gate = gated(tmp_path)
    first, second = start_builder(row), start_builder(row)
    said = []
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(one.communicate, timeout=100) for one in (first, second)]
        wait_for(lambda: list((tmp_path / "cache" / "envs").glob("*.partial/bin/python")), "nobody builds")
        time.sleep(1.0)  # long enough for the second to reach the lock
        gate.touch()
        said = [answer.result()[0] for answer in answers]
    assert sum("creating it" in words for words in said) == 1, said
    assert sum("waiting for another process" in words for words in said) == 1, said
    results = {words.strip().splitlines()[-1] for words in said}
    assert len(results) == 1, results
    assert results.pop().startswith(f"RESULT {tmp_path}")
    assert len(list((tmp_path / "cache" / "envs").glob("tiny-*/bin/python"))) == 1


def test_two_threads_share_too(tmp_path, wheels, lines):
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: built(make_store(tmp_path, lines).get("tiny")).python, range(4)))
    assert len(set(found)) == 1
    assert len(lines.about("creating it")) == 1


@pytest.mark.parametrize("phase", ["download", "health"])
def test_kill_9_leaves_no_half_environment_and_the_next_build_works(
    start_builder, tmp_path, wheels, lines, monkeypatch, phase
):
    row, gate = gated(tmp_path)
    files = dict.fromkeys(wheels.iterdir(), "2020-01-01T00:00:00Z")
    with wheelhouse.Index(files) as index:
        monkeypatch.delenv("UV_CONFIG_FILE")
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.address)
        if phase == "download":
            index.gate.clear()
        builder = start_builder(row)
        wait_for(index.asked.is_set, "uv asked for nothing")
        if phase == "health":
            wait_for(
                lambda: list((tmp_path / "cache").glob("envs/*.partial/lib/*/site-packages/tiny.py")),
                "nothing installed",
            )
        orphans = psutil.Process(builder.pid).children(recursive=True)
        builder.kill()
        builder.communicate()
        assert len(leftovers(tmp_path)) == 1
        store = make_store(tmp_path, lines, row)
        assert [info.complete for info in store.list()] == [False]
        gate.touch()
        index.gate.set()
        found = built(store.get("tiny"))
        assert say(found.python, "import tiny; print(tiny.VERSION)") == "1.0"
        assert leftovers(tmp_path) == []
        assert not lines.about("waiting")
        assert not psutil.wait_procs(orphans, timeout=5)[1]


@pytest.mark.parametrize("phase", ["download", "health"])
def test_an_interrupt_ends_uv_and_clears_up(start_builder, tmp_path, wheels, monkeypatch, phase):
    row, _ = gated(tmp_path)
    files = dict.fromkeys(wheels.iterdir(), "2020-01-01T00:00:00Z")
    with wheelhouse.Index(files) as index:
        monkeypatch.delenv("UV_CONFIG_FILE")
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.address)
        if phase == "download":
            index.gate.clear()
        builder = start_builder(row)
        wait_for(index.asked.is_set, "uv asked for nothing")
        if phase == "health":
            wait_for(
                lambda: any(
                    "time.sleep" in " ".join(child.cmdline()) for child in psutil.Process(builder.pid).children()
                ),
                "no health check",
            )
        children = psutil.Process(builder.pid).children(recursive=True)
        assert children
        builder.send_signal(signal.SIGINT)
        _, words = builder.communicate(timeout=20)
        assert "KeyboardInterrupt" in words
        assert not psutil.wait_procs(children, timeout=5)[1]
    assert leftovers(tmp_path) == []


def test_an_environment_whose_interpreter_went_away_is_built_again(store, lines):
    python = built(store.get("tiny")).python
    python.unlink()
    assert [(info.complete, info.current) for info in store.list()] == [(False, False)]
    lines.clear()
    assert built(store.get("tiny")).python == python
    assert lines.about("creating it")
    assert say(python, "import tiny; print(tiny.VERSION)") == "1.0"


def test_a_folder_without_a_marker_is_no_environment(store, lines):
    folder = built(store.get("tiny")).python.parents[1]
    (folder / envbuild.MARKER).write_text('{"format": "some')
    lines.clear()
    built(store.get("tiny"))
    assert lines.about("creating it")


def test_list_describes_what_is_there(store, tmp_path):
    assert store.list() == []
    built(store.get("tiny", Variant(packages=("tiny==2.0",))))
    built(store.get("tiny"))
    plain, variant = store.list()
    assert (plain.toolchain, plain.variant, plain.complete, plain.current, plain.locked) == (
        "tiny",
        Variant(),
        True,
        True,
        True,
    )
    assert variant.variant == Variant(packages=("tiny==2.0",))
    assert variant.versions == {"dep": "1.0", "tiny": "2.0"}
    assert plain.size > (plain.path / "lib").stat().st_size
    assert time.time() - plain.last_used < 60


def test_create_says_what_it_made_and_rebuild_makes_it_anew(store, lines):
    info = built(store.create("tiny"))
    assert info.versions == {"dep": "1.0", "tiny": "1.0"}
    (info.path / "scratch").touch()
    built(store.create("tiny"))
    assert (info.path / "scratch").exists()
    built(store.create("tiny", rebuild=True))
    assert not (info.path / "scratch").exists()
    assert len(lines.about("creating it")) == 2
    with pytest.raises(UsageError, match="nothing to create"):
        store.create("tiny", Variant(python=Path(sys.executable)))


def test_check_finds_what_changed_since(store):
    assert "has not been built" in failed(store.check("tiny")).message
    folder = built(store.get("tiny")).python.parents[1]
    assert built(store.check("tiny")).good
    [site] = folder.glob("lib/*/site-packages")
    (site / "dep-1.0.dist-info").rename(site / "dep-1.5.dist-info")
    metadata = site / "dep-1.5.dist-info" / "METADATA"
    metadata.unlink()  # a link to uv's cache must not be written through
    metadata.write_text("Metadata-Version: 2.1\nName: dep\nVersion: 1.5\n")
    assert built(store.check("tiny")).differences == ("dep is 1.5, not 1.0",)
    shutil.rmtree(site / "dep-1.5.dist-info")
    (site / "tiny.py").unlink()
    found = built(store.check("tiny"))
    assert not found.good
    assert found.differences == ("dep 1.0 is missing",)
    assert "No module named 'tiny'" in found.failure.message


def test_a_variant_is_checked_against_its_own_pins(store):
    variant = Variant(packages=("tiny==2.0",))
    built(store.get("tiny", variant))
    assert built(store.check("tiny", variant)).good


def names(store):
    return sorted(str(info.variant) for info in store.list())


def test_prune_removes_variants_superseded_locks_and_leftovers(store, tmp_path, lines):
    kept = built(store.get("tiny")).python
    built(store.get("tiny", Variant(packages=("tiny==2.0",))))
    older = replace(wheelhouse.toolchain(), lock=("tiny==2.0", "dep==2.0"))
    built(make_store(tmp_path, lines, older).get("tiny"))
    (store.folder / "tiny-0123456789abcdef.1.partial").mkdir()
    (store.folder / "tiny-0123456789abcdef.1.removed").mkdir()
    assert len(store.list()) == 5
    freed = store.prune()
    assert freed > 0
    assert [info.path for info in store.list()] == [kept.parents[1]]
    assert leftovers(tmp_path) == []
    assert store.prune() == 0


def test_prune_by_age(store):
    recent, old = Variant(packages=("tiny==2.0",)), Variant(packages=("dep==2.0",))
    folder = built(store.get("tiny", old)).python.parents[1]
    built(store.get("tiny", recent))
    os.utime(folder / envs.LAST_USED, (time.time() - 8 * 86400,) * 2)
    store.prune(older_than_days=9)
    assert names(store) == ["dep==2.0", "tiny==2.0"]
    store.prune(older_than_days=7)
    assert names(store) == ["tiny==2.0"]


def test_prune_everything_but_what_is_in_use(store, lines):
    used = built(store.get("tiny")).python
    built(store.get("tiny", Variant(packages=("tiny==2.0",))))
    with subprocess.Popen([str(used), "-I", "-c", "input()"], stdin=subprocess.PIPE) as process:
        store.prune(everything=True)
        assert [info.path for info in store.list()] == [used.parents[1]]
        assert lines.about("is in use and stays")
        process.communicate(b"\n")
    store.prune(everything=True)
    assert store.list() == []


def test_prune_leaves_what_another_process_is_building(start_builder, tmp_path, wheels, lines):
    row, gate = gated(tmp_path)
    store = make_store(tmp_path, lines, row)
    builder = start_builder(row)
    wait_for(lambda: list((tmp_path / "cache").glob("envs/*.partial/lib/*/site-packages/tiny.py")), "nothing installed")
    store.prune(everything=True)
    assert len(leftovers(tmp_path)) == 1
    gate.touch()
    said, _ = builder.communicate(timeout=60)
    assert f"RESULT {tmp_path}" in said


def test_the_users_own_interpreter_is_used_as_it_is(store, tmp_path):
    numbers = wheelhouse.toolchain("numbers", health="import json, tiny")
    store.table = {"numbers": numbers}
    found = built(store.get("numbers", Variant(python=Path(sys.executable))))
    assert found.python == Path(sys.executable)
    assert not store.folder.exists()
