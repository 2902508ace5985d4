"""Check a built site: links lead to files and anchors that exist, and no page loads anything from another host.

``python docs/site/check.py build/site`` prints what is broken, and exits with 1 if anything is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What may follow ``#`` in a link to a page, and where its own links lead, with the tag of each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str | None] = {"", "__skip"}
        self.links: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given.get("id"), given.get("name")}
        target = given.get(LINKS.get(tag, ""))
        if target is not None:
            self.links.append((tag, target))


def broken_links(site: Path) -> Iterator[str]:
    """Give a line for each broken link."""
    # The server shows 404.html under any address, so its links begin at the root of the host.
    pages = {path: Page(path) for path in sorted(site.resolve().rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for tag, link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                wrong = "" if tag == "a" else "is loaded from another host"
            else:
                linked = (path.parent / unquote(target.path)).resolve() if target.path else path
                wrong = "" if linked.is_file() else "no such file"
                if linked in pages and unquote(target.fragment) not in pages[linked].anchors:
                    wrong = "no such anchor"
            if wrong:
                yield f"{path.relative_to(site.resolve())}: {link}: {wrong}"


if __name__ == "__main__":
    found = list(broken_links(Path(sys.argv[1])))
    print("\n".join(found) or "every link leads somewhere")
    sys.exit(bool(found))
