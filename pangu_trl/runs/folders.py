"""What stages there are, and under which names a run leaves what other stages and readers look for."""

# As recipes and options call a stage, and as a reader calls what it does.
STAGES = {
    "sft": "supervised fine-tuning",
    "reward": "training of a reward model on ranked answers",
    "ppo": "PPO against a reward model",
    "dpo": "direct preference optimisation on rankings",
    "grpo": "GRPO against a reward model or reward functions",
}
REWARD_CARD_FILE = "reward_card.json"
# What PPO keeps beside the policy: a critic of its own, or a head on the policy's backbone.
VALUE_MODEL_FOLDER = "value_model"
VALUE_HEAD_FILE = "value_head.safetensors"
# The moving average of the policy, with `ema_decay`.
EMA_FOLDER = "ema"
# The model that an adapter was merged into before a new adapter was put on it.
MERGED_BASE_FOLDER = "base"
