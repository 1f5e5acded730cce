"""Tokenizers whose answers end with other tokens, built in memory, and tiny models for them."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

TURNS = "{% for m in messages %}{{ START ~ m['role'] ~ '\n' ~ m['content'] ~ END }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}{{ START ~ 'assistant\n' }}{% endif %}"
SPECIAL = ["<pad>", "<bos>", "<eos>", "<turn>", "<end>"]


def build_tokenizer(start: str = "<turn>", end: str = "'<end>'", tail: str = "", **settings) -> PreTrainedTokenizerFast:
    """One token per byte and five special ones. `end` and `tail` are what its chat template writes behind a turn and a
    conversation, as Jinja expressions."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    roles = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles | settings)
    # As many chat tokenizers have it: a token of its own in every text, but none that decoding leaves out.
    tokenizer.add_tokens(["<turn>", "<end>"], special_tokens=False)
    template = TURNS.replace("START", repr(start)).replace("END", end) + OPENING.replace("START", repr(start))
    tokenizer.chat_template = template + (
        f"{{% if not add_generation_prompt %}}{{{{ {tail} }}}}{{% endif %}}" if tail else ""
    )
    return tokenizer


def llama_config(tokenizer: PreTrainedTokenizerFast, **settings) -> LlamaConfig:
    return LlamaConfig(
        **dict(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        | settings
    )


def build_policy(tokenizer: PreTrainedTokenizerFast, **settings) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(llama_config(tokenizer, **settings)).eval()


def build_reward_model(tokenizer: PreTrainedTokenizerFast, **settings) -> LlamaForSequenceClassification:
    torch.manual_seed(2)
    model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=1, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model
