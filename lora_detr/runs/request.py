"""From what a user asked for on the command line to one configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_detr.branches import BRANCH_GROUP
from lora_detr.checkpoints.official.file import read_official
from lora_detr.checkpoints.official.system import announce, recognise
from lora_detr.checkpoints.opened import kind_of
from lora_detr.config.base import Strict
from lora_detr.config.explain import models_of
from lora_detr.config.installed import find_installed
from lora_detr.config.load import Loaded, load_config, parse_override
from lora_detr.config.presets import list_presets
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.config.tree import flatten, is_within
from lora_detr.config.yaml_subset import read_yaml
from lora_detr.data.coco.layout import COCO_FOLDER
from lora_detr.data.coco.source import AUTO
from lora_detr.data.synthetic.sets import cached, resolve_generated
from lora_detr.errors import ConfigError, nearest
from lora_detr.json_value import JSON
from lora_detr.matchers import MATCHER_GROUP, MatcherConfig, OneToManyConfig
from lora_detr.models import DeformableDetrConfig, HuggingFaceConfig
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.models.query_groups import HybridConfig
from lora_detr.recipe.branch_counts import BRANCH_KINDS, DEFAULT_BASELINE, baselines, branch_ks
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.length import shipped_origins
from lora_detr.runs.pretrained import FineTuning, absolute, check_changes, fine_tuning


@dataclass(frozen=True)
class Request:
    """Options of ``train`` that decide the configuration.

    Attributes:
        preset: named outright.
        baseline: system whose preset is meant, or ``hf:`` and a detector of ``transformers`` to fine-tune.
        aux: number of branches; changes the branch list only.
        rank: of all branches.
        branches: ``[kind/]matcher:key=value,...``, one each; excludes ``aux``.
        branch_kind: of all branches; excludes ``branches``, which name theirs.
        hybrid: copies of each target for hybrid queries (H-DETR); 0 leaves them out.
        dac: add the pass without self-attention (DAC-DETR).
        data: COCO folder or YAML file.
        files: YAML files on top of the preset.
        overrides: ``key=value``; an option of its own name is stronger.
        named: key path -> value of options that have a name of their own.
        weights: to start from; a run directory also brings its settings unless a preset or baseline is named.
    """

    preset: str | None = None
    baseline: str | None = None
    aux: int | None = None
    rank: int | None = None
    branches: Sequence[str] = ()
    data: Path | None = None
    files: Sequence[Path] = ()
    overrides: Sequence[str] = ()
    named: Mapping[str, object] = field(default_factory=dict)
    weights: Path | None = None
    branch_kind: str | None = None
    hybrid: int | None = None
    dac: bool = False


@dataclass(frozen=True)
class Resolved:
    """One configuration and how it came about.

    Attributes:
        loaded: the configuration with the origin of its values; ``auto`` values are replaced.
        preset: its name.
        data: where the data is.
        notes: choices that were made for the user, a line each.
    """

    loaded: Loaded[RunConfig]
    preset: str
    data: Path
    notes: tuple[str, ...]

    @property
    def run_name(self) -> str:
        """Name for the run's directory: the preset's, or that of the run whose settings were taken."""
        path = Path(self.preset.removeprefix(PREFIX))
        if path.name == RUN_SETTINGS:
            return path.resolve().parent.name + ("-tuned" if self.loaded.config.weights else "-again")
        return path.name.removesuffix(".yaml").removesuffix(".yml")


def resolve(request: Request) -> Resolved:
    """Choose preset and data, apply all overrides, and validate.

    Raises:
        ConfigError: an option is wrong, unknown, or contradicts another.
    """
    if request.aux is not None and request.branches:
        raise ConfigError("--aux and --branch exclude each other", "--branch lists the branches one by one")
    if request.aux is not None and request.aux < 0:
        raise ConfigError(f"--aux {request.aux}: expected 0 or more branches", "0 trains without branches")
    if request.branch_kind is not None and request.branches:
        raise ConfigError("--branch-kind and --branch exclude each other", "--branch takes kind/matcher:key=value")
    if request.branch_kind is not None:
        _check_kind(f"--branch-kind {request.branch_kind}", request.branch_kind)
    notes: list[str] = []
    if request.weights is not None and request.preset is None and request.baseline is None:
        request = _with_settings_of(request, request.weights)
        notes.append(f"settings of {request.weights}; --preset or --baseline would choose others")
    tuned = _fine_tuning(request)
    notes += () if tuned is None else tuned.notes
    tiny = (
        tuned is None
        and request.preset is None
        and request.data is None
        and not (COCO_FOLDER.is_dir() or _names_data(request))
    )
    preset = str(tuned.recipe) if tuned else request.preset or preset_of(request, tiny)
    given = {str(request.baseline): tuned.settings} if tuned else {}
    if request.hybrid == 0:
        # The option is stronger than what else was said of the group.
        kept = tuple(item for item in request.overrides if not item.startswith("model.hybrid."))
        request = replace(request, overrides=kept)
    base = load_config(RunConfig, preset=preset, given=given, files=request.files, overrides=request.overrides)
    if request.preset and request.baseline and system_of(base.config) != _baseline(request):
        raise ConfigError(
            f"--baseline {request.baseline} contradicts --preset {preset}, which is a '{system_of(base.config)}'",
            "give one of the two",
        )
    data = request.data
    if data is None and base.config.data.path is None:
        if COCO_FOLDER.is_dir():
            data = COCO_FOLDER
            notes.append(f"no --data: using {COCO_FOLDER}")
        else:
            data = cached("shapes")
            small = ", with the tiny preset" if tiny else ""
            notes.append(f"no --data and no {COCO_FOLDER}: using the generated set 'shapes'{small}")
    named = dict(request.named)
    branches = _branches(request, base.config)
    if branches is not None:
        named["branches"] = branches
    named |= _query_groups(request, base)
    if data is not None:
        named["data.path"] = str(data)
    if request.weights is not None:
        named["weights"] = absolute(request.weights)
    overrides = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    if request.hybrid == 0:
        overrides.append("model.hybrid=null")
    everything = [*request.overrides, *overrides]
    loaded = load_config(RunConfig, preset=preset, given=given, files=request.files, overrides=everything)
    config = loaded.config.resolved()
    if isinstance(config.model, HuggingFaceConfig):
        before = load_config(RunConfig, preset=preset, given=given).config.model
        if isinstance(before, HuggingFaceConfig):
            check_changes(before, config.model)
        if config.model.batch_norm == "train" and loaded.origin.get("model.batch_norm") == str(request.baseline):
            notes.append("batch norms have seen no image yet: they are trained")
    assert config.data.path is not None
    # Absolute, so that the run can be resumed and stripped from another folder.
    path = resolve_generated(Path(config.data.path)).resolve()
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(path)})})
    name = str(request.baseline) if tuned else preset
    return Resolved(Loaded(config, loaded.origin, loaded.raw), name, path, tuple(notes))


def _fine_tuning(request: Request) -> FineTuning | None:
    """Return what ``--baseline hf:...`` brings; None for a baseline of this package."""
    if request.baseline is None or not request.baseline.startswith(PREFIX):
        return None
    if request.preset is not None:
        raise ConfigError(
            f"--preset and --baseline {PREFIX}... exclude each other",
            "--config FILE lays settings on top of a baseline",
        )
    return fine_tuning(request.baseline, request.weights)


def settings_of(overrides: Sequence[str]) -> dict[str, JSON]:
    """Return key path -> value of ``--set`` texts.

    Raises:
        ConfigError: a text is not ``key.path=value``.
    """
    return dict(map(parse_override, overrides))


def _with_settings_of(request: Request, weights: Path) -> Request:
    """Return the request on top of the settings of the run, or of the system of the official file, that is given."""
    given = {key for path in request.files for key, _ in flatten(read_yaml(path))}
    kind = kind_of(weights)
    if kind == "official":
        file = read_official(weights)
        system = recognise(file)
        announce(file, system)
        found = [item for item in system.overrides if not any(is_within(key, item.split("=")[0]) for key in given)]
        return replace(request, preset=system.preset, overrides=(*found, *request.overrides))
    if kind == "transformers":
        raise ConfigError(
            f"--weights {weights}: is a detector of transformers",
            f"--baseline {PREFIX}{str(weights).removeprefix(PREFIX)} trains it",
        )
    settings = weights / RUN_SETTINGS
    if not settings.is_file():
        if kind == "missing":
            raise ConfigError(f"--weights {weights}: does not exist", "check the path")
        raise ConfigError(
            f"--weights {weights}: brings no settings to train with; only a run directory or an official .pth does",
            "add --preset NAME, the one the weights were trained with",
        )
    # How far that run went, and what it started from itself, says nothing about this one.
    fresh = tuple(f"{key}=null" for key in ("train.max_steps", "weights") if key not in given)
    if request.data is not None and "data.format" not in given:
        fresh += (f"data.format={AUTO}",)  # that of other data
    return replace(request, preset=str(settings), overrides=(*fresh, *request.overrides))


def _names_data(request: Request) -> bool:
    """Return whether a file or an override says where the data is; no preset of a baseline does."""
    given = [*(("", read_yaml(path)) for path in request.files), *map(parse_override, request.overrides)]
    leaves = (leaf for path, value in given for leaf in flatten(value, path))
    return any(key == "data.path" and value is not None for key, value in leaves)


def system_of(config: RunConfig) -> str:
    """Return the name that ``--baseline`` has for a detector; ++ is a matter of settings, not of another class."""
    model = config.model
    return "deformable-pp" if isinstance(model, DeformableDetrConfig) and model.mixed_selection else model.kind


def _baseline(request: Request) -> str:
    name = request.baseline or DEFAULT_BASELINE
    if name not in baselines():
        message = f"--baseline {name}: unknown{nearest(name, baselines())}"
        remedy = f"known: {', '.join(baselines())}; {PREFIX} stands before a folder of transformers"
        raise ConfigError(message, remedy)
    return name


def preset_of(request: Request, tiny: bool) -> str:
    """Return the preset that a baseline and a number of branches mean."""
    base = _baseline(request) + ("-tiny" if tiny else "")
    count = len(request.branches) or request.aux or 0
    if count == 0:
        return base
    known = {preset.name.rpartition("/")[2] for preset in list_presets()}
    kind = _parse_branch(request.branches[0])["kind"] if request.branches else request.branch_kind
    wanted = [f"{base}-lora{count}"] if count == 1 else []
    wanted.append(f"{base}-lora3")
    if kind in ("ffn", "cross-ffn"):
        wanted.insert(0, f"{base}-ffn3")
    # A system whose own preset has branches, such as MS-DETR, needs no other.
    return next((name for name in wanted if name in known), base)


def _branches(request: Request, config: RunConfig) -> list[dict[str, object]] | None:
    """Return the branch list as plain data, or None when the preset's own list stays."""
    own = [branch.model_dump(mode="json") for branch in config.branches]
    listed: list[dict[str, Any]]
    if request.branches:
        listed = [_started(config, _parse_branch(text)) for text in request.branches]
    elif request.aux is not None:
        kind = request.branch_kind or (own[0]["kind"] if own else BRANCH_KINDS[0])
        template = own[0] if own and own[0]["kind"] == kind else _started(config, {"kind": kind})
        matcher = own[0]["matcher"] if own else {"kind": "topk"}
        ks = branch_ks(request.aux, system_of(config), kind)
        listed = [{**template, "matcher": {**matcher, "k": k}} for k in ks]
    elif request.branch_kind is not None:
        if not own:
            raise ConfigError(f"--branch-kind {request.branch_kind}: there are no branches", "add --aux N")
        kind = request.branch_kind
        changed = [_started(config, {"kind": kind, "matcher": branch["matcher"]}) for branch in own]
        listed = [old if old["kind"] == kind else new for old, new in zip(own, changed, strict=True)]
    elif request.rank is not None:
        listed = own
    else:
        return None
    if request.rank is not None:
        if not listed:
            raise ConfigError(f"--rank {request.rank}: there are no branches to set it on", "add --aux N or --branch")
        without = [branch["kind"] for branch in listed if branch["kind"] != "lora"]
        if without:
            raise ConfigError(f"--rank {request.rank}: {without[0]} branches have no rank", "leave it out")
        listed = [{**branch, "rank": request.rank} for branch in listed]
    return listed


