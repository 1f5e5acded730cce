"""Options of the PPO trainer."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class PPOConfig(TrainingArguments):
    """Options of PPOTrainer, on top of those of transformers' TrainingArguments.

    A rollout is `num_rollout_batches` batches of `per_device_train_batch_size` prompts on every rank. It is learnt
    from in `num_ppo_epochs` passes of mini-batches of `per_device_train_batch_size` answers; every
    `gradient_accumulation_steps` mini-batches make one optimiser step. `max_steps` and `num_train_epochs` therefore
    count optimiser steps and passes over the prompts.

    Raises:
        ValueError: An option has a value that it cannot have; the message says which.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate of the policy."})
    critic_learning_rate: float = field(
        default=5e-6, metadata={"help": "Initial learning rate of the value model; the schedule is the policy's."}
    )
    logging_steps: float = field(
        default=10,
        metadata={"help": "Log every X optimiser steps; smaller than 1, a share of all steps."},
    )

    max_prompt_length: int = field(
        default=512, metadata={"help": "Longest prompt in tokens. A longer one is an error, it is never cut."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest answer in tokens, eos included."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; log-probabilities use it too."})
    top_p: float = field(default=1.0, metadata={"help": "Probability mass to sample from; 1 keeps all tokens."})
    top_k: int = field(default=0, metadata={"help": "Number of likeliest tokens to sample from; 0 keeps all."})
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

    num_rollout_batches: int = field(default=1, metadata={"help": "Batches of prompts answered before learning."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty in the reward."})
    kl_estimator: str = field(
        default="k1",
        metadata={"help": "Estimator of the per-token KL divergence.", "choices": ["k1", "k2", "k3"]},
    )
    adaptive_kl_target: float | None = field(
        default=None,
        metadata={
            "help": "Adapts kl_coef so that the mean KL divergence per answer (nats, summed over its tokens) stays "
            "near this value; kl_coef is then where it starts. Default: kl_coef is fixed."
        },
    )
    kl_horizon: int = field(
        default=10000, metadata={"help": "Answers after which the adaptive kl_coef has changed by about its error."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value loss."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss in the total loss."})
    reward_clip: float | None = field(default=5.0, metadata={"help": "Scores are clipped to +- this value."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the clipped score of an answer that did not end with eos."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Normalise the advantages of a rollout, over all ranks, to mean 0 and std 1."}
    )
    log_completions: bool = field(default=False, metadata={"help": "Print a few answers of every logged rollout."})

    def __post_init__(self) -> None:
        # The prompts' own columns feed reward functions, and NaN losses must be seen rather than filtered.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        if self.ddp_find_unused_parameters is None:
            # Every trainable tensor of policy and critic takes part in every loss.
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        for name in ("max_prompt_length", "max_completion_length", "num_rollout_batches", "num_ppo_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"PPOConfig: {name} must be 1 or more; got {getattr(self, name)}.")
        for name in ("temperature", "cliprange", "cliprange_value"):
            if getattr(self, name) <= 0:
                raise ValueError(f"PPOConfig: {name} must be greater than 0; got {getattr(self, name)}.")
        for name in ("gamma", "lam", "top_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"PPOConfig: {name} must be between 0 and 1; got {getattr(self, name)}.")
        if self.kl_estimator not in ("k1", "k2", "k3"):
            raise ValueError(f"PPOConfig: kl_estimator must be one of k1, k2, k3; got {self.kl_estimator!r}.")
        if self.num_rollout_batches % self.gradient_accumulation_steps != 0:
            raise ValueError(
                "PPOConfig: num_rollout_batches must be a multiple of gradient_accumulation_steps, so that every pass "
                f"over a rollout is a whole number of optimiser steps; got num_rollout_batches="
                f"{self.num_rollout_batches}, gradient_accumulation_steps={self.gradient_accumulation_steps}."
            )

    @property
    def rollout_batch_size(self) -> int:
        """Prompts of one rollout on each device."""
        return self.per_device_train_batch_size * self.num_rollout_batches

    @property
    def mini_batches_per_rollout(self) -> int:
        """Mini-batches that are learnt from one rollout on each device, over all passes."""
        return self.num_rollout_batches * self.num_ppo_epochs
