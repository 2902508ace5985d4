"""``examples/finetune.py``, on a data set and a detector of seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_detr.data.synthetic import sets
from tests.conftest import REPOSITORY
from tests.small_runs import REDUCED, read_lines


def test_the_example_trains_strips_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = replace(sets.SHAPES_EASY, train_images=6, val_images=4, size=96)
    monkeypatch.setitem(sets.SPECS, "shapes-easy", tiny)
    code = (REPOSITORY / "examples" / "finetune.py").read_text(encoding="utf-8")
    smaller = code.replace("OVERRIDES = [", f"OVERRIDES = [*{REDUCED},").replace("max_steps=500", "max_steps=2")
    exec(compile(smaller, "finetune.py", "exec"), {"__name__": "__main__"})
    run = tmp_path / "runs" / "finetune"
    assert {"branch0", "branch2"} <= {key.split("/")[0] for key in read_lines(run / "metrics.jsonl")[0]["terms"]}
    for name in ("predictions.png", "drawn.png"):
        with Image.open(run / name) as picture:
            picture.verify()
    out = capsys.readouterr().out
    assert "star " in out
    assert f"{Path('runs/finetune/stripped.safetensors')}: " in out
