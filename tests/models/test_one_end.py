"""One end of an answer: training, PPO, commands and model card read the score of an answer at the same token."""

import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_llama import build_policy, build_reward_model, build_tokenizer
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer
from pangu_trl.answers.sampling import SamplingConfig, sample_answers
from pangu_trl.data.answer_end import note_stop_tokens, stop_tokens, turn_end
from pangu_trl.data.tokenized_datasets import tokenize_demonstrations
from pangu_trl.data.tokenizing import encode_completion
from pangu_trl.hub.folder import ModelFolder
from pangu_trl.hub.model_card import CardFacts, model_card
from pangu_trl.models.reward_model import score_responses
from pangu_trl.ppo.reward_sources import FunctionReward, ModelReward, TextModelReward
from pangu_trl.ppo.rollout import Rollout
from pangu_trl.ppo.scoring import score_completions

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class Kind:
    """A way in which tokenizers end an answer.

    Attributes:
        tokenizer: Settings of `build_tokenizer`.
        is_chat: Whether prompts are messages.
        end: The token that must end the answer.
        behind: What stands between answer and end, as a template writes it.
    """

    tokenizer: dict[str, str]
    is_chat: bool
    end: str
    behind: str = ""


KINDS = {
    "gemma: a line break behind the turn's end, which is not eos": Kind(dict(end=r"'<end>\n'"), True, "<end>"),
    "phi: eos behind the last turn": Kind(dict(end=r"'<end>\n'", tail="'<eos>'"), True, "<end>"),
    "chatml with its own eos": Kind(dict(end=r"'<end>\n'", eos_token="<end>"), True, "<end>"),
    "a template whose turns end in words": Kind(dict(end="'[over]'"), True, "<eos>", "[over]"),
    "llama 2: a blank before eos": Kind(dict(end="' <eos>'"), True, "<eos>", " "),
    "text, with a chat template beside": Kind(dict(end=r"'<end>\n'"), False, "<eos>"),
    "text, pad is eos": Kind(dict(pad_token="<eos>"), False, "<eos>"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request) -> Kind:
    return request.param


def records(kind: Kind, prompt: str, *answers: str) -> tuple:
    if not kind.is_chat:
        return prompt, list(answers)
    answers = [[{"role": "assistant", "content": answer}] for answer in answers]
    return [{"role": "user", "content": prompt}], answers


def by_hand(kind: Kind, tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of prompt and answer, written down from the template's text rather than by it."""
    end = kind.tokenizer.get("end", "'<end>'").strip("'").replace(r"\n", "\n")
    before = f"<turn>user\n{prompt}{end}<turn>assistant\n" if kind.is_chat else prompt
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, answer + kind.behind)]
    return ids[0], ids[1] + [tokenizer.convert_tokens_to_ids(kind.end)]


def score_at_last_token(model: LlamaForSequenceClassification, ids: list[int]) -> float:
    """An independent pass: one text, no padding, the head on the last hidden state."""
    with torch.no_grad():
        return model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]).item()


def test_training_teaches_the_token_that_generation_stops_at(kind):
    tokenizer = build_tokenizer(**kind.tokenizer)
    prompt, (answer,) = records(kind, "why ?", "good")
    before, ids = by_hand(kind, tokenizer, "why ?", "good")
    assert encode_completion(tokenizer, prompt, answer) == ids
    taught = tokenize_demonstrations(Dataset.from_list([{"prompt": prompt, "completion": answer}]), tokenizer, 99)[0]
    assert taught["input_ids"] == before + ids
    assert ids[-1] in stop_tokens(tokenizer)
    assert stop_tokens(tokenizer) == sorted({tokenizer.eos_token_id, turn_end(tokenizer) or tokenizer.eos_token_id})


def test_every_reader_of_a_score_reads_it_at_the_end_of_the_answer(kind, tmp_path):
    tokenizer = build_tokenizer(**kind.tokenizer)
    model = build_reward_model(tokenizer)
    prompt, answers = records(kind, "why ?", "good one", "bad")
    ids = [by_hand(kind, tokenizer, "why ?", answer) for answer in ("good one", "bad")]
    expected = torch.tensor([score_at_last_token(model, sum(pair, [])) for pair in ids])
    assert abs(expected[0] - expected[1]) > 0.01

    torch.testing.assert_close(torch.tensor(score_responses(model, tokenizer, [prompt] * 2, answers, 2)), expected)

    rankings = Dataset.from_list([{"prompt": prompt, "responses": answers, "scores": [1.0, 0.0]}])
    options = dict(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=128)
    trainer = KWiseRewardTrainer(
        model, KWiseRewardConfig(**options), train_dataset=rankings, processing_class=tokenizer
    )
    with torch.no_grad():
        batch = trainer.data_collator([trainer.train_dataset[0]])
        torch.testing.assert_close(trainer.score_answers(model.eval(), batch)[0], expected)

    # PPO samples the same tokens, and may end the answer with any of its stop tokens.
    sources = [ModelReward("model", 1.0, model), TextModelReward("text", 1.0, model, tokenizer, tokenizer)]
    for stop in stop_tokens(tokenizer):
        sampled = [answer[:-1] + [stop] for _, answer in ids]
        rollout = Rollout.from_answers([ids[0][0]] * 2, sampled, [stop], tokenizer.pad_token_id, torch.device("cpu"))
        if not kind.behind:
            scores = score_completions(sources, None, tokenizer, rollout, [{"prompt": prompt}] * 2, batch_size=2)
            torch.testing.assert_close(scores, torch.stack([expected, expected], dim=1))


