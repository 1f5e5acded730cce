"""GPTPangu under the common tests that transformers runs on each of its own models; see conftest.py."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin

from pangu_trl.gptpangu import (
    GPTPanguConfig,
    GPTPanguForCausalLM,
    GPTPanguForSequenceClassification,
    GPTPanguForTokenClassification,
    GPTPanguModel,
)


class GPTPanguModelTester:
    """Tiny configuration and inputs, under the names that the mixins look up."""

    config_class = GPTPanguConfig
    base_model_class = GPTPanguModel
    causal_lm_class = GPTPanguForCausalLM
    sequence_classification_class = GPTPanguForSequenceClassification
    token_classification_class = GPTPanguForTokenClassification

    batch_size = 13
    seq_length = 7
    is_training = True
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    intermediate_size = 37
    num_labels = 3

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> GPTPanguConfig:
        return GPTPanguConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[GPTPanguConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        # Right-padded rows of growing length, as transformers gives its own causal language models.
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).tril()}


class GPTPanguModelTest(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (
        GPTPanguModel,
        GPTPanguForCausalLM,
        GPTPanguForSequenceClassification,
        GPTPanguForTokenClassification,
    )
    # TrainingTesterMixin declares it abstract; setUp makes one for each test.
    model_tester = None
    # Not only for models added since 2023: ours is not dated.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = GPTPanguModelTester(self)

    def test_config(self):
        ConfigTester(self, config_class=GPTPanguConfig, hidden_size=36, num_heads=4).run_common_tests()

    def test_generation_tester_mixin_inheritance(self):
        if not any(name.startswith("test_") for name in dir(GenerationTesterMixin)):
            self.skipTest("the source distribution of transformers has no generation tests; see the Makefile")
        super().test_generation_tester_mixin_inheritance()
