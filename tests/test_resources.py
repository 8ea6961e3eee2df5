"""What a batch system is asked for, against the sizes that the published models really have."""

from pathlib import Path

import pytest
import yaml

from coachhook.resources import covariance_resources, fetch_resources, key_width, stream_resources

ROOT = Path(__file__).parents[1]
MODELS = yaml.safe_load((ROOT / "config" / "models.yaml").read_text(encoding="utf-8"))["hub_models"]


@pytest.fixture(params=MODELS)
def entry(request):
    return MODELS[request.param]


def test_the_sizes_in_models_yaml_are_those_of_the_model(entry):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from coachhook.architectures import ModelParts

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**entry["config"]))
    parts = ModelParts(model)
    assert model.num_parameters() == entry["parameters"]
    layers = [int(layer) for layer in entry["covariance"]["layers"].split(",")]
    assert entry["editing"]["layers"] == layers
    assert {parts.width(layer) for layer in layers} == {key_width(entry["config"])}


def test_memory_holds_the_weights_and_the_covariances():
    gpt_j = MODELS["gpt-j"]
    weights, matrix = 6_050_882_784 * 2 / 1e6, 16384**2 * 8 / 1e6
    stream = stream_resources(gpt_j, layers=6, edits=1000)
    assert stream.memory_mb > weights + 2 * 6 * matrix
    assert covariance_resources(gpt_j).disk_mb == pytest.approx(6 * matrix, rel=1e-3)
    assert fetch_resources(gpt_j).disk_mb >= 2 * weights
    assert fetch_resources(gpt_j).gpus == 0
    assert stream.gpus == 1


def test_a_longer_stream_gets_more_time(entry):
    assert stream_resources(entry, 5, 10_000).minutes > 5 * stream_resources(entry, 5, 1000).minutes
