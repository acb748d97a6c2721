"""A package index of our own making: tiny wheels in a folder or behind a local server, so that no test needs a network."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import sys
import threading
import zipfile
from pathlib import Path

from trueport.envs import Toolchain

PYTHON = "{}.{}".format(*sys.version_info[:2])


def wheel(folder, name, version, *, code="", requires=(), scripts=(), tag="py3-none-any"):
    """Write a wheel whose one module holds `code`; `scripts` are `command = module:function` lines."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {one}\n" for one in requires
    )
    files = {
        f"{name}.py": f"VERSION = {version!r}\n{code}",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    if scripts:
        files[f"{info}/entry_points.txt"] = "[console_scripts]\n" + "\n".join(scripts) + "\n"
    record = "".join(f"{path},sha256={_digest(text)},{len(text.encode())}\n" for path, text in files.items())
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in (*files.items(), (f"{info}/RECORD", record + f"{info}/RECORD,,\n")):
            archive.writestr(inner, text)
    return path


def _digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def isolate(monkeypatch, folder, *, links=True):
    """Let uv see a cache of its own and, with `links`, the wheels in `folder` and nothing else."""
    for name in (
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_INDEX_URL",
        "UV_OFFLINE",
        "UV_TORCH_BACKEND",
        "UV_FIND_LINKS",
    ):
        monkeypatch.delenv(name, raising=False)
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("UV_CACHE_DIR", str(folder.parent / "uv-cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    if links:
        config = folder.parent / "settings" / "uv.toml"  # not above the cache, where uv would find it unasked
        config.parent.mkdir(exist_ok=True)
        config.write_text(f"no-index = true\nfind-links = [{json.dumps(str(folder))}]\n")
        monkeypatch.setenv("UV_CONFIG_FILE", str(config))


def toolchain(name="tiny", **changes):
    """Return a toolchain that needs the wheel `tiny`, locked at 1.0 with its dependency `dep` 1.0."""
    row = {
        "python": PYTHON,
        "requirements": ("tiny",),
        "health": "import tiny",
        "purpose": "be small",
        "lock": ("dep==1.0", "tiny==1.0"),
    }
    return Toolchain(name=name, **(row | changes))


class Index:
    """A local package index with upload times. Requests wait while `gate` is not set."""

    def __init__(self, wheels: dict[Path, str]) -> None:
        self.wheels = {path.name: (path, time) for path, time in wheels.items()}
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                index.asked.set()
                index.gate.wait(60)
                status, kind, body = index.answer(self.path)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/simple"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def answer(self, path):
        """Return status, content type and body for a request."""
        last = path.rstrip("/").rpartition("/")[2]
        if last in self.wheels:
            return 200, "application/octet-stream", self.wheels[last][0].read_bytes()
        if last.removesuffix(".metadata") in self.wheels:
            return 200, "text/plain", _metadata(self.wheels[last.removesuffix(".metadata")][0])
        files = [
            {
                "filename": name,
                "url": f"/files/{name}",
                "hashes": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
                "upload-time": time,
                "core-metadata": True,
            }
            for name, (path, time) in self.wheels.items()
            if name.startswith(f"{last}-")
        ]
        page = {"meta": {"api-version": "1.1"}, "name": last, "files": files, "versions": []}
        return (200 if files else 404), "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _metadata(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))
