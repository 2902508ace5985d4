"""The feed-forward network of a transformer layer (LoRA-DETR Eq. 2), opened at its two seams."""

from __future__ import annotations

from torch import Tensor, nn

from lora_detr.ops.activation import relu_dropout


class FeedForward(nn.Module):
    """Compute norm(x + W2 relu(W1 x + b1) + b2), with dropout after the activation and on the sum's second part.

    The steps are methods of their own, so that whoever adds a term to W1 x or to W2 h can do so without touching
    this class: ``activate`` is what follows W1, ``finish`` what follows W2.

    Args:
        hidden_dim: D, width of input and output.
        ffn_dim: F, width between the two linear layers.
        dropout: probability of both dropouts.
    """

    def __init__(self, hidden_dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.inner_dropout = dropout
        self.outer_dropout = nn.Dropout(dropout)

    def activate(self, hidden: Tensor) -> Tensor:
        """Return what W2 is given: [..., F] after ReLU and dropout."""
        return relu_dropout(hidden, self.inner_dropout, self.training)

    def finish(self, inputs: Tensor, projected: Tensor) -> Tensor:
        """Return norm(inputs + dropout(projected)), both [..., D]."""
        out: Tensor = self.norm(inputs + self.outer_dropout(projected))
        return out

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden projection W1 x + b1 [..., F] and the block's output [..., D]."""
        hidden = self.linear1(inputs)
        return hidden, self.finish(inputs, self.linear2(self.activate(hidden)))

    def output(self, inputs: Tensor) -> Tensor:
        """Return the block's output [..., D] alone; in inference what follows W1 takes its place in memory."""
        activated = relu_dropout(self.linear1(inputs), self.inner_dropout, self.training, overwrite=True)
        return self.finish(inputs, self.linear2(activated))
