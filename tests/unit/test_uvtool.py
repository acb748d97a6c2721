"""What uv's words mean, and which of the user's settings it is given."""

from __future__ import annotations

import pytest
import wheelhouse

from trueport import uvtool

NO_SOLUTION = "error: No solution found when resolving dependencies\n  cause: Because "

SEEN = [
    ("cause: failed to copy file from a to b: No space left on device (os error 28)", uvtool.DISK_FULL, ""),
    ("failed to write: Disk quota exceeded (os error 122)", uvtool.DISK_FULL, ""),
    ("cause: failed to create directory `m/v2`: Read-only file system (os error 30)", uvtool.NOT_WRITABLE, ""),
    (
        NO_SOLUTION
        + "six was not found in the cache and you require six, we can conclude that\n\nhint: the network was disabled.",
        uvtool.OFFLINE,
        "six",
    ),
    ("error: Failed to fetch: x\n  cause: client error (Connect)\n  cause: dns error", uvtool.NETWORK, ""),
    ("cause: tcp connect error\n  cause: Connection refused (os error 111)", uvtool.NETWORK, ""),
    ("cause: HTTP status client error (401 Unauthorized) for url (x)", uvtool.INDEX, "401 Unauthorized"),
    (NO_SOLUTION + "there is no version of six==99 and you require six==99, we can", uvtool.NO_SUCH_VERSION, "six==99"),
    (
        NO_SOLUTION + "nothing-like-it was not found in the package registry and you",
        uvtool.NO_SUCH_PACKAGE,
        "nothing-like-it",
    ),
    (
        NO_SOLUTION + "there are no versions of six and\nhint: `six` was filtered by `exclude-newer` to",
        uvtool.NO_SOLUTION,
        "six",
    ),
    (
        NO_SOLUTION + "tensorflow==2.5.0 has no wheels with a matching Python ABI tag",
        uvtool.NO_BUILD,
        "tensorflow==2.5.0",
    ),
    (NO_SOLUTION + "onnx2tf==2.6.9 depends on Python>=3.12, we can conclude that", uvtool.NO_BUILD, "onnx2tf==2.6.9"),
    (NO_SOLUTION + "tiny==1.0 has an invalid package format and only tiny==1.0 is", uvtool.BROKEN, "tiny==1.0"),
    (NO_SOLUTION + "you require six==1.17.0 and six==1.16.0, we can conclude", uvtool.NO_SOLUTION, ""),
    ("error: The build backend returned an error\n  cause: Call to x failed", uvtool.BROKEN, ""),
    ("uv cannot be run: [Errno 2] No such file or directory", uvtool.MISSING, ""),
    ("something that nobody has seen before", uvtool.UNKNOWN, ""),
]


@pytest.mark.parametrize(("log", "kind", "subject"), SEEN)
def test_uvs_words_are_understood(log, kind, subject):
    found = uvtool.explain(log)
    assert (found.kind, found.subject) == (kind, subject)
    assert "{" not in found.sentence
    assert "\n" not in found.sentence
    assert subject in found.sentence


def test_every_complaint_was_seen_at_least_once():
    assert {kind for _, kind, _ in uvtool._COMPLAINTS} <= {kind for _, kind, _ in SEEN}


@pytest.fixture
def clean(monkeypatch):
    for name in (
        *uvtool._UNWANTED,
        "PIP_FIND_LINKS",
        "UV_FIND_LINKS",
        "PIP_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_INDEX_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_what_would_change_the_packages_is_withheld_and_the_way_to_an_index_is_kept(clean):
    for name in (*uvtool._UNWANTED, "UV_INDEX", "HTTPS_PROXY"):
        clean.setenv(name, "given")
    environ = uvtool.environment()
    assert not set(uvtool._UNWANTED) & environ.keys()
    assert environ["UV_INDEX"] == environ["HTTPS_PROXY"] == "given"


def test_pips_settings_count_where_uv_has_none(clean, tmp_path):
    clean.chdir(tmp_path)
    clean.setenv("PIP_FIND_LINKS", "wheels http://localhost/more")
    clean.setenv("PIP_INDEX_URL", "http://localhost/simple")
    environ = uvtool.environment()
    assert environ["UV_FIND_LINKS"] == f"{tmp_path}/wheels,http://localhost/more"
    assert environ["UV_DEFAULT_INDEX"] == "http://localhost/simple"
    clean.setenv("UV_FIND_LINKS", "/other")
    clean.setenv("UV_INDEX_URL", "http://localhost/mine")
    environ = uvtool.environment()
    assert environ["UV_FIND_LINKS"] == "/other"
    assert "UV_DEFAULT_INDEX" not in environ
    assert "UV_FIND_LINKS" not in uvtool.environment(find_links=False)


@pytest.mark.parametrize(
    ("version", "python", "expected"),
    [("1.5", "3.11", True), (None, "3.11", True), ("1.6", "3.11", False), ("1.5", "3.12", False), (None, "3.1", False)],
)
def test_a_local_wheel_counts_only_for_its_version_and_python(tmp_path, version, python, expected):
    folder = tmp_path / "with space"
    wheelhouse.wheel(folder, "torch", "1.5+cpu", tag="cp311-cp311-manylinux_2_28_x86_64")
    wheelhouse.wheel(folder, "torchaudio", "1.6", tag="cp312-cp312-any")
    for link in (str(folder), folder.as_uri()):
        assert uvtool.offers({"UV_FIND_LINKS": link}, "torch", version, python) is expected
    assert not uvtool.offers({"UV_FIND_LINKS": "http://localhost/wheels"}, "torch", version, python)
    assert not uvtool.offers({}, "torch", version, python)


def test_a_progress_callback_that_raises_ends_uv(tmp_path, clean):
    wheelhouse.isolate(clean, tmp_path / "wheels")

    def refuse(line):
        raise ZeroDivisionError(line)

    wheelhouse.wheel(tmp_path / "wheels", "tiny", "1.0")
    arguments = ["pip", "install", "--target", str(tmp_path / "target"), "--dry-run", "tiny"]
    assert uvtool.run(arguments, environ=uvtool.environment(), folder=tmp_path, progress=lambda line: None).code == 0
    with pytest.raises(ZeroDivisionError, match="Resolved 1 package"):
        uvtool.run(arguments, environ=uvtool.environment(), folder=tmp_path, progress=refuse)
