"""DPO and GRPO with the tiny recipes: what is learnt is saved and loads."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT, config_for_cpu, launch, run_here
from peft.utils import load_peft_weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.launches

RUNS = [
    ("dpo", "full", "cpu"),
    ("grpo", "lora", "cpu"),
    pytest.param("dpo", "lora", "zero3", marks=pytest.mark.slow),
    pytest.param("grpo", "full", "zero3", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stage", "method", "backend"), RUNS)
def test_a_recipe_learns_and_saves(workspace, stage, method, backend):
    folder = workspace / f"{stage}-{method}-{backend}"
    options = {
        "config": ROOT / "recipes" / "tiny" / stage / f"{method}.yaml",
        "model_name_or_path": workspace / "base",
        "train_data": workspace / ("reward.jsonl" if stage == "dpo" else "ppo.jsonl"),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "output_dir": folder,
    }
    if stage == "grpo":
        options["reward_model"] = workspace / "judge"
    if backend == "cpu":
        run_here(stage, options, takes_notes=False)
    else:
        launch(config_for_cpu(backend, workspace), stage, options)
    if method == "lora":
        learnt = {name: t for name, t in load_peft_weights(str(folder), device="cpu").items() if "lora_B" in name}
        assert learnt and all(tensor.any() for tensor in learnt.values())
        return
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before, after = (load_file(Path(path) / "model.safetensors") for path in (workspace / "base", folder))
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items() if name.endswith("c_fc.weight"))


def test_grpo_loads_its_judge_in_the_dtype_of_the_recipe(workspace, tmp_path, monkeypatch):
    """Every process holds the judge whole; one in float32 beside a policy in bfloat16 can be most of the memory."""
    options = {
        "config": ROOT / "recipes" / "tiny" / "grpo" / "lora.yaml",
        "dtype": "bfloat16",
        "model_name_or_path": workspace / "base",
        "reward_model": workspace / "judge",
        "train_data": workspace / "ppo.jsonl",
        "output_dir": tmp_path / "run",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["grpo.py", *words])
    main = runpy.run_path(str(ROOT / "recipes" / "grpo.py"), run_name="not main")["main"]
    seen = []

    def stop_at_the_judge(*arguments, **model_kwargs):
        seen.append(load_judge(*arguments, **model_kwargs))
        raise InterruptedError

    load_judge = main.__globals__["load_judge"]
    monkeypatch.setitem(main.__globals__, "load_judge", stop_at_the_judge)
    with pytest.raises(InterruptedError):
        main()
    in_float32 = load_judge(str(workspace / "judge"), 2)
    prompts, answers = ["总体来说，"] * 2, ["还不错。", "非常差！"]
    scores, expected = seen[0](prompts, answers), in_float32(prompts, answers)
    # Eight bits of mantissa.
    assert scores != expected and scores == pytest.approx(expected, rel=0.1, abs=0.1)


def test_dpo_learns_from_the_best_against_the_worst(workspace, tokenizer, rankings):
    encode_pairs = runpy.run_path(str(ROOT / "recipes" / "dpo.py"), run_name="not main")["encode_pairs"]
    pairs = encode_pairs(rankings, tokenizer, max_length=128)
    # One of the eight rankings is all ties.
    ordered = [row for row in rankings if len(set(row["scores"])) > 1]
    assert len(pairs) == len(ordered) == 7
    for pair, row in zip(pairs, ordered, strict=True):
        for name, extreme in (("chosen_ids", max), ("rejected_ids", min)):
            text = row["responses"][row["scores"].index(extreme(row["scores"]))]
            assert pair[name] == [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
