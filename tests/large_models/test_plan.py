"""Large models: their published sizes, what a compiled program sends, and plans of runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from eos_sde.trials import devices
from solvers.errors import InvalidInput

pytest.importorskip("flax")
from eos_sde.large_models import MODELS, plan_training
from eos_sde.large_models.catalogue import count_weights
from eos_sde.large_models.collectives import collectives
from eos_sde.large_models.plan import HEADS

PROGRAM = """HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %r = f32[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %r)
}

%pass (p: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %g = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%v), dimensions={0}
  %w = (s32[], f32[8,4]{1,0}) while(%q), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %w1 = (s32[], f32[8,4]{1,0}) while(%q), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %w2 = (s32[], bf16[16]{0}) while(%q), condition=%cond, body=%pass
  ROOT %s = f32[2,4]{1,0} reduce-scatter(f32[8,4]{1,0} %r), dimensions={0}, to_apply=%sum
}
"""


def test_collectives_are_counted_as_often_as_they_run():
    """By hand: five all-reduces of 128 bytes, in a measurement three and a gather to 32 bytes."""
    sent = collectives(PROGRAM)
    assert sent["all-reduce", False] == (5, 640, 128)
    assert sent["all-reduce", True] == (3, 384, 128)
    assert sent["all-gather", True] == (1, 32, 32)
    assert sent["reduce-scatter", False] == (1, 128, 128)
    assert len(sent) == 4


def test_the_models_have_the_published_numbers_of_weights():
    counts = {name: count_weights(model.shapes("bf16")[0]) for name, model in MODELS.items()}
    assert counts == {name: model.weights for name, model in MODELS.items()}
    assert counts["resnet-50"] == 25_557_032  # torchvision's
    # of these a first layer of 3x3 in place of 7x7, and 100 outputs in place of 1000
    assert counts["resnet-50-cifar"] == 25_557_032 - 64 * 3 * (49 - 9) - 900 * 2049
    assert counts["vit-h-14"] == pytest.approx(632e6, rel=1e-3)  # Dosovitskiy et al., table 1
    assert counts["bert-large"] == pytest.approx(340e6, rel=0.02)  # Devlin et al., with the pooler
    assert counts["bert-xxl"] == pytest.approx(3.9e9, rel=0.02)  # Shoeybi et al., table 4


def test_attention_is_cut_by_heads_and_layers_are_not():
    mesh = AbstractMesh((2, 4), devices.AXES)
    model = MODELS["vit-h-14"]
    weights = model.shapes("fp32")[0]
    blocks = devices.weight_shardings(weights, mesh, stacked=model.stacked, cut=HEADS)["encoder"]["blocks"]
    # (blocks, width, heads, head width)
    assert blocks["attention"]["query"]["kernel"].spec == PartitionSpec(None, None, "model")
    assert blocks["attention"]["out"]["kernel"].spec == PartitionSpec(None, "model")
    assert blocks["expand"]["kernel"].spec == PartitionSpec(None, None, "model")
    assert blocks["contract"]["kernel"].spec == PartitionSpec(None, "model")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "vit"}, "model='vit' is not known: choose one of resnet-50"),
        ({"rule": "sgdm"}, "rule='sgdm' is not known"),
        ({"hardware": "h1"}, "hardware='h1' is not known"),
        ({"precision": "fp8"}, "precision='fp8' is not known"),
        ({"utilization": 1.5}, "at most 1"),
        ({"peak": -1.0}, "peak=-1.0 must be a positive number"),
        ({"batch": 0}, "batch=0 must be a positive integer"),
        ({"mesh": "data=0"}, "mesh='data=0' must be sizes"),
    ],
)
def test_what_cannot_be_planned_is_refused(settings, words):
    given = {"model": "resnet-50", "mesh": "data=1", "batch": 8, "rule": "sgd"} | settings
    with pytest.raises(InvalidInput, match=words):
        plan_training(given.pop("model"), **given)


@pytest.mark.slow
def test_a_plan_on_eight_virtual_devices(tmp_path):
    """ResNet-50 in float32: gradients are summed once over "data", 4 bytes a weight, beside the sums of batch norm.

    An image takes 3 x 2 x 4.09e9 operations (published multiplications of a forward pass), and no convolution back to
    the image (0.118e9 multiplications); blocks that are recomputed add a forward pass at most.
    """
    command = [sys.executable, "-m", "eos_sde.cli", "plan", "resnet-50", "--mesh", "data=8", "--batch", "16"]
    command += ["--rule", "sgd", "--precision", "fp32", "--json", "--out", str(tmp_path / "plan.nc")]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    plan = json.loads(done.stdout)
    program = plan["programs"]["sgd"]
    reduced = program["collective_bytes"]["all-reduce (update)"]
    assert 4 * 25_557_032 <= reduced <= 1.02 * 4 * 25_557_032
    assert program["argument_bytes"] >= 4 * 25_557_032
    forward = 2 * 4.09e9
    assert 3 * forward * 0.97 <= plan["gradient_flops"] <= 4 * forward * 1.03
    assert Path(tmp_path / "plan.nc").exists()
