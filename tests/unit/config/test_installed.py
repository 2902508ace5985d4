"""Kinds of matchers and branches that another installed package offers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_detr.config import installed
from lora_detr.config.dump import as_tree, dump_config
from lora_detr.config.load import load_config
from lora_detr.errors import ConfigError
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs import run
from tests import small_runs

CODE = '''
from typing import Literal
from lora_detr.branches import FFNBranch
from lora_detr.config.base import Strict
from lora_detr.matchers import MatcherConfig, OneToManyConfig, TopK

class Nearest(OneToManyConfig):
    """Stands for any matcher."""
    kind: Literal["nearest"] = "nearest"
    weights: tuple[float, ...] = (0.5, 0.5)
    def build(self):
        return TopK([self.k])

class Twin(Strict):
    """Stands for any kind of branch."""
    kind: Literal["twin"] = "twin"
    matcher: MatcherConfig
    def build(self, num_layers, hidden_dim, ffn_dim, dropout):
        return FFNBranch(num_layers, hidden_dim, ffn_dim, dropout)
'''
POINTS = """
[lora_detr.matchers]
nearest = own_kinds:Nearest
misnamed = own_kinds:Nearest
wrong = own_kinds:Twin
broken = own_kinds.missing:Nearest

[lora_detr.branches]
twin = own_kinds:Twin
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package with a matcher and a kind of branch."""
    site = tmp_path / "site"
    (site / "own_kinds-1.0.dist-info").mkdir(parents=True)
    (site / "own_kinds.py").write_text(CODE, encoding="utf-8")
    (site / "own_kinds-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own-kinds\nVersion: 1.0\n")
    (site / "own_kinds-1.0.dist-info" / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("own_kinds", None)


def test_a_run_with_kinds_of_another_package(shapes_tiny: Path, tmp_path: Path) -> None:
    """Also where one-to-one pairs are merged in; its stored settings read back as the same."""
    specs = ["nearest:k=3", "twin/topk:k=2", "twin/nearest:k=1,weights=[1.0]"]
    steps = ("train.max_steps=2", "evaluation.every=2")
    resolved = small_runs.reduced("deformable-pp-tiny-lora3", shapes_tiny, *steps, branches=specs)
    display = small_runs.Lines()
    run.start(resolved, tmp_path / "run", 2, dry_run=False, display=display)
    shown = [line for line in display.lines if line.startswith("branch")]
    assert [line.split(maxsplit=1)[1] for line in shown] == [
        "lora rank 32, nearest k=3",
        "twin, topk k=2 tau=0.4 alpha=0.3",
        "twin, nearest k=1",
    ]
    config = load_config(RunConfig, files=[tmp_path / "run" / "config.yaml"]).config
    assert config == resolved.loaded.config
    assert as_tree(config)["branches"][2] == {  # type: ignore[index, call-overload]
        "kind": "twin",
        "matcher": {"kind": "nearest", "k": 1, "weights": [1.0]},
    }
    assert "weights: [1.0]" in dump_config(config)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nearst:k=3", "`branches.0.matcher.kind` is 'nearst'"),
        ("nearest:k=0", "`branches.0.matcher.k` is 0"),
        ("nearest:k=3,tua=1", "`branches.0.matcher.tua`: unknown key"),
        ("nearest:k=3,weights=1", "`branches.0.matcher.weights` is 1"),
        ("twn/topk:k=3", "unknown kind 'twn'"),
        ("misnamed:k=3", "its `kind` must be 'misnamed'"),
        ("wrong:k=3", "expected a subclass of OneToManyConfig"),
        ("broken:k=3", "cannot be imported"),
    ],
)
def test_what_is_wrong_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small_runs.reduced("deformable-tiny", Path("nowhere"), branches=[spec])
    assert message in caught.value.message


def test_entry_points_are_read_for_other_kinds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    find: Callable[..., object] = installed.entry_points
    monkeypatch.setattr(installed, "entry_points", lambda **where: asked.append(where["name"]) or find(**where))
    small_runs.reduced("deformable-tiny", Path("nowhere"), branches=["topk:k=3", "ffn/max-iou"])
    assert asked == []
    small_runs.reduced("deformable-tiny", Path("nowhere"), branches=["nearest:k=3"])
    assert set(asked) == {"nearest"}
