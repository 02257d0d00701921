"""Takes docs/static/explore.png: the page that `elmo-jax explore` writes of the demo's model, with a point clicked.

python docs/screenshot.py runs/demo, with playwright and chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "static" / "explore.png"
WORDS = ("value", "object", "line")
SIZE = {"width": 1000, "height": 900}


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "page.html"
        command = [sys.executable, "-m", "elmo_jax", "explore", model, "builtin", "--output", str(page), "--words"]
        subprocess.run([*command, *WORDS], check=True)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        tab.goto(page.as_uri())
        tab.locator("circle").last.click()
        tab.mouse.move(0, 0)
        tab.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
