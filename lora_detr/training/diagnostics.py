"""How diverse the supervision of branches is, measured on a step as it is trained.

The paper argues that branches with different assignments help because their positives and gradients differ; this says
by how much. Nothing of it changes the training: no random number is drawn and no gradient is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from lora_detr.json_value import JSON
from lora_detr.losses.report import LossReport
from lora_detr.losses.source import Source
from lora_detr.matchers.conflicts import served
from lora_detr.structures import FeedForwardLike, PaddedTargets

PRIMARY = "primary"
_NO_GRADIENTS: dict[str, JSON] = {"cosine": {}, "cosine_all": {}, "norm_ratio": {}}


def diagnose(
    sources: Sequence[Source],
    report: LossReport,
    targets: PaddedTargets,
    ffns: Sequence[FeedForwardLike],
    branch_names: Sequence[str],
) -> dict[str, JSON]:
    """Describe what was matched, and the gradients of each path on the weights of the networks that all share.

    Args:
        sources: what ``Criterion.match`` gave: the primary path, unless the detector has a loss of its own, then the
            branches, if there are any.
        report: of these sources, before the backward pass, which stays possible.
        targets: of the batch.
        ffns: feed-forward network of every decoder layer.
        branch_names: of the branches, in order.

    Returns:
        ``targets``: objects in the batch. ``positives`` (queries a target), ``uncovered`` (share of targets without
        any): path -> value of each layer. ``jaccard``: pair of paths, ``a|b`` -> overlap of their positives in each
        layer, the mean over images with any. ``cosine``: branch -> that between its gradient and the primary's on W1
        and W2 of each layer; ``cosine_all``: of all layers together; ``norm_ratio``: of their lengths there. What is
        undefined (no target, no positive, no gradient) is null.
    """
    layers = len(ffns)
    # A detector with a loss of its own keeps the pairs of its primary path to itself.
    has_primary = any(source.keys[0].source == PRIMARY for source in sources)
    names = (*([PRIMARY] if has_primary else []), *branch_names)
    if not names:
        return {"targets": sum(targets.counts), "positives": {}, "uncovered": {}, "jaccard": {}, **_NO_GRADIENTS}
    used = sources[: has_primary + bool(branch_names)]
    pairs = [source.assignment.mask.unflatten(0, (-1, layers)) for source in used]  # [N, L, B, T, k]
    served = torch.cat([mask.sum(-1) for mask in pairs])  # [1 + N, L, B, T]
    positives = torch.cat([_positives(source).unflatten(0, (-1, layers)) for source in used])  # [1 + N, L, B, Q]
    count = sum(targets.counts)
    each = served.sum((2, 3)).cpu() / count if count else torch.full(served.shape[:2], math.nan)
    without = ((served == 0) & targets.mask).sum((2, 3)).cpu() / count if count else each
    overlaps = {
        f"{names[i]}|{names[j]}": _listed(_jaccard(positives[i], positives[j]))
        for i, j in combinations(range(len(names)), 2)
    }
    return {
        "targets": count,
        "positives": {name: _listed(value) for name, value in zip(names, each, strict=True)},
        "uncovered": {name: _listed(value) for name, value in zip(names, without, strict=True)},
        "jaccard": dict[str, JSON](overlaps),
        **_gradients(report, ffns, branch_names),
    }


def _positives(source: Source) -> Tensor:
    """Return which queries of a stack serve a target: bool [G, B, Q]."""
    return served(source.assignment.query, source.assignment.mask, source.prediction.logits.shape[2])


def _jaccard(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlap of two sets of queries [L, B, Q] in each layer [L]."""
    both, any_ = (first & second).sum(-1), (first | second).sum(-1)
    found: Tensor = (both / any_).nanmean(-1)
    return found.cpu()  # 0 / 0 in an image where neither has a positive


def _gradients(report: LossReport, ffns: Sequence[FeedForwardLike], branch_names: Sequence[str]) -> dict[str, JSON]:
    shared = [weight for ffn in ffns for weight in (ffn.linear1.weight, ffn.linear2.weight)]
    if not branch_names or not all(weight.requires_grad for weight in shared):
        return _NO_GRADIENTS
    primary = _gradient(report, PRIMARY, shared, len(ffns))
    cosine: dict[str, JSON] = {}
    together: dict[str, JSON] = {}
    ratio: dict[str, JSON] = {}
    for name in branch_names:
        own = _gradient(report, name, shared, len(ffns))
        cosine[name] = _listed(torch.stack([_cosine(a, b) for a, b in zip(own, primary, strict=True)]))
        together[name] = _listed(_cosine(torch.cat(own), torch.cat(primary))[None])[0]
        ratio[name] = _listed((torch.cat(own).norm() / torch.cat(primary).norm())[None])[0]
    return {"cosine": cosine, "cosine_all": together, "norm_ratio": ratio}


def _gradient(report: LossReport, path: str, shared: Sequence[Tensor], layers: int) -> list[Tensor]:
    """Return the gradient of all losses of a path on the shared weights, one vector a layer."""
    own = torch.tensor([key.source == path for key in report.keys], device=report.weighted.device)
    total = (report.weighted * own).sum()
    found = torch.autograd.grad(total, list(shared), retain_graph=True, allow_unused=True, materialize_grads=True)
    each = len(found) // layers
    flat = [gradient.flatten().float() for gradient in found]
    return [torch.cat(flat[layer * each : (layer + 1) * each]) for layer in range(layers)]


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of two vectors; NaN where one of them is zero."""
    found: Tensor = first @ second / (first.norm() * second.norm())
    return found


def _listed(values: Tensor) -> list[JSON]:
    """Return numbers for JSON, null for what is not finite."""
    return [value if math.isfinite(value) else None for value in values.detach().cpu().tolist()]
