"""Tries an installed wheel as a stranger would, in an empty folder: a tiny model, `init`, and sft, reward and ppo.

    python tests/wheel/run.py FOLDER    # with the Python that the wheel is installed in

`make test-wheel` builds the wheel, installs it into an environment of its own and runs this there.
"""

import json
import subprocess
import sys
from pathlib import Path

import pangu_trl
from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

TEXTS = ["房间很干净，服务员很热情。", "价格便宜，位置也方便。", "隔音太差，一晚上没睡好。", "早餐种类少，味道一般。"]


def main() -> None:
    folder = Path(sys.argv[1])
    assert Path(pangu_trl.__file__).is_relative_to(sys.prefix), f"{pangu_trl.__file__} is not the installed package"
    assert not any(folder.iterdir()), f"{folder} must be empty"
    make_model_and_data(folder)
    run(folder, "--version")
    run(folder, "env")
    run(folder, "check-data", "sft.jsonl", "--no-near-duplicates")
    for stage, model, *options in (
        ("sft", "model"),
        ("reward", "run/sft"),
        ("ppo", "run/sft", "--reward-model", "run/reward"),
    ):
        options = ["--data", f"{stage}.jsonl", "--size", "tiny", *options]
        run(folder, "init", "run", "--stage", stage, "--model", model, *options)
        steps = ["--max_steps", "2", "--per_device_train_batch_size", "2"]
        run(folder, stage, "--config", f"run/{stage}.yaml", "--accelerate", "cpu", *steps)
        assert list((folder / "run" / stage).glob("*.safetensors")), stage
    run(folder, "sample", "--model", "run/ppo", "--prompts", "ppo.jsonl", "--output", "answers.jsonl")
    run(folder, "evaluate", "answers.jsonl", "--judge", "run/reward", "--json")
    print("1 passed, 0 failed")


def make_model_and_data(folder: Path) -> None:
    tokenizer = train_vocabulary(TEXTS, folder / "model", vocab_size=48)
    config = GPTPanguConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=128
    )
    GPTPanguForCausalLM(config).save_pretrained(folder / "model")
    prompts = [{"prompt": text[:4]} for text in TEXTS]
    records = {
        "sft": [prompt | {"completion": text[4:]} for prompt, text in zip(prompts, TEXTS, strict=True)],
        "reward": [prompt | {"responses": [TEXTS[0], TEXTS[2]], "scores": [1, 0]} for prompt in prompts],
        "ppo": prompts,
    }
    for name, rows in records.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def run(folder: Path, *words: str) -> None:
    """One command line, shown as a shell would have it; its end is good, or this program's."""
    print("$ pangu-trl", *words, flush=True)
    program = Path(sys.executable).with_name("pangu-trl")
    code = subprocess.run([str(program), *words], cwd=folder).returncode
    if code:
        sys.exit(f"pangu-trl {' '.join(words)}: exit status {code}")


if __name__ == "__main__":
    main()
