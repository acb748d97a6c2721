"""The fault battery: every way in which a tool can take its process down becomes the right Failure, and nothing is left."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import uv

from trueport import envs
from trueport.errors import InternalError, UntrustedError, UsageError
from trueport.frameworks import fake
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.worker import process
from trueport.worker.pool import Pool, environment

PYTHON = Path(sys.executable)
FAKE = "trueport.frameworks.fake"
SOURCE = Path(fake.__file__).resolve().parents[1]


@pytest.fixture
def pool(tmp_path):
    with Pool(folder=tmp_path / "pool", timeout=30) as pool:
        yield pool
        marks = {worker._mark for worker in pool._workers}
    assert not left(marks)


def left(marks):
    """Live processes that carry one of these marks."""
    return [one for mark in marks for one in process._marked(mark)]


def model(tmp_path, *, name="m", **more):
    path = tmp_path / f"{name}.fake"
    path.write_text(fake.text_of(fake.network(**more)), encoding="utf-8")
    return path


def run(pool, path, *, python=PYTHON, **options):
    cases = {"data": {"x0": np.ones((3, 2, 6), np.float32)}}
    arguments = {"path": str(path), "cases": cases, "precision": "float32", "variant": "default", "trust": False}
    return pool.call(python, FAKE, "run", arguments, stage=Stage.RUN, **options)


def helper(tmp_path, text):
    """A module that only the worker can import, and the argument that lets it."""
    folder = tmp_path / "modules"
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return {"paths": [str(folder)]}


def call(pool, function, arguments=None, **options):
    return pool.call(PYTHON, "helper", function, arguments or {}, stage=Stage.RUN, **options)


def only_worker(pool):
    (worker,) = pool._workers
    return worker


FAULTS = {
    "crash": (Kind.CRASHED, "SIGSEGV"),
    "crash-with-family": (Kind.CRASHED, "SIGSEGV"),
    "abort": (Kind.CRASHED, "SIGABRT"),
    "killed": (Kind.CRASHED, "SIGKILL"),
    "exit:3": (Kind.CRASHED, "exit code 3"),
    "exit:0": (Kind.CRASHED, "exit code 0"),
    "close-everything": (Kind.CRASHED, "died"),
    "raise": (Kind.RAISED, "ValueError: the tool raised on demand"),
    "sys-exit": (Kind.RAISED, "SystemExit: 1"),
    "interrupt": (Kind.RAISED, "KeyboardInterrupt"),
    "unsupported": (Kind.UNSUPPORTED, "the fake tool does not do this"),
    "invalid-output": (Kind.INVALID_OUTPUT, "unusable"),
    "missing-package": (Kind.UNAVAILABLE, "trueport_no_such_package"),
    "memory-error": (Kind.OUT_OF_MEMORY, "MemoryError"),
    "abort-for-memory": (Kind.OUT_OF_MEMORY, "SIGABRT"),
    "corrupt-reply": (Kind.INVALID_OUTPUT, "cannot be read"),
    "corrupt-reply:[1,2]": (Kind.INVALID_OUTPUT, "cannot be read"),
    'corrupt-reply:{"number":99,"value":1}': (Kind.INVALID_OUTPUT, "does not answer this job"),
    'corrupt-reply:{"number":1,"error":"nonsense","message":"m"}': (Kind.INVALID_OUTPUT, "cannot be read"),
    'corrupt-reply:{"number":1,"value":{"$npy":"/etc/hostname"},"emitted":{},"seconds":1,"versions":{}}': (
        Kind.INVALID_OUTPUT,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_becomes_its_failure_and_the_pool_goes_on(pool, tmp_path, fault):
    kind, words = FAULTS[fault]
    outcome = run(pool, model(tmp_path, name="bad", faults={"run": [fault]}))
    marks = {worker._mark for worker in pool._workers}
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.stage) == (kind, Stage.RUN)
    assert words in outcome.message
    assert len(outcome.message.splitlines()) == 1
    fatal = kind in (Kind.CRASHED, Kind.OUT_OF_MEMORY) or fault.startswith("corrupt")
    assert bool(marks) is not fatal, "a worker that failed its process is gone, one that only raised stays"
    assert isinstance(run(pool, model(tmp_path)), Ok)


def test_python_errors_bring_their_traceback_and_log(pool, tmp_path):
    outcome = run(pool, model(tmp_path, faults={"run": ["noise", "raise"]}))
    assert "noise on stdout" in outcome.log
    assert "Traceback" in outcome.log
    assert "_fake_faults.py" in outcome.log


def test_a_crash_names_where_it_happened(pool, tmp_path):
    outcome = run(pool, model(tmp_path, faults={"run": ["crash"]}))
    assert "Segmentation fault" in outcome.log
    assert "_fake_faults.py" in outcome.log


@pytest.mark.parametrize("fault", ["hang", "hang-with-lock", "hang-with-family"])
def test_a_hang_ends_at_the_time_limit_with_all_its_family(pool, tmp_path, fault):
    seen = {}

    def look():
        time.sleep(1.0)
        worker = only_worker(pool)
        seen["mark"], seen["pids"] = worker._mark, [one.pid for one in process._marked(worker._mark)]

    watcher = threading.Thread(target=look)
    watcher.start()
    started = time.monotonic()
    outcome = run(pool, model(tmp_path, faults={"run": [fault]}), timeout=2.0)
    took = time.monotonic() - started
    watcher.join()
    assert (outcome.kind, outcome.message) == (Kind.TIMED_OUT, "no answer within 2 s; the process was ended")
    assert 2.0 <= took < 8.0, "soon after the limit, also on a busy machine"
    assert len(seen["pids"]) >= (6 if fault == "hang-with-family" else 2), "the worker, its guard and four descendants"
    assert not [pid for pid in seen["pids"] if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert isinstance(run(pool, model(tmp_path, name="good")), Ok)


def test_a_child_that_the_tool_leaves_behind_goes_with_the_worker(tmp_path):
    with Pool(folder=tmp_path / "pool") as pool:
        assert isinstance(run(pool, model(tmp_path, faults={"run": ["leave-family"]})), Ok)
        mark = only_worker(pool)._mark
        assert len(left({mark})) == 3
    assert not left({mark})


def test_a_child_without_the_mark_is_found_by_its_parent(pool, tmp_path):
    module = helper(
        tmp_path,
        """
        import subprocess
        def daemon():
            return subprocess.Popen(["sleep", "600"], env={}, start_new_session=True).pid
        """,
    )
    pid = call(pool, "daemon", **module).value.value
    assert psutil.pid_exists(pid)
    pool.close()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_crash_is_seen_although_a_child_holds_the_pipe_open(pool, tmp_path):
    started = time.monotonic()
    outcome = run(pool, model(tmp_path, faults={"run": ["crash-with-family"]}))
    assert outcome.kind == Kind.CRASHED
    assert time.monotonic() - started < 5, "the end of file never comes: the descendant has the pipe"


def test_a_crash_after_the_reply_keeps_the_result_and_replaces_the_worker(pool, tmp_path):
    assert isinstance(run(pool, model(tmp_path, faults={"run": ["crash-after:0.1"]})), Ok)
    first = only_worker(pool)
    deadline = time.monotonic() + 5
    while first.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not first.alive
    assert isinstance(run(pool, model(tmp_path, name="good")), Ok)
    assert only_worker(pool) is not first


def test_a_late_crash_is_not_blamed_on_the_next_job(pool, tmp_path):
    assert isinstance(run(pool, model(tmp_path, name="guilty", faults={"run": ["crash-after:0.5"]})), Ok)
    first = only_worker(pool)
    outcome = run(pool, model(tmp_path, name="innocent", faults={"run": ["slow:1.2"]}))
    assert not first.alive
    assert isinstance(outcome, Ok)
    assert only_worker(pool) is not first


def test_a_crash_in_a_used_worker_is_confirmed_by_a_fresh_one(pool, tmp_path):
    module = helper(
        tmp_path,
        """
        import os
        def crash(log):
            with open(log, "a") as file:
                file.write("x")
            os.abort()
        """,
    )
    for stage, times in ((Stage.RUN, 2), (Stage.CONVERT, 1)):
        log = tmp_path / f"{stage}.log"
        assert isinstance(run(pool, model(tmp_path)), Ok)
        outcome = pool.call(PYTHON, "helper", "crash", {"log": str(log)}, **{**module, "stage": stage})
        assert outcome.kind == Kind.CRASHED
        assert len(log.read_text()) == times, "a conversion is not repeated: it may have left half of its output"


def test_a_worker_that_dies_while_it_takes_up_a_job_is_replaced(pool, tmp_path, monkeypatch):
    good = model(tmp_path)
    assert isinstance(run(pool, good), Ok)
    first = only_worker(pool)
    os.kill(first.process.pid, signal.SIGKILL)
    monkeypatch.setattr(process.Worker, "alive", property(lambda self: True))  # it dies after it was looked at
    assert isinstance(run(pool, good), Ok)
    assert only_worker(pool) is not first


def test_a_request_larger_than_the_pipe_does_not_block_on_a_dead_worker(pool, tmp_path):
    module = helper(tmp_path, "def size(text): return len(text)")
    big = "x" * 2**23
    assert call(pool, "size", {"text": big}, **module).value.value == 2**23
    os.kill(only_worker(pool).process.pid, signal.SIGKILL)
    assert call(pool, "size", {"text": big}, **module).value.value == 2**23


def test_a_large_reply_arrives_whole(pool, tmp_path):
    module = helper(tmp_path, "def text(): return ['é' * 1000] * 3000")
    assert call(pool, "text", **module).value.value == ["é" * 1000] * 3000


def test_noise_never_reaches_a_reply(pool, tmp_path):
    outcome = run(pool, model(tmp_path, faults={"run": ["noise"]}))
    assert set(outcome.value.value["data"]) == {"scores", "chances"}
    log = only_worker(pool).log.read_bytes()
    assert b"noise on stdout" in log
    assert b"a lie" in log
    assert isinstance(run(pool, model(tmp_path, name="quiet")), Ok)
    assert only_worker(pool).log.read_bytes() == b"", "a job's log holds nothing of the job before"


def test_a_log_without_end_is_emptied(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "LOG_LIMIT", 10_000)
    module = helper(
        tmp_path,
        """
        import sys, time
        def chatter():
            for _ in range(40):
                print("x" * 2000, flush=True)
                time.sleep(0.02)
        """,
    )
    assert isinstance(call(pool, "chatter", **module), Ok)
    assert only_worker(pool).log.stat().st_size < 70_000


def test_a_forked_copy_of_the_worker_does_not_answer(pool, tmp_path):
    outcome = run(pool, model(tmp_path, faults={"run": ["return-twice"]}))
    time.sleep(0.3)
    assert isinstance(outcome, Ok)
    assert isinstance(run(pool, model(tmp_path, name="good")), Ok)


def test_damaged_and_missing_arrays_of_a_reply(pool, tmp_path):
    module = helper(
        tmp_path,
        """
        import numpy as np, os
        def damage(emit, how):
            store = next(cell.cell_contents for cell in emit.__closure__ if hasattr(cell.cell_contents, "put"))
            emit("a", np.arange(1000.0))
            path = store.folder / "000000.npy"
            if how == "missing":
                os.remove(path)
            elif how == "empty":
                path.write_bytes(b"")
            else:
                path.write_bytes(path.read_bytes()[: int(how)])
        """,
    )
    for how in ("missing", "empty", "4", "40", "128", "3000"):
        outcome = call(pool, "damage", {"how": how}, emit=True, **module)
        assert isinstance(outcome, Failure), how
        assert outcome.kind == Kind.INVALID_OUTPUT, how
        assert "000000.npy" in outcome.message
        assert not pool._workers


def test_values_that_cannot_cross_are_the_jobs_failure(pool, tmp_path):
    module = helper(
        tmp_path,
        """
        import numpy as np
        def ragged(): return np.array([np.zeros(2000), None], dtype=object)
        def thing(): return object()
        """,
    )
    for function in ("ragged", "thing"):
        outcome = call(pool, function, **module)
        assert outcome.kind == Kind.RAISED
        assert "cannot cross the process boundary" in outcome.message
    assert only_worker(pool).alive


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hog", "hog-at-once", "hog-in-family:1.6e9"])
def test_a_memory_limit_ends_a_hog(pool, tmp_path, fault):
    outcome = run(pool, model(tmp_path, faults={"run": [fault]}), memory=8e8, timeout=20)
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.OUT_OF_MEMORY, outcome
    assert not pool._workers
    assert isinstance(run(pool, model(tmp_path, name="good"), memory=8e8), Ok)


def test_without_a_limit_there_is_none(pool, tmp_path):
    assert isinstance(run(pool, model(tmp_path, faults={"run": ["hog:5e8"]})), Ok)
    worker = only_worker(pool)
    assert worker.memory() > 5e8
    after = run(pool, model(tmp_path, name="good"), memory=1e8)
    assert isinstance(after, Ok), "the limit counts from what the worker had when the job began"


def test_the_limit_is_lifted_between_jobs(pool, tmp_path):
    assert isinstance(run(pool, model(tmp_path), memory=1e8), Ok)
    assert isinstance(run(pool, model(tmp_path, name="big", faults={"run": ["hog:4e8"]})), Ok)


def test_a_mapped_file_does_not_count_as_memory(pool, tmp_path):
    np.save(tmp_path / "big.npy", np.ones(2**26, np.float32))
    module = helper(tmp_path, "def total(array): return float(array[:: 4096].sum())")
    outcome = call(pool, "total", {"array": np.load(tmp_path / "big.npy", mmap_mode="r")}, memory=1e8, **module)
    assert outcome.value.value == 2**14


def test_a_thread_that_cannot_start_under_the_limit_is_out_of_memory(pool, tmp_path):
    module = helper(
        tmp_path,
        """
        import threading
        def many():
            hold = threading.Event()
            threading.stack_size(64 * 2**20)
            for _ in range(100):
                threading.Thread(target=hold.wait, daemon=True).start()
        """,
    )
    outcome = call(pool, "many", memory=5e8, timeout=20, **module)
    assert (outcome.kind, outcome.message) == (Kind.OUT_OF_MEMORY, "RuntimeError: can't start new thread")


# -- results and arguments ------------------------------------------------------------------------------------------


def test_arrays_stay_until_their_folder_is_released(pool, tmp_path):
    reply = run(pool, model(tmp_path)).value
    assert isinstance(reply.value["data"]["scores"], np.memmap)
    assert not (reply.folder / "arguments").exists(), "what was sent is not kept"
    kept = {path.name for path in pool.folder.iterdir()}
    assert reply.folder.name in kept
    pool.release(reply.folder)
    assert reply.folder.name not in {path.name for path in pool.folder.iterdir()}
    pool.release(None)
    with pytest.raises(InternalError):
        pool.release(tmp_path)


def test_a_failed_job_leaves_no_folder(pool, tmp_path):
    before = len(list(pool.folder.iterdir()))
    run(pool, model(tmp_path, faults={"run": ["crash"]}))
    assert len(list(pool.folder.iterdir())) == before


def test_a_whole_mapped_file_is_passed_and_not_copied(pool, tmp_path):
    np.save(tmp_path / "feed.npy", np.arange(12.0).reshape(3, 4))
    feed = np.load(tmp_path / "feed.npy", mmap_mode="r")
    module = helper(tmp_path, "def where(array): return [str(array.filename), array.tolist()]")
    where, value = call(pool, "where", {"array": feed}, **module).value.value
    assert where == str(tmp_path / "feed.npy")
    assert value == feed.tolist()
    for part in (feed[1:], feed[::-1], feed.T, feed[:, :4][:2], feed.view(np.int64)):
        where, value = call(pool, "where", {"array": part}, **module).value.value
        assert where != str(tmp_path / "feed.npy")
        assert value == part.tolist()


def test_a_result_that_is_an_argument_survives_the_argument(pool, tmp_path):
    module = helper(tmp_path, "def same(array): return array")
    np.save(tmp_path / "feed.npy", np.arange(5))
    result = call(pool, "same", {"array": np.load(tmp_path / "feed.npy", mmap_mode="r")}, **module).value
    (tmp_path / "feed.npy").unlink()
    assert Path(result.value.filename).parent == result.folder / "results"
    assert result.value.tolist() == [0, 1, 2, 3, 4]


def test_arguments_that_do_not_fit_on_the_disk_are_a_usage_error(pool, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UsageError, match="No space left on device"):
        run(pool, model(tmp_path))


# -- the file's own fault -------------------------------------------------------------------------------------------


def test_what_is_the_files_fault_raises_and_keeps_the_worker(pool, tmp_path):
    with pytest.raises(UntrustedError):
        run(pool, model(tmp_path, runs_code=True))
    with pytest.raises(UsageError, match="No such file"):
        run(pool, tmp_path / "absent.fake")
    assert only_worker(pool).alive


# -- reuse ----------------------------------------------------------------------------------------------------------


def test_a_worker_is_reused_and_recycled(tmp_path):
    with Pool(max_jobs=3) as pool:
        pids = [pool.call(PYTHON, "os", "getpid", {}, stage=Stage.RUN).value.value for _ in range(7)]
    assert len(set(pids[:3])) == len(set(pids[3:6])) == 1
    assert len(set(pids)) == 3
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not pool.folder.exists()


def test_two_calls_at_once_use_two_workers(pool):
    pids = []

    barrier = threading.Barrier(6)

    def both():
        barrier.wait()
        pids.extend(pool.call(PYTHON, "os", "getpid", {}, stage=Stage.RUN).value.value for _ in range(5))

    threads = [threading.Thread(target=both) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 30
    assert len(set(pids)) == len(pool._workers) <= 6


def test_workers_started_together_do_not_hold_each_others_pipes(pool):
    threads = [threading.Thread(target=pool.warm, args=(PYTHON,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in list(pool._workers):
        links = {str(link.readlink()) for link in Path(f"/proc/{worker.process.pid}/fd").iterdir()}
        assert len([link for link in links if link.startswith("socket:")]) == 1


def test_no_descriptor_is_lost(tmp_path):
    def descriptors():
        return psutil.Process().num_fds()

    with Pool(folder=tmp_path / "pool") as pool:
        run(pool, model(tmp_path, faults={"run": ["crash"]}))
        before = descriptors()
        for _ in range(4):
            run(pool, model(tmp_path, faults={"run": ["crash"]}))
        assert descriptors() == before
        for _ in range(2):
            pool.call(tmp_path / "no-python", FAKE, "run", {}, stage=Stage.RUN)
        assert descriptors() == before


def test_an_interpreter_that_cannot_work_is_unavailable(pool, tmp_path):
    missing = pool.call(tmp_path / "python", FAKE, "run", {}, stage=Stage.RUN)
    assert missing.kind == Kind.UNAVAILABLE
    assert "cannot be started" in missing.message
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho numpy is not here >&2\nexit 4\n", encoding="utf-8")
    script.chmod(0o755)
    broken = pool.call(script, FAKE, "run", {}, stage=Stage.RUN)
    assert broken.kind == Kind.UNAVAILABLE
    assert broken.message.endswith("(exit code 4): numpy is not here")
    pool.warm(tmp_path / "python")


# -- the parent -----------------------------------------------------------------------------------------------------


def test_an_interrupt_during_a_call_ends_the_worker(pool, tmp_path):
    hang = model(tmp_path, faults={"run": ["hang-with-family"]})
    pool.warm(PYTHON)
    mark = only_worker(pool)._mark

    def interrupt():
        deadline = time.monotonic() + 20
        while len(left({mark})) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(pool, hang)
    assert not left({mark})
    assert not pool._workers
    assert isinstance(run(pool, model(tmp_path, name="good")), Ok)


PARENT = """
import sys
from pathlib import Path
from trueport.outcome import Stage
from trueport.worker.pool import Pool

