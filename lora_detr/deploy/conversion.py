"""From an official file, or a folder of ``transformers``, to a run directory and back, without loss of a tensor.

Of official files neither a name nor their order is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lora_detr.atomic_files import prepare_directory
from lora_detr.checkpoints.checkpoint import save_checkpoint
from lora_detr.checkpoints.huggingface.deformable import read_folder, write_folder
from lora_detr.checkpoints.official.classes import COCO_MAP, encode_names
from lora_detr.checkpoints.official.file import (
    BIAS_TABLE,
    CLASSES,
    POSITION_INDEX,
    OfficialFile,
    position_index,
    read_official,
    write_official,
)
from lora_detr.checkpoints.official.keys import aliases, to_official
from lora_detr.checkpoints.official.system import SHOWN, recognise
from lora_detr.checkpoints.opened import OpenedRun, kind_of, kind_of_name, open_model, open_official, open_run
from lora_detr.checkpoints.stripped_file import read_file
from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.config.dump import as_tree, diff_configs, dump_config
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError, ConfigError, LoraDetrError, listed
from lora_detr.json_value import JSON
from lora_detr.models import DetectorConfig, HuggingFaceConfig, RelationDetrConfig
from lora_detr.models.huggingface.versions import PREFIX, require_transformers
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.run_directory import RunDirectory

# An official Relation-DETR has these whatever it was trained for; a detector without branches has not.
RELATION_GROUPS = ("detector.query_groups.hybrid.classes.weight", "detector.query_groups.denoising.labels.weight")

# Settings that inference does not depend on.
NOT_INFERENCE = (
    "model.dropout",
    "model.look_forward_twice",
    "model.backbone.channels_last",
    "model.backbone.freeze_stem",
    "model.backbone.freeze_stages",
    "model.backbone.drop_path",
    "category_ids",
    "category_names",
)


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        source: what was read.
        output: what was written.
        system: detector, sizes and branches.
        tensors: number of tensors on the other side than ours, heads under both names.
        parameters: values in all of them, heads once.
        not_converted: parts of the source that have no place in the output.
        notes: what was chosen, or is not stored, a line each.
    """

    source: str
    output: str
    system: str
    tensors: int
    parameters: int
    not_converted: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what a user reads."""
        return [
            f"{self.source} -> {self.output}",
            f"system         {self.system}",
            f"tensors        {self.tensors}, all of them: {self.parameters / 1e6:.2f} M parameters",
            f"not converted  {', '.join(self.not_converted) or 'nothing'}",
            *(f"note: {note}" for note in self.notes),
        ]

    def to_json(self) -> dict[str, object]:
        """Return all fields."""
        return asdict(self)


def convert(
    source: Path,
    output: Path,
    *,
    which: Literal["best", "last"] = "best",
    ema: bool = True,
    preset: str | None = None,
    baseline: str | None = None,
    data: Path | None = None,
) -> Conversion:
    """Convert an official ``.pth`` or a folder of ``transformers`` to a run directory, or any model of ours to either.

    Args:
        source: what is read.
        output: must not exist; its suffix and that of ``source`` decide the direction, where neither begins with
            ``hf:``, which stands before folders of ``transformers``.
        which: checkpoint of a run directory.
        ema: take the averaged weights where there are any.
        preset: instead of what an official file is recognised as.
        baseline: plain preset of the system that is meant, likewise.
        data: names the classes of an official file that does not, or has the ids of classes of ``transformers``.

    Raises:
        ConfigError: the two paths make no direction, ``output`` exists, or an option does not fit.
        CheckpointError: ``source`` cannot be read, is of no known system, or cannot be said in official names.
        OutputError: ``output`` cannot be written.
    """
    if any(str(path).startswith(PREFIX) for path in (source, output)):
        return _huggingface(source, output, which, ema, (preset, baseline), data)
    # By name: the source may be missing, which is reported as such, and the output is still to be written.
    to_ours, written = kind_of_name(source) == "official", kind_of_name(output)
    if to_ours == (written == "official") or written == "stripped":
        raise ConfigError(
            f"{source} to {output}: one of the two must be an official .pth or {PREFIX}FOLDER, the other not",
            "give a .pth and a new run directory, or a run, checkpoint or stripped file and a new .pth; "
            f"write {PREFIX} before a folder of transformers",
        )
    if not to_ours and (preset, baseline, data) != (None, None, None):
        raise ConfigError(
            f"--preset, --baseline and --data are about an official source; {source} contains them", "leave them out"
        )
    if preset is not None and baseline is not None:
        raise ConfigError("--preset and --baseline exclude each other", "--baseline gives the system only")
    _refuse_existing(output)
    if to_ours:
        return _to_run(read_official(source, ema=ema), output, preset, baseline, data)
    return _to_official(source, output, which, ema)


def _to_run(
    file: OfficialFile, output: Path, preset: str | None, baseline: str | None, data: Path | None
) -> Conversion:
    system = recognise(file, preset=preset, baseline=baseline, data=data)
    opened = open_official(file, system)
    config = opened.config
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(data.resolve())})})
    state = TrainingState(as_tree(config), opened.categories.to_json(), official=_origin(file))
    _write_run(output, config, opened.model.state_dict(), state, file.path.name)
    return Conversion(
        source=f"{file.path}{' (averaged weights)' if file.averaged else ''}",
        output=str(output),
        system=system.describe(),
        tensors=len(file.tensors),
        parameters=sum(tensor.numel() for tensor in file.weights.values()),
        not_converted=file.rest,
        notes=system.notes,
    )


def _write_run(
    output: Path, config: RunConfig, tensors: Mapping[str, Tensor], state: TrainingState, source: str
) -> None:
    """Write a run directory of one checkpoint, of step 0; ``source`` stands in its settings."""
    directory = RunDirectory(output)
    directory.create(resume=False)
    try:
        directory.prepare_for(_bytes(tensors))
        save_checkpoint(
            directory.checkpoints, step=0, model=tensors, optimizer={}, state=state, facts={"world_size": 1}
        )
    except BaseException:
        directory.discard()
        raise
    directory.write_text(RUN_SETTINGS, dump_config(config, {"": f"convert {source}"}))
    directory.add_command()


def _huggingface(
    source: Path,
    output: Path,
    which: Literal["best", "last"],
    ema: bool,
    assumed: tuple[str | None, str | None],
    data: Path | None,
) -> Conversion:
    """Convert from or to a folder of ``transformers``; arguments as for ``convert``."""
    require_transformers()
    name, place = str(source), Path(str(output).removeprefix(PREFIX))
    if assumed != (None, None):
        raise ConfigError(f"--preset and --baseline are about an official source, not about {PREFIX}...", "omit them")
    if name.startswith(PREFIX) and (str(output).startswith(PREFIX) or kind_of_name(output) != "file"):
        raise ConfigError(
            f"{source} to {output}: a folder of transformers becomes a run directory", "give a new run directory"
        )
    _refuse_existing(place)
    if name.startswith(PREFIX):
        return _from_huggingface(name.removeprefix(PREFIX), output, data)
    opened = open_model(source, which, ema=ema, data=data)
    detector, deployment = opened.detector, opened.deployment
    if isinstance(deployment.model, HuggingFaceConfig):
        raise ConfigError(f"{source}: is a detector of transformers already", "strip writes it as a folder")
    left = ["operating point"] if deployment.operating_point is not None else []
    if isinstance(opened, OpenedRun):
        groups = len(detector.state_dict()) > len(detector.inference_state())
        left += [*(["query groups"] if groups else []), *(["branches"] if opened.config.branches else [])]
        is_run = opened.path.is_dir()
        left += ["settings"] if is_run else []
        left += ["optimiser", "progress"] if opened.checkpoint.state.optimizer is not None else []
        details = [*([opened.path.name] if is_run else []), *(["averaged weights"] if opened.averaged else [])]
        name = f"{source} ({', '.join(details)})" if details else name
    tensors = detector.inference_state()
    count = write_folder(place, tensors, deployment, source)
    padded = f"sizes are padded to multiples of {deployment.size_divisor}, which transformers does not do"
    return Conversion(
        source=name,
        output=str(output),
        system=deployment.model.describe(),
        tensors=count,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        not_converted=tuple(left),
        notes=() if deployment.size_divisor == 1 else (padded,),
    )


def _from_huggingface(source: str, output: Path, data: Path | None) -> Conversion:
    folder = read_folder(source, data)
    tensors = folder.model.state_dict()
    state = TrainingState(as_tree(folder.config), folder.categories.to_json())
    _write_run(output, folder.config, tensors, state, f"{PREFIX}{source}")
    return Conversion(
        source=f"{PREFIX}{source}",
        output=str(output),
        system=folder.config.model.describe(),
        tensors=folder.tensors,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        not_converted=folder.unused,
        notes=folder.notes,
    )


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output}: exists already; nothing was touched", "choose another OUTPUT", code="C06")


def _to_official(source: Path, output: Path, which: Literal["best", "last"], ema: bool) -> Conversion:
    state, kinds = TrainingState(), list[str]()
    if kind_of(source) == "stripped":
        stripped, deployment = read_file(source)
        weights = {f"detector.{name}": tensor for name, tensor in stripped.items()}
        name, left = str(source), ["preparation of images"]
    else:
        opened = open_run(source, which, ema=ema)
        weights, state, deployment = opened.model.state_dict(), opened.checkpoint.state, opened.deployment
        kinds = [branch.kind for branch in opened.config.branches]
        name = f"{source} ({opened.path.name}{', averaged weights' if opened.averaged else ''})"
        left = ["settings", *(["optimiser", "progress"] if state.optimizer is not None else [])]
    model, categories = deployment.model, deployment.categories
    if isinstance(model, HuggingFaceConfig):
        raise ConfigError(
            f"{source}: {model.model_type} of transformers has no official file",
            "strip writes a folder for transformers",
        )
    tensors = _named(weights, model, source)
    _refuse_half_systems(weights, model, kinds, source)
    origin = state.official
    tensors = _as_it_was(tensors, origin) if isinstance(origin, dict) else _with_classes(tensors, model, categories)
    beside = None if CLASSES in tensors or categories == COCO_MAP else categories
    notes = _unsaid(source, OfficialFile(output, tensors, categories=beside), deployment, kinds)
    prepare_directory(output.parent, _bytes(tensors))
    write_official(output, tensors, beside)
    return Conversion(
        source=name,
        output=str(output),
        system=f"{model.describe()}, branches: {', '.join(kinds) or 'none'}",
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        not_converted=tuple(left),
        notes=notes,
    )


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _named(weights: Mapping[str, Tensor], model: DetectorConfig, source: Path) -> dict[str, Tensor]:
    """Return the tensors by official name, heads under both of theirs, with the buffers of an official Swin."""
    family: Literal["deformable", "relation"] = "relation" if isinstance(model, RelationDetrConfig) else "deformable"
    named: dict[str, Tensor] = {}
    unnamed = []
    for ours, tensor in weights.items():
        official = to_official(ours, family=family, num_layers=model.decoder_layers)
        if official is None:
            unnamed.append(ours)
            continue
        if official.endswith(BIAS_TABLE):
            named[official.replace(BIAS_TABLE, POSITION_INDEX)] = position_index(tensor)
        named[official] = tensor
    if unnamed:
        raise CheckpointError(
            f"{source}: {len(unnamed)} of {len(weights)} tensors have no official name: {listed(unnamed, SHOWN)}",
            "only what the authors' code has can be written as its checkpoint",
            code="K08",
        )
    return named | {second: named[first] for first, second in aliases(named).items()}


def _refuse_half_systems(
    weights: Mapping[str, Tensor], model: DetectorConfig, kinds: Sequence[str], source: Path
) -> None:
    """Refuse what the authors' code could not load although every tensor has a name.

    Raises:
        CheckpointError: K08, names what is missing or too much.
    """
    fault = ""
    if isinstance(model, RelationDetrConfig) and any(name not in weights for name in RELATION_GROUPS):
        fault = "has no hybrid or denoising queries, which an official Relation-DETR has"
    elif model.kind == "ms-detr" and list(kinds) != ["cross-ffn"]:
        fault = f"has {len(kinds)} branches ({', '.join(kinds)}), an official MS-DETR has one cross-ffn"
    elif len(set(kinds)) > 1:
        fault = f"has branches of several kinds ({', '.join(kinds)}), an official file has one kind"
    elif model.kind != "ms-detr" and not set(kinds) <= ({"lora"} if model.kind == "relation" else {"lora", "ffn"}):
        fault = f"has {kinds[0]} branches, which no official {model.kind} has"
    if fault:
        stripped = kind_of(source) == "stripped"
        remedy = "convert the run that it comes from" if stripped else "it has no official form"
        raise CheckpointError(f"{source}: {fault}", remedy, code="K08")


def _origin(file: OfficialFile) -> dict[str, JSON]:
    """Return what is needed to write the file again as it was: names in their order, and the names of classes."""
    origin: dict[str, JSON] = {"names": list[JSON](file.tensors)}
    if CLASSES in file.tensors:
        stored = file.tensors[CLASSES]
        origin["classes"] = {"dtype": str(stored.dtype).removeprefix("torch."), "values": stored.tolist()}
    return origin


def _as_it_was(tensors: Mapping[str, Tensor], origin: Mapping[str, JSON]) -> dict[str, Tensor]:
    """Return the tensors under the names, and in the order, of the file that they were converted from."""
    names, classes = origin.get("names"), origin.get("classes")
    known = dict(tensors)
    if isinstance(classes, dict):
        known[CLASSES] = torch.tensor(classes["values"], dtype=getattr(torch, str(classes["dtype"])))
    assert isinstance(names, list)
    return {str(name): known[str(name)] for name in names}


def _with_classes(tensors: dict[str, Tensor], model: DetectorConfig, categories: CategoryMap) -> dict[str, Tensor]:
    """Return the tensors behind the names of classes, where official files of the family have such."""
    encoded = encode_names(categories) if isinstance(model, RelationDetrConfig) else None
    return tensors if encoded is None else {CLASSES: encoded, **tensors}


def _unsaid(source: Path, file: OfficialFile, deployment: DeploymentConfig, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return notes on what the file would be taken for, where that is not what it was.

    Raises:
        CheckpointError: K08, its tensors are not those of the system that the authors' code would build.
    """
    try:
        found = recognise(file)
    except LoraDetrError as error:
        reason = error.message.removeprefix(f"{file.path}: ")
        return (f"read again, it needs --preset: {reason}; {error.remedy}",)
    with torch.device("meta"):
        model = found.config.build_model(found.classes.categories.num_classes, load_weights=False)
    try:
        file.check_fit(model)
    except CheckpointError as error:
        message = f"{source}: the authors' code could not load it: {error.message.partition(': ')[2]}"
        raise CheckpointError(message, "it has no official form", code="K08") from error
    differing = diff_configs(deployment, found.config.deployment(found.classes.categories))
    lost = [f"`{key}` is {own}, read again it is {other}" for key, own, other in differing if key not in NOT_INFERENCE]
    others = [branch.kind for branch in found.config.branches]
    if others != list(kinds):
        lost.append(f"branches are {', '.join(kinds)}, read again they are {', '.join(others)}")
    return tuple(f"the file does not store it: {line}" for line in lost)
