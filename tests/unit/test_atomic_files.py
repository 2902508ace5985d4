"""What is renamed was flushed before, and its folder is flushed after: the old or the new survives a power failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_detr.atomic_files import write_file
from lora_detr.checkpoints.checkpoint import CHECKPOINTS
from tests import small_runs

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What was flushed and what was renamed, by the name that it had, in order."""
    found: Events = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def flushed(descriptor: int) -> None:
        found.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def moved(move: object, source: str, target: str) -> None:
        found.append((f"rename to {Path(target).name}", str(source)))
        assert callable(move)
        move(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda source, target: moved(replace, source, target))
    monkeypatch.setattr(os, "rename", lambda source, target: moved(rename, source, target))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what a descriptor is of")
class TestFlushed:
    """In which order a file, and the files and the folder of a checkpoint, reach the disk."""

    def test_a_file_before_it_is_renamed_and_its_folder_after(self, events: Events, tmp_path: Path) -> None:
        write_file(tmp_path / "a.json", b"{}")
        ((first, temporary), (second, renamed), (third, folder)) = events
        assert (first, second, third) == ("flush", "rename to a.json", "flush")
        assert temporary == renamed
        assert folder == str(tmp_path)

    def test_every_file_of_a_checkpoint_and_both_folders(
        self, events: Events, shapes_tiny: Path, tmp_path: Path
    ) -> None:
        run = small_runs.train(shapes_tiny, tmp_path / "run", "train.max_steps=1").directory
        folder = run / CHECKPOINTS
        names = {path.name for path in (folder / "step-00000001").iterdir()}
        (place,) = [i for i, (kind, _) in enumerate(events) if kind == "rename to step-00000001"]
        temporary = events[place][1]
        before = [path for kind, path in events[:place] if kind == "flush"]
        assert {Path(path).name for path in before if Path(path).parent == Path(temporary)} == names
        assert temporary in before  # the entries of the folder itself
        assert ("flush", str(folder)) in events[place + 1 :]
