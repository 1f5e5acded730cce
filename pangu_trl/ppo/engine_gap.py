"""What lies between the engine that samples and the model that learns: measured, warned of, corrected."""

import logging

from .config import PPOConfig
from .generation.sampled_logprobs import AllSampledLogprobs, SampledLogprobs
from .losses import importance_weights
from .metrics import RunningMeans, importance_figures
from .rollout import Rollout

logger = logging.getLogger(__name__)

# Mean difference in nats per token that float32 and bfloat16 leave far below; a wrong mask or position exceeds it.
LARGEST_SAMPLING_GAP = 0.1


def watch_of(args: PPOConfig, num_answers: int) -> SampledLogprobs:
    """What notes log-probabilities as they are sampled: all of them only where some answer's may be needed."""
    if args.vllm_importance_sampling_correction or args.dynamic_sampling_rounds:
        return AllSampledLogprobs(args.temperature, num_answers)
    return SampledLogprobs(args.temperature, max_rows=args.per_device_train_batch_size)


def check_sampling(watch: SampledLogprobs, rollout: Rollout, figures: RunningMeans) -> None:
    """Warns where the policy sampled from another distribution than the one whose probabilities are learnt."""
    if watch.logprobs is None:
        return
    if rollout.sampling_logprobs is None:
        gap = watch.gap(rollout.logprobs, rollout.completion_mask)
    else:
        gap = (rollout.sampling_logprobs - rollout.logprobs)[rollout.completion_mask].abs().nanmean()
    figures.record({"policy/sampling_gap": gap})
    if gap > LARGEST_SAMPLING_GAP:
        logger.warning(
            "The log-probabilities of sampled tokens differ by %.3f nats on average between generation and "
            "scoring. PPO then learns from ratios that are off. Likely causes: a model that handles left padding "
            "or its cache differently in the two (compare attn_implementation='eager'), a merged adapter in "
            "bfloat16 or float16 (merge_lora_for_generation=False), a generation hook that changes logits, or a "
            "vLLM in another dtype (vllm_importance_sampling_correction corrects for rounding).",
            gap.item(),
        )


def correct_sampling(rollout: Rollout, args: PPOConfig, figures: RunningMeans) -> None:
    """Fills in the weights of the policy's losses, by what the engine that sampled says of its own answers."""
    sampled, mask = rollout.sampling_logprobs, rollout.completion_mask
    rollout.importance_weights, ratios = importance_weights(
        rollout.logprobs,
        sampled,
        mask,
        args.vllm_importance_sampling_mode,
        args.vllm_importance_sampling_clip_max,
        args.vllm_importance_sampling_clip_min,
    )
    figures.record(importance_figures(ratios, rollout.importance_weights, sampled, mask))
