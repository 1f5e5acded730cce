"""Public formats of data sets, each a small mapping of its rows to our records.

Conversations become messages, so that sets of different formats can be mixed.
"""

from .chat import ALPACA, MESSAGES, OPENAI, SHAREGPT
from .format import Format, convert_rows
from .preferences import CHEEMS, HELPSTEER, HH, NECTAR, REWARDBENCH, ULTRAFEEDBACK
from .trees import OASST

FORMATS: dict[str, Format] = {
    "messages": MESSAGES,
    "sharegpt": SHAREGPT,
    "alpaca": ALPACA,
    "openai": OPENAI,
    "hh": HH,
    "ultrafeedback": ULTRAFEEDBACK,
    "helpsteer": HELPSTEER,
    "nectar": NECTAR,
    "rewardbench": REWARDBENCH,
    "cheems": CHEEMS,
    "oasst": OASST,
}

__all__ = ["FORMATS", "Format", "convert_rows"]
