"""A headless Chromium of the system, in which pages are read as a person would."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs Chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, url: str, **options) -> Iterator[Page]:
    """Open a page; when done with, no error and no request to the outside may have happened."""
    page = browser.new_page(**options)
    page.set_default_timeout(10_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))

    def read_failure(request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself let go of a video
            wrong.append(f"failed: {request.url[-100:]}, {request.failure}")

    def read_console(message) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text}")

    def read_request(request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            wrong.append(f"outside: {request.url[-100:]}")

    page.on("requestfailed", read_failure)
    page.on("console", read_console)
    page.on("request", read_request)
    page.goto(url)
    yield page
    page.close()
    assert not wrong, "\n".join(wrong)
