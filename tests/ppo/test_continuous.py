"""Sampling in a running batch: the answers, and their chances, are those of the model alone."""

import copy
import itertools

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from pangu_trl.ppo.generation import continuous
from pangu_trl.ppo.generation.continuous import RunningBatch, sample

VOCABULARY, PAD = 40, 6
SMALL = dict(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
STOPS = list(range(0, 250, 5))
MODELS = {
    "gptpangu": None,
    "llama, grouped heads": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL | {"num_attention_heads": 4}, num_key_value_heads=2)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2)),
    # Takes no positions.
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)),
    "mistral, window of 4": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4)),
    "gemma2, every other layer": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4)
    ),
}


@pytest.fixture(params=MODELS)
def model(request, policy):
    torch.manual_seed(0)
    made = copy.deepcopy(policy) if MODELS[request.param] is None else MODELS[request.param]()
    return with_larger_weights(made, 0.2)


def with_larger_weights(model, std: float):
    """Where a token stands, and what stood before, then matters more than rounding does."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def sampling(**options) -> GenerationConfig:
    defaults = dict(
        max_new_tokens=9, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=STOPS, pad_token_id=PAD
    )
    return GenerationConfig(**defaults | options)


def ragged_prompts(copies: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = (3, 11, 1, 7, 12, 5, 2)
    ids = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [prompt for prompt in ids for _ in range(copies)]


def run(model, prompts, config, num_rows) -> RunningBatch:
    with torch.no_grad():
        batch = RunningBatch(model, prompts, config, num_rows)
        batch.run()
    return batch


def alone(model, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    """Log-probabilities of an answer, from one pass over it without padding and cache."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(dim=-1).gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)


def greedy(model, prompt: list[int], count: int) -> list[int]:
    """The best tokens one after the other, without cache or padding, up to a stop token."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in STOPS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("num_rows", [1, 3, 50])
def test_greedy_answers_are_those_of_the_model_alone(model, num_rows):
    prompts = ragged_prompts()
    with_larger_weights(model, 0.5)
    batch = run(model, prompts, sampling(top_k=1), num_rows)
    expected = [greedy(model, prompt, 9) for prompt in prompts]
    assert len(set(map(len, expected))) > 1, "answers of one length test nothing"
    assert batch.answers == expected


@pytest.mark.parametrize(("copies", "num_rows"), [(1, 3), (4, 6), (4, 50)])
def test_log_probabilities_are_those_of_the_model_alone(model, copies, num_rows):
    torch.manual_seed(1)
    prompts = ragged_prompts(copies)
    batch = run(model, prompts, sampling(temperature=1.3, top_p=0.95, top_k=30), num_rows)
    for prompt, answer, logprobs in zip(prompts, batch.answers, batch.logprobs, strict=True):
        assert answer[-1] in STOPS or len(answer) == 9
        assert not set(answer[:-1]) & set(STOPS)
        torch.testing.assert_close(torch.tensor(logprobs), alone(model, prompt, answer, 1.3), atol=1e-5, rtol=1e-5)


def test_a_prompt_is_encoded_once_however_its_answers_are_spread(policy, monkeypatch):
    read = []
    monkeypatch.setattr(
        RunningBatch,
        "_read",
        lambda self, prompts, plain=RunningBatch._read: read.extend(prompts) or plain(self, prompts),
    )
    prompts = ragged_prompts()
    # Not all answers to a prompt find a place at once, and not all equal prompts stand together.
    run(policy.eval(), prompts * 5, sampling(), 3)
    assert sorted(read) == sorted(prompts)


def test_nothing_is_computed_behind_the_end_of_an_answer_and_places_do_not_stay_empty(policy):
    widths = []
    policy.eval().register_forward_pre_hook(
        lambda _, __, arguments: widths.append(tuple(arguments["input_ids"].shape)), with_kwargs=True
    )
    batch = run(policy, [[1, 2, 3]] * 40, sampling(eos_token_id=list(range(0, 250, 9))), 8)
    steps = [rows for rows, tokens in widths[1:]]
    assert widths[0] == (1, 3)
    # Every token but the last of each answer is fed once.
    assert sum(steps) == sum(len(answer) - 1 for answer in batch.answers)
    # As long as answers wait, a free place is taken before the next token.
    assert steps[: len(steps) // 2] == [8] * (len(steps) // 2)


def test_rows_that_move_to_the_front_keep_their_tokens(policy, monkeypatch):
    """Prompts that wait long make the columns run out, so that the window slides."""
    slid = []
    plain = continuous.RunningCache.make_room

    def watched(cache) -> None:
        slid.append(cache.window.stop == cache.num_columns)
        plain(cache)

    monkeypatch.setattr(continuous.RunningCache, "make_room", watched)
    prompts = ragged_prompts(copies=12)
    batch = run(with_larger_weights(policy, 0.2), prompts, sampling(), 4)
    assert any(slid)
    for prompt, answer, logprobs in zip(prompts, batch.answers, batch.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), alone(policy, prompt, answer, 1.0), atol=1e-5, rtol=1e-5)


def test_answers_come_as_often_as_the_model_says(policy):
    """Chi-square of whole answers to two prompts against their exact probabilities, answers that join among them."""
    torch.manual_seed(2)
    with_larger_weights(policy, 0.12)
    copies, prompts, few = 1500, [[11, 12, 13], [14]], 4
    # Four tokens can be sampled, of which one ends: 1 + 3 + 3 * 3 * 4 answers of up to three tokens.
    counts = {}
    monkey = pytest.MonkeyPatch()
    monkey.setattr(continuous, "known_ids", lambda model: few)
    config = sampling(max_new_tokens=3, eos_token_id=[0])
    batch = run(policy, prompts * copies, config, 64)
    monkey.undo()
    for place, answer in enumerate(batch.answers):
        key = (place % 2, tuple(answer))
        counts[key] = counts.get(key, 0) + 1
    for place, prompt in enumerate(prompts):
        possible = [
            answer
            for length in (1, 2, 3)
            for answer in itertools.product(range(few), repeat=length)
            if 0 not in answer[:-1] and (answer[-1] == 0 or length == 3)
        ]
        assert len(possible) == 1 + 3 + 36
        expected = [copies * exact(policy, prompt, answer, few) for answer in possible]
        assert sum(expected) == pytest.approx(copies)
        # Rare answers share a class.
        classes = [(counts.get((place, answer), 0), mean) for answer, mean in zip(possible, expected, strict=True)]
        common = [pair for pair in classes if pair[1] >= 5]
        rare = [pair for pair in classes if pair[1] < 5]
        common += [tuple(map(sum, zip(*rare, strict=True)))] if rare else []
        statistic = sum((found - mean) ** 2 / mean for found, mean in common if mean > 0)
        degrees = len(common) - 1
        # Mean and standard deviation of chi-square are its degrees of freedom and sqrt(2 * these).
        assert degrees > 8 and statistic < degrees + 4 * (2 * degrees) ** 0.5


def exact(model, prompt: list[int], answer: tuple[int, ...], few: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1, :few]
    return logits.double().softmax(dim=-1)[range(len(answer)), list(answer)].prod().item()


def test_tokens_are_drawn_by_their_probabilities_and_never_where_these_are_zero(monkeypatch):
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(6, 1)
    uniform = torch.tensor([0.0, 0.1, 0.249, 0.25, 0.9, 1.0], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: uniform.view(shape).clone())
    assert sample(probabilities).tolist() == [1, 1, 1, 3, 3, 3]
