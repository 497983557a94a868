"""What every PEFT module must hold on every family of backbones."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - in memory only, as between processes

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from autopeft.backbones import inject, shape_in
from autopeft.configuration import Configuration, Placement, Training, uniform
from autopeft.errors import InputError
from autopeft.families import FAMILIES, shape_of
from autopeft.modules import (
    LINEAR_SITES,
    NORM_SITES,
    BitFit,
    FullFineTuning,
    LayerNormTuning,
    Lora,
    ParallelAdapter,
    PeftModule,
    Prefix,
    SerialAdapter,
    module_from_dict,
    module_kinds,
    module_to_dict,
)
from autopeft.presets import preset
from autopeft.shapes import Slot
from tests import models

CASES: dict[str, tuple[tuple[str, ...], PeftModule, str]] = {
    "serial": (("ffn",), SerialAdapter(5), ""),
    "serial as released": (("ffn",), SerialAdapter(5, zero_up=False), ""),
    "parallel": (("ffn",), ParallelAdapter(6), ""),
    "prefix": (("attention",), Prefix(4), ""),
    "prefix through an MLP": (("attention",), Prefix(4, mlp=10), "prefix"),
    "lora": (LINEAR_SITES, Lora(3), ""),
    "full": (("all",), FullFineTuning(), ""),
    "bitfit": ((*LINEAR_SITES, *NORM_SITES), BitFit(), ""),
    "layer norm": (NORM_SITES, LayerNormTuning(), ""),
}
EVERY = [(family, case) for family in models.FAMILIES for case in CASES]


def configuration(case: str, layers: tuple[int, ...] = (0, 2)) -> Configuration:
    sites, module, group = CASES[case]
    if sites == ("all",):
        return Configuration((Placement(Slot("backbone", 0, "all"), module),))
    slots = [Slot("encoder", layer, site) for layer in layers for site in sites if site != "norm"]
    slots += [Slot("embeddings", 0, "norm")] if "norm" in sites else []
    return Configuration(tuple(Placement(slot, module, group) for slot in slots))


def hidden(model: torch.nn.Module, **given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**(given or models.inputs())).last_hidden_state


def shake(injection: object, scale: float = 0.2) -> None:
    """Moves every inserted parameter away from its start, so that nothing is zero by initialisation."""
    generator = torch.Generator().manual_seed(3)
    for _, parameter in injection.named_parameters():  # type: ignore[attr-defined]
        parameter.data.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)


def test_every_registered_kind_and_family_is_covered() -> None:
    assert {module.kind for _, module, _ in CASES.values()} == set(module_kinds())
    assert {family.name for family in FAMILIES.values()} == set(models.FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_specification_survives_json(case: str) -> None:
    module = CASES[case][1]
    assert module_from_dict(module_to_dict(module)) == module


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_counts_equal_the_real_ones(family: str, case: str) -> None:
    model = models.tiny_model(family)
    chosen = configuration(case)
    count = chosen.count(shape_in(model))
    injection = inject(model, chosen)
    assert sum(p.numel() for _, p in injection.named_parameters()) == count.trained
    assert sum(t.numel() for t in injection.stored_state().values()) == count.stored
    assert all(p.requires_grad for _, p in injection.named_parameters())


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_start_is_the_identity_where_the_method_allows(family: str, case: str) -> None:
    model = models.tiny_model(family)
    before = hidden(model)
    inject(model, configuration(case))
    difference = (hidden(model) - before).abs().max().item()
    module = CASES[case][1]
    if module.identity_at_start and getattr(module, "zero_up", True):
        assert difference == 0.0
    else:
        assert difference > 1e-6


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_every_inserted_parameter_gets_a_gradient_and_no_other(family: str, case: str) -> None:
    model = models.tiny_model(family)
    own = {id(p) for p in model.parameters()}
    injection = inject(model, configuration(case))
    shake(injection)
    output = model(**models.inputs())
    weights = torch.randn(output.last_hidden_state.shape, generator=torch.Generator().manual_seed(4)).double()
    (output.last_hidden_state * weights).sum().backward()
    for name, parameter in injection.named_parameters():
        # The pooler reads the last hidden states and nothing reads the pooler; unused rows of tables stay at zero.
        if "pooler" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    inserted = {id(p) for _, p in injection.named_parameters()}
    assert not own & inserted
    assert all(p.grad is None for p in model.parameters() if id(p) in own)


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_eject_restores_the_backbone_bit_for_bit_after_training(family: str, case: str) -> None:
    model = models.tiny_model(family)
    before, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    tensors = {name: id(p) for name, p in model.named_parameters()}
    output, attention = hidden(model), model.config._attn_implementation
    injection = inject(model, configuration(case))
    optimizer = torch.optim.SGD([p for _, p in injection.named_parameters()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**models.inputs()).last_hidden_state.square().sum().backward()
        optimizer.step()
    assert not torch.equal(hidden(model), output)
    injection.eject()
    assert [type(m) for m in model.modules()] == classes
    assert {name: id(p) for name, p in model.named_parameters()} == tensors
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(hidden(model), output)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_stored_tensors_rebuild_the_same_function(family: str, case: str) -> None:
    model = models.tiny_model(family)
    injection = inject(model, configuration(case))
    shake(injection)
    output, stored = hidden(model), {k: v.clone() for k, v in injection.stored_state().items()}
    injection.eject()
    again = inject(model, configuration(case).stored_form(), tensors=stored)
    # Through the MLP the flat prefix is recomputed in every pass; the stored one is that very tensor.
    assert (hidden(model) - output).abs().max().item() == 0.0
    again.eject()


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_padding_does_not_change_outputs(family: str, case: str) -> None:
    model = models.tiny_model(family)
    shake(inject(model, configuration(case)))
    padded = hidden(model)[1, :4]
    alone = hidden(model, input_ids=models.inputs()["input_ids"][1:, :4])[0]
    assert (padded - alone).abs().max().item() < 1e-9  # float64, the tolerance of the design


@pytest.mark.parametrize(("family", "case"), EVERY)
def test_copies_and_pickled_models_compute_the_same(family: str, case: str) -> None:
    model = models.tiny_model(family)
    shake(inject(model, configuration(case)))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(hidden(twin), hidden(model))


@pytest.mark.parametrize("family", models.FAMILIES)
def test_everything_in_one_layer_equals_the_written_equations(family: str) -> None:
    """LN(a_s + a_p + x) with a_s = h + W_up relu(W_down LN(h + x)), a_p = 4 W_up' relu(W_down' x), from methods.md."""
    model = models.tiny_model(family)
    slot = Slot("encoder", 1, "ffn")
    seen: dict[str, torch.Tensor] = {}
    layer = model.get_submodule("transformer.layer" if family == "distilbert" else "encoder.layer")[1]
    ffn_in = layer.ffn if family == "distilbert" else layer.intermediate
    norm = layer.output_layer_norm if family == "distilbert" else layer.output.LayerNorm
    ffn_out = layer.ffn.lin2 if family == "distilbert" else layer.output.dense
    handles = [
        ffn_in.register_forward_pre_hook(lambda _, given: seen.update(x=given[0])),
        ffn_out.register_forward_hook(lambda _, __, result: seen.update(h=result)),
        layer.register_forward_hook(lambda _, __, result: seen.update(out=result)),
    ]
    injection = inject(model, Configuration((Placement(slot, SerialAdapter(5)), Placement(slot, ParallelAdapter(6)))))
    shake(injection)
    hidden(model)
    w = dict(injection.named_parameters())

    def two_linears(kind: str, given: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(given @ w[f"{slot}.{kind}.down.weight"].T + w[f"{slot}.{kind}.down.bias"])
        return inner @ w[f"{slot}.{kind}.up.weight"].T + w[f"{slot}.{kind}.up.bias"]

    h, x = seen["h"], seen["x"]
    serial = h + two_linears("serial_adapter", norm(h + x))
    parallel = 4 * two_linears("parallel_adapter", x)
    assert (seen["out"] - norm(serial + parallel + x)).abs().max().item() < 1e-9
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("site", LINEAR_SITES)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_lora_equals_its_merged_weight(family: str, site: str) -> None:
    """W + (alpha / r) B A, arXiv 2106.09685 eq. 3, put into the weight of an untouched model."""
    model, merged = models.tiny_model(family), models.tiny_model(family)
    injection = inject(model, Configuration((Placement(Slot("encoder", 2, site), Lora(3, alpha=5.0)),)))
    shake(injection)
    host_path = next(n for n, m in model.named_modules() if "autopeft_sidecar" in dict(m.named_children()))
    a, b = (p for _, p in injection.named_parameters())
    merged.get_submodule(host_path).weight.data += (5.0 / 3.0) * b.data @ a.data
    assert (hidden(model) - hidden(merged)).abs().max().item() < 1e-9


@pytest.mark.parametrize("family", models.FAMILIES)
def test_prefix_equals_attention_written_out(family: str) -> None:
    """softmax(q [Pk; K]^T / sqrt d_h) [Pv; V], arXiv 2101.00190, computed by hand from the projections."""
    model = models.tiny_model(family)
    injection = inject(model, Configuration((Placement(Slot("encoder", 0, "attention"), Prefix(4)),)))
    shake(injection, 1.0)
    layer = model.get_submodule("transformer.layer" if family == "distilbert" else "encoder.layer")[0]
    attention = layer.attention if family == "distilbert" else layer.attention.self
    seen: dict[str, torch.Tensor] = {}
    projections = ("q_lin", "k_lin", "v_lin") if family == "distilbert" else ("query", "key", "value")
    for short, name in zip("qkv", projections, strict=True):
        getattr(attention, name).register_forward_hook(lambda _, __, result, short=short: seen.update({short: result}))
    if family == "distilbert":
        attention.out_lin.register_forward_pre_hook(lambda _, given: seen.update(out=given[0]))
    else:
        attention.register_forward_hook(lambda _, __, result: seen.update(out=result[0]))
    hidden(model)
    key, value = (p for _, p in injection.named_parameters())
    heads = lambda t: t.view(*t.shape[:-1], models.HEADS, -1).transpose(-3, -2)  # noqa: E731
    q, k, v = heads(seen["q"]), heads(seen["k"]), heads(seen["v"])
    k = torch.cat([heads(key)[None].expand(2, -1, -1, -1), k], dim=2)
    v = torch.cat([heads(value)[None].expand(2, -1, -1, -1), v], dim=2)
    visible = torch.cat([torch.ones(2, 4), models.inputs()["attention_mask"]], dim=1).bool()[:, None, None]
    scores = (q @ k.transpose(-1, -2) / (models.WIDTH / models.HEADS) ** 0.5).masked_fill(~visible, float("-inf"))
    expected = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, models.WIDTH)
    assert (seen["out"] - expected).abs().max().item() < 1e-9


@pytest.mark.parametrize("family", models.FAMILIES)
def test_prefix_is_the_same_under_eager_and_sdpa(family: str) -> None:
    outputs = []
    for attention in ("sdpa", "eager"):
        model = models.tiny_model(family, attention=attention)
        torch.manual_seed(5)
        injection = inject(model, configuration("prefix"))
        shake(injection)
        outputs.append(hidden(model))
        assert model.config._attn_implementation == f"autopeft_{attention}"
        injection.eject()
        assert model.config._attn_implementation == attention
    assert (outputs[0] - outputs[1]).abs().max().item() < 1e-9


def test_prefix_shifts_no_position() -> None:
    """With the prefix's values and keys pushed out of the softmax the outputs are the backbone's own."""
    model = models.tiny_model("bert")
    before = hidden(model)
    layer = model.encoder.layer[0].attention.self
    with torch.no_grad():
        layer.query.weight.zero_()
        layer.query.bias.fill_(1.0)
    before = hidden(model)
    injection = inject(model, Configuration((Placement(Slot("encoder", 0, "attention"), Prefix(4)),)))
    key, _ = (p for _, p in injection.named_parameters())
    key.data.fill_(-1e4)  # query is all ones: every score of the prefix is about -1e4 * d_h
    assert (hidden(model) - before).abs().max().item() < 1e-9


def test_changing_the_attention_under_a_prefix_is_refused() -> None:
    model = models.tiny_model("bert")
    inject(model, configuration("prefix"))
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="would drop the prefixes"):
        hidden(model)


def test_two_layouts_share_a_backbone() -> None:
    model = models.tiny_model("bert")
    before = hidden(model)
    first = inject(model, configuration("serial as released"), name="first")
    alone = hidden(model)
    second = inject(model, configuration("lora"), name="second")
    shake(second)
    assert not torch.equal(hidden(model), alone)
    second.eject()
    assert torch.equal(hidden(model), alone)
    first.eject()
    assert torch.equal(hidden(model), before)


@pytest.mark.parametrize(
    "cases",
    [
        ("lora", "prefix"),
        ("prefix", "prefix through an MLP"),
        ("serial", "full"),
        ("full", "lora"),
        ("bitfit", "layer norm"),
        ("layer norm", "full"),
        ("full", "bitfit"),
        ("bitfit", "prefix"),
    ],
)
@pytest.mark.parametrize("last_first", [True, False])
def test_of_several_layouts_only_the_last_injected_takes_part(cases: tuple[str, str], last_first: bool) -> None:
    """Each layout's outputs are those it has alone, in whichever order they leave; nothing of them stays."""
    alone = []
    for seed, case in enumerate(cases):
        model = models.tiny_model("bert")
        torch.manual_seed(seed)
        injection = inject(model, configuration(case, layers=(seed,)))
        shake(injection)
        alone.append(hidden(model))
    model = models.tiny_model("bert")
    before, injections = hidden(model), []
    for seed, case in enumerate(cases):
        torch.manual_seed(seed)
        injections.append(inject(model, configuration(case, layers=(seed,)), name=f"layout {seed}"))
        shake(injections[-1])
        assert torch.equal(hidden(model), alone[seed])
    assert all(p.requires_grad for injection in injections for _, p in injection.named_parameters())
    leaving, staying = (1, 0) if last_first else (0, 1)
    injections[leaving].eject()
    assert torch.equal(hidden(model), alone[staying])
    injections[staying].eject()
    assert torch.equal(hidden(model), before)
    assert model.config._attn_implementation == "sdpa"
    assert not any("autopeft" in name for module in model.modules() for name in vars(module))


