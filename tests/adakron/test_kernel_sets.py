"""Every set of kernels that runs here against the oracle and plain formulas in float64, operation by operation."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adakron import AdaKronConfig, Adapter, AdapterConfig
from adakron.artefact import expected_shapes
from adakron.bank import AdapterBank, BankView
from adakron.config import Fingerprint
from adakron.kernels import compiler
from adakron.kernels.compiler import native_library
from adakron.kernels.eager import EagerKernels
from adakron.kernels.interface import Embeddings, Norm
from adakron.kernels.native import NativeKernels, grouped_products, products, row_means
from adakron.plan import make_plan
from tests.reference import kron_forward_layer
from tests.tiny import HIDDEN, LAYERS, tiny_adapter, tiny_backbone

LENGTHS = (5, 1, 9, 2, 37, 9, 70)
HEADS = 4
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}  # bfloat16: a few units in the last place of values up to 8

needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C++ compiler here: native kernels are off")


has_wider = "avx512f" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
needs_wider = pytest.mark.skipif(not has_wider, reason="this processor's vectors are no wider")


@cache
def narrow_library():
    """The kernels as a processor with AVX2 and nothing after it has them."""
    flags = tuple("-march=haswell" if flag == "-march=native" else flag for flag in compiler.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FLAGS", flags)
        return compiler._load(compiler._compiled(compiler._compiler()))


@pytest.fixture(
    params=[
        "eager",
        "eager invariant",
        pytest.param("native", marks=needs_compiler),
        pytest.param("native, AVX2", marks=[needs_compiler, needs_wider]),
    ]
)
def kernel_set(request):
    def make(heads=HEADS, dtype=torch.float32):
        if request.param.startswith("native"):
            library = native_library() if request.param == "native" else narrow_library()
            return NativeKernels(library, heads, dtype)
        return EagerKernels(heads, dtype, CPU, invariant=request.param != "eager")

    return make


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture
def bank():
    return AdapterBank(HIDDEN, LAYERS, torch.float32, CPU)


def stage_of(placements, lengths=LENGTHS):
    ids = [np.full(length, n) for n, length in enumerate(lengths)]
    plan = make_plan(ids, [np.zeros_like(row) for row in ids], placements)
    return plan.stages[0], plan.order


def parts(stage):
    return [slice(int(b), int(b + n)) for b, n in zip(stage.starts, stage.lengths, strict=True)]


def norm_of(width, dtype=torch.float32):
    return Norm(1 + 0.3 * torch.randn(width, dtype=dtype), torch.randn(width, dtype=dtype), 1e-3)


def normed(y, norm):
    y = torch.as_tensor(y).double()
    return F.layer_norm(y, y.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


def assert_near(found, expected, dtype=torch.float32):
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), np.asarray(expected), atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 5), (3, 32), (2, 64), (1, 72)])
def test_attention_stays_within_each_row(kernel_set, heads, head_dim, dtype):
    stage, _ = stage_of([None] * len(LENGTHS))
    qkv = 2 * torch.randn(sum(LENGTHS), 3 * heads * head_dim).to(dtype)
    found = kernel_set(heads, dtype).begin(stage, BankView(AdapterBank(HIDDEN, LAYERS, dtype, CPU))).attend(qkv.clone())
    for part in parts(stage):
        q, k, v = qkv[part].double().view(-1, 3, heads, head_dim).permute(1, 2, 0, 3)
        probabilities = (q @ k.mT / head_dim**0.5).softmax(-1)
        assert_near(found[part], (probabilities @ v).transpose(0, 1).flatten(1), dtype)


@pytest.mark.parametrize("length", [150, 600])
def test_attention_of_long_rows_whose_heads_are_taken_a_few_at_a_time(kernel_set, length):
    heads, head_dim = 5, 32
    stage, _ = stage_of([None, None], [length, 3])
    qkv = torch.randn(length + 3, 3 * heads * head_dim)
    work = kernel_set(heads).begin(stage, BankView(AdapterBank(HIDDEN, LAYERS, torch.float32, CPU)))
    found = work.attend(qkv.clone())
    for part in parts(stage):
        q, k, v = qkv[part].double().view(-1, 3, heads, head_dim).permute(1, 2, 0, 3)
        assert_near(found[part], ((q @ k.mT / head_dim**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1))


def test_attention_survives_scores_far_from_zero(kernel_set):
    stage, _ = stage_of([None], [9])
    qkv = torch.randn(9, 3 * HIDDEN)
    qkv[:, : 2 * HIDDEN] *= 100
    found = kernel_set().begin(stage, BankView(AdapterBank(HIDDEN, LAYERS, torch.float32, CPU))).attend(qkv.clone())
    q, k, v = qkv.double().view(-1, 3, HEADS, HIDDEN // HEADS).permute(1, 2, 0, 3)
    expected = ((q @ k.mT / (HIDDEN // HEADS) ** 0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)  # the scores are in the thousands


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_the_exact_form_everywhere(kernel_set, dtype):
    stage, _ = stage_of([None] * len(LENGTHS))
    x = torch.cat([torch.linspace(-12, 12, 5001), torch.tensor([-1e30, -1e4, -0.0, 1e-30, 1e4, 1e30])]).to(dtype)
    work = kernel_set(dtype=dtype).begin(stage, BankView(AdapterBank(HIDDEN, LAYERS, dtype, CPU)))
    found, expected = work.gelu(x.clone()[None])[0], F.gelu(x.double())
    error = (found.double() - expected).abs() / x.double().abs().clamp(min=1)
    assert error.max() <= (5e-7 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_where_it_is(kernel_set, dtype):
    stage, _ = stage_of([None] * len(LENGTHS))
    work = kernel_set(dtype=dtype).begin(stage, BankView(AdapterBank(HIDDEN, LAYERS, dtype, CPU)))
    sick = parts(stage)[4]
    for name, width in (("attend", 3 * HIDDEN), ("gelu", HIDDEN), ("add_norm", HIDDEN)):
        x = torch.randn(sum(LENGTHS), width).to(dtype)
        x[sick.start + 3] = float("nan")
        if name == "add_norm":
            found = work.add_norm(x, torch.randn_like(x), norm_of(HIDDEN, dtype))
        else:
            found = getattr(work, name)(x)
        bad = found.isnan().any(1).nonzero().flatten().tolist()
        assert bad == (list(range(sick.start, sick.stop)) if name == "attend" else [sick.start + 3]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [20, 37, 384])
@pytest.mark.parametrize("typed", [True, False])
def test_embeddings(kernel_set, typed, width, dtype):
    words, positions, types = (torch.randn(count, width).to(dtype) for count in (50, 20, 2))
    tables = Embeddings(words, positions, types if typed else None, norm_of(width, dtype))
    ids, places, type_ids = (torch.randint(count, (33,)) for count in (50, 20, 2))
    total = words[ids].double() + positions[places].double() + (types[type_ids].double() if typed else 0)
    found = kernel_set(dtype=dtype).embed(tables, ids, type_ids, places)
    assert_near(found, normed(total, tables.norm), dtype)


@pytest.mark.parametrize("wrong", ["ids", "type_ids", "positions"])
@pytest.mark.parametrize("value", [-1, 9])
def test_no_table_is_read_beyond_its_end(kernel_set, wrong, value):
    tables = Embeddings(*torch.randn(3, 9, 20), norm_of(20))
    numbers = {name: torch.arange(9) for name in ("ids", "type_ids", "positions")}
    numbers[wrong][4] = value
    with pytest.raises(IndexError):
        kernel_set().embed(tables, **numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [20, 37, 384])
def test_sum_and_norm(kernel_set, width, dtype):
    stage, _ = stage_of([None] * len(LENGTHS))
    x, residual = (4 * torch.randn(sum(LENGTHS), width).to(dtype) for _ in range(2))
    norm = norm_of(width, dtype)
    work = kernel_set(dtype=dtype).begin(stage, BankView(AdapterBank(width, LAYERS, dtype, CPU)))
    expected = normed(x.double() + residual.double(), norm)
    assert_near(work.add_norm(x.clone(), residual, norm), expected, dtype)


@pytest.mark.parametrize("mix", ["many", "one", "with base", "two shapes", "first_layer", "base alone"])
def test_adapters_equal_the_equation_token_by_token(kernel_set, backbone, bank, mix):
    shapes = [AdaKronConfig(12, 4)] * len(LENGTHS)
    if mix == "two shapes":
        shapes = ([AdaKronConfig(12, 4), AdaKronConfig(20, 4), AdaKronConfig(10, 2)] * 3)[: len(LENGTHS)]
    if mix == "first_layer":
        shapes = ([AdaKronConfig(12, 4), AdaKronConfig(12, 4, first_layer=2)] * 4)[: len(LENGTHS)]
    adapters = [tiny_adapter(backbone, seed=n, adakron=shape) for n, shape in enumerate(shapes)]
    placements = [bank.add(adapter) for adapter in adapters]
    if mix == "one":
        adapters, placements = adapters[:1] * len(LENGTHS), placements[:1] * len(LENGTHS)
    bare = {"with base": lambda n: n % 2 == 1, "base alone": lambda n: True}.get(mix, lambda n: False)
    stage, order = stage_of([None if bare(n) else placements[n] for n in range(len(LENGTHS))])
    work = kernel_set().begin(stage, BankView(bank))
    norm = norm_of(HIDDEN)
    for layer in range(LAYERS):
        x, residual = torch.randn(sum(LENGTHS), HIDDEN), torch.randn(sum(LENGTHS), HIDDEN)
        found = work.adapt_add_norm(x.clone(), residual, norm, layer)
        for part, row in zip(parts(stage), order, strict=True):
            acts = not bare(row) and layer >= adapters[row].config.first_layer
            y = torch.as_tensor(kron_forward_layer(adapters[row], layer, x[part])) if acts else x[part].double()
            assert_near(found[part], normed(y + residual[part], norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("width", "shape"), [(37, AdaKronConfig(12, 4)), (97, AdaKronConfig(9, 3)), (131, AdaKronConfig(48, 4))]
)
def test_adapters_of_every_width(kernel_set, width, shape, dtype):
    """Widths and bottlenecks that no vector divides, odd ones too: bfloat16 may be multiplied in pairs."""
    digest = "0" * 64
    config = AdapterConfig(
        adakron=shape,
        hidden_size=width,
        num_hidden_layers=1,
        base_model_name_or_path="none",
        base_fingerprint=Fingerprint(digest, digest, digest),
        label_names=("no", "yes"),
    )
    bank = AdapterBank(width, 1, dtype, CPU)
    adapters = [
        Adapter.build(
            config, {name: 0.1 * torch.randn(size).to(dtype).float() for name, size in expected_shapes(config).items()}
        )
        for _ in LENGTHS
    ]
    stage, order = stage_of([bank.add(adapter) for adapter in adapters])
    work, norm = kernel_set(dtype=dtype).begin(stage, BankView(bank)), norm_of(width, dtype)
    x, residual = (torch.randn(sum(LENGTHS), width).to(dtype) for _ in range(2))
    found = work.adapt_add_norm(x.clone(), residual, norm, 0)
    for part, row in zip(parts(stage), order, strict=True):
        y = torch.as_tensor(kron_forward_layer(adapters[row], 0, x[part].float()))
        assert_near(found[part], normed(y + residual[part].double(), norm), dtype)


def test_a_broken_adapter_stays_in_its_rows(kernel_set, backbone, bank):
    placements = [bank.add(tiny_adapter(backbone, seed=n)) for n in range(len(LENGTHS))]
    bank.sites[placements[2].site].tensors["up"][placements[2].site_slot] = float("nan")
    stage, order = stage_of(placements)
    x, residual = torch.randn(2, sum(LENGTHS), HIDDEN)
    y = kernel_set().begin(stage, BankView(bank)).adapt_add_norm(x, residual, norm_of(HIDDEN), 0)
    assert {row for part, row in zip(parts(stage), order, strict=True) if y[part].isnan().any()} == {2}


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_of_every_width(dtype):
    x = torch.randn(5, 37)
    widths = (2, 150, 1, 16, 77, 3)
    shelves = [(torch.randn(3, width, 37).to(dtype), torch.randn(3, width).to(dtype)) for width in widths]
    begins = np.concatenate([[0], np.cumsum(2 * np.array(widths))])
    rows, slots = ((4, 0), (0, 0), (0, 2), (3, 1), (1, 3), (2, 4)), (2, 0)
    out = torch.full((int(begins[-1]),), float("nan"))
    tables = [
        products(*shelf, slots, pair, int(begin)) for shelf, pair, begin in zip(shelves, rows, begins[:-1], strict=True)
    ]
    grouped_products(native_library(), x, dtype, tables, out)
    for (weights, biases), pair, begin, width in zip(shelves, rows, begins[:-1], widths, strict=True):
        found = out[begin : begin + 2 * width].view(2, width)
        for slot, row, values in zip(slots, pair, found, strict=True):
            expected = weights[slot].double() @ x[row].double() + biases[slot].double()
            np.testing.assert_allclose(values.double(), expected, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [37, 96])
def test_means_of_rows(width, dtype):
    stage, _ = stage_of([None] * len(LENGTHS))
    x = torch.randn(sum(LENGTHS), width).to(dtype)
    found = row_means(native_library(), x, stage.starts, stage.lengths)
    for part, mean in zip(parts(stage), found, strict=True):
        np.testing.assert_allclose(mean, x[part].double().mean(0), atol=1e-6)
