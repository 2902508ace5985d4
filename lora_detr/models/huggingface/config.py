"""Settings of a detector of ``transformers``: its own config as data, so that a checkpoint needs no other folder."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import JsonValue, model_validator

from lora_detr.config.base import Strict
from lora_detr.config.statistics import Mean, Std
from lora_detr.errors import ConfigError
from lora_detr.models.denoising import MAX_QUERIES
from lora_detr.models.huggingface.classes import restart_classes
from lora_detr.models.huggingface.detector import HuggingFaceDetector
from lora_detr.models.huggingface.families import FAMILIES, REFUSED
from lora_detr.models.huggingface.family import Family
from lora_detr.models.huggingface.own_loss import loss_weights
from lora_detr.models.huggingface.versions import require_transformers
from lora_detr.models.pixels import PixelNormalisation

CATEGORY_IDS = "loradetr_category_ids"
"""Key of a config: the data set's category ids, in the order of ``id2label``."""

# Of a checkpoint's own, which the data or this program decides.
DECIDED = (
    *("id2label", "label2id", "num_labels", CATEGORY_IDS),
    *("dtype", "torch_dtype", "transformers_version", "architectures"),
)


class HuggingFaceConfig(Strict):
    """A detector of ``transformers``; ``--baseline hf:DIR`` fills in everything here."""

    kind: Literal["huggingface"] = "huggingface"
    config: dict[str, JsonValue]
    """The model's own config, as in its ``config.json``; ``model_type`` names the family."""
    processor: dict[str, JsonValue] = {}
    """Its image processor, as in its ``preprocessor_config.json``; ``strip`` writes it back."""
    mean: Mean
    """Mean of the pixels that it was trained on."""
    std: Std
    """Their standard deviation."""
    batch_norm: Literal["auto", "train", "frozen"] = "auto"
    """Batch norms that the model would train. ``auto`` freezes them where a forward pass has fewer than 8 images,
    whose statistics are too rough."""

    @model_validator(mode="after")
    def _check_family(self) -> Self:
        kind = self.config.get("model_type")
        if kind not in FAMILIES:
            raise ValueError(f"model_type is {kind!r}: {REFUSED.get(str(kind), 'not a family that branches are for')}")
        for key in ("decoder_layers", self._width_key, "decoder_ffn_dim", self.family.queries_key(self.config)):
            value = self.config.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_QUERIES:
                raise ValueError(f"config.{key} must be a number from 1 to {MAX_QUERIES}, found {value!r}")
        if self.config.get("decoder_layerdrop"):
            raise ValueError("config.decoder_layerdrop must be 0: layers that are left out at random publish nothing")
        return self

    @property
    def family(self) -> Family:
        """The rule of its family."""
        return FAMILIES[self.model_type]

    @property
    def model_type(self) -> str:
        """What ``transformers`` calls the family."""
        return str(self.config["model_type"])

    @property
    def num_queries(self) -> int:
        """Q."""
        return self._number(self.family.queries_key(self.config))

    @property
    def decoder_layers(self) -> int:
        """L."""
        return self._number("decoder_layers")

    @property
    def hidden_dim(self) -> int:
        """D."""
        return self._number(self._width_key)

    @property
    def ffn_dim(self) -> int:
        """F."""
        return self._number("decoder_ffn_dim")

    @property
    def dropout(self) -> float:
        """Dropout of the decoder."""
        value = self.config.get("dropout", 0.0)
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each kind of loss of a decoder layer in the model's own loss."""
        return loss_weights(self.config)

    @property
    def has_denoising(self) -> bool:
        """Whether noised targets are queries in training."""
        return bool(self.config.get("num_denoising"))

    @property
    def input_statistics(self) -> tuple[Mean, Std]:
        """Mean and standard deviation of the pixels that it takes."""
        return self.mean, self.std

    @property
    def _width_key(self) -> str:
        return "d_model" if "d_model" in self.config else "hidden_size"

    def _number(self, key: str) -> int:
        value = self.config[key]
        assert isinstance(value, int)
        return value

    def describe(self, weights: str = "") -> str:
        """Return family and sizes in words; ``weights`` stands behind the family."""
        return (
            f"{self.model_type} of transformers{weights}, {self.decoder_layers} decoder layers, "
            f"{self.num_queries} queries"
        )

    def resolved(self, batch_size: int) -> Self:
        """Replace ``auto`` by what it means for forward passes of so many images."""
        choice = ("frozen" if batch_size < 8 else "train") if self.batch_norm == "auto" else self.batch_norm
        return self.model_copy(update={"batch_norm": choice})

    def for_inference(self) -> Self:
        """Return the same: what only training has is part of the model's weights."""
        return self

    def own_config(self, num_classes: int) -> Any:
        """Return the config as ``transformers`` takes it, for K classes."""
        require_transformers()
        from transformers import AutoConfig

        values: dict[str, Any] = {key: value for key, value in self.config.items() if key not in DECIDED}
        try:
            config = AutoConfig.for_model(**values)
        except Exception as error:  # transformers checks values by errors of several packages
            raise self._unusable(error) from error
        config.num_labels = num_classes
        return config

    def _unusable(self, error: Exception) -> ConfigError:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = (
            f"`model.config`: no {self.model_type} can be built of it: {' '.join(lines[:2]) or type(error).__name__}"
        )
        return ConfigError(message, "change it in config.json, or by --set model.config.KEY=VALUE")

    @property
    def queries_key(self) -> str:
        """Key path of the number of queries."""
        return f"model.config.{self.family.queries_key(self.config)}"

    def build(self, num_classes: int, load_weights: bool) -> HuggingFaceDetector:
        """Build the detector with random weights; every class starts at the prior probability of 0.01.

        Args:
            num_classes: K.
            load_weights: without effect: ``RunConfig.weights`` names what weights come from.

        Raises:
            ConfigError: the package is missing or of another version.
        """
        config = self.own_config(num_classes)
        from transformers import AutoModelForObjectDetection

        auto: Any = AutoModelForObjectDetection
        try:
            model = auto.from_config(config)
        except Exception as error:  # sizes that do not fit each other, found by whatever is built of them
            raise self._unusable(error) from error
        # As it comes from `from_pretrained`: built of a config, transformers freezes parts of some backbones.
        model.requires_grad_(True)
        restart_classes(model)
        normalisation = PixelNormalisation(self.mean, self.std)
        return HuggingFaceDetector(model, normalisation, has_frozen_norms=self.batch_norm == "frozen")
