"""A headless Chromium for tests of the page, as Debian packages it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from fleets import until

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
TALLEST = 6000


def find():
    """(chromium, chromedriver); skips the test where they are not."""
    pytest.importorskip("selenium", reason="the page is tested with selenium: pip install selenium")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("the page is tested in a real browser: apt-get install chromium chromium-driver")
    return browser, driver


class Browser:
    """One window of one theme and size. `spki`: the hash of a server's key to trust, beside the usual."""

    def __init__(self, size="desktop", theme="light", spki=None):
        browser, driver = find()
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self._folder = tempfile.mkdtemp(prefix="edge-attention-browser-")
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={self._folder}"):
            options.add_argument(flag)
        if spki is not None:
            options.add_argument(f"--ignore-certificate-errors-spki-list={spki}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.look(size, theme)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()
        shutil.rmtree(self._folder, ignore_errors=True)

    def look(self, size, theme, height=None):
        width, usual = SIZES[size]
        metrics = {
            "deviceScaleFactor": 1,
            "mobile": size == "phone",
            "width": width,
            "height": height or usual,
        }
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def go(self, url):
        """Open a page, the console empty: the one before may have complained when its fleet ended."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(url)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector="body"):
        """The text that is shown in the first element there is, or nothing."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def count(self, selector):
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def wait(self, pattern, selector="body", seconds=180):
        """Until what is shown there matches; the match."""
        return until(
            lambda: re.search(pattern, self.text(selector), re.S),
            f"{pattern!r} in {selector}, which says {self.text(selector)[:400]!r},",
            seconds,
        )

    def wait_for(self, selector, seconds=180):
        until(lambda: self.count(selector), f"an element {selector!r}", seconds)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def complaints(self):
        """What the console holds that should not be there, violations of the policy among it."""
        return [line for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def shots(self, folder, name):
        """Save the whole page at every size and in both themes; the files."""
        made = []
        for size in SIZES:
            for theme in ("light", "dark"):
                self.look(size, theme)
                self._settle()
                tall = min(self.run("return document.documentElement.scrollHeight"), TALLEST)
                self.look(size, theme, tall)
                self._settle()
                made.append(Path(folder) / f"{name}-{size}-{theme}.png")
                assert self.driver.save_screenshot(str(made[-1]))
        self.look("desktop", "light")
        return made

    def _settle(self):
        """Until the page is drawn at its new size: two frames after its own."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "let left = 3; const frame = () => left-- ? requestAnimationFrame(frame) : done(); frame();"
        )


def folder(tmp_path):
    """Where screenshots land: EDGE_ATTENTION_SCREENSHOTS, or the test's own folder."""
    chosen = Path(os.environ.get("EDGE_ATTENTION_SCREENSHOTS") or tmp_path)
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen
