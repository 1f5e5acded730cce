"""Recipes and accelerate configurations that come with the package: inside of it in a wheel, beside it in a clone."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(folder: str) -> Path:
    """Where `recipes` or `accelerate_configs` is.

    Raises:
        FileNotFoundError: It is not installed.
    """
    for place in (_PACKAGE / folder, _PACKAGE.parent / folder):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"{folder} did not come with pangu_trl in {_PACKAGE}; install it again, from its wheel")


def recipe_config(path: str) -> str:
    """The file of a path; of one below `recipes/` that is not here, the file that comes with the package."""
    name = Path(path)
    if name.exists() or name.parts[:1] != ("recipes",):
        return path
    own = shipped("recipes").joinpath(*name.parts[1:])
    return str(own) if own.is_file() else path


def accelerate_config(name: str) -> Path:
    """The accelerate configuration of a file, or the one that comes under a name such as `zero3`.

    Raises:
        FileNotFoundError: There is neither.
    """
    if Path(name).is_file():
        return Path(name)
    folder = shipped("accelerate_configs")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise FileNotFoundError(f"{name}: no accelerate configuration; give a file, or one of {', '.join(names)}")
    return folder / f"{name}.yaml"
