"""A real headless Chromium for tests of pages."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator:
    """Lend a browser; skip where none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with chromedriver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        resize(browser, width, height)
        yield browser
    finally:
        browser.quit()


def resize(browser, width: int, height: int = 900) -> None:
    """Give the page a width, also below what a window can have."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait_until(browser, script: str, timeout_s: float = 60.0):
    """Return what a script gives as soon as that is true."""
    end = time.monotonic() + timeout_s
    while not (found := browser.execute_script(script)):
        if time.monotonic() > end:
            pytest.fail(f"never true in the page: {script}")
        time.sleep(0.1)
    return found


def console_errors(browser) -> list[str]:
    """Return what the page complained about since the last call."""
    return [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]
