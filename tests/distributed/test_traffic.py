"""What two ranks send is what `pangu-trl plan` says: counted collectives against the computed ones."""

import json
from pathlib import Path

import pytest
import yaml
from launching import config_for_cpu, launch

from pangu_trl.planning.launch import read_launch
from pangu_trl.planning.memory import Plan
from pangu_trl.planning.models import load_config
from pangu_trl.planning.settings import read_settings
from pangu_trl.planning.traffic import step_transfers

pytestmark = pytest.mark.launches

# Share by which a plan may be off: FSDP2 fetches an embedding again for the backward pass if no head is tied to it, and
# how long ZeRO-3 keeps what it has fetched depends on the passes before, which scoring interrupts. The reference of DPO
# stays where ZeRO-3 keeps it, but is fetched once in the four steps that count.
CELLS = [
    ("sft", "ddp", 0.01),
    pytest.param("sft", "zero1", 0.01, marks=pytest.mark.slow),
    pytest.param("sft", "zero2", 0.01, marks=pytest.mark.slow),
    pytest.param("sft", "zero3", 0.01, marks=pytest.mark.slow),
    pytest.param("sft", "fsdp2", 0.01, marks=pytest.mark.slow),
    pytest.param("reward", "fsdp2", 0.15, marks=pytest.mark.slow),
    pytest.param("ppo", "ddp", 0.01, marks=pytest.mark.slow),
    pytest.param("ppo", "zero3", 0.25, marks=pytest.mark.slow),
    pytest.param("ppo", "fsdp2", 0.1, marks=pytest.mark.slow),
    pytest.param("dpo", "zero3", 0.26, marks=pytest.mark.slow),
    pytest.param("dpo", "fsdp2", 0.01, marks=pytest.mark.slow),
    pytest.param("grpo", "zero3", 0.01, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stage", "backend", "tolerance"), CELLS)
def test_counted_bytes_are_the_planned_ones(workspace, stage_options, tmp_path, stage, backend, tolerance):
    # Adam, whose states FSDP2 needs; nothing accumulates, and a rollout is learnt from in two steps.
    options = stage_options(stage, workspace / f"traffic-{stage}-{backend}", optim="adamw_torch", max_steps=6)
    options |= {"save_strategy": "no", "gradient_checkpointing": False}
    config = config_for_cpu(backend, tmp_path)
    launch(config, stage, options, COUNT_COLLECTIVES="1")
    counted = json.loads((options["output_dir"] / "rank-0.json").read_text())["collectives"]
    recipe = tmp_path / f"{stage}.yaml"
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    recipe.write_text(yaml.safe_dump(plain))
    settings = read_settings(recipe)
    planned: dict[str, int] = {}
    for transfer in step_transfers(Plan(settings, read_launch(config), load_config(settings.model))):
        planned[transfer.collective] = planned.get(transfer.collective, 0) + transfer.num_bytes
    for kind, size in planned.items():
        assert counted[kind] == pytest.approx(size, rel=tolerance), kind
    # Besides these there are only figures and flags.
    assert sum(size for kind, size in counted.items() if kind not in planned) < 0.02 * sum(planned.values())
