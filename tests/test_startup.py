"""What is loaded when: the package and the command line load nothing heavy, and GPTPangu is registered all the same."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import pangu_trl

HEAVY = {"accelerate", "datasets", "deepspeed", "peft", "torch", "transformers", "trl"}

# Words of a command line, and which of the heavy libraries it may load.
LIGHT = [
    ("--help", set()),
    ("sample --help", set()),
    ("plan --help", set()),
    ("no-such-command", set()),
    ("sample --modle x", set()),
    ("evaluate scored.jsonl --min-score-gap -1", set()),
    ("plan --config absent.yaml --accelerate absent.yaml", set()),
    ("ppo --output_dir o --kl_estimator absent", set()),
    ("sft --output_dir o --learning_rate absent", set()),
    ("sample --model m --prompts p.jsonl --output scored.jsonl", set()),
    ("evaluate scored.jsonl", set()),
    ("best-of-n scored.jsonl --output best.jsonl", set()),
    ("check-data scored.jsonl --kind ranking --no-near-duplicates", {"datasets", "transformers"}),
]

PROGRAM = """
import contextlib, io, sys
import pangu_trl
from pangu_trl.cli import main
print(sorted(HEAVY & set(sys.modules)))
for line in LINES:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(line.split())
        except SystemExit as end:
            code = end.code
    print(code, sorted(HEAVY & set(sys.modules)))
"""


def test_a_command_line_loads_what_its_command_needs(tmp_path):
    (tmp_path / "scored.jsonl").write_text('{"prompt": "p", "responses": ["a", "bb"], "scores": [1, 2]}\n')
    lines = [line for line, _ in LIGHT]
    program = f"HEAVY = {HEAVY!r}; LINES = {lines!r}\n{PROGRAM}"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported, *found = result.stdout.splitlines()
    assert imported == "[]"
    for (line, allowed), loaded in zip(LIGHT, found, strict=True):
        code, _, names = loaded.partition(" ")
        refused = "no-such" in line or "modle" in line or "absent" in line or "-1" in line or "output scored" in line
        assert code == ("2" if refused else "0"), line
        assert set(eval(names)) <= allowed, line


ORDERS = [
    pytest.param("from transformers import AutoModelForCausalLM; import pangu_trl", id="Auto classes, package"),
    # The layers import the Auto classes in the middle of their own import.
    pytest.param("import pangu_trl, transformers.modeling_layers", id="package, layers", marks=pytest.mark.slow),
    pytest.param("from pangu_trl import GPTPanguForCausalLM", id="our model", marks=pytest.mark.slow),
    pytest.param("import pangu_trl, peft", id="package, PEFT", marks=pytest.mark.slow),
]

REGISTERED = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CONFIG_MAPPING
from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM, GPTPanguTokenizer
config = AutoConfig.for_model("gpt_pangu", vocab_size=20, hidden_size=8, num_layers=2, num_heads=2)
assert type(config) is GPTPanguConfig is CONFIG_MAPPING["pangu"]
assert type(AutoModelForCausalLM.from_config(config)) is GPTPanguForCausalLM
assert type(AutoTokenizer.from_pretrained(sys.argv[1])) is GPTPanguTokenizer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as targets
assert "c_fc" in targets["gpt_pangu"]
"""


@pytest.mark.parametrize("order", ORDERS)
def test_gptpangu_is_registered_whatever_is_imported_first(order, tokenizer_dir):
    program = [sys.executable, "-c", order + REGISTERED, str(tokenizer_dir)]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_every_public_name_is_there_and_pickles_by_reference():
    stub = Path(pangu_trl.__file__).with_name("__init__.pyi").read_text("utf-8")
    for name in pangu_trl.__all__:
        found = getattr(pangu_trl, name)
        assert found.__name__ == name
        assert pickle.loads(pickle.dumps(found)) is found
        # What type checkers read; the marker beside it says that they may.
        assert f"import {name} as {name}\n" in stub
    assert Path(pangu_trl.__file__).with_name("py.typed").exists()
    with pytest.raises(ImportError, match="NoSuchName"):
        from pangu_trl import NoSuchName  # noqa: F401
