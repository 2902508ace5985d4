"""The architecture as assertions over the source: who may import whom, what is never called, how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_detr

PACKAGE = Path(lora_detr.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

ROOMS = (
    {"__main__"},
    {"cli"},
    {""},  # `lora_detr` itself: `load` and the version
    {"experiments"},
    {"runs", "doctor"},
    {"training"},
    {"deploy"},
    {"records"},
    {"evaluation"},
    {"checkpoints"},
    {"recipe"},
    {"losses", "branches"},
    {"data", "models", "matchers"},
    {"structures", "tensor_files"},
    {"config", "processes", "ops", "atomic_files"},
    {"json_value"},
    {"errors", "regular_files"},
)
"""Top to bottom. A package or module imports from itself and from what stands below it, and from nothing beside it."""

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
FORBIDDEN_CALLS |= {"yaml.safe_load"}  # the strict subset of ``config/yaml_subset.py`` is the one dialect
FORBIDDEN_KEYWORDS = {("shell", True), ("weights_only", False), ("allow_pickle", True)}


def module_name(path: Path) -> str:
    """Return the dotted name within the package; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room(name: str) -> tuple[int, str]:
    """Return (row of ``ROOMS`` from the top, entry) of a module."""
    first = name.partition(".")[0]
    rows = [row for row, names in enumerate(ROOMS) if first in names]
    assert rows, f"lora_detr.{name} has no place in ROOMS of {Path(__file__).name}"
    return rows[0], first


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield every module of the package that a file imports, wherever in the file."""
    modules = {module_name(path) for path in FILES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if within(name, "lora_detr"):
                inner = name.removeprefix("lora_detr").removeprefix(".")
                yield inner if inner in modules else inner.rpartition(".")[0]


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of a chain of names, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and dotted(node.value):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def complaints(importer: str, targets: Iterator[str]) -> list[str]:
    row, own = room(importer)
    rooms = [(target, *room(target)) for target in targets]
    return [f"{importer} imports {target}" for target, below, other in rooms if other != own and below <= row]


def test_imports_point_downward() -> None:
    faults = [fault for path in FILES for fault in complaints(module_name(path), imported(parse(path)))]
    assert faults == []


def test_reading_a_data_set_can_draw_none() -> None:
    files = [path for path in FILES if within(module_name(path), "data.coco")]
    targets = {target for path in files for target in imported(parse(path))}
    assert not [target for target in targets if within(target, "data.synthetic")]


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("losses.boxes", "matchers.topk", True),
        ("matchers.topk", "losses.boxes", False),
        ("models.detector", "branches.lora", False),
        ("models.detector", "losses.boxes", False),
        ("models.detector", "data.transforms", False),
        ("models.detector", "models.decoder", True),
        ("losses.criterion", "branches.lora", False),
        ("evaluation.coco_eval", "data.coco.split", True),
        ("config.load", "recipe.run_config", False),
        ("recipe.run_config", "losses.config", True),
        ("training.trainer", "recipe.run_config", True),
        ("recipe.run_config", "training.trainer", False),
        ("training.trainer", "runs.request", False),
        ("runs.run", "doctor.checks", False),
        ("tensor_files", "errors", True),
        ("tensor_files", "structures", False),
    ],
)
def test_the_rule_itself(importer: str, target: str, allowed: bool) -> None:
    assert (complaints(importer, iter([target])) == []) == allowed


def test_no_pickle_no_eval_no_shell_x07() -> None:
    faults = []
    for path in FILES:
        for node in ast.walk(parse(path)):
            found = ""
            if isinstance(node, ast.Import):
                found = ", ".join(alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = node.module if node.module.split(".")[0] in FORBIDDEN_MODULES else ""
            elif isinstance(node, ast.Call):
                found = dangerous(node)
            if found:
                faults.append(f"{path.name}:{node.lineno}: {found}")
    assert faults == []


def dangerous(call: ast.Call) -> str:
    """Return what is wrong with a call, or an empty string."""
    name = dotted(call.func)
    if name in FORBIDDEN_CALLS:
        return name
    given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if name == "torch.load" and given.get("weights_only") is not True:
        return "torch.load without weights_only=True"
    return ", ".join(f"{key}={value}" for key, value in FORBIDDEN_KEYWORDS if key in given and given[key] is value)


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "yaml.load(f)",
        "yaml.safe_load(f)",
        "run(x, shell=True)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
    ],
)
def test_the_rule_itself_x07(source: str) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert dangerous(call)


def test_no_module_is_longer_than_the_limit() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_catch_all_module() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "misc", "common", "helpers"}


def test_unit_tests_mirror_the_packages() -> None:
    here = Path(__file__).parent
    folders = {path.parent.relative_to(here) for path in here.rglob("test_*.py")}
    assert {str(folder) for folder in folders if not (PACKAGE / folder).is_dir()} == {"benchmarks"}
