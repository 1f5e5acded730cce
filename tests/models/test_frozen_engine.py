"""What DeepSpeed is told of a model that does not learn."""

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from pangu_trl.models.sharding import prepare_frozen


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # As for what trains: the defaults of DeepSpeed, by which it keeps small weights.
        ({}, {}),
        # 10 * 32, as the Trainer fills it in.
        ({"stage3_param_persistence_threshold": "auto"}, {"stage3_param_persistence_threshold": 320}),
        ({"stage3_param_persistence_threshold": 7}, {"stage3_param_persistence_threshold": 7}),
    ],
    ids=["left out", "auto", "given"],
)
def test_a_frozen_model_gets_the_settings_of_what_trains(monkeypatch, given, expected):
    told = []

    def initialize(model, config):
        told.append(config["zero_optimization"])
        return model, None

    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(initialize=initialize))
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=32))
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3, "offload_optimizer": {}, **given}})
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    prepare_frozen(model, accelerator)
    assert told == [{"stage": 3, **expected}]
