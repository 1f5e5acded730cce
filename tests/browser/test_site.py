"""The site of the pages, built without a warning: links, search in both languages, and how it looks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

PAGES = {
    "en": ("docs/index", "README", "docs/ppo", "docs/migrating-from-deepspeed-chat", "docs/api/ppo", "docs/choosing"),
    "zh": ("docs/zh/index", "README_zh", "docs/zh/first-steps", "docs/zh/ppo", "docs/zh/troubleshooting"),
}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` builds it, every warning an error."""
    pytest.importorskip("sphinx", reason="no test of the site: pip install 'pangu_trl[docs]'")
    folder = tmp_path_factory.mktemp("site")
    for language, words in {"en": [], "zh": ["--tag", "zh"]}.items():
        command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
        command += ["--conf-dir", "docs/site", *words, ".", str(folder / language)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
    shutil.copy(ROOT / "docs" / "site" / "start.html", folder / "index.html")
    return folder


def links_of(folder):
    command = [sys.executable, str(ROOT / "docs" / "site" / "check_links.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_link_leads_somewhere(site):
    result = links_of(site)
    assert result.returncode == 0, result.stdout


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="top">b</h1>', "utf-8")
    (tmp_path / "a.html").write_text(
        '<a href="b.html#top">x</a>\n<a href="b.html#end">x</a>\n<img src="c.png"><a href="https://x.org/y">x</a>',
        "utf-8",
    )
    result = links_of(tmp_path)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("b.html has no #end") and ":2: b.html#end" in lines[0]
    assert ":3: c.png: there is no" in lines[1]


@pytest.mark.parametrize(("language", "page"), [(language, page) for language in PAGES for page in PAGES[language]])
def test_pages_of_the_site(look, site, language, page):
    opened = look(site / language / f"{page}.html")
    assert opened.evaluate("document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
    other = opened.locator(".other-language a")
    assert other.text_content() == {"en": "中文", "zh": "English"}[language]
    target = opened.evaluate("document.querySelector('.other-language a').href")
    assert Path(target.removeprefix("file://")).is_file()


@pytest.mark.parametrize(
    ("language", "words", "page"),
    [
        ("zh", "奖励模型", "docs/zh/reward.html"),
        ("zh", "显存不足", "docs/zh/troubleshooting.html"),
        ("zh", "kl_coef", "docs/zh/choosing.html"),
        ("en", "adaptive_kl_target", "docs/choosing.html"),
        ("en", "PPOTrainer", "docs/api/ppo.html"),
    ],
)
def test_search_finds_the_page(browser, site, language, words, page):
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{(site / language / 'search.html').as_uri()}?q={words}")
    opened.wait_for_selector("#search-results li a")
    found = opened.evaluate("[...document.querySelectorAll('#search-results li a')].map(link => link.href)")
    assert any(page in link for link in found), found
    context.close()


def test_the_start_leads_to_the_language_of_the_reader(browser, site):
    for locale, page in {"zh-CN": "zh/docs/zh/index.html", "de-DE": "en/docs/index.html"}.items():
        context = browser.new_context(locale=locale)
        opened = context.new_page()
        opened.goto((site / "index.html").as_uri())
        opened.wait_for_url(f"**/{page}")
        context.close()