def test_a_layout_that_leaves_twice_or_below_others_puts_the_shared_tensors_back() -> None:
    """Private copies are in place while their layout is on top, and only then."""
    model = models.tiny_model("bert")
    shared = {name: id(p) for name, p in model.named_parameters()}
    injections = [inject(model, configuration(case), name=case) for case in ("bitfit", "full", "layer norm")]
    norm, query = model.encoder.layer[0].output.LayerNorm, model.encoder.layer[0].attention.self.query
    assert id(query.bias) == shared["encoder.layer.0.attention.self.query.bias"]  # the top layout trains norms only
    assert norm.bias is injections[2].built[2][1].copies["bias"]
    injections[0].eject()
    injections[2].eject()
    injections[2].eject()
    inside = injections[1].built[0][1].copies
    assert query.bias is inside["encoder/layer/0/attention/self/query/bias"]
    injections[1].eject()
    assert {name: id(p) for name, p in model.named_parameters()} == shared
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("case", ["full", "bitfit", "layer norm"])
@pytest.mark.parametrize(("change", "says"), [("drop", "tensor is missing"), ("extra", "belong"), ("cut", "has shape")])
def test_private_copies_load_exactly_what_they_train(case: str, change: str, says: str) -> None:
    model = models.tiny_model("bert")
    before, shared = hidden(model), {name: id(p) for name, p in model.named_parameters()}
    injection = inject(model, configuration(case))
    stored = injection.stored_state()
    injection.eject()
    name = next(key for key in stored if key.endswith("norm1.layer_norm.bias" if case == "layer norm" else "bias"))
    if change == "drop":
        del stored[name]
    elif change == "extra":
        stored[f"{name}s"] = torch.zeros(2)
    else:
        stored[name] = stored[name][:1]
    with pytest.raises(InputError, match=says):
        inject(model, configuration(case), tensors=stored)
    assert torch.equal(hidden(model), before)
    assert {name: id(p) for name, p in model.named_parameters()} == shared


