"""Take the pictures of docs/images: `python -m tests.gateway.page.pictures URL FOLDER`, of `shardhub gateway --demo`.

templates/page.png, which goes onto cards, is page-light.png in 96 colours.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.gateway.page.visit import Visit

QUESTION = "Write a short Python function that reverses a list, and explain it."
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 800}


def main(url: str, folder: Path) -> None:
    """Take one conversation in both themes, then the same on a phone, with its drawer."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        own = started.chromium.executable_path
        executable = own if os.path.exists(own) else shutil.which("chromium")
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        with Visit(browser, url, viewport=WIDE, color_scheme="light") as visit:
            visit.page.set_default_timeout(120_000)
            visit.page.evaluate('localStorage.setItem("shardhub.sampling", \'{"temperature": 0, "max_tokens": 220}\')')
            visit.page.reload()
            visit.page.screenshot(path=folder / "page-first.png")
            visit.ask(QUESTION)
            visit.page.mouse.move(720, 860)
            visit.page.screenshot(path=folder / "page-light.png")
            visit.page.emulate_media(color_scheme="dark")
            visit.page.wait_for_timeout(300)
            visit.page.screenshot(path=folder / "page-dark.png")
            visit.page.set_viewport_size(PHONE)
            visit.page.emulate_media(color_scheme="light")
            visit.page.wait_for_timeout(400)
            visit.page.screenshot(path=folder / "page-phone.png")
            visit.page.click("#open-chain")
            visit.page.wait_for_timeout(400)
            visit.page.screenshot(path=folder / "page-phone-chain.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
