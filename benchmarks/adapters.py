"""Time training steps of detectors of `transformers`: their own loop, and ours with and without branches.

    python benchmarks/adapters.py --threads 1 --family rt_detr deformable_detr
    python benchmarks/adapters.py --threads 1 --tiny --size 128 128 --rounds 15

Every detector is built with random weights from its family's default config, for 10 classes, or from the small one of
the tests (`--tiny`). All rows of a family get the same images and objects, AdamW and clipping. "own loop" is the model
called with its labels, its loss, backward pass, clipping and update: what `transformers.Trainer` does in a step. Ratios
of ours without branches are to that row, those with branches to ours without. Needs the package `transformers`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from benchmarks.huggingface import labels_of, update
from benchmarks.report import Row, give, parse
from benchmarks.steps import add_inputs, inputs_of
from lora_detr.config.load import load_config
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.experiments.cost.synthetic_workload import SyntheticTraining
from lora_detr.models.huggingface import FAMILIES, HuggingFaceDetector
from lora_detr.models.huggingface.pretrained import pretrained_of
from lora_detr.recipe.branch_counts import branch_ks
from lora_detr.recipe.optimisation import OptimizerConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.pretrained import recipe_of, settings_for
from lora_detr.structures import Batch
from tests import huggingface_models

CLASSES = 10
OWN, PLAIN, BRANCHES = "own loop", "ours, no branch", "ours, 3 branches"


def settings_of(family: str, tiny: bool, branches: int) -> RunConfig:
    """Return the settings of a fine-tuning of a family's default detector, or of the small one."""
    from transformers import AutoConfig

    own = huggingface_models.CONFIGS[family]() if tiny else AutoConfig.for_model(family, **_offline(family))
    multiple = FAMILIES[family].size_multiple(own.to_dict())
    size = huggingface_models.size_of(family) if tiny else 640 // multiple * multiple
    found = pretrained_of(family, own, {"size": {"height": size, "width": size}, "do_normalize": False})
    model = found.model.model_copy(update={"batch_norm": "frozen"})
    matchers = [{"kind": "topk", "k": k} for k in (branch_ks(branches) if branches else ())]
    listed = [{"kind": "lora", "matcher": matcher} for matcher in matchers]
    given: dict[str, Any] = {family: {**settings_for(found, model), "branches": listed}}
    return load_config(RunConfig, preset=recipe_of(model), given=given).config


def _offline(family: str) -> dict[str, Any]:
    """Return what a default config needs so that no backbone of timm is asked for: the same ResNet-50."""
    from transformers import ResNetConfig

    if family in ("conditional_detr", "dab-detr"):
        return {"backbone_config": ResNetConfig(out_features=["stage4"])}
    if family == "deformable_detr":
        return {"backbone_config": ResNetConfig(out_features=["stage2", "stage3", "stage4"])}
    return {}


def own_loop(model: nn.Module, batch: Batch, settings: OptimizerConfig) -> Callable[[], None]:
    """Return a step of the model by itself."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    labels, mask = labels_of(batch), (~batch.images.padding).long()
    assert settings.clip_norm is not None
    return partial(update, optimizer, model, batch.images.pixels, mask, labels, settings.clip_norm)


def rows_of(family: str, given: argparse.Namespace) -> list[Row]:
    """Measure a family."""
    settings = [settings_of(family, given.tiny, count) for count in (0, 3)]
    size = settings[0].data.evaluation.size
    inputs = inputs_of(given, (size, size), 2)
    without, with_branches = (SyntheticTraining(config, CLASSES, inputs) for config in settings)
    plain = alone(without.model.detector)
    for model in (plain, without.model, with_branches.model):
        model.train()
    own = own_loop(plain, without.batch, settings[0].train.optimizer)
    adapter = interleaved([own, without.step], given.rounds, device=inputs.device)
    branches = interleaved([without.step, with_branches.step], given.rounds, device=inputs.device)
    rows = zip((OWN, PLAIN, BRANCHES), (OWN, OWN, PLAIN), (*adapter, branches[1]), strict=True)
    return [
        {
            "family": family,
            "size": inputs.size[0],
            "row": name,
            "compared_with": other,
            "seconds": timing.seconds,
            "ratio": timing.ratio,
            "lowest": timing.lowest,
            "highest": timing.highest,
        }
        for name, other, timing in rows
    ]


def alone(detector: HuggingFaceDetector) -> nn.Module:
    """Return a copy of a detector's model as it was before the adapter: without hooks, with its own loss."""
    model: Any = copy.deepcopy(detector.model)
    model.loss_function = detector.loss
    for module in model.modules():
        # Some models have hooks of their own, and cannot do without.
        for key, hook in list(module._forward_hooks.items()):
            if type(hook).__module__.startswith("lora_detr"):
                del module._forward_hooks[key]
    return cast(nn.Module, model)


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--tiny", action="store_true", help="the small detectors of the tests")
    add_inputs(parser)
    parser.add_argument("--rounds", type=int, default=5)
    given = parse(parser)
    give([row for family in given.family for row in rows_of(family, given)], given)


if __name__ == "__main__":
    main()
