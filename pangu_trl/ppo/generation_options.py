"""Options of answers and of what samples them."""

from dataclasses import dataclass, field

ENGINES = ("auto", "generate", "continuous", "vllm")
# Options that only a vLLM server has a use for.
OF_VLLM = ("vllm_server_base_url", "vllm_server_timeout", "vllm_group_port")


@dataclass
class GenerationOptions:
    """What an answer is and how it is sampled: a part of PPOConfig."""

    # Answers.
    max_prompt_length: int = field(
        default=512, metadata={"help": "Longest prompt in tokens. A longer one is an error, it is never cut."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest answer in tokens, eos included."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; log-probabilities use it too."})
    top_p: float = field(default=1.0, metadata={"help": "Probability mass to sample from; 1 keeps all tokens."})
    top_k: int = field(default=0, metadata={"help": "Number of likeliest tokens to sample from; 0 keeps all."})
    num_generations: int | None = field(
        default=None,
        metadata={
            "help": "Answers to each prompt of a rollout. Default: 1; with grpo and rloo 8, or 4 or 2 where the "
            "rollout's answers are no multiple of that."
        },
    )

    # How they are sampled.
    rollout_engine: str = field(
        default="auto",
        metadata={
            "help": "What samples the answers. generate: transformers' `generate`, which carries every answer of a "
            "batch on until the longest has ended. continuous: our own loop, which answers leave as they end. vllm: a "
            "vLLM server, which gets the policy's weights before each rollout; docs/ppo.md says how to start one (not "
            "run against a real one yet: no GPU at hand). auto: continuous where it can be, otherwise generate.",
            "choices": list(ENGINES),
        },
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Prompts answered at a time on each device. Larger is faster and needs memory for the key-value "
            "cache. Default: per_device_train_batch_size."
        },
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Under ZeRO-3, gather the policy's weights once per rollout. False gathers them layer by layer for "
            "every token: for policies that do not fit into one device."
        },
    )
    merge_lora_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Add the policy's LoRA to the base weights while answers are sampled, and put the same bits back. "
            "Faster; needs memory for a copy of the weights that it changes."
        },
    )
    vllm_server_base_url: str = field(
        default="http://localhost:8000", metadata={"help": "Where the vLLM server listens."}
    )
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds to wait at the start for the vLLM server to be up."}
    )
    vllm_group_port: int = field(
        default=51216, metadata={"help": "Port on this machine through which the weights go to the vLLM server."}
    )
