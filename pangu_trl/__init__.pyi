from .gptpangu.configuration_gptpangu import GPTPanguConfig as GPTPanguConfig
from .gptpangu.modeling_gptpangu import GPTPanguForCausalLM as GPTPanguForCausalLM
from .gptpangu.modeling_gptpangu import GPTPanguForSequenceClassification as GPTPanguForSequenceClassification
from .gptpangu.modeling_gptpangu import GPTPanguForTokenClassification as GPTPanguForTokenClassification
from .gptpangu.modeling_gptpangu import GPTPanguModel as GPTPanguModel
from .gptpangu.tokenization_gptpangu import GPTPanguTokenizer as GPTPanguTokenizer
from .ppo.config import PPOConfig as PPOConfig
from .ppo.trainer import PPOTrainer as PPOTrainer
from .reward.config import KWiseRewardConfig as KWiseRewardConfig
from .reward.trainer import KWiseRewardTrainer as KWiseRewardTrainer

__version__: str
