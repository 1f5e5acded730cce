"""The memory of every model and phase of a run."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn
from transformers import PreTrainedConfig

from pangu_trl.models.modes import sequence_limit
from pangu_trl.ppo.actor_critic.tiled_head import TILE, needs_tiles

from .activations import TRL_COLUMNS, activation_bytes, best_answer_bytes, cache_bytes, logit_bytes, tile_bytes
from .launch import Launch
from .models import ModelShape, count
from .policy_head import policy_with_tiles
from .settings import Settings
from .states import (
    ALWAYS,
    BACKWARD,
    GENERATION,
    SAVING,
    STEP,
    Item,
    Precision,
    fetched_weights,
    frozen_model,
    precision_of,
    saved_weights,
    trained_model,
)

GIB = 2**30
# Before any weight: what CUDA, NCCL and cuBLAS take on a device, and what Python with its libraries takes in a process.
DEVICE_LIBRARIES = 1 * GIB
PROCESS_LIBRARIES = int(0.75 * GIB)
OPTIONS_OF_MODELS = {"use_peft", "share_backbone", "advantage_estimator"}
LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save", "use_rslora")


@dataclass(frozen=True)
class Plan:
    """Memory of a run.

    Attributes:
        settings: The recipe.
        launch: The accelerate configuration.
        config: The configuration of the model.
        num_answers: K of a reward model's data.
    """

    settings: Settings
    launch: Launch
    config: PreTrainedConfig
    num_answers: int = 4

    def under(self, launch: Launch) -> "Plan":
        """The same run, launched in another way; its models are not counted again."""
        plan = replace(self, launch=launch)
        vars(plan).update(trained=self.trained, frozen=self.frozen)
        return plan

    def with_options(self, **options: object) -> "Plan":
        """The same run with other options; its models are counted again only where they are others."""
        settings = replace(self.settings, options=self.settings.options | options)
        plan = replace(self, settings=settings)
        if not options.keys() & OPTIONS_OF_MODELS:
            vars(plan).update(trained=self.trained, frozen=self.frozen)
        return plan

    @cached_property
    def precision(self) -> Precision:
        return precision_of(self.settings, self.launch)

    @cached_property
    def trained(self) -> dict[str, ModelShape]:
        """The models that learn, by name; adapters that share a backbone are one model."""
        settings, lora = self.settings, self._lora
        if settings.stage == "reward":
            return {"reward model": count(self.config, is_scoring=True, lora=lora)}
        policy = count(self.config, lora=lora)
        if settings.stage != "ppo":
            return {"policy" if settings.stage != "sft" else "model": policy}
        layout = settings["share_backbone"]
        if layout == "none" and not self._has_critic:
            return {"policy": policy}
        if layout == "none":
            return {"policy": policy, "critic": count(self.config, is_scoring=True)}
        if layout == "all":
            # Adapters of the same size for critic and reward model, of which the second is frozen.
            adapter = policy.num_trainable
            policy = replace(
                policy,
                num_parameters=policy.num_parameters + (1 + self._has_critic) * adapter,
                num_trainable=policy.num_trainable + self._has_critic * adapter,
            )
        return {"policy and critic" if self._has_critic else "policy": policy}

    @cached_property
    def frozen(self) -> dict[str, ModelShape]:
        """The models that are only asked."""
        settings, found = self.settings, {}
        has_reference = settings.stage == "dpo" or (settings.stage == "grpo" and settings["beta"] > 0)
        if settings.stage == "ppo":
            has_evaluation = settings["eval_data"] is not None or settings["eval_strategy"] != "no"
            has_reference = settings["kl_coef"] != 0 or has_evaluation
        if has_reference and self._lora is None and not settings.get("precompute_ref_log_probs"):
            found["reference"] = count(self.config, trains=False)
        if settings.stage in ("ppo", "grpo") and settings.get("share_backbone") != "all":
            found["reward model"] = count(self.config, is_scoring=True, trains=False)
        return found

    @cached_property
    def items(self) -> list[Item]:
        """Everything that takes memory, the largest first."""
        items = [
            *self._models(),
            *self._learning(),
            *self._generation(),
            *saved_weights(list(self.trained.values()), self.launch, self.precision),
        ]
        return sorted((item for item in items if item.num_bytes), key=lambda item: -item.num_bytes)

    def peak(self, on_host: bool = False) -> int:
        """Most bytes at a time on one device, or of one process on the host; on CPU both are the same memory."""
        items = [item for item in self.items if self.launch.on_cpu or item.on_host == on_host]
        by_phase = dict.fromkeys((ALWAYS, BACKWARD, STEP, GENERATION, SAVING), 0)
        for item in items:
            by_phase[item.phase] += item.num_bytes
        libraries = PROCESS_LIBRARIES if self.launch.on_cpu or on_host else DEVICE_LIBRARIES
        return libraries + by_phase.pop(ALWAYS) + max(by_phase.values())

    @property
    def _policy(self) -> ModelShape:
        return next(iter(self.trained.values()))

    @property
    def _policy_with_tiles(self) -> nn.Module:
        settings = self.settings
        length = settings["max_prompt_length"] + settings["max_completion_length"]
        return policy_with_tiles(self.config, self._lora, settings["attn_implementation"], length)

    @property
    def _has_critic(self) -> bool:
        return self.settings.get("advantage_estimator") == "gae"

    @property
    def _lora(self) -> dict | None:
        if not self.settings["use_peft"]:
            return None
        return {name: self.settings[name] for name in LORA_OPTIONS if name in self.settings.options}

    def _models(self) -> Iterator[Item]:
        launch, precision = self.launch, self.precision
        for name, shape in self.trained.items():
            yield from trained_model(name, shape, self.settings, launch, precision)
        if self.settings.get("ema_decay") is not None:
            shared_by = launch.num_devices if launch.sharding == "zero3" else 1
            average = self._policy.num_trainable * 4 // shared_by
            yield Item("policy: moving average", average, on_host=launch.offload_weights)
        for name, shape in self.frozen.items():
            if self.settings.stage == "grpo" and name == "reward model":
                # The judge is no part of the training, and every process holds it whole, as it was loaded.
                yield Item(f"{name}: weights", shape.num_parameters * self.settings.loaded_size)
            else:
                yield from frozen_model(name, shape, launch, precision)
        yield from fetched_weights([*self.trained.values(), *self.frozen.values()], launch, precision)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a sequence, T: never more than the model has positions for."""
        limit = sequence_limit(self.config, self.settings.max_tokens)
        if limit == sys.maxsize:
            raise ValueError(
                f"{self.settings.model} has positions without end; the plan needs max_length in the recipe"
            )
        return limit

    @property
    def sequences_per_batch(self) -> int:
        """Sequences of a forward pass that learns."""
        per_example = {"reward": self.num_answers, "dpo": 2}.get(self.settings.stage, 1)
        return self.settings["per_device_train_batch_size"] * per_example

    @property
    def answers_at_once(self) -> int:
        """Answers that one device samples at a time."""
        settings, batch = self.settings, self.settings["per_device_train_batch_size"]
        at_once = settings["generation_batch_size"]
        if settings.stage == "ppo":
            return min(at_once or batch, batch * settings["num_rollout_batches"])
        # TRL answers the prompts of all steps that learn from them at once, and counts the answers of all devices.
        steps = settings["steps_per_generation"] or settings["gradient_accumulation_steps"]
        return at_once // self.launch.num_devices if at_once else batch * steps

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of a forward pass that learns, on one device, if every sequence has the longest length.

        With `prefix_sharing` half of the longest length is taken to be the prompt.
        """
        settings, sequences = self.settings, self.sequences_per_batch
        if settings.get("prefix_sharing"):
            prompts = settings["per_device_train_batch_size"]
            return prompts * self.max_tokens // 2 + sequences * self.max_tokens // 2
        return sequences * self.max_tokens

    def _learning(self) -> Iterator[Item]:
        settings, tokens = self.settings, self.tokens_per_batch
        # Policy and critic of one backbone each make a pass of their own, except where the critic is only a head.
        passes = 2 if settings.get("share_backbone") == "all" and self._has_critic else 1
        has_dropout = settings.has_lora_dropout
        for name, shape in self.trained.items():
            size = activation_bytes(shape, self.precision, tokens, settings.checkpoints_activations, has_dropout)
            yield Item(f"{name}: activations", passes * size, BACKWARD)
        if settings.stage == "reward":
            if settings["lm_coefficient"] is not None:
                prompts = settings["per_device_train_batch_size"]
                size = best_answer_bytes(self._policy, self.precision, prompts, self.max_tokens)
                yield Item("logits of the best answers", size, BACKWARD)
            return
        if settings.stage == "ppo":
            yield self._logprobs("", settings["max_completion_length"])
            if settings["ptx_data"]:
                shape = self._policy
                size = activation_bytes(shape, self.precision, tokens, settings.checkpoints_activations, has_dropout)
                yield Item("texts: activations", size, BACKWARD)
                yield self._logprobs("texts: ", self.max_tokens - 1)
            return
        if settings.smooths_labels:
            yield Item("whole logits and loss", logit_bytes(self._policy, self.precision, tokens), BACKWARD)
            return
        predictions = tokens
        if settings.stage == "grpo":
            predictions = self.sequences_per_batch * (settings["max_completion_length"] + 1)
        size = tile_bytes(self._policy, self.precision, predictions, TRL_COLUMNS, self.launch.on_cpu)
        yield Item("tile of logits", size, BACKWARD)

    def _logprobs(self, what: str, length: int) -> Item:
        """Logits of so many tokens of each sequence in PPO: a tile where its trainer computes tiles, otherwise all."""
        shape, precision, sequences = self._policy, self.precision, self.sequences_per_batch
        if self._allows_tiles and needs_tiles(self._policy_with_tiles, sequences * length):
            size = tile_bytes(shape, precision, sequences * length, TILE, self.launch.on_cpu)
            return Item(f"{what}tile of logits", size, BACKWARD)
        # One place more than tokens: a batch with padding has it.
        size = logit_bytes(shape, precision, sequences * (length + 1))
        return Item(f"{what}whole logits and loss", size, BACKWARD)

    @property
    def _allows_tiles(self) -> bool:
        # A head that is sharded is left alone.
        return self.settings["padding_free"] is not False and not self.launch.shards_weights

    def _generation(self) -> Iterator[Item]:
        settings, launch, policy = self.settings, self.launch, self._policy
        if settings.stage not in ("ppo", "grpo"):
            return
        is_fsdp, is_zero3 = launch.sharding == "fsdp2", launch.sharding == "zero3"
        weight = self.precision.compute if is_fsdp else self.precision.weights
        gathers = is_zero3 and settings["ds3_gather_for_generation"]
        if is_fsdp or gathers and not settings.samples_by_vllm:
            yield Item("policy gathered for generation", policy.num_parameters * weight, GENERATION)
        if settings.samples_by_vllm:
            return
        merges = settings.get("merge_lora_for_generation") and not settings.is_quantised
        if merges and (gathers or not is_zero3):
            yield Item("weights without LoRA, kept while merged", policy.num_mergeable * weight, GENERATION)
        cached = weight
        if settings.stage == "grpo" and self._lora is None and not launch.shards_weights:
            # TRL samples in the autocast of a full model; that of PPO, and of an adapter, is passed by.
            cached = self.precision.compute
            if cached < weight:
                yield Item("policy: bfloat16 copies", policy.num_trainable * 2, GENERATION)
        batch = self.answers_at_once
        yield Item("key-value cache", cache_bytes(policy, cached, batch * self.max_tokens), GENERATION)
        # Logits of the last token, sorted and filtered in float32.
        yield Item("logits of a token", batch * policy.vocab_size * 16, GENERATION)
