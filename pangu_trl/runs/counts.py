"""A number with its noun, for what a command or a run says."""


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`; nouns that take more than an s in the plural have it only where they end in one."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"
