"""Keeps what modules were given and gave in the latest forward pass."""

from __future__ import annotations

from typing import Any

from torch import nn


class Recording:
    """Values of one forward pass by name and place.

    Hooks are objects that hold this one, and not closures: a deep copy of a detector, such as its averaged weights,
    then records into its own copy.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, int], Any] = {}

    def keep_input(self, module: nn.Module, name: str, place: int = 0) -> None:
        """Keep the first argument of a module under a name."""
        module.register_forward_hook(_Keep(self, name, place, is_input=True))

    def keep_output(self, module: nn.Module, name: str, place: int = 0) -> None:
        """Keep what a module returns; of a tuple, its first element."""
        module.register_forward_hook(_Keep(self, name, place, is_input=False))

    def put(self, name: str, place: int, value: Any) -> None:
        """Keep a value."""
        self._values[name, place] = value

    def value(self, name: str, place: int = 0) -> Any:
        """Return what was kept.

        Raises:
            KeyError: nothing was kept under this name in the latest pass.
        """
        return self._values[name, place]

    def clear(self) -> None:
        """Forget everything, so that no pass keeps the memory of the one before."""
        self._values.clear()


class _Keep:
    def __init__(self, recording: Recording, name: str, place: int, is_input: bool) -> None:
        self.recording, self.name, self.place, self.is_input = recording, name, place, is_input

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        value = arguments[0] if self.is_input else output[0] if isinstance(output, tuple) else output
        self.recording.put(self.name, self.place, value)
