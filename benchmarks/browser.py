"""Explorers in a real browser: JupyterLab and Voila in Chromium, for tests, stopwatches and pictures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = os.environ.get("MKTSIM_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: Names of `mktsim.explore`.
EXPLORERS = ["fanout", "ring", "merge", "stragglers", "faults", "stepper"]
#: A widget beside the explorers: each click of its button counts one on.
PING = (
    "import ipywidgets as widgets\n"
    "ping, pong = widgets.Button(description='ping'), widgets.HTML('0')\n"
    "ping.add_class('test-ping'); pong.add_class('test-pong')\n"
    "ping.on_click(lambda _: setattr(pong, 'value', str(int(pong.value) + 1)))\n"
    "display(widgets.HBox([ping, pong]))"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield started
        started.close()


@contextmanager
def server(folder: Path, *command: str) -> Iterator[str]:
    """Run a Jupyter program in a new home of its own and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True, exist_ok=True)
    # A question about news would cover the page.
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    # All cells at once, whether they are near the view or not.
    whole = folder / "settings" / "@jupyterlab" / "notebook-extension"
    whole.mkdir(parents=True, exist_ok=True)
    (whole / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    homes = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    env = os.environ | {name: str(folder / home) for name, home in homes.items()}
    env.pop("PYTEST_CURRENT_TEST", None)
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in command)],
            env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 0.2).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()[-3000:]
                    assert time.monotonic() < deadline, log.read_text()[-3000:]
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def write_notebook(path: Path, *cells: str) -> None:
    """Write a notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@contextmanager
def lab(browser: Browser, folder: Path, *cells: str, ready_when: str) -> Iterator[Page]:
    """Open one JupyterLab page with a notebook of these cells, and run them all until some selector is there."""
    write_notebook(folder / "all.ipynb", *cells)
    command = (
        "jupyterlab", "--no-browser", "--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--allow-root", f"--ServerApp.root_dir={folder}",
    )  # fmt: skip
    with server(folder, *command) as base:
        page = browser.new_context(viewport={"width": 1300, "height": 1500}).new_page()
        page.set_default_timeout(20_000)
        page.goto(f"{base}/doc/tree/all.ipynb")
        deadline = time.monotonic() + 60
        while not _connected(page, base):  # The toolbar says idle before the kernel is connected.
            assert time.monotonic() < deadline, "no kernel"
            page.wait_for_timeout(100)
        for _ in range(5):  # The front end may swallow the first Run All.
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            if _appears(page, ready_when, 4000):
                break
        yield page
        page.context.close()


@contextmanager
def voila(browser: Browser, folder: Path, *cells: str, width: int = 1100, height: int = 1100) -> Iterator[Page]:
    """Show a notebook of these cells as a page of its own."""
    write_notebook(folder / "app.ipynb", *cells)
    command = ("voila", str(folder / "app.ipynb"), "--no-browser", "--port={port}", "--Voila.ip=127.0.0.1")
    with server(folder, *command) as base:
        page: Any = browser.new_context(viewport={"width": width, "height": height}).new_page()
        page.set_default_timeout(30_000)
        page.goto(base)
        yield page
        page.context.close()


def _connected(page: Page, base: str) -> bool:
    sessions = page.request.get(f"{base}/api/sessions").json()
    kernels = [session["kernel"] for session in sessions]
    return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels)


def _appears(page: Page, selector: str, timeout_ms: float) -> bool:
    try:
        page.locator(selector).first.wait_for(timeout=timeout_ms)
    except Exception:
        return False
    return True


def explorer(page: Page, name: str) -> Locator:
    """Return an explorer that is ready, scrolled into view."""
    found = page.locator(f".mktsim-{name}.mktsim-explorer")
    found.wait_for()
    found.scroll_into_view_if_needed()
    ready(found)
    return found


def ready(found: Locator) -> None:
    """Wait until an explorer shows the answer to what its controls say."""
    expect(found.locator(".mktsim-status")).to_have_text("ready", timeout=60_000)


CLICK_TO_CHANGE = """async ([button, watched, test]) => {
  const changed = new RegExp(test);
  const start = performance.now();
  const done = new Promise((resolve, reject) => {
    const look = () => { if (changed.test(watched.innerText)) resolve(performance.now() - start); };
    new MutationObserver(look).observe(watched, {childList: true, subtree: true, characterData: true});
    setTimeout(() => reject(new Error("no change: " + watched.innerText)), 5000);
  });
  button.click();
  return await done;
}"""


def click_to_change_ms(page: Page, button: Locator, watched: Locator, pattern: str) -> float:
    """Click in the page and return how many ms later some text matches, as the page's own clock tells."""
    return float(page.evaluate(CLICK_TO_CHANGE, [button.element_handle(), watched.element_handle(), pattern]))
