"""`generate` in all its modes, every cache, and the end of the position tables."""

import copy
from functools import partial

import pytest
import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, StaticCache

import pangu_trl

GREEDY = dict(max_new_tokens=10, do_sample=False, eos_token_id=None)


@pytest.fixture
def prompts() -> dict[str, torch.Tensor]:
    """Rows of 8, 5 and 1 real tokens, left-padded."""
    ids = torch.randint(10, 1024, (3, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[0] * pads + [1] * (8 - pads) for pads in (0, 3, 7)])
    return dict(input_ids=ids.masked_fill(mask == 0, 6), attention_mask=mask)


@torch.no_grad()
def greedy_by_hand(model, prompt: list[int], length: int = 10) -> list[int]:
    """One row, no padding, no cache, no `generate`."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def real_prompts(prompts) -> list[list[int]]:
    return [row[mask == 1].tolist() for row, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_of_a_padded_batch_equals_single_rows_with_every_cache(load_golden, prompts, attention, options):
    model, _ = load_golden("tiny_gptpangu", attention)
    output = model.generate(**prompts, **GREEDY, **options)[:, 8:]
    assert output.tolist() == [greedy_by_hand(model, row) for row in real_prompts(prompts)]


def test_generation_from_embeddings_equals_generation_from_tokens(model, prompts):
    embeddings = model.get_input_embeddings()(prompts["input_ids"])
    output = model.generate(inputs_embeds=embeddings, attention_mask=prompts["attention_mask"], **GREEDY)
    assert output.tolist() == [greedy_by_hand(model, row) for row in real_prompts(prompts)]


@torch.no_grad()
def test_sampling_draws_from_the_distributions_of_the_model(model, prompts):
    torch.manual_seed(5)
    output = model.generate(**prompts, max_new_tokens=10, do_sample=True, top_k=0, temperature=4.0, eos_token_id=None)
    torch.manual_seed(5)
    rows = real_prompts(prompts)
    for _ in range(10):
        logits = torch.cat([model(torch.tensor([row]), use_cache=False).logits[:, -1] for row in rows])
        drawn = torch.multinomial((logits / 4.0).softmax(-1), 1).squeeze(1).tolist()
        rows = [row + [token] for row, token in zip(rows, drawn, strict=True)]
    assert output[:, 8:].tolist() == [row[-10:] for row in rows]


@torch.no_grad()
def beam_search_by_hand(model, prompt: list[int], num_beams: int, length: int) -> list[int]:
    beams = [(0.0, list(prompt))]
    for _ in range(length):
        extended = []
        for score, tokens in beams:
            logprobs = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1)
            best = logprobs.topk(num_beams)
            extended += [
                (score + logprob, [*tokens, token])
                for logprob, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        beams = sorted(extended, reverse=True)[:num_beams]
    return beams[0][1][len(prompt) :]


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_beam_search_of_a_padded_batch_finds_the_beams_of_single_rows(model, prompts, options):
    output = model.generate(**prompts, num_beams=3, max_new_tokens=5, do_sample=False, eos_token_id=None, **options)
    expected = [beam_search_by_hand(model, row, 3, 5) for row in real_prompts(prompts)]
    assert output[:, 8:].tolist() == expected
    assert expected != [greedy_by_hand(model, row, 5) for row in real_prompts(prompts)]


def test_assisted_generation_equals_greedy(model):
    prompt = torch.tensor([[240, 812, 818, 475, 667]])
    expected = greedy_by_hand(model, prompt[0].tolist())
    config = copy.deepcopy(model.config)
    config.num_layers = 1
    torch.manual_seed(0)
    stranger = pangu_trl.GPTPanguForCausalLM(config).eval()
    for assistant in (stranger, copy.deepcopy(model)):
        output = model.generate(prompt, assistant_model=assistant, **GREEDY)
        assert output[0, 5:].tolist() == expected


def test_prompt_lookup_equals_greedy(model):
    prompt = torch.tensor([[240, 812, 331, 202, 475, 667, 331, 202]])
    output = model.generate(prompt, prompt_lookup_num_tokens=3, **GREEDY)
    assert output[0, 8:].tolist() == greedy_by_hand(model, prompt[0].tolist())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_continuous_batching_equals_greedy(load_golden, prompts, attention):
    model, _ = load_golden("tiny_gptpangu", attention)
    rows = real_prompts(prompts)
    outputs = model.generate_batch(
        rows,
        generation_config=GenerationConfig(**GREEDY | {"eos_token_id": -1}),
        # Without limits the cache takes most of the free memory.
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
    )
    found = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
    assert found == {tuple(row): greedy_by_hand(model, row) for row in rows}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "make_cache", [DynamicCache, partial(StaticCache, max_cache_len=12)], ids=["dynamic", "static"]
)
@torch.no_grad()
def test_a_padded_batch_fed_in_pieces_equals_one_pass_without_given_positions(
    load_golden, prompts, attention, make_cache
):
    model, _ = load_golden("tiny_gptpangu", attention)
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    whole = model(**prompts).logits
    cache, pieces = make_cache(config=model.config), []
    for start, end in ((0, 4), (4, 7), (7, 8)):
        piece = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        assert piece.past_key_values is cache
        pieces.append(piece.logits)
    real = mask == 1
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], whole[real], atol=5e-5, rtol=1e-5)


def test_generation_stops_with_a_value_error_at_the_end_of_the_position_tables(load_golden):
    model, _ = load_golden("tiny_gptpangu_tied")
    prompt = torch.randint(10, 160, (1, 28))
    # 28 + 5 tokens: the last one is sampled, never fed, so that 32 positions suffice.
    assert model.generate(prompt, **GREEDY | {"max_new_tokens": 5}).shape == (1, 33)
    with pytest.raises(ValueError, match=r"position 32 does not exist.*max_position_embeddings=32"):
        model.generate(prompt, **GREEDY | {"max_new_tokens": 6})


@torch.no_grad()
def test_positions_outside_the_tables_are_a_value_error(load_golden):
    model, _ = load_golden("tiny_gptpangu_tied")
    with pytest.raises(ValueError, match=r"position 32 does not exist.*positions 0 to 31"):
        model(torch.full((1, 33), 10))
    with pytest.raises(ValueError, match="position 32 does not exist"):
        model(torch.full((1, 2), 10), position_ids=torch.tensor([[31, 32]]))
    with pytest.raises(ValueError, match="position -1 does not exist"):
        model(torch.full((1, 2), 10), position_ids=torch.tensor([[-1, 0]]))
    cache = model(torch.full((1, 32), 10), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="position 32 does not exist"):
        model(torch.full((1, 1), 10), past_key_values=cache)


@torch.no_grad()
def test_a_batch_wider_than_the_tables_is_fine_while_its_rows_are_not(load_golden):
    model, _ = load_golden("tiny_gptpangu_tied")
    ids = torch.full((1, 40), 10)
    mask = (torch.arange(40) >= 20).long().unsqueeze(0)
    logits = model(ids, attention_mask=mask).logits[:, 20:]
    torch.testing.assert_close(logits, model(ids[:, 20:]).logits, atol=5e-5, rtol=1e-5)


class _NoReading(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a tensor's value is read by the host, which stalls an accelerator."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default), function
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_derived_positions_are_checked_without_reading_a_tensor(model):
    """On an accelerator the same holds for the given positions of single steps, which cannot be run here."""
    ids = torch.full((2, 4), 10)
    with _NoReading():
        cache = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=cache)
