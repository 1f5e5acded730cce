from .custom_code import add_custom_code as add_custom_code
from .folder import ModelFolder as ModelFolder
from .publishing import Plan as Plan
from .publishing import Publication as Publication
from .publishing import plan as plan
from .publishing import prepare as prepare
from .publishing import publish as publish
