from .configurations import Unsaid as Unsaid
from .convert import FORMATS as FORMATS
from .convert import TARGETS as TARGETS
from .convert import ConversionOptions as ConversionOptions
from .convert import convert as convert
from .sizes import SIZES as SIZES
from .sizes import named_config as named_config
from .stored import ConversionError as ConversionError