def test_functions_get_answers_without_their_end_in_the_form_of_the_prompt(kind):
    tokenizer = build_tokenizer(**kind.tokenizer)
    prompt, (answer,) = records(kind, "why ?", "good")
    before, ids = by_hand(kind, tokenizer, "why ?", "good")
    ids = tokenizer("good", add_special_tokens=False)["input_ids"] + ids[-1:]
    rollout = Rollout.from_answers([before], [ids], ids[-1:], tokenizer.pad_token_id, torch.device("cpu"))
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [0.0]

    for form in ("record", "text"):
        source = FunctionReward("f", 1.0, reward, tokenizer, form)
        score_completions([source], None, tokenizer, rollout, [{"prompt": prompt}], batch_size=1)
    assert seen[1] == (["why ?"], ["good"])
    assert seen[0] == ([prompt], [answer])


class Letter(torch.nn.Module):
    """A head of a policy that says one letter, then the end."""

    def __init__(self, letter: int, end: int, size: int) -> None:
        super().__init__()
        self.letter, self.end, self.size = letter, end, size
        self.last: torch.Tensor | None = None

    def forward(self, states):
        tokens = torch.where(self.last[:, -states.shape[1] :] == self.letter, self.end, self.letter)
        return 99.0 * torch.nn.functional.one_hot(tokens, self.size)


@pytest.mark.parametrize(
    "kind",
    [KINDS[name] for name in ("gemma: a line break behind the turn's end, which is not eos", "text, pad is eos")],
    ids=["messages", "text"],
)
def test_the_judge_of_grpo_gets_what_the_reward_of_ppo_gets(kind, tmp_path):
    tokenizer = build_tokenizer(**kind.tokenizer)
    prompt, answer = records(kind, "why ?", "g")
    policy = build_policy(tokenizer)
    note_stop_tokens(policy, tokenizer)
    letter, end = (tokenizer.convert_tokens_to_ids(token) for token in ("g", kind.end))
    policy.lm_head = Letter(letter, end, len(tokenizer))
    policy.register_forward_pre_hook(
        lambda module, args, kwargs: setattr(policy.lm_head, "last", kwargs["input_ids"]), with_kwargs=True
    )
    seen = []

    def judge(prompts, completions, **columns):
        seen.append((prompts, completions, columns))
        raise InterruptedError

    recipe = runpy.run_path(str(RECIPES / "grpo.py"), run_name="not main")
    reward = recipe["reward_function"](judge, ["prompt", "topic"], tokenizer, stop_tokens(tokenizer))
    options = dict(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1)
    options |= dict(per_device_train_batch_size=2, num_generations=2, max_completion_length=4, save_strategy="no")
    trainer = GRPOTrainer(
        policy,
        reward,
        args=GRPOConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": prompt, "topic": "sky"}] * 2),
        processing_class=tokenizer,
    )
    with pytest.raises(InterruptedError):
        trainer.train()
    assert seen == [([prompt] * 2, answer * 2, {"topic": ["sky"] * 2})]


def test_columns_that_grpo_would_not_hand_to_the_judge_are_refused():
    check = runpy.run_path(str(RECIPES / "grpo.py"), run_name="not main")["check_columns_of_rewards"]
    check(["prompt", "topic"])
    for name in ("completions", "completion", "trainer_state"):
        with pytest.raises(ValueError, match=f"column '{name}'.*rename"):
            check(["prompt", name])


def test_sampling_stops_at_the_end_of_the_turn_and_at_those_of_the_generation_config():
    tokenizer = build_tokenizer(end=r"'<end>\n'")
    end, other = tokenizer.convert_tokens_to_ids("<end>"), tokenizer.convert_tokens_to_ids("<bos>")
    chat = [{"role": "user", "content": "why ?"}]
    for stop, configured in ((end, None), (other, [other, tokenizer.eos_token_id])):
        policy = build_policy(tokenizer)
        policy.generation_config.eos_token_id = configured
        with torch.no_grad():
            # Whatever stands before, the stop token is the likeliest.
            policy.lm_head.weight.zero_()
            policy.lm_head.register_forward_hook(
                lambda *args, stop=stop: args[2].index_fill(-1, torch.tensor([stop]), 9.0)
            )
        config = SamplingConfig(max_new_tokens=4, temperature=0)
        ((answer,),) = sample_answers(policy, tokenizer, [chat], 1, config, batch_size=1, seed=0)
        assert (answer.text, answer.finished) == ("", True)


def test_a_saved_model_names_all_its_ends():
    tokenizer = build_tokenizer(end=r"'<end>\n'")
    policy = build_policy(tokenizer)
    note_stop_tokens(policy, tokenizer)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<eos>", "<end>")]
    assert policy.generation_config.eos_token_id == ends
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    note_stop_tokens(policy, build_tokenizer(end="'[over]'"))
    assert policy.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_snippet_on_the_model_card_gives_the_score_of_training(kind, tmp_path):
    tokenizer = build_tokenizer(**kind.tokenizer)
    build_reward_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    folder = ModelFolder.open(tmp_path)
    card = model_card(folder, CardFacts("me/reward", "reward", None, None, has_custom_code=False))
    names: dict = {}
    exec(card.split("```python\n")[1].partition("```")[0].replace("me/reward", str(tmp_path)), names)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    expected = score_at_last_token(model, sum(by_hand(kind, tokenizer, "prompt", "answer"), []))
    if not kind.is_chat:
        assert names["score"] == pytest.approx(expected)
    elif not kind.behind:
        assert names["chat_score"] == pytest.approx(expected)
