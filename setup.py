"""What pyproject.toml cannot say: recipes and accelerate_configs lie at the top level and travel inside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TRAVELLING = ("recipes", "accelerate_configs")


class BuildWithRecipes(build_py):
    """Copies the travelling folders as they are; an editable install finds them where they lie."""

    def run(self) -> None:
        super().run()
        for folder in () if self.editable_mode else TRAVELLING:
            target = Path(self.build_lib) / "pangu_trl" / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
