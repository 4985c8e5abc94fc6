"""Memory against published formulas and tables, against torch's own bookkeeping, and its monotonic properties."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fgrpo_plugin.model_shape import shape_from_config
from fgrpo_plugin.plan.activations import logit_bytes, recomputed_layer, training_activations
from fgrpo_plugin.plan.gpus import GIB
from fgrpo_plugin.plan.memory import PARTS, kv_bytes_per_token, phases, rollout_weights, states
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun
from tests.plan.planning import BARE, H100, phase, setup


def test_states_are_those_of_zero():
    """16 bytes a parameter of mixed-precision Adam, over all GPUs (arXiv 1910.02054, section 3.1)."""
    for planned in (setup(), setup(gpus_per_node=4, nodes=4), setup(engine="megatron")):
        held = sum(states(planned).values())
        if planned.megatron:  # bf16 weights and float32 gradients on each, 12 bytes shared
            expected = planned.model.parameters * (6 + 12 / planned.gpus)
        else:
            expected = 16 * planned.model.parameters / planned.gpus
        assert held == pytest.approx(expected)
    assert sum(states(setup(dtype="bf16")).values()) == pytest.approx(8 * setup().model.parameters / 8)


def test_megatrons_shares_add_up_to_the_model():
    dense = setup("meta-llama/Llama-3.1-70B", engine="megatron", tp=4, pp=4, nodes=2)
    # The first and last stages hold one of the two vocabulary matrices each; the other two none.
    spare = 2 * (dense.model.embedding / 4)
    assert 4 * states(dense)["weights"] / 2 - spare == pytest.approx(dense.model.parameters / 4, rel=1e-3)
    sparse = setup("Qwen/Qwen3-30B-A3B", engine="megatron", tp=2, ep=4, etp=1)
    experts = sparse.model.routed / 4
    assert states(sparse)["weights"] / 2 == pytest.approx((sparse.model.parameters - sparse.model.routed) / 2 + experts)


def test_kv_cache_of_a_known_model():
    """Llama-3.1 8B: 2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB a token."""
    assert kv_bytes_per_token(setup("meta-llama/Llama-3.1-8B")) == 128 * 1024
    assert kv_bytes_per_token(setup("meta-llama/Llama-3.1-8B", rollout_tp=8)) == 16 * 1024
    few = setup("Qwen/Qwen3-30B-A3B", rollout_tp=8)  # 4 heads on 8 GPUs
    assert kv_bytes_per_token(few) == 48 * 2 * 128 * 2


def test_generation_takes_its_share_and_what_the_trainer_leaves():
    planned = setup(utilization=0.5)
    generation = phase(planned, "generation")
    left = states(planned)["weights"] + states(planned)["optimiser"]
    assert generation.total == pytest.approx(0.5 * H100.memory + left)
    offloaded = phase(replace(planned, param_offload=True, optimizer_offload=True), "generation")
    assert offloaded.total == pytest.approx(0.5 * H100.memory)
    assert not phase(setup(utilization=0.15), "generation").fits  # 11.9 GiB do not hold 14.2 GiB of weights
    assert phase(setup(utilization=0.15), "generation").shortage > 2 * GIB


def test_gpus_that_generate_alone_hold_nothing_of_the_trainer():
    apart = setup(rollout_gpus=8, utilization=0.8)
    assert phase(apart, "generation apart").total == pytest.approx(0.8 * H100.memory)
    assert phase(apart, "generation") == phase(setup(utilization=0.8), "generation")
    never = phases(replace(apart, trainer_generates=False), BARE)
    assert [found.name for found in never] == ["generation apart", "log-probs", "training", "resharding"]
    assert never[-1].parts["rollout weights"] == 0
    buckets = never[-1].parts["transfer buffer"] - phase(setup(), "resharding").parts["transfer buffer"]
    assert buckets == 2048 * 2**20


def test_offloading_between_phases_does_not_help_the_update_and_offloading_in_it_does():
    planned = setup()
    training = phase(planned, "training").total
    assert phase(replace(planned, param_offload=True, optimizer_offload=True), "training").total == training
    saved = training - phase(replace(planned, step_offload=True), "training").total
    assert saved == pytest.approx(sum(states(planned).values()))


def test_the_reference_is_on_the_host_under_fsdp_and_absent_with_lora():
    assert phase(setup(), "training").parts["reference"] == 0
    megatron = setup(engine="megatron", tp=4, ref_offload=False)
    assert phase(megatron, "training").parts["reference"] == pytest.approx(2 * megatron.model.parameters / 4)
    assert phase(replace(megatron, lora_rank=8), "training").parts["reference"] == 0
    assert phase(replace(megatron, ref_offload=True), "training").parts["reference"] == 0


def test_lambda_0_has_no_preference_rows_and_lambda_1_no_generation():
    plain, joined = setup(), setup(lam=0.5, preference_rows=1024)
    assert phases(replace(joined, lam=0.0), BARE) == phases(plain, BARE)
    assert phase(plain, "training").parts["preference rows"] == 0
    found = phase(joined, "training")
    assert found.parts["preference rows"] == pytest.approx(found.parts["activations"] + found.parts["logits"])
    alone = phases(setup(lam=1.0, preference_rows=1024), BARE)
    assert [found.name for found in alone] == ["log-probs", "training"]
    assert alone[1].parts["activations"] == 0 < alone[1].parts["preference rows"]


setups = st.builds(
    dict,
    model=st.sampled_from(["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B"]),
    gpus_per_node=st.sampled_from([4, 8]),
    nodes=st.sampled_from([1, 2, 4]),
    engine=st.sampled_from(["fsdp", "fsdp2", "megatron"]),
    recompute=st.sampled_from(["none", "full"]),
    lora_rank=st.sampled_from([0, 32]),
    prompts=st.sampled_from([64, 256]),
    minibatch=st.sampled_from([64]),
    tokens_per_gpu=st.integers(1536, 65536),
    micro_rows=st.integers(1, 8),
    dynamic_batch=st.booleans(),
    param_offload=st.booleans(),
    step_offload=st.booleans(),
    lam=st.sampled_from([0.0, 0.5]),
    preference_rows=st.sampled_from([0, 128, 1024]),
)


def totals(planned):
    return {found.name: found.total for found in phases(planned, Assumptions())}


@settings(max_examples=100, deadline=None)
@given(numbers=setups, data=st.data())
def test_more_never_takes_more(numbers, data):
    """More GPUs, more splitting, fewer tokens and more offloading never take more memory on a GPU in any phase."""
    planned = setup(**numbers)
    steps = [
        {"nodes": 2 * planned.nodes},
        {"tokens_per_gpu": max(1536, planned.tokens_per_gpu // 2)},
        {"micro_rows": max(1, planned.micro_rows // 2)},
        {"param_offload": True},
        {"optimizer_offload": True},
        {"step_offload": True},
        {"lam": 0.0},
        {"recompute": "full"},
        {"rollout_tp": 2},
        {"fused_kernels": True},
    ]
    if planned.megatron:
        steps += [{"tp": 2 * planned.tp}, {"ep": 2} if planned.model.experts else {"tp": 4}]
    else:
        steps += [{"sp": 2, "tokens_per_gpu": max(768, planned.tokens_per_gpu // 2)}]
    more = replace(planned, **data.draw(st.sampled_from(steps)))
    before, after = totals(planned), totals(more)
    for name in after:
        assert after[name] <= before[name] * (1 + 1e-9), name


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-1.5B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-30B-A3B"])
def test_more_stages_never_hold_more_weights(model):
    """Optimiser states may grow: what dp shared is shared by fewer, and the outer stages hold the vocabulary too."""
    planned = [setup(model, engine="megatron", pp=pp) for pp in (1, 2, 4)]
    for part in ("weights", "gradients"):
        one, two, four = (states(each)[part] for each in planned)
        assert one > two > four


@given(numbers=setups)
@settings(max_examples=50, deadline=None)
def test_parts_are_never_negative_and_always_the_same(numbers):
    for found in phases(setup(**numbers), Assumptions()):
        assert tuple(found.parts) == PARTS
        assert min(found.parts.values()) >= 0


class Live(TorchDispatchMode):
    """The most bytes of tensors that are alive at a time, those of ``ignored`` apart."""

    def __init__(self, ignored):
        super().__init__()
        self.ignored = {tensor.untyped_storage().data_ptr() for tensor in ignored}
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.ignored:
                storage = tensor.untyped_storage()
                self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made


class CrossEntropyInPlace(torch.autograd.Function):
    """As flash-attn's with ``inplace_backward=True``: the gradient is written into the logits."""

    @staticmethod
    def forward(ctx, logits, labels):
        total = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, total, labels)
        return logits.gather(-1, labels[:, None])[:, 0] - total

    @staticmethod
    def backward(ctx, gradient):
        logits, total, labels = ctx.saved_tensors
        logits.sub_(total[:, None]).exp_().neg_()
        logits.scatter_add_(-1, labels[:, None], torch.ones_like(total)[:, None])
        return logits.mul_(gradient[:, None]), None


