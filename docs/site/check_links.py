"""Checks that every link of a built site leads to a place in it: `python docs/site/check_links.py FOLDER`."""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The places that can be linked to in a page, and what it links to."""

    def __init__(self, path: Path):
        super().__init__()
        self.places: set[str] = set()
        self.links: list[tuple[int, str]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.places.add(value or "")
            elif name in ("href", "src") and value:
                self.links.append((self.getpos()[0], value))


def broken_links(folder: Path) -> Iterator[str]:
    """Of each link within the site that leads nowhere its page, line and address."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        for line, link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            place = unquote(address.fragment)
            if not target.is_file():
                yield f"{path}:{line}: {link}: there is no {target}"
            elif place and target in pages and place not in pages[target].places:
                yield f"{path}:{line}: {link}: {target.name} has no #{place}"


def main() -> None:
    broken = list(broken_links(Path(sys.argv[1])))
    print("\n".join(broken) or f"every link within {sys.argv[1]} leads somewhere")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
