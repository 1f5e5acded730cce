"""Publishing on the Hub: custom code that travels with GPTPangu, model cards, and what a saved folder gives away."""

from .custom_code import add_custom_code
from .folder import ModelFolder
from .publishing import Plan, Publication, plan, prepare, publish

__all__ = ["ModelFolder", "Plan", "Publication", "add_custom_code", "plan", "prepare", "publish"]
