"""How the policy's answers are sampled, by transformers or a vLLM server."""