def test_a_bias_that_is_not_there_is_refused() -> None:
    model = models.tiny_model("bert")
    model.encoder.layer[1].output.dense.bias = None
    with pytest.raises(InputError, match=r"encoder\.1\.ffn\.down: this Linear has no bias; leave the module out"):
        inject(model, Configuration((Placement(Slot("encoder", 1, "ffn.down"), BitFit()),)))
    assert not any("autopeft" in name for name in vars(model))


def test_an_adapter_without_modules_also_silences_the_others() -> None:
    model = models.tiny_model("bert")
    before = hidden(model)
    first = inject(model, configuration("serial as released"), name="first")
    probe = inject(model, Configuration(), name="probe")
    assert torch.equal(hidden(model), before)
    probe.eject()
    assert not torch.equal(hidden(model), before)
    first.eject()


def test_a_second_eject_leaves_a_later_layout_of_the_same_name_alone() -> None:
    model = models.tiny_model("bert")
    first = inject(model, configuration("lora"))
    first.eject()
    second = inject(model, configuration("serial as released"))
    output = hidden(model)
    first.eject()
    assert torch.equal(hidden(model), output)
    second.eject()


def test_layouts_that_would_collide_are_refused() -> None:
    model = models.tiny_model("bert")
    first = inject(model, configuration("lora"))
    with pytest.raises(InputError, match="default: a layout of this name is in place"):
        inject(model, configuration("serial"))
    first.eject()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_full_fine_tuning_beside_other_modules_comes_out_bit_for_bit(family: str) -> None:
    model = models.tiny_model(family)
    before, tensors = hidden(model), {name: id(p) for name, p in model.named_parameters()}
    both = Configuration((*configuration("full").placements, *configuration("lora").placements))
    injection = inject(model, both)
    shake(injection, 0.01)
    assert sum(p.numel() for _, p in injection.named_parameters()) == both.count(shape_in(model)).trained
    assert not torch.equal(hidden(model), before)
    injection.eject()
    assert {name: id(p) for name, p in model.named_parameters()} == tensors
    assert torch.equal(hidden(model), before)


