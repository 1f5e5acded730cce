"""A real browser for pages: Chromium of the system, driven by Playwright, with axe-core; without them skipped aloud."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AXE_VERSION = "4.14.1"
VIEWS = {
    "desktop, light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop, dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone, light": {"viewport": {"width": 390, "height": 800}, "color_scheme": "light"},
    "phone, dark": {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"},
}
# Elements that reach beyond the window, but for those in a box that scrolls by itself.
OVERFLOWING = """() => [...document.body.querySelectorAll("*")].filter(element => {
  const box = element.getBoundingClientRect();
  if (box.width === 0 || box.right <= document.documentElement.clientWidth + 1) return false;
  for (let parent = element.parentElement; parent; parent = parent.parentElement)
    if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(parent).overflowX)) return false;
  return true;
}).map(element => element.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser tests: there is no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core, fetched once into the cache of the tests."""
    folder = ROOT / ".cache" / f"axe-core-{AXE_VERSION}"
    script = folder / "package" / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            pytest.skip("no look at accessibility: there is no npm to fetch axe-core with")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"axe-core@{AXE_VERSION}"]
        fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if fetched.returncode:
            pytest.skip(f"no look at accessibility: npm could not fetch axe-core: {fetched.stderr.strip()[-200:]}")
        with tarfile.open(folder / f"axe-core-{AXE_VERSION}.tgz") as archive:
            archive.extractall(folder, filter="data")
    return script.read_text("utf-8")


@pytest.fixture(params=list(VIEWS))
def look(request, browser, axe) -> Iterator[Callable[[Path], object]]:
    """Opens a file as a window would show it, and holds it to what every page keeps to; returns the open page."""
    context = browser.new_context(**VIEWS[request.param])
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

    def open_page(path: Path) -> object:
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        assert errors == []
        check(page, axe)
        return page

    yield open_page
    context.close()


def check(page: object, axe: str) -> None:
    """No overflow, and nothing that axe-core finds against WCAG 2.1 A and AA, contrast among it."""
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.evaluate(axe)
    found = page.evaluate(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}).then(found => found.violations.map("
        "rule => [rule.id, rule.nodes.map(node => [node.html.slice(0, 160), node.failureSummary])]))"
    )
    assert found == [], json.dumps(found, indent=1, ensure_ascii=False)
