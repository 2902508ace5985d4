"""XML files of Pascal VOC: what one says about its image."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

MAX_XML_BYTES = 16_000_000
"""More than ten thousand objects need."""

CORNERS = ("xmin", "ymin", "xmax", "ymax")

_DEEPEST = 32  # elements within elements; those that are read lie four deep
_ROOT = "annotation"


class XmlFault(Exception):  # noqa: N818 (a fault of the file; whoever reads it makes an error that names the file)
    """Content that is not read.

    Args:
        message: what is wrong.
        line: from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


@dataclass
class Annotation:
    """Texts of the elements of a file by path, such as ``size/width``; of each object, ``bndbox/xmin``."""

    values: dict[str, str] = field(default_factory=dict)
    objects: list[dict[str, str]] = field(default_factory=list)


def parse(content: bytes) -> Annotation:
    """Read a file. The first of elements with the same path counts; attributes are not looked at.

    A document type is refused: it may define entities, which can be made to fill the memory or to read other files.

    Raises:
        XmlFault: it is not XML, has a document type or another root, or is nested too deep.
    """
    return _Parser().parse(content)


class _Parser:
    def __init__(self) -> None:
        self._found = Annotation()
        self._path: list[str] = []
        self._text: list[str] = []
        parser = self._parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append

    def parse(self, content: bytes) -> Annotation:
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            raise XmlFault(f"not valid XML: {expat.ErrorString(error.code)}", error.lineno) from None
        except (LookupError, ValueError) as error:  # of an encoding that Python does not know
            raise XmlFault(f"not valid XML: {error}", self._parser.CurrentLineNumber) from None
        return self._found

    def _fault(self, message: str) -> XmlFault:
        return XmlFault(message, self._parser.CurrentLineNumber)

    def _doctype(self, *_: object) -> None:
        raise self._fault("a document type (<!DOCTYPE>) is not read, since it may define entities")

    def _start(self, tag: str, attributes: object) -> None:
        self._text.clear()
        if not self._path and tag != _ROOT:
            raise self._fault(f"the root must be <{_ROOT}>, found <{tag[:40]}>")
        self._path.append(tag)
        if len(self._path) > _DEEPEST:
            raise self._fault(f"more than {_DEEPEST} elements within each other")
        if self._path == [_ROOT, "object"]:
            self._found.objects.append({})

    def _end(self, tag: str) -> None:
        path = self._path[1:]
        self._path.pop()
        if path[:1] == ["object"]:
            self._found.objects[-1].setdefault("/".join(path[1:]), "".join(self._text).strip())
        else:
            self._found.values.setdefault("/".join(path), "".join(self._text).strip())
        self._text.clear()