@pytest.mark.parametrize(
    ("placements", "says"),
    [
        ([(Slot("encoder", 0, "ffn"), SerialAdapter(33))], "encoder.0.ffn: bottleneck 33 .* use a bottleneck from 1"),
        ([(Slot("encoder", 7, "ffn"), SerialAdapter(4))], "layer 7 does not exist; 'encoder' has layers 0 to 2"),
        ([(Slot("decoder", 0, "ffn"), SerialAdapter(4))], "no stack 'decoder'"),
        ([(Slot("encoder", 0, "attention.qery"), Lora(2))], "did you mean|cannot sit here"),
        ([(Slot("encoder", 0, "attention"), Lora(2))], "lora cannot sit here; its sites are"),
        ([(Slot("encoder", 0, "ffn"), BitFit())], "bitfit cannot sit here; its sites are: attention.key"),
        ([(Slot("encoder", 0, "ffn.up"), LayerNormTuning())], "sites are: norm, norm1, norm2"),
        ([(Slot("embeddings", 1, "norm"), BitFit())], "layer 1 does not exist; 'embeddings' has layers 0 to 0"),
        (
            [(Slot("encoder", 0, "norm1"), BitFit()), (Slot("encoder", 0, "norm1"), LayerNormTuning())],
            "encoder.0.norm1: layer_norm and bitfit would train the same parameters; keep one",
        ),
        (
            [(Slot("encoder", 0, "norm1"), BitFit()), (Slot("backbone", 0, "all"), FullFineTuning())],
            "encoder.0.norm1: bitfit and full_fine_tuning would train the same",
        ),
        ([(Slot("encoder", 0, "attention.query"), Lora(40))], r"rank 40 is larger than min\(d_in, d_out\) = 32"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_model_alone(
    placements: list[tuple[Slot, PeftModule]], says: str
) -> None:
    model = models.tiny_model("bert")
    before = hidden(model)
    good = Placement(Slot("encoder", 0, "attention"), Prefix(3))
    with pytest.raises(InputError, match=says):
        inject(model, Configuration((good, *(Placement(slot, module) for slot, module in placements))))
    assert torch.equal(hidden(model), before)
    assert not any("autopeft" in name for name, _ in model.named_modules())
    assert model.config._attn_implementation == "sdpa"


def test_unknown_family_lists_the_known_ones() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=16, n_head=2, vocab_size=50))
    with pytest.raises(InputError, match="'gpt2' is not supported; known families: bert, distilbert, electra, roberta"):
        inject(model, Configuration())


@pytest.mark.parametrize(("change", "says"), [("drop", "tensor is missing"), ("extra", "belong"), ("cut", "has shape")])
def test_tensors_that_do_not_fit_are_refused(change: str, says: str) -> None:
    model = models.tiny_model("bert")
    before = hidden(model)
    injection = inject(model, configuration("lora"))
    stored = injection.stored_state()
    injection.eject()
    name = sorted(stored)[-1]
    if change == "drop":
        del stored[name]
    elif change == "extra":
        stored["encoder.1.ffn.serial_adapter.down.weight"] = torch.zeros(2, 2)
    else:
        stored[name] = stored[name][:1]
    with pytest.raises(InputError, match=says):
        inject(model, configuration("lora"), tensors=stored)
    assert torch.equal(hidden(model), before)


# Golden numbers of the literature on BERT-base (12 layers, 768 wide), head and pooler excluded.
GOLDEN = {
    "lora": 294_912,  # r=8 on query and value, arXiv 2106.09685's formula r (d_in + d_out)
    "prefix": 368_640,  # p=20: 12 * 2 * 20 * 768
    "serial": 894_528,  # Pfeiffer, b=48: 12 (2 * 768 * 48 + 48 + 768)
    "parallel": 894_528,
    "bitfit": 102_144,  # all biases: 12 (4 * 768 + 3072 + 768 + 2 * 768), 768 of the embeddings; none of the pooler
    "layer_norm": 38_400,  # 25 LayerNorms of 2 * 768
    "full": 109_482_240,  # transformers' own count of the bare model with its pooler
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_counts(name: str) -> None:
    base = shape_of({"model_type": "bert"})
    assert preset(name, base, 1e-3).count(base).stored == GOLDEN[name]


def test_biases_and_norms_are_those_that_transformers_counts() -> None:
    """Names in the real model, without pooler and without ELECTRA's projection of its embeddings, are the reference."""
    for family in models.FAMILIES:
        model = models.tiny_model(family)
        named = [(n, p.numel()) for n, p in model.named_parameters() if "pooler" not in n and "project" not in n]
        biases = sum(size for name, size in named if name.endswith(".bias"))
        norms = sum(size for name, size in named if "norm" in name.lower())
        shape = shape_in(model)
        assert preset("bitfit", shape, 1e-3).count(shape).stored == biases
        assert preset("layer_norm", shape, 1e-3).count(shape).stored == norms


def test_count_of_a_paper_point() -> None:
    """d=64, three layers, sizes 12 / 24 / 6: 3 [(2 d 12 + 12 + d) + (2 d 24 + 24 + d) + 2 d 6] = 16,620."""
    shape = shape_of({"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4})
    sizes = [("ffn", SerialAdapter(12)), ("ffn", ParallelAdapter(24)), ("attention", Prefix(6, mlp=800))]
    chosen = uniform(shape, sizes, Training())
    assert chosen.count(shape).stored == 16_620


def test_mlp_prefix_counts_what_it_trains() -> None:
    """p d + (d m + m) + (m 2 d L' + 2 d L') for one group over L' layers, from methods.md."""
    base = shape_of({"model_type": "bert"})
    p, d, m, layers = 6, 768, 800, 12
    group = Configuration(
        tuple(Placement(Slot("encoder", i, "attention"), Prefix(p, mlp=m), "g") for i in range(layers))
    )
    count = group.count(base)
    assert count.trained == p * d + (d * m + m) + (m * 2 * d * layers + 2 * d * layers)
    assert count.stored == count.active == 2 * p * d * layers


@pytest.mark.parametrize("family", models.FAMILIES)
def test_total_parameters_equal_the_real_model(family: str) -> None:
    for changes in ({}, {"vocab_size": 71, "max_position_embeddings": 33}):
        config = models.tiny_config(family)
        for key, value in changes.items():
            setattr(config, key, value)
        real = sum(p.numel() for p in AutoModel.from_config(config).parameters())
        assert shape_of(config.to_dict()).total_parameters == real
    with torch.device("meta"):
        default = AutoModel.from_config(AutoConfig.for_model(family))
    assert shape_of({"model_type": family}).total_parameters == sum(p.numel() for p in default.parameters())
