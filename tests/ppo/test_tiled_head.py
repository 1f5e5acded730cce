"""Log-probabilities tile by tile are those of the whole logits, in less memory, or are not allowed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
)

from pangu_trl import GPTPanguConfig
from pangu_trl.models.padding_free import make_padding_free
from pangu_trl.models.vocabulary import known_ids
from pangu_trl.ppo.actor_critic import tiled_head
from pangu_trl.ppo.actor_critic.token_logprobs import completion_logprobs

SMALL = dict(vocab_size=90, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
ANSWERS = torch.tensor([[True, True, True, True], [False, True, True, True]])
CONFIGS = {
    "tied": GPTPanguConfig(vocab_size=90, hidden_size=16, num_layers=2, num_heads=2, initializer_range=0.3),
    "untied": LlamaConfig(**SMALL, initializer_range=0.3),
    "bias": PhiConfig(**SMALL, initializer_range=0.3),
    "scaled": CohereConfig(**SMALL, logit_scale=0.3, initializer_range=0.3),
    "softcap": Gemma3TextConfig(
        **SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.3
    ),
}


def input_ids() -> torch.Tensor:
    return torch.randint(10, 80, MASK.shape, generator=torch.Generator().manual_seed(0))


def make(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model.eval()


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    return completion_logprobs(model, input_ids(), MASK, ANSWERS, 0.7)[0][ANSWERS]


def prepare(model: torch.nn.Module) -> None:
    make_padding_free(model, 6, lambda: logprobs(model))
    tiled_head.allow_tiles(model, lambda: logprobs(model))


def figures_and_gradients(model: torch.nn.Module) -> tuple:
    found, entropy = completion_logprobs(model, input_ids(), MASK, ANSWERS, 0.7)
    model.zero_grad()
    (found[ANSWERS] * torch.linspace(-1, 1.5, 7)).sum().backward()
    return found, entropy, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_known", [None, 85], ids=["all ids", "some ids"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_tiles_give_the_figures_and_gradients_of_whole_logits(kind, num_known, monkeypatch):
    monkeypatch.setattr(tiled_head, "TILE", 32)
    expected_model, model = make(CONFIGS[kind]), make(CONFIGS[kind])
    for each in (expected_model, model):
        each.num_known_ids = num_known
        assert known_ids(each) == num_known
    prepare(model)
    assert model.most_logits == tiled_head.MOST_LOGITS
    model.most_logits = 0
    found, entropy, gradients = figures_and_gradients(model)
    expected, expected_entropy, expected_gradients = figures_and_gradients(expected_model)
    torch.testing.assert_close(found[ANSWERS], expected[ANSWERS], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy[ANSWERS], expected_entropy[ANSWERS], atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * largest, name


def test_few_logits_are_computed_whole_and_many_are_not():
    model = make(CONFIGS["untied"])
    assert not tiled_head.needs_tiles(model, 10**9)
    prepare(model)
    most = tiled_head.MOST_LOGITS // 90
    assert not tiled_head.needs_tiles(model, most) and tiled_head.needs_tiles(model, most + 1)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that a body makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_neither_the_logits_nor_their_gradient_are_ever_in_memory(monkeypatch):
    monkeypatch.setattr(tiled_head, "TILE", 8)
    model = make(LlamaConfig(**SMALL | dict(vocab_size=300, hidden_size=4, intermediate_size=4)))
    prepare(model)
    model.most_logits = 0
    with Largest() as largest:
        figures_and_gradients(model)
    # The largest are the embeddings of 300 x 4, and the logits of 7 answer tokens would be 2,100.
    assert largest.numel == 1200


def lora_on_the_head():
    return get_peft_model(make(CONFIGS["untied"]), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))


@pytest.mark.parametrize(
    "make_model",
    [lora_on_the_head, lambda: make(GraniteConfig(**SMALL, logits_scaling=3.0, initializer_range=0.3))],
    ids=["LoRA on the head", "logits divided by the model"],
)
def test_heads_that_do_more_are_computed_whole(make_model):
    model = make_model()
    expected = logprobs(model)
    prepare(model)
    assert not tiled_head.needs_tiles(model, 10**9)
    torch.testing.assert_close(logprobs(model), expected, atol=1e-5, rtol=1e-5)
