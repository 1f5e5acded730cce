"""Gradients, losses and the outputs that training reads."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import pangu_trl


@pytest.fixture
def make_model(fixtures):
    """A model of each kind in training mode without dropout, and labels for `batch`."""

    def make(kind: str, attention: str = "sdpa"):
        torch.manual_seed(0)
        options = dict(attn_implementation=attention)
        folder = fixtures / "tiny_gptpangu"
        if kind == "causal":
            model = pangu_trl.GPTPanguForCausalLM.from_pretrained(folder, **options)
            labels = torch.randint(10, 1024, (3, 9)).masked_fill(torch.rand(3, 9) < 0.3, -100)
        elif kind == "sequence":
            model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **options)
            labels = torch.tensor([0, 2, 1])
        else:
            model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3, **options)
            labels = torch.randint(0, 3, (3, 9))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.train(), labels

    return make


def test_what_ends_a_branch_starts_small_by_the_number_of_branches():
    # Two branches in each of 8 blocks: 0.4 / sqrt(16) = 0.1. Of 64 * 64 * 8 numbers and more the deviation is known
    # to a percent; sqrt 2 is 41 of them.
    torch.manual_seed(0)
    config = pangu_trl.GPTPanguConfig(vocab_size=60, hidden_size=64, num_layers=8, num_heads=2, initializer_range=0.4)
    deviations = dict.fromkeys(["attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.c_fc"], 0.4)
    deviations |= dict.fromkeys(["attn.c_proj", "mlp.c_proj"], 0.1)
    for model in (pangu_trl.GPTPanguForCausalLM(config), AutoModelForSequenceClassification.from_config(config)):
        for name, expected in deviations.items():
            weights = [block.get_submodule(name).weight.detach().flatten() for block in model.transformer.h]
            assert torch.cat(weights).std().item() == pytest.approx(expected, rel=0.02), name
        assert not any(block.mlp.c_proj.bias.any() for block in model.transformer.h)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["causal", "sequence", "token"])
def test_checkpointing_gives_every_parameter_the_same_gradient(
    make_model, batch, assert_same_gradients, kind, attention, use_reentrant
):
    model, labels = make_model(kind, attention)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    runs = []
    for block in model.transformer.h:
        block.ln_1.register_forward_hook(lambda *_: runs.append(1))
    checkpointed = model(**batch, labels=labels).loss
    checkpointed.backward()
    assert len(runs) == 2 * len(model.transformer.h), "every block runs once more in the backward pass"
    torch.testing.assert_close(checkpointed, loss)
    assert_same_gradients({name: parameter.grad for name, parameter in model.named_parameters()}, plain)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_repeats_the_dropout_of_the_first_run(make_model, batch, assert_same_gradients, use_reentrant):
    model, labels = make_model("causal")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(1)
        model(**batch, labels=labels).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert_same_gradients(gradients[1], gradients[0])


def test_zeroing_the_dropout_modules_makes_training_mode_equal_evaluation(make_model, batch):
    """What trainers do to switch dropout off: no rate may come from the configuration at run time."""
    model, _ = make_model("causal")
    assert model.config.attn_pdrop == model.config.resid_pdrop == model.config.embd_pdrop == 0.1
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            assert torch.equal(model.train()(**batch).logits, model.eval()(**batch).logits)


def test_dropout_stands_after_embeddings_probabilities_projections_and_mlps(make_model, batch):
    model, _ = make_model("causal", "eager")
    dropouts = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    per_block = ("attn.attn_dropout", "attn.resid_dropout", "mlp.dropout")
    assert dropouts == {f"transformer.h.{layer}.{name}" for layer in range(4) for name in per_block} | {
        "transformer.drop"
    }
    quiet = model(**batch).logits
    for name in sorted(dropouts):
        model.get_submodule(name).p = 0.5
        assert (model(**batch).logits - quiet).abs().max() > 1e-3, name
        model.get_submodule(name).p = 0.0


@torch.no_grad()
def test_loss_is_the_mean_cross_entropy_of_the_next_token_without_minus_100(make_model, batch):
    model, labels = make_model("causal")
    output = model(**batch, labels=labels)
    logprobs = output.logits.double().log_softmax(-1)
    terms = [
        -logprobs[row, column, labels[row, column + 1]]
        for row in range(3)
        for column in range(8)
        if labels[row, column + 1] != -100
    ]
    assert output.loss.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-5)
    # Trainer passes the number of tokens over all accumulated batches.
    summed = model(**batch, labels=labels, num_items_in_batch=torch.tensor(2 * len(terms))).loss
    assert summed.item() == pytest.approx(output.loss.item() / 2, abs=1e-5)


@torch.no_grad()
def test_logits_to_keep_gives_the_same_logits_at_fewer_positions(make_model, batch):
    model, _ = make_model("causal")
    logits = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=0).logits, logits)
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(**batch, logits_to_keep=torch.tensor([1, 8])).logits, logits[:, [1, 8]])
    per_row = torch.tensor([[0, 8], [4, 8], [7, 8]])
    torch.testing.assert_close(model(**batch, logits_to_keep=per_row).logits, logits[torch.arange(3)[:, None], per_row])
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch, logits_to_keep=real).logits, logits[real])


def test_embeddings_in_place_of_tokens_give_the_same_logits_and_receive_gradients(make_model, batch):
    model, _ = make_model("causal")
    embeddings = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    output = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], labels=batch["input_ids"])
    torch.testing.assert_close(output.logits, model(**batch).logits)
    output.loss.backward()
    per_token = embeddings.grad.abs().amax(dim=-1)
    assert (per_token[0, :-1] > 0).all() and per_token[0, -1] == 0  # the last token predicts nothing
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**batch, inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.transformer()


def test_the_top_block_takes_its_query_from_the_position_table_alone(make_model):
    """A token's own embedding reaches the top block's attention only through keys and values."""
    model, _ = make_model("causal")
    queries = []
    model.transformer.h[-1].attn.q_proj.register_forward_hook(lambda module, inputs, output: queries.append(output))
    for ids in (torch.tensor([[11, 12, 13]]), torch.tensor([[21, 22, 23]])):
        model(ids)
    assert torch.equal(queries[0], queries[1])
    assert torch.equal(queries[0][0], model.transformer.h[-1].attn.q_proj(model.transformer.wqe.weight[:3]))


def test_outputs_come_as_a_tuple_on_request(make_model, batch):
    model, labels = make_model("causal")
    named = model(**batch, labels=labels, output_hidden_states=True, use_cache=False)
    loss, logits, hidden_states = model(
        **batch, labels=labels, output_hidden_states=True, use_cache=False, return_dict=False
    )
    assert torch.equal(loss, named.loss) and torch.equal(logits, named.logits)
    assert len(hidden_states) == len(named.hidden_states) == 5


@torch.no_grad()
def test_bfloat16_autocast_stays_near_float32(make_model, batch):
    model, labels = make_model("causal")
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        exact = model(**batch, labels=labels).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(**batch, labels=labels)
        assert rounded.logits.dtype == torch.bfloat16
        assert rounded.loss.item() == pytest.approx(exact.item(), rel=0.02)
