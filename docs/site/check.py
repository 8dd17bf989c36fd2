"""Whether a built site stands on its own: `check.py FOLDER`. Every link and picture in it leads to something in it, and
nothing is loaded from elsewhere. Prints what is wrong; exit code 1."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "src"), ("iframe", "src")}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        for key, value in attributes:
            if key in ("id", "name") and value:
                self.places.add(value)
            if (tag, key) in LOADS and value and given.get("rel") not in ("canonical", "next", "prev"):
                self.loads.append(value)
            elif tag == "a" and key == "href" and value:
                self.links.append(value)


def faults(root: Path) -> list[str]:
    """What leads nowhere, and what is loaded from elsewhere."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(root.resolve())
        for place in (*page.links, *page.loads):
            parts = urlsplit(place)
            if parts.scheme or parts.netloc:
                if place in page.loads and parts.scheme != "data":
                    found.append(f"{name} loads {place}")
                continue
            if name.name == "404.html":  # served at any place, its links are those of the server's root
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name} leads to {place}, which is not there")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].places | {"__search"}
            ):
                found.append(f"{name} leads to {place}, a place that is not on that page")
    return found


if __name__ == "__main__":
    told = faults(Path(sys.argv[1]))
    print("\n".join(told) or f"{sys.argv[1]}: all links lead somewhere, nothing is loaded from elsewhere")
    sys.exit(bool(told))