def _started(config: RunConfig, branch: dict[str, Any]) -> dict[str, Any]:
    """Return a new branch with the initialisation that LoRA has in the detector's family."""
    is_relation_lora = branch["kind"] == "lora" and system_of(config) == "relation"
    return {"initialisation": "zero-b", **branch} if is_relation_lora else branch


def _query_groups(request: Request, base: Loaded[RunConfig]) -> dict[str, object]:
    """Return the settings that ``--hybrid`` and ``--dac`` stand for."""
    settings: dict[str, object] = {}
    if request.hybrid is not None and request.hybrid < 0:
        raise ConfigError(f"--hybrid {request.hybrid}: expected 0 or more copies of a target", "H-DETR has 6")
    if not request.hybrid and not request.dac:
        return settings
    model = base.config.model
    if isinstance(model, HuggingFaceConfig):
        raise ConfigError(
            f"hybrid queries and the pass without self-attention are not for {model.model_type} of transformers",
            "leave out --hybrid and --dac",
        )
    if request.hybrid:
        settings["loss.hybrid.repeats"] = request.hybrid
        if model.hybrid is None:
            settings["model.hybrid"] = HybridConfig().model_dump()
    if request.dac:
        settings["model.dac"] = True
        # The weights of MS-DETR belong to it: 1 for the primary's class, unless the user chose another.
        key = "loss.primary.weights.classification"
        if base.config.loss.primary.classification == "focal" and base.origin[key] in shipped_origins():
            settings[key] = 1.0
    return settings


