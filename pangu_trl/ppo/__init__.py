"""PPO for causal language models: a rollout, then several passes of clipped updates over it."""
