"""Options of answers and of what samples them."""

from dataclasses import dataclass, field

ENGINES = ("auto", "generate", "continuous", "vllm")
# Options that vLLM alone has a use for, by the mode that they belong to.
OF_VLLM = {
    "server": ("vllm_server_base_url", "vllm_server_timeout", "vllm_group_port"),
    "colocate": (
        "vllm_gpu_memory_utilization",
        "vllm_tensor_parallel_size",
        "vllm_enable_sleep_mode",
        "vllm_model_impl",
        "vllm_trust_remote_code",
    ),
}


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
            "batch on until the longest has ended. continuous: our own loop, which answers leave as they end. vllm: "
            "vLLM, which gets the policy's weights before each rollout; docs/ppo.md says how (not run with a real one "
            "yet: no GPU at hand). auto: continuous where it can be, otherwise generate.",
            "choices": list(ENGINES),
        },
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Prompts answered at a time on each device. Larger is faster and needs memory for the key-value "
            "cache. Default: per_device_train_batch_size; of a colocated vLLM, its own."
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
    vllm_mode: str = field(
        default="server",
        metadata={
            "help": "server: a vLLM server with GPUs of its own. colocate: a vLLM in each process of the training, on "
            "its GPU.",
            "choices": ["server", "colocate"],
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
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of a GPU's memory that a colocated vLLM takes."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "Processes that share one colocated vLLM, each with a part of every weight."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False,
        metadata={
            "help": "A colocated vLLM gives its memory back between rollouts, and gets the weights before each anew."
        },
    )
    vllm_model_impl: str = field(
        default="vllm",
        metadata={
            "help": "Whose code of the model a colocated vLLM runs: vLLM's own, or that of transformers. GPTPangu "
            "needs transformers, and vllm_trust_remote_code.",
            "choices": ["vllm", "transformers"],
        },
    )
    vllm_trust_remote_code: bool = field(
        default=False, metadata={"help": "Lets a colocated vLLM run the code that the model's folder brings."}
    )
