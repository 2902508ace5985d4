"""What every assignment must satisfy; used by tests and when debugging a matcher of one's own."""

from __future__ import annotations

from lora_detr.structures import Assignment, PaddedTargets


def check_assignment(
    assignment: Assignment,
    targets: PaddedTargets,
    num_queries: int,
    *,
    at_most: int | None = None,
    unique_queries: bool = False,
) -> None:
    """Check an assignment against its targets. Copies to the host.

    Args:
        assignment: what a matcher returned.
        targets: what it was given.
        num_queries: Q.
        at_most: largest number of queries a target may have.
        unique_queries: the matcher promises that a query serves one target at most.

    Raises:
        AssertionError: an index is out of range, a padded target is matched, a target has a query twice or too many
            queries, or a promise is broken.
    """
    shape = assignment.mask.shape
    assert assignment.query.shape == assignment.score.shape == shape, "shapes differ"
    assert shape[1:3] == targets.mask.shape, "targets and assignment differ in shape"
    assert bool(((assignment.query >= 0) & (assignment.query < num_queries)).all()), "query index out of range"
    assert not bool((assignment.mask & ~targets.mask[None, :, :, None]).any()), "a padded target is matched"
    for group in range(shape[0]):
        for image in range(shape[1]):
            pairs = assignment.pairs(group, image)
            assert len(set(pairs)) == len(pairs), "a pair stands twice"
            queries = [query for query, _ in pairs]
            if unique_queries:
                assert len(set(queries)) == len(queries), "a query serves two targets"
            if at_most is not None:
                for target in {target for _, target in pairs}:
                    assert sum(pair[1] == target for pair in pairs) <= at_most, "a target has too many queries"
