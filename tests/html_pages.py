"""What every HTML page that is written must satisfy, whatever is in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "style"}


@dataclass
class Element:
    """A start tag."""

    tag: str
    attributes: dict[str, str]


@dataclass
class Page(HTMLParser):
    """A parsed page.

    Attributes:
        elements: in order.
        faults: what is wrong with it.
        text: what is shown, and the style sheet apart.
    """

    elements: list[Element] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    text: str = ""
    style: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element, and expect its end."""
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element that ends at once."""
        if len({name for name, _ in attrs}) != len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice: {attrs}")
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """Close the element that is open."""
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"line {self.getpos()[0]}: </{tag}> closes nothing that is open")

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        if self._open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a kind."""
        return [element.attributes for element in self.elements if element.tag == tag]

    def close(self) -> None:
        """Check what can be checked at the end."""
        super().close()
        if self._open:
            self.faults.append(f"open at the end: {self._open}")
        self._check_names()
        self._check_references()

    def _check_names(self) -> None:
        self.faults += [f"no alt: {image}" for image in self.of("img") if not image.get("alt")]
        self.faults += [f"no label: {drawn}" for drawn in self.of("svg") if not drawn.get("aria-label")]
        ids = [element.attributes["id"] for element in self.elements if "id" in element.attributes]
        self.faults += [f"id {name} is there {ids.count(name)} times" for name in {*ids} if ids.count(name) > 1]
        for element in self.elements:
            named = element.attributes.get("aria-labelledby", "").split()
            named += re.findall(r"^#(.+)$", element.attributes.get("href", ""))
            named += re.findall(r"url\(#([^)]+)\)", " ".join(element.attributes.values()))
            self.faults += [
                f"<{element.tag}> refers to {name}, which is not there" for name in named if name not in ids
            ]
        levels = [int(element.tag[1]) for element in self.elements if re.fullmatch("h[1-6]", element.tag)]
        if levels.count(1) != 1 or any(after > before + 1 for before, after in pairwise(levels)):
            self.faults.append(f"levels of headings: {levels}")
        for landmark in ("header", "nav", "main", "footer"):
            if len(self.of(landmark)) != 1:
                self.faults.append(f"{len(self.of(landmark))} <{landmark}>")

    def _check_references(self) -> None:
        if self.of("script") or self.of("iframe") or self.of("object"):
            self.faults.append("a script or a frame")
        for element in self.elements:
            for name, value in element.attributes.items():
                if name.startswith("on"):
                    self.faults.append(f"<{element.tag}> has {name}")
                outward = r"url\((?!#)|//" if name == "style" else r"(?!#|data:image/jpeg;base64,|data:,$)"
                if name in REFERENCES and (re.search if name == "style" else re.match)(outward, value):
                    self.faults.append(f"<{element.tag} {name}={value[:60]!r}> leads out of the page")
        if re.search(r"url\(|@import|//", self.style):
            self.faults.append("the style sheet leads out of the page")


def checked(html: str) -> Page:
    """Return a page that has no fault."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.faults == []
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    return page