pool = Pool(folder=Path(sys.argv[2]) if len(sys.argv) > 2 else None)
pool.warm(Path(sys.executable))
print(next(iter(pool._workers))._mark, pool.folder, flush=True)
arguments = {"path": sys.argv[1], "cases": {}, "precision": "float32", "variant": "default", "trust": False}
pool.call(Path(sys.executable), "trueport.frameworks.fake", "run", arguments, stage=Stage.RUN)
"""


@pytest.mark.parametrize("fault", ["hang-with-family", "hang-with-lock"])
def test_a_killed_parent_takes_its_workers_with_it(tmp_path, fault):
    path = model(tmp_path, faults={"run": [fault]})
    environ = dict(os.environ, PYTHONPATH=str(SOURCE.parent))
    given = [str(tmp_path / "pool")] if fault == "hang-with-lock" else []
    command = [sys.executable, "-c", PARENT, str(path), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as parent:
        mark, folder = parent.stdout.readline().split()
        wanted = 6 if fault == "hang-with-family" else 2
        deadline = time.monotonic() + 10
        while len(left({mark})) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(left({mark})) >= wanted
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while left({mark}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left({mark})
    assert Path(folder).exists() is bool(given), "the pool's own folder goes, one that the caller chose stays"


def test_closing_during_a_job_ends_it_at_once(tmp_path):
    pool = Pool(folder=tmp_path / "pool")
    threading.Timer(0.7, pool.close).start()
    with pytest.raises(InternalError, match="closed"):
        run(pool, model(tmp_path, faults={"run": ["hang"]}))
    with pytest.raises(InternalError, match="closed"):
        run(pool, model(tmp_path))
    pool.close()
    assert not pool._workers


def test_a_forgotten_pool_is_cleaned_up():
    pool = Pool()
    pool.warm(PYTHON)
    folder, mark = pool.folder, only_worker(pool)._mark
    assert left({mark})
    pool._finish()
    assert not left({mark})
    assert not folder.exists()
    pool.close()


def test_killing_twice_at_once_is_safe(pool):
    pool.warm(PYTHON)
    worker = only_worker(pool)
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(worker.kill())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [-signal.SIGKILL] * 4


def test_a_workers_environment_leaks_no_packages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    variables = environment()
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(variables)
    assert variables["TF_CPP_MIN_LOG_LEVEL"] == "0", "what the caller set stays"


def test_a_worker_sees_only_worker_side_code(pool, tmp_path):
    module = helper(
        tmp_path,
        """
        import sys
        def loaded():
            ours = [name for name in sys.modules if name.startswith("trueport")]
            return [ours, getattr(sys.modules["trueport"], "__file__", None), sys.flags.isolated]
        """,
    )
    names, file, isolated = call(pool, "loaded", **module).value.value
    assert set(names) == {"trueport", "trueport.worker", "trueport.worker.wire"}
    assert file is None, "the package's own __init__ was not run"
    assert isolated


# -- old interpreters -----------------------------------------------------------------------------------------------

WORKER_SIDE = sorted(
    [
        *(SOURCE / "worker" / name for name in ("__init__.py", "child.py", "wire.py")),
        *(SOURCE / "frameworks").glob("*.py"),
        *(SOURCE / "converters").glob("*.py"),
    ]
)


@pytest.mark.parametrize("file", WORKER_SIDE, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_worker_side_code_is_python_3_9(file):
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 9))
    assert not [node for node in ast.walk(tree) if node.__class__.__name__ in ("Match", "TryStar")]
    late = {"strict", "slots", "kw_only"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("zip", "dataclass"):
            assert not late & {keyword.arg for keyword in node.keywords}, f"line {node.lineno}"
    lazy = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    assert lazy or not [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign | ast.FunctionDef)]


def old_interpreter():
    """A Python 3.9 with NumPy 1.22, built once beside the toolchain environments; None where there is no Python 3.9."""
    python = envs.find_interpreter("3.9")
    final = envs.cache_folder() / "tests" / "python3.9-numpy1.22.4"
    if python is None or (final / "bin" / "python").exists():
        return None if python is None else final / "bin" / "python"
    partial = final.with_name(f"{final.name}.{os.getpid()}")
    final.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        ["venv", "--quiet", "--relocatable", "--python", str(python), str(partial)],
        ["pip", "install", "--quiet", "--python", str(partial / "bin" / "python"), "numpy==1.22.4"],
    ):
        if subprocess.run([uv.find_uv_bin(), *command], capture_output=True, check=False).returncode:
            return None
    with contextlib.suppress(OSError):  # another run was faster
        partial.rename(final)
    return final / "bin" / "python"


def test_a_worker_runs_on_python_3_9(pool, tmp_path):
    python = old_interpreter()
    if python is None:
        pytest.skip("no Python 3.9 here, or NumPy 1.22 for it cannot be had")
    new = run(pool, model(tmp_path)).value
    old = run(pool, model(tmp_path), python=python).value
    assert old.versions["python"].startswith("3.9.")
    assert old.versions["numpy"] == "1.22.4"
    assert np.allclose(old.value["data"]["scores"], new.value["data"]["scores"], rtol=1e-5, atol=1e-6)
    outcome = run(pool, model(tmp_path, name="bad", faults={"run": ["crash-with-family"]}), python=python)
    assert outcome.kind == Kind.CRASHED
    limited = run(pool, model(tmp_path, name="hog", faults={"run": ["hog"]}), python=python, memory=5e8)
    assert limited.kind == Kind.OUT_OF_MEMORY
