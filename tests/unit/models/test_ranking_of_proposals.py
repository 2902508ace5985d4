"""Tokens that propose equally well become queries in their order, on every device."""

from __future__ import annotations

import pytest
import torch

from lora_detr.models.proposals import Proposals, ProposedBoxes, Ranking


@pytest.mark.parametrize("ranking", ["foreground", "best-class"])
def test_equal_tokens_are_taken_in_order(ranking: Ranking) -> None:
    proposals = Proposals(32, 300, mixed_selection=False, ranking=ranking)
    logits = torch.full((2, 5_000, 3), -4.0)
    logits[0, 4_000] = logits[0, 4_500] = 1.0
    proposed = ProposedBoxes(logits, torch.zeros(2, 5_000, 4), torch.zeros(2, 5_000, 4))
    found = proposals.ranked(proposed, 300).tolist()
    assert found == [[4_000, 4_500, *range(298)], list(range(300))]
    assert proposals.ranked(proposed, 10_000).shape == (2, 5_000)
