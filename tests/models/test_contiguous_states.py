"""The head's rows while a model generates."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pangu_trl.models.modes import contiguous_states


@pytest.mark.parametrize("has_adapter", [False, True])
def test_the_head_gets_states_in_one_piece_and_the_same_logits(has_adapter):
    torch.manual_seed(0)
    size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **size)).eval()
    if has_adapter:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    head = (model.get_base_model() if has_adapter else model).get_output_embeddings()
    pieces = []
    prompts = torch.randint(3, 40, (4, 6))
    with torch.no_grad():
        expected = model(input_ids=prompts, logits_to_keep=1).logits
        with contiguous_states(model):
            watch = head.register_forward_pre_hook(lambda _, states: pieces.append(states[0].is_contiguous()))
            found = model(input_ids=prompts, logits_to_keep=1).logits
            watch.remove()
        head.register_forward_pre_hook(lambda _, states: pieces.append(states[0].is_contiguous()))
        model(input_ids=prompts, logits_to_keep=1)
    # Behind the context they lie apart again, as the model cuts them.
    assert pieces == [True, False]
    torch.testing.assert_close(found, expected)
