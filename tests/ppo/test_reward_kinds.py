"""Rewards beside models and plain functions: groupwise, stepwise, mathematics, ensembles; how a recipe names them."""

import copy
import runpy
from pathlib import Path

import pytest
import torch

from pangu_trl import PPOConfig
from pangu_trl.answers.judge import load_judge
from pangu_trl.answers.math_answers import math_reward
from pangu_trl.answers.reward_service import RewardService
from pangu_trl.answers.rewards import groupwise, stepwise
from pangu_trl.ppo.reward_sources import StepReward, reward_sources
from pangu_trl.ppo.rollout import Rollout
from pangu_trl.ppo.scoring import combine_scores, score_completions
from pangu_trl.runs.arguments import PPOModelArguments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def answered(tokenizer):
    """A rollout of texts, each with its end."""

    def make(texts: list[str]) -> Rollout:
        answers = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        return Rollout.from_answers(
            [[20]] * len(texts), answers, [tokenizer.eos_token_id], tokenizer.pad_token_id, "cpu"
        )

    return make


def scores_of(reward, rollout, examples, tokenizer, **options):
    sources = reward_sources(reward, None, options.pop("weights", None), tokenizer, **options)
    return score_completions(sources, None, tokenizer, rollout, examples, batch_size=4)


def test_a_groupwise_reward_gets_all_answers_to_a_prompt_at_once(answered, tokenizer, reviews):
    rollout = answered([review["completion"] for review in reviews[:5]])
    texts = rollout.texts(tokenizer)
    first, second = {"prompt": "甲", "level": 3}, {"prompt": "甲", "level": 4}
    calls = []

    @groupwise
    def by_rank(prompt, completions, **columns):
        calls.append((prompt, completions, columns))
        return [float(sorted(completions).index(completion)) for completion in completions]

    scores = scores_of(by_rank, rollout, [first] * 2 + [second] * 3, tokenizer)
    # Two records with the same prompt are two groups.
    assert calls == [("甲", texts[:2], {"level": 3}), ("甲", texts[2:], {"level": 4})]
    expected = [float(sorted(group).index(text)) for group in (texts[:2], texts[2:]) for text in group]
    assert scores[:, 0].tolist() == expected


def test_a_groupwise_reward_that_misses_an_answer_is_named_with_the_prompt(answered, tokenizer, reviews):
    texts = [review["completion"] for review in reviews[:4]]
    examples = [{"prompt": "甲"}] * 2 + [{"prompt": "乙"}] * 2

    @groupwise
    def short(prompt, completions, **columns):
        return [1.0, 2.0] if prompt == "甲" else [1.0]

    with pytest.raises(ValueError, match="short must return a list of 2 numbers.*got 1 numbers; the prompt is '乙'"):
        scores_of(short, answered(texts), examples, tokenizer)


def test_the_scores_of_steps_lie_on_the_tokens_that_complete_them(answered, tokenizer, reviews):
    text = reviews[0]["completion"][:12]
    rollout = answered([text, text[:3]])

    @stepwise
    def halves(prompts, completions, **columns):
        return [[(5, 0.5), (len(completions[0]), -2.0)], []]

    scores = scores_of(halves, rollout, [{"prompt": "甲"}] * 2, tokenizer, weights=[3.0])
    assert scores[:, 0].tolist() == [-1.5, 0.0]
    placed = rollout.step_rewards
    ids = rollout.completions()[0]
    places = placed[0].nonzero().flatten().tolist()
    assert placed[0, places].tolist() == [1.5, -6.0], "after the weight"
    # With the token the text has its five characters, and not before.
    assert len(tokenizer.decode(ids[: places[0] + 1])) >= 5 > len(tokenizer.decode(ids[: places[0]]))
    assert places[1] == len(ids) - 2, "the last token before the end"
    assert (placed[1] == 0).all()


