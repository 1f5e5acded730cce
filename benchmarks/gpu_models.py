"""The parts of benchmarks/gpu.py that run models alone: attention, equality, QLoRA."""

import tempfile
from importlib.util import find_spec
from typing import Any

import torch
from gpu_bench import FAMILIES, Bench, Size, Skip
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

# Bits of the mantissa: a relative error of one rounding is 2 to the minus that. Roundings of some blocks add up.
BFLOAT16_ROUNDING = 2.0**-8
LARGEST_ERROR = 8 * BFLOAT16_ROUNDING


def attention(bench: Bench, name: str, size: Size) -> None:
    """A forward and backward pass by attention implementation."""
    for family in FAMILIES:
        gradients: dict[str, torch.Tensor] = {}
        for implementation in ("sdpa", "flex_attention", "flash_attention_2"):
            bench.case(
                "attention",
                f"{family} {name} {implementation}",
                lambda family=family, implementation=implementation, gradients=gradients: attention_case(
                    bench, size, family, implementation, gradients
                ),
            )


def attention_case(
    bench: Bench, size: Size, family: str, implementation: str, gradients: dict[str, torch.Tensor]
) -> dict[str, Any]:
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise Skip("flash-attn is not installed")
    if implementation == "flex_attention" and not bench.on_accelerator:
        raise Skip("flex attention has no gradients on a CPU")
    if implementation == "flex_attention" and not is_torch_flex_attn_available():
        raise Skip("this torch has no flex attention")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        size.config(family), attn_implementation=implementation, dtype=bench.dtype
    ).to(bench.device)
    ids = torch.randint(10, size.vocab_size, (size.batch, size.tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(bench.device)

    def step() -> None:
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()

    figures: dict[str, Any] = {"tokens/s": ids.numel() / bench.seconds(step)}
    # Behind all attention on the way back.
    gradients[implementation] = model.get_input_embeddings().weight.grad.float().cpu()
    if implementation != "sdpa" and "sdpa" in gradients:
        figures["gradient off SDPA's"] = relative_error(gradients[implementation], gradients["sdpa"])
    return figures


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, over that of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def equality(bench: Bench, name: str, size: Size) -> None:
    """Logits in bfloat16 on the device against float32 on the CPU."""

    def run(family: str) -> dict[str, Any]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(size.config(family, num_layers=min(4, size.num_layers))).eval()
        ids = torch.randint(10, size.vocab_size, (1, 32), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(ids).logits
            found = model.to(bench.device, torch.bfloat16)(ids.to(bench.device)).logits.float().cpu()
        error = relative_error(found, expected)
        if not error < LARGEST_ERROR:
            raise ValueError(f"bfloat16 is {error:.3g} off float32, more than {LARGEST_ERROR:.3g}")
        return {"off float32": error, "allowed": LARGEST_ERROR}

    for family in FAMILIES:
        bench.case("equality", f"{family} {name} bfloat16", lambda family=family: run(family))


def qlora(bench: Bench, name: str, size: Size) -> None:
    """A training step of an adapter on 4-bit weights."""

    def run(family: str) -> dict[str, Any]:
        if not bench.on_accelerator:
            raise Skip("there is no accelerator")
        if find_spec("bitsandbytes") is None:
            raise Skip("bitsandbytes is not installed")
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        with tempfile.TemporaryDirectory() as folder:
            AutoModelForCausalLM.from_config(size.config(family), dtype=torch.bfloat16).save_pretrained(folder)
            quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
            model = AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=quantization, device_map={"": bench.device}, dtype=torch.bfloat16
            )
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
        model = get_peft_model(prepare_model_for_kbit_training(model), lora)
        ids = torch.randint(10, size.vocab_size, (size.batch, size.tokens)).to(bench.device)
        seconds = bench.seconds(lambda: model(ids, labels=ids, use_cache=False).loss.backward())
        return {"tokens/s": ids.numel() / seconds}

    for family in FAMILIES:
        bench.case("qlora", f"{family} {name} 4 bits", lambda family=family: run(family))
