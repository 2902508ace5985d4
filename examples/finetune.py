"""Fine-tune, evaluate, look, strip, predict: cell by cell in an editor that knows ``# %%``, or as a script.

``python examples/finetune.py`` needs neither a download nor a GPU. It took 3 min 57 s of processor time on one thread
of an AMD EPYC (13 min 51 s on the clock, since other programs kept both cores busy: load 7), and reached AP50 0.615.
"""

# %% Settings
from pathlib import Path

import lora_detr
from lora_detr.checkpoints.opened import open_run
from lora_detr.cli.console import console
from lora_detr.cli.progress import ConsoleDisplay
from lora_detr.data.synthetic.sets import cached
from lora_detr.deploy.proof_images import proof_images
from lora_detr.deploy.strip import strip
from lora_detr.evaluation.comparison import write_comparison
from lora_detr.recipe.loaders import read_splits
from lora_detr.runs import run
from lora_detr.runs.evaluate import PRIMARY, evaluate_parts
from lora_detr.runs.request import Request, resolve

OUTPUT = Path("runs/finetune")
OVERRIDES = [
    "train.max_steps=500",
    # Images are read in this process: others would run this file again where processes are not forked (macOS).
    "data.workers=0",
    # At a size near that of the images a minute holds more steps.
    "data.train.scales=[192]",
    "data.evaluation.size=192",
    # With five objects at most for 100 queries, duplicates are what costs AP.
    "loss.primary.weights.classification=10.0",
]

# %% Data: 400 training and 100 validation images of coloured shapes. Put the path of a COCO folder here for your own.
data = cached("shapes-easy")

# %% Train a tiny Deformable-DETR, whose backbone knows ImageNet, with three LoRA branches.
resolved = resolve(Request(preset="deformable-tiny-lora3", data=data, overrides=OVERRIDES))
finished = run.start(resolved, OUTPUT, overfit=None, dry_run=False, display=ConsoleDisplay(console()))

# %% Evaluate the best checkpoint. Branches are not used.
metrics = evaluate_parts(finished.directory, workers=0, say=print)[PRIMARY]
for row in metrics.per_class:
    print(f"{row.name:<10} {row.objects:>4} objects   AP {row.AP:.3f}   AP50 {row.AP50:.3f}")

# %% Look at predictions, ground truth beside them.
validation = read_splits(data, resolved.loaded.config.data).val
assert validation is not None
write_comparison(OUTPUT / "predictions.png", lora_detr.load(finished.directory), validation, 6)
print(f"look at {OUTPUT / 'predictions.png'}")

# %% Drop the branches. The file is written only if its predictions are bit-identical to those of the run.
opened = open_run(finished.directory)
stripped = OUTPUT / "stripped.safetensors"
report = strip(opened, stripped, *proof_images(opened, 4))
print(f"{stripped}: {stripped.stat().st_size / 1e6:.1f} MB")

# %% Predict with the file. It needs neither the run nor the data.
detector = lora_detr.load(stripped)
photo = next((data / "val").iterdir())
found = detector.predict(photo)
print(f"{photo.name}: {found.describe()}")
for name, score, box in zip(found.names, found.scores.tolist(), found.boxes_xyxy_pixels.tolist(), strict=True):
    print(f"  {name:<10} {score:.2f}  {[round(side) for side in box]}")
found.draw().save(OUTPUT / "drawn.png")
