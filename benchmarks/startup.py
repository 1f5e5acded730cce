"""CPU seconds until the command line answers, beside TRL's.

    python benchmarks/startup.py

Each line is a process of its own, started `--repeats` times in turn with the others; the least of its user and system
seconds is shown, children included. Seconds of CPU, as a busy machine lengthens those of the clock.
"""

import argparse
import os
import resource
import subprocess
import sys

LINES = [
    ("an empty program", "pass"),
    ("import pangu_trl", "import pangu_trl"),
    ("import trl", "import trl"),
    ("import transformers", "import transformers"),
    *(
        (f"{name} {words}", f"import sys; from {module} import main; sys.exit(main({words.split()!r}))")
        for name, module, words in [
            ("pangu-trl", "pangu_trl.cli", "--help"),
            ("trl", "trl.cli", "--help"),
            ("pangu-trl", "pangu_trl.cli", "--version"),
            ("pangu-trl", "pangu_trl.cli", "env"),
            ("trl", "trl.cli", "env"),
            ("pangu-trl", "pangu_trl.cli", "sft --help"),
            ("trl", "trl.cli", "sft --help"),
            ("pangu-trl", "pangu_trl.cli", "sft --no_such_option 1"),
            ("trl", "trl.cli", "sft --no_such_option 1"),
            ("pangu-trl", "pangu_trl.cli", "sample --no-such-option"),
        ]
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    least = {name: float("inf") for name, _ in LINES}
    for _ in range(args.repeats):
        for name, program in LINES:
            least[name] = min(least[name], cpu_seconds(program))
    for name, seconds in least.items():
        print(f"{name:40} {seconds:6.2f} s")


def cpu_seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
