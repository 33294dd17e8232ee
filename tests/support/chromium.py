"""The headless Chromium of the browser tests, taken from PATH."""

import shutil

from playwright.sync_api import Browser, Playwright

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
MINUTES = 60_000  # milliseconds


def launch(playwright: Playwright, *flags: str) -> Browser:
    assert FOUND, "Chromium is not in PATH. Install it, on Debian: apt-get install chromium"
    return playwright.chromium.launch(executable_path=FOUND, args=[*FLAGS, *flags])
