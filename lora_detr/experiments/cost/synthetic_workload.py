"""A system with random weights on made-up images: what steps, inference and memory are measured with.

Neither weights nor images change the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_detr.processes.world import World
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch, Images, Target
from lora_detr.training.optim import build_optimizer
from lora_detr.training.seeding import seed_everything
from lora_detr.training.step import Stepper


@dataclass(frozen=True)
class Inputs:
    """What all systems are given.

    Attributes:
        size: (height, width) of the images.
        batch: number of images.
        objects: in each image.
        device: of everything.
    """

    size: tuple[int, int]
    batch: int
    objects: int
    device: str = "cpu"

    def draw(self, classes: int) -> Batch:
        """Return images of noise with objects of ``classes`` classes at random places, on the device."""
        generator = torch.Generator().manual_seed(0)
        targets = []
        for image_id in range(self.batch):
            centre = 0.25 + 0.5 * torch.rand(self.objects, 2, generator=generator)
            extent = 0.1 + 0.3 * torch.rand(self.objects, 2, generator=generator)
            labels = torch.randint(0, classes, (self.objects,), generator=generator)
            targets.append(Target(torch.cat((centre, extent), -1), labels, image_id, self.size))
        pixels = torch.randn(self.batch, 3, *self.size, generator=generator)
        padding = torch.zeros(self.batch, *self.size, dtype=torch.bool)
        images = Images(pixels, padding, torch.tensor([self.size] * self.batch))
        return Batch(images, tuple(targets)).to(torch.device(self.device))

    def options(self) -> list[str]:
        """Return the command line that says the same, the number of threads included."""
        sides = ["--size", *map(str, self.size)]
        counts = ["--batch", str(self.batch), "--objects", str(self.objects)]
        return [*sides, *counts, "--device", self.device, "--threads", str(torch.get_num_threads())]


class SyntheticTraining:
    """A system that is measured: its model, what trains it, and its images.

    Args:
        config: of the system; its weights are random whatever it says.
        classes: K.
        inputs: what it is given.
    """

    def __init__(self, config: RunConfig, classes: int, inputs: Inputs) -> None:
        seed_everything(0)
        model = config.build_model(classes, load_weights=False).to(inputs.device)
        optimizer = build_optimizer(model, config.train.optimizer)
        criterion = config.build_criterion().to(inputs.device)
        world = World(0, 1, torch.device(inputs.device))
        self.config, self.model = config, model
        self.batch = inputs.draw(classes)
        self.stepper = Stepper(model, criterion, optimizer, config, world)

    @property
    def parameters(self) -> int:
        """Number of parameters, branches included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(self) -> None:
        """Train once; the model must be in training mode."""
        self.stepper([self.batch], 0)

    def infer(self) -> None:
        """Detect, as evaluation does; the model must be in evaluation mode."""
        infer(self.model.detector, self.batch.images)


def without_weights(config: RunConfig) -> RunConfig:
    """Return the same settings with a backbone that is frozen as with ImageNet weights, but random."""
    model = config.own_model
    frozen = model.model_copy(update={"backbone": model.backbone.without_weights()})
    return config.model_copy(update={"model": frozen})


@torch.no_grad()
def infer(detector: torch.nn.Module, images: Images) -> None:
    """Detect without gradients."""
    detector(images)
