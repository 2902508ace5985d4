"""What every assignment must satisfy; used by tests and on the first step with a matcher of one's own."""

from __future__ import annotations

import torch

from lora_detr.structures import Assignment, PaddedTargets


def broken_rule(
    assignment: Assignment,
    targets: PaddedTargets,
    num_queries: int,
    *,
    groups: int | None = None,
    at_most: int | None = None,
    unique_queries: bool = False,
) -> str | None:
    """Return what is wrong with an assignment, or None. Copies to the host.

    Args:
        assignment: what a matcher returned.
        targets: what it was given.
        num_queries: Q.
        groups: G of the stack it was given; not checked by default.
        at_most: largest number of queries a target may have.
        unique_queries: the matcher promises that a query serves one target at most.
    """
    query, score, mask = assignment.query, assignment.score, assignment.mask
    shape = mask.shape
    if not query.shape == score.shape == shape:
        return f"shapes differ: query {tuple(query.shape)}, score {tuple(score.shape)}, mask {tuple(shape)}"
    if len(shape) != 4 or shape[1:3] != targets.mask.shape or shape[0] != (shape[0] if groups is None else groups):
        expected = ", ".join(map(str, ("G" if groups is None else groups, *targets.mask.shape, "k")))
        return f"shape is {tuple(shape)}, expected [{expected}]"
    if (query.dtype, mask.dtype) != (torch.int64, torch.bool):
        return f"query is {query.dtype} and mask {mask.dtype}, expected int64 and bool"
    if {part.device for part in (query, score, mask)} != {targets.mask.device}:
        return (
            f"query, score and mask are on {query.device}, {score.device} and {mask.device}, not {targets.mask.device}"
        )
    if bool(((query < 0) | (query >= num_queries)).any()):
        return f"query index out of range 0 to {num_queries - 1}"
    ignored = assignment.ignored
    if ignored is not None and (ignored.shape != (*shape[:2], num_queries) or ignored.dtype != torch.bool):
        return f"ignored is {ignored.dtype} of shape {tuple(ignored.shape)}, expected bool [G, B, {num_queries}]"
    if bool((mask & ~targets.mask[None, :, :, None]).any()):
        return "a padded target is matched"
    for group in range(shape[0]):
        for image in range(shape[1]):
            pairs = assignment.pairs(group, image)
            queries, matched = [query for query, _ in pairs], [target for _, target in pairs]
            if len(set(pairs)) != len(pairs):
                return "a pair stands twice"
            if unique_queries and len(set(queries)) != len(queries):
                return "a query serves two targets"
            if at_most is not None and any(matched.count(target) > at_most for target in matched):
                return "a target has too many queries"
    return None


def check_assignment(
    assignment: Assignment,
    targets: PaddedTargets,
    num_queries: int,
    *,
    at_most: int | None = None,
    unique_queries: bool = False,
) -> None:
    """Check an assignment as ``broken_rule`` does.

    Raises:
        AssertionError: it breaks a rule.
    """
    rule = broken_rule(assignment, targets, num_queries, at_most=at_most, unique_queries=unique_queries)
    if rule is not None:
        raise AssertionError(rule)
