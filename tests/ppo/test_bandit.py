"""Every advantage estimator reaches the optimum of a task whose optimum is known."""

import pytest
from bandit import make_bandit, probability_of_the_best

ESTIMATORS = {
    "gae": dict(critic_learning_rate=3e-2),
    "grpo": {},
    "grpo, unscaled": dict(scale_rewards="none"),
    "rloo": {},
    "reinforce_plus_plus": {},
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_reaches_the_optimum(name, tmp_path):
    trainer = make_bandit(tmp_path, advantage_estimator=name.split(",")[0], **ESTIMATORS[name])
    assert probability_of_the_best(trainer) < 0.1
    trainer.train()
    assert probability_of_the_best(trainer) > 0.8
