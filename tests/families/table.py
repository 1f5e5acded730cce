"""The table of architectures in docs/models.md."""

from pathlib import Path

from .architectures import Architecture

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- families: written by make test-families -->", "<!-- /families -->"


def write_table(page: Path, architectures: list[Architecture], rows: dict[str, dict[str, str]]) -> None:
    """Puts what was found between the marks of the page."""
    before, _, rest = page.read_text("utf-8").partition(START)
    _, _, after = rest.partition(END)
    lines = [
        "| architecture | what is particular | PPO rollout | prefix sharing | LoRA by default |",
        "|---|---|---|---|---|",
    ]
    lines += [table_line(architecture, rows[architecture.name]) for architecture in architectures]
    page.write_text(f"{before}{START}\n{chr(10).join(lines)}\n{END}{after}", "utf-8")


def table_line(architecture: Architecture, row: dict[str, str]) -> str:
    cells = (architecture.name, architecture.trait, row["ppo"], row["kwise"], row["lora"])
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