@pytest.mark.parametrize("vocab, temperature", [(100, 1.0), (8000, 1.0), (16000, 1.0), (16000, 0.7)])
def test_the_recomputed_layer_and_the_logits_are_never_there_together(vocab, temperature):
    """Transformers' own Qwen2 with verl's way of recomputation; weights are frozen, so activations alone count."""
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {"hidden_size": 128, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("qwen2", num_hidden_layers=4, vocab_size=vocab, **numbers)
    config._attn_implementation = "sdpa"
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = 512
    inputs, labels = torch.randn(1, tokens, 128, requires_grad=True), torch.randint(0, vocab, (tokens,))
    with Live([*model.parameters(), *model.buffers()]) as live:
        logits = model(inputs_embeds=inputs, use_cache=False).logits.squeeze(0)
        if temperature != 1:
            logits = logits / torch.full((tokens, 1), temperature)
        loss = CrossEntropyInPlace.apply(logits, labels).sum()
        del logits
        loss.backward()
    shape = shape_from_config(config.to_dict(), "small")
    planned = PlannedRun(shape, H100, compute_dtype="fp32", recompute="full", temperature=temperature)
    layer, held = recomputed_layer(planned), logit_bytes(planned)
    predicted = tokens * (training_activations(planned) + max(layer, held))
    assert live.most == pytest.approx(predicted, rel=0.1)
    together = phase(replace(planned, tokens_per_gpu=1536, log_prob_tokens_per_gpu=1536), "training").parts
    expected = 1536 * (training_activations(planned) + max(layer, held))
    assert together["activations"] + together["logits"] == pytest.approx(expected)


def test_logits_are_held_once_and_more_often_where_they_are_needed_again():
    plain = setup()
    once = 2 * plain.model.vocab
    assert logit_bytes(plain) == logit_bytes(plain, training=False) == once
    assert logit_bytes(setup(temperature=0.7)) == logit_bytes(setup(temperature=0.7), training=False) == 2 * once
    assert logit_bytes(setup(entropy=True)) == 3 * once and logit_bytes(setup(entropy=True), training=False) == once
    megatron = setup(engine="megatron", tp=4)  # bf16, float32 and its gradient in bf16
    assert logit_bytes(megatron) == 4 * once / 4 and logit_bytes(megatron, training=False) == 3 * once / 4


def test_the_first_stage_of_a_pipeline_holds_as_much_as_one_gpu_of_all_layers():
    """1F1B keeps p micro-batches of 1/p of the layers (arXiv 2205.05198, section 4.2.3)."""
    planned = setup("meta-llama/Llama-3.1-70B", engine="megatron", tp=8, nodes=8, recompute="none")
    assert training_activations(replace(planned, pp=4), in_flight=4) == pytest.approx(training_activations(planned))


def test_rollout_weights_are_split_and_in_their_own_type():
    assert rollout_weights(setup()) == 2 * setup().model.parameters
    assert rollout_weights(setup(rollout_tp=4, rollout_dtype="fp32")) == setup().model.parameters
