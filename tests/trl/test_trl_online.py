"""TRL's GRPOTrainer and RLOOTrainer on GPTPangu, with rewards of a function and of our reward model."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from trained import ADAPTED_MODULES, adapted_modules, assert_saves_what_it_computes, assert_trains_only, is_adapter
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import pangu_trl

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def distinct_characters(completions: list[str], **columns) -> list[float]:
    return [float(len(set(completion))) for completion in completions]


@pytest.fixture(params=["grpo", "rloo"])
def make_trainer(request, start_dir, tokenizer, prompts, options):
    trainer_class, config_class = TRAINERS[request.param]

    def make(reward, **given):
        args = options(
            config_class,
            num_generations=4,
            max_completion_length=8,
            beta=0.05,  # for both: GRPO makes a reference model only if this is not 0
            disable_dropout=True,
        )
        return trainer_class(
            model=str(start_dir),
            reward_funcs=reward,
            args=args,
            train_dataset=prompts,
            processing_class=tokenizer,
            **given,
        )

    return make


def test_online_trainers_train_and_save_a_policy_or_an_adapter(make_trainer, tokenizer, prompts, lora):
    trainer = make_trainer(distinct_characters, peft_config=lora)
    if lora is None:
        assert isinstance(trainer.model, pangu_trl.GPTPanguForCausalLM)
        assert_trains_only(trainer, lambda name: True)
    else:
        assert adapted_modules(trainer.model) == ADAPTED_MODULES
        assert_trains_only(trainer, is_adapter)
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    auto_class = AutoModelForCausalLM if lora is None else AutoPeftModelForCausalLM
    ids = tokenizer(prompts[0]["prompt"], return_tensors="pt")["input_ids"]
    assert_saves_what_it_computes(trainer, auto_class.from_pretrained, ids)


def test_online_trainers_take_scores_of_our_reward_model(make_trainer, tokenizer, reward_model):
    scores = []
    reward_model.register_forward_hook(lambda module, args, output: scores.extend(output.logits[:, 0].tolist()))
    trainer = make_trainer(reward_model, reward_processing_classes=tokenizer)
    assert_trains_only(trainer, lambda name: True)
    logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    # Four completions a step; what is logged is the mean of their scores.
    assert logged == pytest.approx([sum(scores[:4]) / 4, sum(scores[4:]) / 4], rel=1e-4)
    assert len(scores) == 8 and len(set(scores)) > 2


@torch.no_grad()
def test_grpo_gives_a_left_padded_row_the_log_probabilities_of_the_row_alone(start_dir, tokenizer, prompts, options):
    trainer = GRPOTrainer(
        model=str(start_dir),
        reward_funcs=distinct_characters,
        args=options(GRPOConfig, num_generations=4),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    model = trainer.model.eval()
    rows = [tokenizer(text)["input_ids"] for text in sorted(prompts["prompt"][:3], key=len)]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0
    # Ten tokens count as the completion. There is no public way to the log-probabilities that the trainer learns from.
    padded, *_ = trainer._get_per_token_logps_and_entropies(model, batch["input_ids"], batch["attention_mask"], 10)
    for row, logprobs in zip(rows, padded, strict=True):
        alone = torch.tensor([row])
        expected = model(alone).logits[0, -11:-1].log_softmax(dim=-1).gather(1, alone[0, -10:, None])[:, 0]
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
