"""Between the category ids of an annotation file and the labels 0..K-1 that a model predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_detr.errors import CheckpointError, ConfigError, DataError, nearest, printable

UNUSED = "N/A"
"""Name of a label that stands for no category (the gaps between COCO's ids)."""

_COCO_SLOTS = (  # ids 1..90, ten a line; empty where COCO has no category
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,"
    "fire hydrant,,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,"
    "cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,"
    "skateboard,surfboard,tennis racket,bottle,,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,"
    "cake,chair,couch,potted plant,bed,,dining table,,,toilet,"
    ",tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,"
    "sink,refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)

COCO_NAMES: dict[int, str] = {i: name for i, name in enumerate(_COCO_SLOTS.split(","), start=1) if name}
"""The 80 categories of COCO 2017 by id, 1..90 with gaps."""

COCO_SLOTS = 91
"""Labels of a model that uses COCO's ids as labels: 0..90."""


@dataclass(frozen=True)
class CategoryMap:
    """Original id and name of every label.

    Attributes:
        ids: original category id of label 0..K-1; unique, any 64-bit integers.
        names: name of label 0..K-1; ``N/A`` for a label that stands for nothing.

    Raises:
        ValueError: lengths differ, an id appears twice or is beyond 64 bits, or a name is no text.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids ({len(set(self.ids))} different) for {len(self.names)} names")
        beyond = [i for i in self.ids if not -(2**63) <= i < 2**63]
        if beyond:
            raise ValueError(f"ids must be 64-bit integers, found one of {beyond[0].bit_length()} bits")
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(self.names)):
            raise ValueError("a name holds half a character, which no text can hold")

    @classmethod
    def from_categories(cls, names: Mapping[int, str]) -> CategoryMap:
        """Number the categories 0..K-1 by rising original id.

        Args:
            names: name by original id, in any order.
        """
        ids = tuple(sorted(names))
        return cls(ids, tuple(names[i] for i in ids))

    @classmethod
    def coco91(cls, names: Mapping[int, str]) -> CategoryMap:
        """Use COCO's ids as labels, in 91 slots, as the official checkpoints do.

        Args:
            names: name by original id of the data set at hand; may be a part of COCO's 80.

        Raises:
            ConfigError: an id or its name is not COCO's, or there is none.
        """
        unexpected = [f"{i} '{printable(name)}'" for i, name in sorted(names.items()) if COCO_NAMES.get(i) != name]
        if unexpected or not names:
            found = f"found {unexpected[0]} ({len(unexpected)} of {len(names)} differ)" if unexpected else "found none"
            raise ConfigError(
                f"num_classes coco91 expects COCO's category ids and names, but the data set is not COCO: {found}",
                "use --num-classes auto to train on the data set's own categories",
            )
        return cls(tuple(range(COCO_SLOTS)), tuple(COCO_NAMES.get(i, UNUSED) for i in range(COCO_SLOTS)))

    @property
    def num_classes(self) -> int:
        """K, unused labels included."""
        return len(self.ids)

    @cached_property
    def names_by_id(self) -> dict[int, str]:
        """Name by original id, without unused labels; what both constructors take."""
        return {i: name for i, name in zip(self.ids, self.names, strict=True) if name != UNUSED}

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids)}

    def __contains__(self, category_id: object) -> bool:
        return category_id in self._labels

    def label_of(self, category_id: int) -> int:
        """Return the label of an original id.

        Raises:
            DataError: the id is not in the map.
        """
        if category_id not in self._labels:
            close = nearest(str(category_id), map(str, self.ids))
            raise DataError(f"category id {category_id} is not among the model's categories{close}", code="D10")
        return self._labels[category_id]

    def to_json(self) -> dict[str, Any]:
        """Return the map as lists, for checkpoints."""
        return {"ids": list(self.ids), "names": list(self.names)}

    @classmethod
    def from_json(cls, value: object) -> CategoryMap:
        """Read what ``to_json`` wrote.

        Raises:
            CheckpointError: the value is not such a map.
        """
        try:
            ids, names = value["ids"], value["names"]  # type: ignore[index]
            if not all(type(i) is int for i in ids) or not all(type(name) is str for name in names):
                raise ValueError("ids must be integers and names strings")
            return cls(tuple(ids), tuple(names))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the stored category map cannot be read: {error}") from error
