"""What other installed packages are there: their versions, and kinds of settings that they offer by entry points."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TypeVar

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from lora_detr.errors import ConfigError

T = TypeVar("T", bound=BaseModel)


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None where none is installed under that name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_installed(group: str, kind: str, base: type[T]) -> type[T] | None:
    """Return the config class that an installed package offers for a kind, or None where none does.

    Args:
        group: of entry points, each named as the ``kind`` of the class it leads to.
        kind: as the settings name it.
        base: what the class must derive from.

    Raises:
        ConfigError: the class cannot be imported, or is not such a class.
    """
    for point in entry_points(group=group, name=kind):
        where = f"entry point '{kind}' of {group}, {point.value}"
        try:
            found = point.load()
        except Exception as error:  # whatever the code of another package does
            raise ConfigError(f"{where}: cannot be imported: {error}", "repair or remove that package") from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(f"{where}: expected a subclass of {base.__name__}", "repair or remove that package")
        if "kind" not in found.model_fields or found.model_fields["kind"].default != kind:
            raise ConfigError(f"{where}: its `kind` must be '{kind}', as runs store it", "rename one of the two")
        return found
    return None


def or_installed(group: str, base: type[BaseModel], default: str | None = None) -> WrapValidator:
    """Return what lets a union that is discriminated by ``kind`` also take classes of installed packages.

    Entry points are read only for a kind that the union does not have.

    Args:
        group: of entry points.
        base: what their classes must derive from.
        default: kind of settings that do not name theirs; None if they must.
    """

    def validate(value: object, ours: ValidatorFunctionWrapHandler) -> object:
        if default is not None and isinstance(value, dict):
            value = {"kind": default, **value}
        try:
            return ours(value)
        except ValidationError as error:
            if error.errors()[0]["type"] != "union_tag_invalid":
                raise
            if isinstance(value, base):
                return value
            found = find_installed(group, str(value["kind"]), base) if isinstance(value, dict) else None
            if found is None:
                raise
            return found.model_validate_json(json.dumps(value), strict=True)

    return WrapValidator(validate)
