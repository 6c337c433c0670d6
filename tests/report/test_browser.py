"""report.html in a browser: it asks nobody for anything and the console stays empty. Skipped where there is none."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from madtp_cli.report.html import report
from tests.report.stories import STORY

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--enable-logging=stderr", "--v=0"),
)
# A page that does what a report must not: the browser is seen to tell.
LOUD = "<script>console.error('loud')</script><img src='asked.png'>"


class Server(http.server.ThreadingHTTPServer):
    """Serves documents by path, and remembers what was asked for."""

    def __init__(self, documents: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.documents = documents
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from the server's documents."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.documents.get(self.path, "").encode()
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    serving = Server({"/report.html": report(STORY), "/loud.html": LOUD})
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()


def visit(server: Server, name: str, profile: Path) -> tuple[list[str], list[str], str]:
    """Open a page; return what was asked of the server, what the console said, and the document as it stands."""
    server.asked.clear()
    address = f"http://127.0.0.1:{server.server_port}/{quote(name)}"
    assert BROWSER is not None
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", address]
    # A group of its own: whatever the browser started ends with it.
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        document, log = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    return list(server.asked), [line for line in log.splitlines() if "CONSOLE" in line], document


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_browser_asks_for_nothing_and_complains_of_nothing(server: Server, tmp_path: Path) -> None:
    """Held against a page that does both, so that silence means something."""
    asked, said, _ = visit(server, "loud.html", tmp_path / "loud")
    assert "/asked.png" in asked
    assert any("loud" in line for line in said)
    asked, said, document = visit(server, "report.html", tmp_path / "quiet")
    assert asked == ["/report.html"]
    assert said == []
    assert "How it was measured" in document
