"""Checks on what a trainer of TRL did to a model: which weights moved, and whether the saved result is the same."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Trainer

# The modules in which PEFT puts an adapter by itself.
ADAPTED_MODULES = {"q_proj", "k_proj", "v_proj", "c_proj", "c_fc"}


def assert_trains_only(trainer: Trainer, is_trained: Callable[[str], bool]) -> None:
    """Trains, and checks that the loss is finite, that the named parameters moved and that no other did by one bit.

    The bias of a key projection may stay: it shifts all scores of a query alike, which the softmax does not see.
    """
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == trainer.args.max_steps and all(map(math.isfinite, losses)), losses
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    expected = {name for name in before if is_trained(name)}
    assert expected and not moved - expected, moved - expected
    assert all(name.endswith("k_proj.bias") for name in expected - moved), expected - moved


def is_adapter(name: str) -> bool:
    return "lora_" in name


def adapted_modules(model: nn.Module) -> set[str]:
    """Returns the last parts of the names of the modules that have an adapter."""
    return {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if is_adapter(name)}


@torch.no_grad()
def assert_saves_what_it_computes(trainer: Trainer, load: Callable[[str], nn.Module], input_ids: Tensor) -> None:
    """Saves the trained model, and checks that the loaded one gives the same logits for input_ids (B, T)."""
    trainer.save_model()
    loaded = load(trainer.args.output_dir).eval()
    expected = trainer.model.eval()(input_ids).logits
    torch.testing.assert_close(loaded(input_ids).logits, expected, atol=1e-6, rtol=1e-5)
