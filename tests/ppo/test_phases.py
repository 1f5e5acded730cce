"""What the guard against hangs calls the places in which a PPO run computes."""

import copy
from collections import defaultdict

from pangu_trl.runs.hang_guard import current_phase, watch_for_hangs


def test_the_guard_knows_the_phases_of_a_ppo_run(make_trainer, policy, reward_model):
    trained, judge = copy.deepcopy(policy), copy.deepcopy(reward_model)
    trainer = make_trainer(
        models={"model": trained, "reward_model": judge}, max_steps=2, save_strategy="steps", save_steps=2
    )
    watch_for_hangs(trainer)
    phases = defaultdict(set)

    def note(subject: str):
        return lambda *_, **__: phases[subject].add(current_phase())

    trained.register_forward_pre_hook(note("policy"))
    judge.register_forward_pre_hook(note("judge"))
    trained.register_state_dict_pre_hook(note("weights"))
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    assert phases == {
        "policy": {"rollout", "scoring", "learning"},
        "judge": {"scoring"},
        "weights": {"saving"},
    }
