"""Reading JSON in pieces gives what reading it at once gives, wherever the pieces end."""

from __future__ import annotations

import io
import json
import random
from typing import Any, BinaryIO

import pytest

from lora_detr.data.coco import json_stream
from lora_detr.data.coco.json_stream import JsonFault, JsonReader

ROWS = [
    {"id": 1, "text": 'a "}, {" b', "list": [{"x": 1}, {"y": -0.5e-3}], "name": "größe €"},
    {"id": 2, "nothing": None, "yes": True, "number": 1.25e10, "nested": {"a": {"b": [[]]}}},
    {"id": 3, "segmentation": {"counts": "ab}, {", "size": [1, 2]}, "end": 0},
    {},
]
TEXT = json.dumps(
    {"info": {"a": [1, {"b": 2}]}, "rows": ROWS * 3, "numbers": [1, 2.5, -3e2, 1e5], "none": []}, indent=1
)


def _read(text: str | bytes, *, outlines: bool = True) -> dict[str, Any]:
    return _read_file(io.BytesIO(text.encode() if isinstance(text, str) else text), outlines=outlines)


def _read_file(file: BinaryIO, *, outlines: bool = True) -> dict[str, Any]:
    """Read an object whose arrays are streamed; the file stays open."""
    found: dict[str, Any] = {}
    reader = JsonReader(file, outlines=outlines)
    for key in reader.members():
        if reader.peek() == "[":
            found[key] = [row for rows in reader.elements() for row in rows]
        else:
            found[key] = reader.value()
    reader.end()
    return found


def _place_of_fault(text: str) -> tuple[int, int] | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno, error.colno
    return None


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 16, 50, 200, 10_000])
@pytest.mark.parametrize("text", [TEXT, json.dumps(json.loads(TEXT)), json.dumps(json.loads(TEXT), ensure_ascii=False)])
def test_pieces_of_any_size_give_the_whole(piece: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE", piece)
    assert _read(text) == json.loads(text)
    assert _read(b"\xef\xbb\xbf" + text.encode()) == json.loads(text)


@pytest.mark.parametrize("piece", [5, 64, 10_000])
def test_outlines_are_left_out_and_nothing_else_is(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE", piece)
    outlines = ([[1.5, 2, -3e1], [4]], [], [1, 2])
    rows = [{"id": i, "segmentation": outline, "b": [i]} for i, outline in enumerate(outlines)]
    rows += [{"segmentation": {"counts": [1], "size": [2, 3]}}, {"text": '"segmentation": [1]'}, {"segmentation": [1]}]
    text = json.dumps({"rows": rows}, indent=1)
    assert _read(text) == json.loads(text)
    found = _read(text, outlines=False)["rows"]
    assert [{key: row[key] for key in row if key != "segmentation"} for row in found] == [
        {key: row[key] for key in row if key != "segmentation"} for row in rows
    ]
    assert [row.get("segmentation") for row in found] == [0, 0, 0, {"counts": [1], "size": [2, 3]}, None, 0]


@pytest.mark.parametrize("piece", [3, 40, 10_000])
def test_a_cut_or_a_changed_byte_is_placed_as_the_parser_of_the_whole_places_it_d01(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "PIECE", piece)
    draw = random.Random(0)
    texts = [TEXT[: draw.randrange(len(TEXT))] for _ in range(60)]
    for _ in range(120):
        place = draw.randrange(len(TEXT))
        texts.append(TEXT[:place] + draw.choice('x,]}[{":0 ') + TEXT[place + 1 :])
    places = [_place_of_fault(text) for text in texts]
    assert sum(place is not None for place in places) > 100
    for text, place in zip(texts, places, strict=True):
        if place is None:
            assert _read(text) == json.loads(text)
        else:
            with pytest.raises(JsonFault) as caught:
                _read(text)
            assert (caught.value.line, caught.value.column) == place, text


def test_a_fault_in_front_is_told_without_reading_on_d01() -> None:
    file = io.BytesIO(b'{"rows": [{"a": 1}, {"b": ?}' + b" " * 10 * json_stream.PIECE)
    with pytest.raises(JsonFault, match="Expecting value"):
        _read_file(file)
    assert file.tell() <= 2 * json_stream.PIECE


def test_bytes_that_are_no_text_are_placed_d01() -> None:
    with pytest.raises(JsonFault, match="byte 0xff is not UTF-8") as caught:
        _read(b'{"rows":\n [1, "\xff"]}')
    assert (caught.value.line, caught.value.column) == (2, 7)


def test_elements_come_in_lists_and_not_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE", 1000)
    text = json.dumps([{"id": i} for i in range(1000)]).encode()
    lengths = [len(rows) for rows in JsonReader(io.BytesIO(text)).elements()]
    assert sum(lengths) == 1000
    assert max(lengths) < 120