def _check_kind(option: str, kind: str) -> None:
    if kind not in BRANCH_KINDS and find_installed(BRANCH_GROUP, kind, Strict) is None:
        message = f"{option}: unknown kind '{kind}'{nearest(kind, BRANCH_KINDS)}"
        raise ConfigError(message, f"known: {', '.join(BRANCH_KINDS)}")


def _short_names(matcher: str) -> Mapping[str, str]:
    """Return the short names that keys of a kind of matcher have, as papers write them; none of an unknown kind."""
    ours = {config.model_fields["kind"].default: config for config in models_of(MatcherConfig)}
    found = ours.get(matcher) or find_installed(MATCHER_GROUP, matcher, OneToManyConfig)
    return found.short if found is not None and issubclass(found, OneToManyConfig) else {}


def _parse_branch(text: str) -> dict[str, Any]:
    """Read ``[kind/]matcher:key=value,...``, such as ``topk:k=6,tau=0.4``."""
    head, _, settings = text.partition(":")
    kind, slash, matcher = head.rpartition("/")
    kind = kind if slash else BRANCH_KINDS[0]
    _check_kind(f"--branch {text}", kind)
    values: dict[str, Any] = {"kind": matcher}
    short = _short_names(matcher)
    for item in filter(None, settings.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--branch {text}: expected key=value, found '{item}'", "for example topk:k=6,tau=0.4")
        try:
            values[short.get(key.strip(), key.strip())] = json.loads(value)
        except json.JSONDecodeError:
            values[short.get(key.strip(), key.strip())] = value.strip()
    return {"kind": kind, "matcher": values}
