"""One word goes over to another advantage estimator, in Python and in every recipe that is shipped."""

import logging
import runpy
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from pangu_trl import PPOConfig
from pangu_trl.ppo.estimator_options import OF_THE_CRITIC

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "ppo" in (path.stem, path.parent.name))
WITHOUT_CRITIC = ["grpo", "rloo", "reinforce_plus_plus"]


def read(path: Path, folder: Path, *words: str) -> PPOConfig:
    """The options of a recipe's file and of the command line, as recipes/ppo.py reads them."""
    recipe = runpy.run_path(str(ROOT / "recipes" / "ppo.py"), run_name="not main")
    files = ["--output_dir", str(folder), "--train_data", "x.jsonl", "--reward_model", "x"]
    names = ("DataArguments", "PPOModelArguments", "RunArguments", "PPOConfig", "ModelConfig")
    kinds = [recipe[name] for name in names]
    return recipe["parse_options"](*kinds, argv=["--config", str(path), *files, *words])[3]


@pytest.mark.parametrize("estimator", WITHOUT_CRITIC)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_takes_another_estimator_by_one_word(path, estimator, tmp_path, caplog):
    with_critic = read(path, tmp_path)
    with caplog.at_level(logging.WARNING):
        config = read(path, tmp_path, "--advantage_estimator", estimator)
    assert with_critic.has_critic and not config.has_critic
    assert config.critic_warmup_steps == 0, "the policy learns from the first step"
    assert config.num_generations == (1 if estimator == "reinforce_plus_plus" else 8)
    defaults = {option.name: option.default for option in fields(PPOConfig)}
    settings = yaml.safe_load(path.read_text("utf-8"))
    changed = [name for name, value in settings.items() if name in OF_THE_CRITIC and value != defaults[name]]
    assert changed and all(name in caplog.text for name in changed)


def test_there_are_recipes_of_all_kinds():
    assert len(RECIPES) >= 12 and any("one_backbone" in path.name for path in RECIPES)


def test_every_option_of_the_critic_is_put_back_and_named(tmp_path, caplog):
    options = dict(
        critic_learning_rate=1e-3,
        critic_weight_decay=0.1,
        critic_warmup_steps=2,
        critic_warmup_lam=1.0,
        lam=0.9,
        critic_lam=1.0,
        adaptive_lam_alpha=0.05,
        cliprange_value=0.1,
        vf_coef=0.5,
    )
    settings = dict(output_dir=str(tmp_path), use_cpu=True, advantage_estimator="reinforce_plus_plus")
    with caplog.at_level(logging.WARNING):
        config = PPOConfig(**settings, **options)
    plain = PPOConfig(**settings)
    assert all(name in caplog.text for name in options)
    assert [getattr(config, name) for name in options] == [getattr(plain, name) for name in options]


def test_nothing_is_said_where_nothing_is_set(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, advantage_estimator="reinforce_plus_plus")
    assert "critic" not in caplog.text


# Answers of a rollout: the largest of 8, 4, 2 that divides them.
@pytest.mark.parametrize("batches, size", [(1, 4), (2, 8), (3, 4), (4, 8)])
def test_an_open_group_divides_the_rollout(tmp_path, batches, size):
    options = dict(per_device_train_batch_size=4, num_rollout_batches=batches, output_dir=str(tmp_path), use_cpu=True)
    assert PPOConfig(advantage_estimator="rloo", **options).num_generations == size
    assert PPOConfig(advantage_estimator="rloo", num_generations=2, **options).num_generations == 2
    assert PPOConfig(**options).num_generations == 1


def test_a_rollout_that_no_group_divides_is_refused_with_what_to_change(tmp_path):
    options = dict(per_device_train_batch_size=3, num_rollout_batches=1, output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="num_generations must be 2 or more with 'grpo'; got 1"):
        PPOConfig(advantage_estimator="grpo", **options)