@pytest.mark.parametrize(
    "steps, message",
    [
        ([[]], "must return a list of 2 lists of steps for 2 answers; got 1 entries"),
        (None, "got NoneType"),
        ([[(0, 1.0)], []], "must end one after the other, at 1 to"),
        ([[(2, 1.0), (2, 1.0)], []], "got 2 after 2"),
        ([[], [(99999, 1.0)]], "steps of answer 1 must end"),
        ([[(1, float("nan"))], []], "a step of answer 0 must be \\(end, score\\)"),
        ([[3], []], "a step of answer 0 must be"),
    ],
)
def test_steps_that_are_none_are_refused(answered, tokenizer, reviews, steps, message):
    texts = [review["completion"] for review in reviews[:2]]
    with pytest.raises(ValueError, match=message):
        scores_of(stepwise(lambda prompts, completions, **_: steps), answered(texts), [{"prompt": "甲"}] * 2, tokenizer)


def test_steps_are_rewarded_where_they_are_beside_the_score_at_the_end(make_trainer, reward_model):
    @stepwise
    def first_character(prompts, completions, **columns):
        return [[(1, 2.0)] if completion else [] for completion in completions]

    def outcome(prompts, completions, **columns):
        return [9.0] * len(completions)

    models = dict(reward_model=[first_character, outcome], value_model=copy.deepcopy(reward_model))
    trainer = make_trainer(models=models, kl_coef=0.0, lam=1.0, gamma=1.0, max_steps=1, whiten_advantages=False)
    seen = []
    estimate = trainer.collector._estimate_advantages

    def watched(rollout, critic_warms_up):
        seen.append(rollout.step_rewards.clone())
        estimate(rollout, critic_warms_up)

    trainer.collector._estimate_advantages = watched
    trainer.train()
    rollout, steps = trainer.passes.rollout, seen[0]
    assert rollout.step_rewards is None, "no tensor is kept that nobody needs"
    torch.testing.assert_close(rollout.scores, steps.sum(dim=1) + 9.0)
    # The score is clipped to 5, the steps are not; a return holds the steps from its token on.
    to_go = steps.flip(1).cumsum(1).flip(1) + 5.0
    expected = torch.where(rollout.completion_mask, to_go, 0.0)
    torch.testing.assert_close(rollout.returns, expected)


def test_ensembles_by_hand():
    scores = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    functions = [lambda prompts, completions, **_: []] * 3
    sources = reward_sources(functions, None, [1.0, 2.0, 0.0], None)
    assert combine_scores(scores, sources, "sum", 1.0).tolist() == [7.0, 6.0]
    assert combine_scores(scores, sources, "minimum", 1.0).tolist() == [1.0, 2.0]
    # Mean 3, population variance 8 / 3.
    expected = [3.0 - 0.5 * (8 / 3) ** 0.5, 2.0]
    assert combine_scores(scores, sources, "mean_minus_std", 0.5).tolist() == pytest.approx(expected)


def test_an_ensembles_disagreement_is_logged(make_trainer, reward_model):
    models = dict(
        reward_model=[
            lambda prompts, completions, **_: [1.0] * len(prompts),
            lambda prompts, completions, **_: [3.0] * len(prompts),
        ],
        value_model=copy.deepcopy(reward_model),
    )
    trainer = make_trainer(models=models, reward_combination="minimum", max_steps=1)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward/disagreement" in entry)
    assert (logged["reward/disagreement"], logged["reward/mean"]) == (1.0, 1.0)


def test_an_ensemble_of_one_or_of_steps_is_refused(make_trainer, reward_model):
    with pytest.raises(ValueError, match="reward_combination='minimum' needs two or more rewards"):
        make_trainer(reward_combination="minimum")
    steps = stepwise(lambda prompts, completions, **_: [[]] * len(prompts))
    models = dict(reward_model=[copy.deepcopy(reward_model), steps])
    with pytest.raises(ValueError, match="that give one score an answer"):
        make_trainer(reward_combination="minimum", models=models)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(reward_std_coef=2.0), "reward_std_coef has no effect with reward_combination='sum'"),
        (dict(reward_combination="minimum", reward_weights=[1.0, 2.0]), "reward_weights have no effect with"),
        (dict(reward_combination="median"), "reward_combination must be one of sum, minimum, mean_minus_std"),
        (dict(reward_combination="mean_minus_std", reward_std_coef=-1.0), "reward_std_coef must be 0 or more"),
    ],
)
def test_options_of_ensembles_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_an_answer_is_right_if_it_is_the_solution_as_mathematics():
    pytest.importorskip("math_verify")
    answers = ["so it is $\\frac{1}{2}$", "0.5", "The answer is \\boxed{3}.", "x", "42", ""]
    solutions = ["1/2", "\\frac{1}{2}", "3", "5", "42.0", "1"]
    assert math_reward(["?"] * 6, answers, solution=solutions) == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    chat = [[{"role": "assistant", "content": "It is $7$."}]]
    assert math_reward([[{"role": "user", "content": "?"}]], chat, answer=["7"]) == [1.0]
    with pytest.raises(ValueError, match="needs a column solution or answer beside the prompts; they have topic"):
        math_reward(["?"], ["1"], topic=["x"])
    with pytest.raises(ValueError, match="the column 'solution' holds ' ', in which there is no expression"):
        math_reward(["?"], ["1"], solution=[" "])


