"""Options of the PPO trainer."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from pangu_trl.runs.judge_form import FORM_HELP, FORMS
from pangu_trl.runs.ranges import check_numbers

from .estimator_options import resolve_estimator
from .generation_options import GenerationOptions
from .losses import AGGREGATIONS, IMPORTANCE_MODES
from .option_checks import check_options
from .trl_options import apply_episodes, translate_trl_options


@dataclass
class PPOConfig(GenerationOptions, TrainingArguments):
    """Options of PPOTrainer, on top of those of transformers' TrainingArguments.

    A rollout is `num_rollout_batches` batches of `per_device_train_batch_size` answers on every rank. It is learnt
    from in `num_ppo_epochs` passes of mini-batches of `per_device_train_batch_size` answers; every
    `gradient_accumulation_steps` mini-batches make one optimiser step. `max_steps` and `num_train_epochs` therefore
    count optimiser steps and passes over the prompts.

    Raises:
        ValueError: An option has a value that it cannot have; the message says which.
    """

    # Optimisation: the policy's options are those of TrainingArguments, the critic has its own.
    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate of the policy."})
    critic_learning_rate: float = field(
        default=5e-6, metadata={"help": "Initial learning rate of the value model; the schedule is the policy's."}
    )
    critic_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the critic. Default: weight_decay."}
    )
    critic_warmup_steps: int = field(
        default=0, metadata={"help": "Optimiser steps at the start in which only the critic learns."}
    )
    critic_warmup_lam: float | None = field(
        default=None,
        metadata={
            "help": "Lambda of the critic's targets in these steps, without the clip of the value loss: critic "
            "pretraining on the start policy's rollouts (VC-PPO, arXiv:2503.01491, where it is 1, the whole return). "
            "Default: as afterwards."
        },
    )

    # Models.
    share_backbone: str = field(
        default="none",
        metadata={
            "help": "none: the critic and the reward model are models of their own. value: the critic is a head on the "
            "policy's own backbone. all: policy, critic and reward model are adapters of one base model, and "
            "reward_model is the folder of a LoRA adapter of that base.",
            "choices": ["none", "value", "all"],
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keeps an exponential moving average of the policy's trainable weights with this decay, and saves "
            "it as a model in `ema` beside the policy. Default: none is kept."
        },
    )
    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Score and learn from the real tokens of a batch alone, one sequence behind another without "
            "padding. Default: every model for which a trial gives the same figures. true: an error where one cannot."
        },
    )

    # Rollouts, and passes over them.
    num_rollout_batches: int = field(default=1, metadata={"help": "Batches of prompts answered before learning."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "Once policy/approx_kl of an optimiser step is above this (nats per token), the remaining steps of "
            "the passes over the rollout learn nothing. They still count as steps. Default: never."
        },
    )

    # Divergence from the reference.
    kl_coef: float = field(
        default=0.05,
        metadata={
            "help": "Weight of the KL penalty in the reward. 0: none, and no reference is asked or kept but for an "
            "evaluation."
        },
    )
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

    # Rewards.
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward where there are several. Default: 1 for all."}
    )
    reward_combination: str = field(
        default="sum",
        metadata={
            "help": "Of several rewards: their weighted sum; or, of an ensemble, the minimum, or mean_minus_std, the "
            "mean minus reward_std_coef standard deviations (arXiv:2310.02743).",
            "choices": ["sum", "minimum", "mean_minus_std"],
        },
    )
    reward_std_coef: float = field(
        default=1.0, metadata={"help": "Standard deviations of an ensemble to subtract from its mean."}
    )
    judge_form: str = field(
        default="record",
        metadata={"help": f"For Python rewards and judges: {FORM_HELP}.", "choices": list(FORMS)},
    )
    reward_scaling: str = field(
        default="none",
        metadata={
            "help": "none; running: scores are divided by the standard deviation of all scores so far; stored: "
            "reward_mean is subtracted and the rest divided by reward_std, both from the reward model's config.json. "
            "Before reward_clip.",
            "choices": ["none", "running", "stored"],
        },
    )
    reward_clip: float | None = field(default=5.0, metadata={"help": "Scores are clipped to +- this value."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the clipped score of an answer that did not end with eos."}
    )
    min_completion_length: int = field(
        default=0, metadata={"help": "Answers with fewer tokens (eos included) get short_completion_penalty."}
    )
    short_completion_penalty: float = field(
        default=1.0, metadata={"help": "Subtracted from the clipped score of an answer below min_completion_length."}
    )
    overlong_buffer_length: int = field(
        default=0,
        metadata={
            "help": "Last tokens before max_completion_length in which an answer loses a share of overlong_penalty for "
            "each: soft overlong punishment of DAPO (arXiv:2503.14476, eq. 13). 0: none."
        },
    )
    overlong_penalty: float = field(
        default=1.0,
        metadata={"help": "Subtracted from the clipped score of an answer of max_completion_length tokens."},
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={"help": "Learn nothing, policy nor critic, from answers that did not end by themselves."},
    )
    whiten_rewards: bool = field(
        default=False,
        metadata={"help": "Scale the per-token rewards of a rollout, over all ranks, to std 1; the mean stays."},
    )

    # Advantages and losses.
    advantage_estimator: str = field(
        default="gae",
        metadata={
            "help": "gae: generalised advantage estimation with a critic (PPO). The others have no critic, none is "
            "built or saved, and its options are put back to their defaults with a warning. grpo: an answer's return "
            "minus the mean of its group, the num_generations answers to a prompt. rloo: minus the mean of the others "
            "of its group. reinforce_plus_plus: the return from each token on, normalised over all answers. The KL "
            "penalty is part of the reward in all.",
            "choices": ["gae", "grpo", "rloo", "reinforce_plus_plus"],
        },
    )
    scale_rewards: str = field(
        default="group",
        metadata={
            "help": "With grpo: divide by the standard deviation of the group, of the batch (all ranks), or by none.",
            "choices": ["group", "batch", "none"],
        },
    )
    dynamic_sampling_rounds: int = field(
        default=0,
        metadata={
            "help": "With grpo and rloo: most times that a group whose scores are all equal is drawn anew. 0: never."
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    critic_lam: float | None = field(
        default=None,
        metadata={"help": "Lambda of the critic's targets alone (1 in VC-PPO, arXiv:2503.01491). Default: lam."},
    )
    adaptive_lam_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Gives the policy's advantages a lambda of 1 - 1 / (this * tokens of the answer) instead of lam "
            "(VAPO, arXiv:2504.05118, 0.05 there). Default: lam for all."
        },
    )
    whiten_advantages: bool | None = field(
        default=None,
        metadata={
            "help": "Normalise the advantages of a rollout, over all ranks, to mean 0 and std 1. Default: true with "
            "gae and reinforce_plus_plus."
        },
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy loss."})
    cliprange_high: float | None = field(
        default=None,
        metadata={
            "help": "Clip range above 1 alone, TRL's epsilon_high (0.28 in DAPO, arXiv:2503.14476). Default: cliprange."
        },
    )
    delta: float | None = field(
        default=None,
        metadata={
            "help": "Dual clip: largest ratio by which a token with a negative advantage loses; verl's clip_ratio_c, 3 "
            "there (arXiv:1912.09729). Default: none."
        },
    )
    loss_aggregation: str = field(
        default="token",
        metadata={
            "help": "Mean of the policy loss. token: over all answer tokens (TRL's dapo). sequence: over the tokens of "
            "each answer, then over the answers (grpo). constant: the sum over the number of answers times "
            "max_completion_length (dr_grpo).",
            "choices": list(AGGREGATIONS),
        },
    )
    vllm_importance_sampling_correction: bool = field(
        default=False,
        metadata={
            "help": "Weigh the policy loss by the ratio of the probabilities that are learnt from to those of the "
            "engine that sampled, vLLM or transformers. Off unless policy/sampling_gap says that they differ."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="sequence_mask",
        metadata={
            "help": "Ratios of tokens or of whole answers; beyond the bounds they are truncated to them, or masked.",
            "choices": list(IMPORTANCE_MODES),
        },
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=3.0, metadata={"help": "Upper bound of these ratios; null has none."}
    )
    vllm_importance_sampling_clip_min: float | None = field(
        default=None, metadata={"help": "Lower bound of these ratios; null has none."}
    )
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value loss."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss in the total loss."})
    ptx_coef: float = field(
        default=1.0, metadata={"help": "Weight of the language-model loss on ptx_dataset, where there is one."}
    )

    # Logs.
    logging_steps: float = field(
        default=10,
        metadata={"help": "Log every X optimiser steps; smaller than 1, a share of all steps."},
    )
    log_completions: bool = field(default=False, metadata={"help": "Print a few answers of every logged rollout."})

    def __post_init__(self) -> None:
        # The prompts' own columns feed reward functions, and NaN losses must be seen rather than filtered.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        if self.ddp_find_unused_parameters is None:
            # Every trainable tensor of policy and critic takes part in every loss.
            self.ddp_find_unused_parameters = False
        if self.whiten_advantages is None:
            self.whiten_advantages = self.advantage_estimator in ("gae", "reinforce_plus_plus")
        super().__post_init__()
        check_numbers(self)
        resolve_estimator(self)
        check_options(self)

    @classmethod
    def deepspeed_chat(cls, **options: Any) -> "PPOConfig":
        """Settings of a PanGu run on DeepSpeed-Chat; `options` win. docs/ppo.md lists what still differs."""
        settings = dict(
            max_prompt_length=96,
            max_completion_length=512,
            per_device_train_batch_size=4,
            num_rollout_batches=50,
            num_ppo_epochs=100,
            learning_rate=9.65e-6,
            critic_learning_rate=5e-6,
            weight_decay=0.0,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            kl_coef=0.1,
            reward_clip=5.0,
            gamma=1.0,
            lam=0.95,
            cliprange=0.2,
            cliprange_value=0.2,
            vf_coef=1.0,
            whiten_advantages=False,
            ptx_coef=27.8,
        )
        return cls(**settings | options)

    @classmethod
    def from_trl(cls, **options: Any) -> "PPOConfig":
        """Takes the fields of TRL 1.12's PPOConfig, with TRL's defaults; see docs/migrating-from-trl.md.

        Raises:
            ValueError: A field is set that has no counterpart; the message says what to do instead.
        """
        translated, total_episodes = translate_trl_options(options)
        config = cls(**translated)
        apply_episodes(config, total_episodes)
        return config

    @property
    def has_kl_penalty(self) -> bool:
        """Whether a reference is asked while the policy learns."""
        return self.kl_coef != 0

    @property
    def has_critic(self) -> bool:
        """Whether the advantages need a critic."""
        return self.advantage_estimator == "gae"

    def value_clip(self, step: int) -> float | None:
        """Clip range of the value loss at an optimiser step; none while the critic is pretrained."""
        is_pretraining = self.critic_warmup_lam is not None and step < self.critic_warmup_steps
        return None if is_pretraining else self.cliprange_value

    @property
    def rollout_batch_size(self) -> int:
        """Answers of one rollout on each device."""
        return self.per_device_train_batch_size * self.num_rollout_batches

    @property
    def mini_batches_per_rollout(self) -> int:
        """Mini-batches that are learnt from one rollout on each device, over all passes."""
        return self.num_rollout_batches * self.num_ppo_epochs

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts of one rollout on each device."""
        return self.rollout_batch_size // self.num_generations
