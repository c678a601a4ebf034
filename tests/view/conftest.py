"""Headless Chromium for the tests of pages."""

import os
import shutil

import pytest
from browser import TOOLS, drawn


@pytest.fixture(scope="session")
def chromium():
    sync = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'neuronprof[dev]'")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("needs Chromium: install it, or name it in the variable CHROMIUM")
    with sync.sync_playwright() as play:
        quiet = [f"--disable-{what}" for what in ("gpu", "background-networking", "component-update", "sync")]
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", *quiet])
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium):
    """Opens an address, waits for its first picture, and fails if a page complained: open_tab(address, **context)."""
    complaints, contexts = [], []

    def make(address, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("dialog", lambda d: (complaints.append(f"dialog {d.message}"), d.dismiss()))
        tab.add_init_script(TOOLS)
        tab.goto(address)
        drawn(tab)
        return tab

    yield make
    for context in contexts:
        context.close()
    assert complaints == []
