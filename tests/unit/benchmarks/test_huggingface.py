"""That both detectors are the same network, and what is said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from benchmarks import huggingface
from benchmarks.huggingface import INFERENCE, OURS, STEP, THEIRS, HuggingFace, Scale, build, count, pair
from benchmarks.steps import Inputs, Subject, config_of
from lora_detr.ops.sampling_choice import VARIABLE, choose
from tests.small_runs import SMALL

INPUTS = Inputs((96, 64), 2, 3)
SYSTEM = f"{SMALL} --aux 0"
# Their names and ours, of what has the same tensors; longer ones first.
NAMES = {
    "model.backbone.model.": "backbone.body.",
    "model.input_proj.": "neck.projections.",
    "model.level_embed": "level_embedding",
    "model.encoder.": "encoder.",
    "model.decoder.bbox_embed.": "heads.boxes.",
    "model.decoder.class_embed.": "heads.classes.",
    "model.decoder.": "decoder.",
    "model.enc_output_norm.": "proposals.norm.",
    "model.enc_output.": "proposals.projection.",
    "model.pos_trans_norm.": "proposals.query_norm.",
    "model.pos_trans.": "proposals.query_projection.",
}
OF_LAYERS = {
    ".mlp.fc": ".ffn.linear",
    ".final_layer_norm.": ".ffn.norm.",
    ".encoder_attn_layer_norm.": ".cross_attention.norm.",
    ".encoder_attn.": ".cross_attention.attention.",
}
OF_ATTENTION = {"encoder.": "attention.", "decoder.": "self_attention."}


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(huggingface.SCALES, "tiny", Scale(SYSTEM, INPUTS.size, INPUTS.batch))
    monkeypatch.setenv(VARIABLE, "grid-sample")
    choose.cache_clear()
    yield
    choose.cache_clear()


def ours_of(theirs: nn.Module) -> dict[str, Tensor]:
    """Return their weights under our names."""
    renamed: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for key, value in theirs.state_dict().items():
        prefix = next((old for old in NAMES if key.startswith(old)), None)
        if prefix is None:  # the heads a second time
            continue
        name = NAMES[prefix] + key.removeprefix(prefix)
        for old, new in OF_LAYERS.items():
            name = name.replace(old, new)
        block = next((new for part, new in OF_ATTENTION.items() if name.startswith(part)), "")
        name = name.replace("self_attn_layer_norm.", f"{block}norm.").replace("self_attn.", f"{block}attention.")
        name = name.replace(".attention.o_proj.", ".attention.out_proj.")
        module, _, rest = name.rpartition("attention.")
        part, _, kind = rest.partition("_proj.")
        if part in ("q", "k", "v"):
            packed.setdefault(f"{module}attention.in_proj_{kind}", {})[part] = value
        else:
            renamed[name] = value
    return renamed | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in packed.items()}


def test_with_the_same_weights_both_answer_alike() -> None:
    both = pair(SYSTEM, INPUTS)
    theirs, ours = both[THEIRS], both[OURS]
    assert isinstance(theirs, HuggingFace) and isinstance(ours, Subject)
    with torch.no_grad():
        for parameter in theirs.model.parameters():  # neither norms nor heads as they start
            parameter += 0.02 * torch.randn_like(parameter)
    ours.model.detector.load_state_dict(ours_of(theirs.model))
    theirs.model.eval()
    ours.model.eval()
    with torch.no_grad():
        expected = theirs.model(pixel_values=theirs.pixels, pixel_mask=theirs.mask)
        found = ours.model.detector(ours.batch.images).prediction
    assert expected.logits.std() > 1e-3
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)


def test_presets_give_both_as_many_parameters() -> None:
    for scale in ("deformable-tiny", "deformable"):
        config = config_of(scale)
        classes = 91 if scale == "deformable" else 10
        assert count(build(config, classes)) == count(config.build_model(classes, load_weights=False))


def test_detectors_of_other_sizes_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "Subject", lambda _, inputs: Subject(str(SMALL), inputs))
    with pytest.raises(SystemExit, match="expected the same"):
        pair(SYSTEM, INPUTS)


def test_a_step_trains_all_but_what_is_frozen() -> None:
    one = HuggingFace(SYSTEM, INPUTS)
    before = {name: value.clone() for name, value in one.model.named_parameters()}
    one.model.train()
    one.step()
    moved = {name for name, value in one.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("model.backbone.") for name in moved)
    assert any(name.startswith("model.encoder.") for name in moved)
    assert any(name.startswith("model.decoder.bbox_embed.0.") for name in moved)


def test_rows() -> None:
    asked: list[tuple[str, str]] = []

    def memory(what: str, side: str) -> float:
        asked.append((what, side))
        return 3.0 if side == OURS else 4.0

    step, inference = huggingface.rows("tiny", INPUTS, 1, memory)
    assert (step["what"], inference["what"]) == (STEP, INFERENCE)
    for row in (step, inference):
        assert row["ratio"] == pytest.approx(row["ours_seconds"] / row["huggingface_seconds"])
        assert row["memory_ratio"] == 0.75
        assert row["ours_parameters"] == row["huggingface_parameters"]
    assert set(asked) == {(what, side) for what in (STEP, INFERENCE) for side in (OURS, THEIRS)}


def _main(monkeypatch: pytest.MonkeyPatch, options: Sequence[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["huggingface.py", *options])
    huggingface.main()


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface, "megabytes_alone", lambda script, options: None)
    _main(monkeypatch, ["--rounds", "1", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert [row["memory_ratio"] for row in content["rows"]] == [None, None]
    assert content["options"]["kernel"] == "grid-sample"


@pytest.mark.parametrize("side", [OURS, THEIRS])
def test_memory_alone_is_printed_as_json(
    side: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def rise(run: Callable[[], None], device: str) -> int:
        run()
        measured.append(device)
        return 7

    monkeypatch.setattr(huggingface, "rise", rise)
    _main(monkeypatch, ["--alone", STEP, side])
    assert (json.loads(capsys.readouterr().out), measured) == (7, ["cpu"])