# In a recipe.

JUDGES = """
from pangu_trl.answers.rewards import groupwise, stepwise

def plain(prompts, completions, **columns):
    return [1.0] * len(prompts)

@groupwise
def groups(prompt, completions, **columns):
    return [1.0] * len(completions)

@stepwise
def steps(prompts, completions, **columns):
    return [[]] * len(prompts)
"""


@pytest.fixture
def judges(tmp_path):
    path = tmp_path / "judges_of_kinds.py"
    path.write_text(JUDGES)
    return path


def test_a_recipe_takes_models_functions_and_services_side_by_side(judges, reward_model, tokenizer, tmp_path):
    reward_model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    load_rewards = runpy.run_path(str(ROOT / "recipes" / "ppo.py"))["load_rewards"]
    names = [str(tmp_path / "reward"), f"{judges}:plain", f"{judges}:groups", f"{judges}:steps", "http://host:1/score"]
    arguments = PPOModelArguments(reward_model=names, reward_service_timeout=5.0)
    args = PPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    rewards, critic = load_rewards(arguments, args, {})
    assert list(rewards) == names
    sources = reward_sources(list(rewards.values()), None, None, tokenizer)
    kinds = [type(source).__name__ for source in sources]
    assert kinds == ["ModelReward", "FunctionReward", "GroupReward", "StepReward", "FunctionReward"]
    assert [source.name for source in sources] == ["model", "plain", "groups", "steps", "service"]
    assert isinstance(rewards[names[-1]], RewardService) and rewards[names[-1]].timeout == 5.0
    # The critic starts from the reward that is a model, and is another copy of it.
    assert critic is not rewards[names[0]]
    assert torch.equal(critic.score.weight, rewards[names[0]].score.weight)
    without, critic = load_rewards(PPOModelArguments(reward_model=names[1:2]), args, {})
    assert critic is None and list(without) == names[1:2]


def test_one_reward_is_a_word_and_several_are_a_list():
    assert PPOModelArguments(reward_model=["a"]).reward_model == "a", "as runs have recorded it"
    assert PPOModelArguments(reward_model="a").rewards == ["a"]
    assert PPOModelArguments(reward_model=["a", "b"]).rewards == ["a", "b"]
    for value, message in (([], "reward_model is required"), (["a", "a"], "names 'a' more than once")):
        with pytest.raises(ValueError, match=message):
            PPOModelArguments(reward_model=value)
    with pytest.raises(ValueError, match="reward_service_timeout has no effect: no reward_model is the address"):
        PPOModelArguments(reward_model=["a"], reward_service_timeout=5.0)


@pytest.mark.parametrize("name", ["groups", "steps"])
def test_commands_refuse_a_reward_that_only_ppo_can_take(judges, name):
    with pytest.raises(ValueError, match="which only PPO's reward_model can be"):
        load_judge(f"{judges}:{name}", batch_size=4)


def test_what_goes_wrong_in_a_recipes_function_is_one_line_with_its_place(judges):
    judges.write_text("def broken(prompts, completions, **columns):\n    return 1 / 0\n")
    with pytest.raises(ValueError, match=f"ZeroDivisionError: division by zero at {judges}:2"):
        load_judge(f"{judges}:broken", batch_size=4)(["a"], ["b"])


def test_a_process_reward_is_one(tokenizer):
    (source,) = reward_sources(stepwise(lambda prompts, completions, **_: []), None, None, tokenizer)
    assert type(source) is StepReward
