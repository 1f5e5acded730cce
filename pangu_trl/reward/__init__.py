"""K-wise reward models: losses, trainer, evaluation, scoring."""
