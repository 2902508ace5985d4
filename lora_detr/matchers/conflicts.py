"""What to do when a query is paired more than once: keep the best pair, or join two assignments."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lora_detr.structures import Assignment


@torch.no_grad()
def best_pair_of_query(assignment: Assignment, num_queries: int) -> Tensor:
    """Return a mask [G, B, T, k] that keeps, of all pairs of a query, the one of the highest score.

    Of equal scores the pair of the lower target index stays, so that exactly one is left.
    """
    shape = assignment.mask.shape
    query, mask = assignment.query.flatten(2), assignment.mask.flatten(2)  # [G, B, P]
    score = assignment.score.flatten(2).masked_fill(~mask, -torch.inf)
    highest = score.new_full((*shape[:2], num_queries), -torch.inf).scatter_reduce(-1, query, score, "amax")
    winner = mask & (score == highest.gather(-1, query))
    order = torch.arange(query.shape[-1], device=query.device).expand_as(query)
    first = order.new_full((*shape[:2], num_queries), query.shape[-1])
    first = first.scatter_reduce(-1, query, order.masked_fill(~winner, query.shape[-1]), "amin")
    return (winner & (first.gather(-1, query) == order)).view(shape)


@torch.no_grad()
def wins_query(query: Tensor, value: Tensor, keep: Tensor, num_queries: int) -> Tensor:
    """Return which pairs [G, B, T, k] stay where each query stays with one target: as ``best_pair_of_query``, in half
    the operations, for targets whose pairs have different queries.

    Args:
        query: int64 [G, B, T, k], no query twice for one target.
        value: [G, B, T, k], what a query prefers targets by; of equal ones the lower target index stays.
        keep: bool [G, B, T, k].
        num_queries: Q.
    """
    groups, batch, width, _ = query.shape
    offers = value.new_full((groups, batch, width, num_queries), -torch.inf)
    offers = offers.scatter(-1, query, value.masked_fill(~keep, -torch.inf))
    chosen = offers.argmax(2, keepdim=True).expand_as(offers).gather(-1, query)
    return keep & (chosen == torch.arange(width, device=query.device)[:, None])


def served(query: Tensor, mask: Tensor, num_queries: int) -> Tensor:
    """Return which queries are in a pair, bool [G, B, Q], of pairs [G, B, T, k]."""
    hits = torch.zeros((*query.shape[:2], num_queries), device=query.device)
    return hits.scatter_add(-1, query.flatten(2), mask.flatten(2).float()) > 0


def without_duplicates(assignment: Assignment, num_queries: int) -> Assignment:
    """Return the assignment with at most one pair a query."""
    return replace(assignment, mask=best_pair_of_query(assignment, num_queries))


@torch.no_grad()
def merge_one_to_one(one_to_many: Assignment, one_to_one: Assignment, score: Tensor) -> Assignment:
    """Add one-to-one pairs to a one-to-many assignment; where a query has both, the one-to-many pair stays.

    Afterwards no query is paired twice (the "indices merge" of the official code).

    Args:
        one_to_many: [G, B, T, k].
        one_to_one: [H, B, T, 1] with H dividing G; repeated along the groups.
        score: M of every pair, [G, B, T, Q]; the added pairs take their score from it.

    Returns:
        Assignment [G, B, T, k + 1]; the last slot holds the one-to-one pair.
    """
    groups, num_queries = score.shape[0], score.shape[-1]
    repeats = groups // one_to_one.query.shape[0]
    query = one_to_one.query.repeat(repeats, 1, 1, 1)
    kept = best_pair_of_query(one_to_many, num_queries)
    taken = served(one_to_many.query, kept, num_queries).gather(-1, query.flatten(2)).view(query.shape)
    added = one_to_one.mask.repeat(repeats, 1, 1, 1) & ~taken
    ignored = one_to_many.ignored
    if ignored is not None:
        ignored = ignored & ~served(query, added, num_queries)
    return Assignment(
        torch.cat((one_to_many.query, query), -1),
        torch.cat((one_to_many.score, score.gather(-1, query)), -1),
        torch.cat((kept, added), -1),
        ignored,
    )
