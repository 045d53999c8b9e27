"""A headless Chromium for the tests of the pages, and the few things that they do with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


def open_browser(profile: Path) -> Chrome:
    """Chromium and its driver, as Debian packages them; fails where they are missing, unless SLIPWAY_NO_BROWSER=1.

    Args:
        profile: an empty folder for the browser's profile.
    """
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not found or not driver:
        if os.environ.get("SLIPWAY_NO_BROWSER") == "1":
            pytest.skip("SLIPWAY_NO_BROWSER=1: the pages are not tested")
        pytest.fail(
            "no Chromium with chromedriver was found; `apt-get install chromium chromium-driver` brings them, "
            "and SLIPWAY_NO_BROWSER=1 leaves the tests of the pages out",
            pytrace=False,
        )
    options = ChromeOptions()
    options.binary_location = found
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=ChromeService(executable_path=driver))


class Page:
    """The playground in a browser."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, *, width: int = 1280, height: int = 900, dark: bool = False, language: str = "en-GB") -> Page:
        """Loads the page anew, as a reader of this language with this preference sees it first."""
        self.browser.set_window_size(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        agent = self.browser.execute_script("return navigator.userAgent")
        self.browser.execute_cdp_cmd("Network.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        self.browser.get(self.url)
        self.browser.execute_script("localStorage.clear()")
        self.browser.get(self.url)
        self.until(lambda: self.find("html").get_attribute("data-ready") == "yes")
        self.browser.get_log("browser")
        return self

    def find(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        WebDriverWait(self.browser, seconds, poll_frequency=0.05).until(lambda _: condition())

    def choose(self, model: str, other: str = "") -> None:
        for field, value in (("model", model), ("other", other)):
            if value:
                self.find(f"#{field} option[value='{value}']").click()

    def fill(self, field: str, text: str) -> None:
        """Puts a text into a field as a paste does; the driver's own typing knows no emoji."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, self.find(f"#{field}"), text)

    def ask(self) -> None:
        """Presses the button and waits for what comes."""
        self.find("#ask button[type=submit]").click()
        self.settled()

    def settled(self) -> None:
        ready = "#answer[aria-busy=false] .result, #answer[aria-busy=false] .problem"
        self.until(lambda: self.all(ready))

    def text(self, css: str) -> str:
        return str(self.find(css).get_property("textContent"))

    def complaints(self) -> list[str]:
        """What the browser said on its console since the page was opened: errors, and breaches of the policy."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
