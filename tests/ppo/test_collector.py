"""One rollout on one of several ranks: in which batches it is scored, and what the KL controller is told."""

import pytest
import torch

from pangu_trl.ppo.rollout import Rollout

# Lengths of prompts and answers of a rollout of four: 3, 6, 4, 2 tokens.
PROMPTS = [[20], [21, 22, 23], [24, 25], [26]]
ANSWERS = [[30, 31], [32, 33, 34], [35, 36], [37]]


@pytest.fixture
def answer(monkeypatch):
    """Gives a collector fixed answers in place of sampled ones."""

    def fix(collector) -> Rollout:
        rollout = Rollout.from_answers(PROMPTS, ANSWERS, [9], pad_token_id=6, device="cpu")
        monkeypatch.setattr(collector, "answer", lambda model, examples, watch: rollout)
        return rollout

    return fix


def test_scoring_takes_the_batches_that_learning_takes(make_trainer, monkeypatch, answer):
    """Rows are dealt by length within the batches of one optimiser step, in both: else the first ratio is not 1."""
    trainer = make_trainer(per_device_train_batch_size=1, num_rollout_batches=4, gradient_accumulation_steps=2)
    seen = []
    monkeypatch.setattr(
        "pangu_trl.ppo.collector.score_tokens",
        lambda model, ref_model, rollout, batches, *rest: seen.extend(rows.tolist() for rows in batches),
    )
    rollout = answer(trainer.collector)
    trainer.collector.score(trainer.model, rollout, [{"prompt": ""}] * 4)
    # Of rows 0 and 1 the second is longer, of rows 2 and 3 the first; a longest one of all would come first.
    assert seen == [[1], [0], [2], [3]]
    trainer.passes.start(rollout)
    learnt = []
    for _ in seen:
        learnt += trainer.passes.mini_batch().completions()
        trainer.passes.advance()
    assert learnt == [ANSWERS[row] for (row,) in seen]


def test_the_kl_controller_is_told_the_mean_over_the_answers_of_all_ranks_and_their_number(
    make_trainer, monkeypatch, answer
):
    trainer = make_trainer(adaptive_kl_target=2.0, kl_horizon=100, kl_coef=0.1)
    collector = trainer.collector
    rollout = answer(collector)

    def score(model, rollout, examples, asks_reference) -> None:
        shape = rollout.completion_mask.shape
        rollout.values, rollout.entropy, rollout.ref_logprobs = (torch.zeros(shape) for _ in range(3))
        # One nat per answer token: 2 + 3 + 2 + 1 in four answers, 2 each on average.
        rollout.logprobs = torch.ones(shape)
        rollout.scores, rollout.source_scores = torch.zeros(4), torch.zeros(4, 1)

    class OneOfThreeRanks:
        """Beside which the mean over the ranks is a tenth larger than this one's."""

        device, num_processes, is_main_process = torch.device("cpu"), 3, True

        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            return {"mean": tensor * 1.1, "sum": tensor * 3.3}[reduction]

    monkeypatch.setattr(collector, "score", score)
    monkeypatch.setattr(collector, "accelerator", OneOfThreeRanks())
    monkeypatch.setattr(collector, "_tell_generation_mode", lambda model: None)
    told = []
    monkeypatch.setattr(collector.kl_controller, "update", lambda *values: told.append(values))
    collector.collect(trainer.model, [{"prompt": ""}] * 4, step=1)
    assert told == [(pytest.approx(2.0 * 1.1), 4 * 3)]
    assert rollout.advantages is not None
