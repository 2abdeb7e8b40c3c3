"""link_weights: forward, all gradients, derivatives, transforms, against the reference."""

import itertools

import paramixer
import pytest
import torch
import torch.nn.functional as F
from paramixer import reference
from support import (
    DTYPES,
    LAYOUTS,
    assert_as_exact_as_torch,
    check_derivatives,
    results_of_instruction_set,
)
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

OPS = torch.ops.paramixer
NAMES = ("result", "d x", "d hidden_weight", "d hidden_bias", "d output_weight", "d output_bias")


def operands(batch=(2, 5), width=3, factors=2, hidden=4, outputs=3, bias=True, **options):
    """x (*, E) and the parameters, at the scale of initialised layers."""
    x = torch.randn(*batch, width, **options)
    hidden_weight = torch.randn(factors * hidden, width, **options) / width**0.5
    output_weight = torch.randn(factors, outputs, hidden, **options) / hidden**0.5
    hidden_bias = torch.randn(factors * hidden, **options) if bias else None
    output_bias = torch.randn(factors, outputs, **options) if bias else None
    return [x, hidden_weight, hidden_bias, output_weight, output_bias]


def double_operands(requires_grad=True, **options):
    made = operands(dtype=torch.float64, **options)
    return [t if t is None else t.requires_grad_(requires_grad) for t in made]


def mapped(function, tensors):
    return [None if t is None else function(t) for t in tensors]


def forward_and_gradients(function, tensors, gradient):
    leaves = mapped(lambda t: t.detach().requires_grad_(), tensors)
    result = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [result.detach(), *torch.autograd.grad(result, wanted, gradient.to(result.dtype))]


def torch_form(x, hidden_weight, hidden_bias, output_weight, output_bias):
    """What a PyTorch user would write: every layer in the operands' dtype."""
    factors, _, hidden = output_weight.shape
    inner = F.gelu(F.linear(x.reshape(-1, x.shape[-1]), hidden_weight, hidden_bias))
    inner = inner.view(len(inner), factors, hidden)
    links = torch.bmm(inner.transpose(0, 1), output_weight.transpose(1, 2)).transpose(0, 1)
    if output_bias is not None:
        links = links + output_bias
    return links.reshape(*x.shape[:-1], *output_weight.shape[:2])


def check(tensors, layout=torch.Tensor.contiguous):
    """Result and gradients against PyTorch in the same dtype and the reference in float64."""
    exact_tensors = mapped(torch.Tensor.double, tensors)
    gradient = torch.randn_like(reference.link_weights(*exact_tensors))
    gradient = layout(gradient.to(tensors[0].dtype))
    actual = forward_and_gradients(paramixer.link_weights, tensors, gradient)
    torchs = forward_and_gradients(torch_form, tensors, gradient)
    exact = forward_and_gradients(reference.link_weights, exact_tensors, gradient.double())
    for what, *results in zip(NAMES, actual, torchs, exact, strict=False):
        assert results[0].is_contiguous()
        if results[0].dtype == torch.float64:  # no form is the exact one
            torch.testing.assert_close(*results[::2], rtol=1e-11, atol=1e-11, msg=what)
        elif (
            max(results[0].numel(), tensors[0].numel()) < 8
        ):  # a few numbers may all be differences of larger ones
            tolerance = 64 * torch.finfo(results[0].dtype).eps
            mine = results[0].double()
            torch.testing.assert_close(mine, results[2], rtol=tolerance, atol=tolerance, msg=what)
        else:
            assert_as_exact_as_torch(*results, what)
    return actual, exact


SIZES = [
    dict(batch=(rows,), width=width, hidden=hidden, outputs=outputs, factors=factors)
    for rows, width, hidden, outputs, factors in [
        *itertools.product((0, 1, 7, 1000), (1, 3, 32), (1, 5, 32), (3, 11), (1, 4)),
        *itertools.product((1, 7, 1000), (3, 32), (128,), (1, 64), (1, 4)),
        *((rows, 17, 16, 9, 2) for rows in (47, 48, 49, 95, 96, 97, 191, 192, 193, 7000)),
        *((50, size, size, size, 3) for size in (2, 4, 8, 9, 15, 16, 25, 33, 48, 49, 65)),
    ]
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(dtype, device):
    for sizes in SIZES:
        torch.manual_seed(0)
        try:
            check(operands(**sizes, dtype=dtype, device=device))
        except AssertionError as error:
            raise AssertionError(f"{sizes}: {error}") from error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("present", [(True, False), (False, True), (False, False)])
def test_without_biases(dtype, present, device):
    made = operands(batch=(60,), width=7, dtype=dtype, device=device)
    for index, is_there in zip((2, 4), present, strict=True):
        if not is_there:
            made[index] = None
    check(made)


def test_single_precision(device):
    actual, exact = check(operands((4, 500), 32, 4, 32, 11, device=device))
    for mine, true in zip(actual, exact, strict=True):
        assert (mine.double() - true).norm() <= 2e-6 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"expanded"}))
def test_layouts(dtype, layout, device):
    arrange = LAYOUTS[layout]
    made = operands((3, 21), 8, 2, 6, 5, dtype=dtype, device=device)
    for index in (0, 1, 3, 4):
        check([arrange(t) if i == index else t for i, t in enumerate(made)])
    check(made, layout=arrange)


def test_expanded(device):
    made = operands((1, 5), 4, device=device)
    check([made[0].expand(6, 5, 4), *made[1:]])
    check(made, layout=lambda g: g[..., :1].expand(g.shape))


@pytest.mark.parametrize("batch", [(), (4,), (0, 3), (2, 1, 3)])
def test_batch_dimensions(batch, device):
    check(operands(batch, device=device))


@pytest.mark.parametrize("sizes", [{"width": 0}, {"hidden": 0}, {"outputs": 0}, {"factors": 0}])
def test_sums_of_nothing(sizes, device):
    made = operands((4,), dtype=torch.float64, device=device)
    x, hidden_weight, hidden_bias, output_weight, output_bias = made
    width = sizes.get("width", 3)
    factors, hidden = sizes.get("factors", 2), sizes.get("hidden", 4)
    outputs = sizes.get("outputs", 3)
    made = [
        x[:, :width],
        hidden_weight[: factors * hidden, :width],
        hidden_bias[: factors * hidden],
        output_weight[:factors, :outputs, :hidden],
        output_bias[:factors, :outputs],
    ]
    gradient = torch.randn(4, factors, outputs, dtype=torch.float64, device=device)
    for actual, expected in zip(
        forward_and_gradients(paramixer.link_weights, made, gradient),
        forward_and_gradients(reference.link_weights, made, gradient),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def gelu_and_slope(a):
    """Through the operator: one input, one hidden unit, one output, weights one."""
    a = a.detach().requires_grad_()
    one = torch.ones(1, 1, dtype=a.dtype)
    value = paramixer.link_weights(a[:, None], one, None, one[None], None).reshape(-1)
    return value.detach(), torch.autograd.grad(value.sum(), a)[0]


def test_gelu_of_all_magnitudes():
    """Against float64: as exact as float arithmetic allows, also in the tails."""
    tiny = torch.logspace(-44, 38, 200000)
    a = torch.cat([-tiny, tiny, torch.linspace(-20, 20, 400001), torch.zeros(1)])
    value, slope = gelu_and_slope(a)
    exact_value, exact_slope = gelu_and_slope(a.double())
    error, magnitude = (value.double() - exact_value).abs(), a.double().abs()
    positive = a > 0
    assert (error[positive] <= 1.6e-7 * exact_value[positive] + 1e-45).all()
    assert (error <= 1.6e-7 * magnitude + 1e-45).all()
    assert error[~positive].max() <= 5e-7
    assert (value[a < -6] == 0).all()
    slope_error = (slope.double() - exact_slope).abs()
    assert slope_error.max() <= 5e-7
    assert (slope_error[magnitude > 6.5] <= 1e-7).all()


def test_gelu_of_nan_and_infinity():
    a = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    value, slope = gelu_and_slope(a)
    assert value.isnan().tolist() == [True, False, True, False]
    assert value[1] == float("inf")
    assert slope[0].isnan()
    assert not slope[3].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype, device):
    made = operands((100,), 5, dtype=dtype, device=device)
    made[0][37, 2] = float("nan")
    bad = paramixer.link_weights(*made).isnan().flatten(1)
    assert bad[37].all()
    assert not bad[:37].any()
    assert not bad[38:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_results_are_rounded_once(dtype):
    made = operands((200,), 16, 3, 8, 5, dtype=dtype)
    wide = paramixer.link_weights(*mapped(torch.Tensor.float, made))
    assert torch.equal(paramixer.link_weights(*made), wide.to(dtype))


# ---- Determinism


def results(dtype):
    generator = torch.Generator().manual_seed(1)
    shapes = [(5000, 20), (3 * 24, 20), (3 * 24,), (3, 13, 24), (3, 13)]
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    gradient = torch.randn(5000, 3, 13, generator=generator)
    return forward_and_gradients(paramixer.link_weights, made, gradient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_runs(dtype):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results(dtype)
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            assert all(torch.equal(*pair) for pair in zip(results(dtype), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def all_results():
    """Results of every dtype."""
    return {dtype: results(dtype) for dtype in DTYPES}


def test_instruction_sets(tmp_path):
    saved = {
        name: results_of_instruction_set("test_link_weights", name, tmp_path / name)
        for name in ("baseline", "avx2")
    }
    for dtype in DTYPES:
        for mine, portable, theirs in zip(
            results(dtype), saved["baseline"][dtype], saved["avx2"][dtype], strict=True
        ):
            exact = mine.double()
            assert (portable - exact).norm() <= 20 * torch.finfo(dtype).eps * exact.norm()
            # AVX2 and AVX-512 sum in the same order with the same fused multiply-adds.
            fused = paramixer._load.cpu_instruction_set() != "baseline"
            assert torch.equal(theirs, mine) or not fused


# ---- Memory


def test_saves_what_went_in_and_nothing_else():
    made = [t.requires_grad_() for t in operands((100,), 8, 4, 16, 5)]
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        paramixer.link_weights(*made)
    assert {t.data_ptr() for t in packed} <= {t.data_ptr() for t in made}


class Results(TorchDispatchMode):
    """The operators of this library that ran, with their gradients by x."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "paramixer":
            self.seen.append((function._opname, result))
        return result


def test_the_gradient_by_x_is_computed_only_where_wanted():
    made = operands((10,))
    for needs in (True, False):
        leaves = [t.detach().requires_grad_(needs or i > 0) for i, t in enumerate(made)]
        result = paramixer.link_weights(*leaves)
        with Results() as ran:
            result.sum().backward()
        ((name, gradients),) = ran.seen
        assert name == "link_weights_backward"
        assert gradients[0].numel() == (made[0].numel() if needs else 0)
        assert (leaves[0].grad is not None) == needs


# ---- Derivatives everywhere PyTorch has them


def function_of(index, made):
    """The operator as a function of those operands alone whose indices are given."""
    return lambda *some: paramixer.link_weights(
        *(some[index.index(i)] if i in index else t for i, t in enumerate(made))
    )


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(bias):
    made = double_operands(batch=(2, 2), factors=2, hidden=3, outputs=2, bias=bias)
    inputs = [t for t in made if t is not None]
    function = function_of([i for i, t in enumerate(made) if t is not None], made)
    check_derivatives(function, inputs)


def test_third_order():
    def third(function, made):
        value = function(*made).sin().sum()
        for index in (0, 1, 3):
            value = torch.autograd.grad(value, made[index], create_graph=True)[0].square().sum()
        return value

    made = double_operands()
    torch.testing.assert_close(
        third(paramixer.link_weights, made), third(reference.link_weights, made)
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(requires_grad, bias):
    made = double_operands(requires_grad, bias=bias)
    torch.library.opcheck(OPS.link_weights.default, made)
    x = LAYOUTS["channel_sliced"](made[0].detach()).requires_grad_(requires_grad)
    torch.library.opcheck(OPS.link_weights.default, [x, *made[1:]])
    gradient = torch.randn_like(reference.link_weights(*made)).detach()
    for wants_x in (True, False):
        torch.library.opcheck(OPS.link_weights_backward.default, [gradient, *made[:4], wants_x])


def test_functorch():
    made = double_operands(False)
    loss = lambda *t: paramixer.link_weights(*t).sin().sum()
    oracle = lambda *t: reference.link_weights(*t).sin().sum()
    every = tuple(range(5))
    same = torch.testing.assert_close
    for transform in (grad, jacrev, jacfwd):
        same(transform(loss, every)(*made), transform(oracle, every)(*made))
    same(hessian(loss, (0, 3))(*made), hessian(oracle, (0, 3))(*made))
    tensor = lambda f: lambda *t: f(*t).sin()
    for outer, inner in itertools.product((jacrev, jacfwd), repeat=2):
        actual = outer(inner(tensor(paramixer.link_weights), 0), 1)(*made)
        same(actual, outer(inner(tensor(reference.link_weights), 0), 1)(*made))
    result, pull = vjp(paramixer.link_weights, *made)
    vectors = torch.randn(3, *result.shape, dtype=torch.float64)
    same(vmap(pull)(vectors), vmap(vjp(reference.link_weights, *made)[1])(vectors))


@pytest.mark.parametrize(
    "in_dims",
    [(0, None, None, None, None), (1, 0, 0, 0, 0), (None, 1, 0, 2, 1), (None, None, 0, None, 0)],
)
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap(in_dims):
    made = double_operands(False)
    stacked = [
        t if dim is None else torch.stack([t, 2 * t, -t], dim)
        for t, dim in zip(made, in_dims, strict=True)
    ]
    torch.testing.assert_close(
        vmap(paramixer.link_weights, in_dims)(*stacked),
        vmap(reference.link_weights, in_dims)(*stacked),
    )
    loss = lambda f: lambda *t: f(*t).sin().sum()
    torch.testing.assert_close(
        vmap(grad(loss(paramixer.link_weights), (0, 1, 3)), in_dims)(*stacked),
        vmap(grad(loss(reference.link_weights), (0, 1, 3)), in_dims)(*stacked),
    )


def test_vmap_without_biases():
    x, hidden_weight, _, output_weight, _ = double_operands(False, bias=False)
    run = lambda f: vmap(lambda t: f(t, hidden_weight, None, output_weight, None))(x)
    torch.testing.assert_close(run(paramixer.link_weights), run(reference.link_weights))


def test_batched_gradients():
    made = double_operands()
    result = paramixer.link_weights(*made)
    vectors = torch.randn(4, *result.shape, dtype=torch.float64)
    batched = torch.autograd.grad(result, made, vectors, is_grads_batched=True, retain_graph=True)
    for i, vector in enumerate(vectors):
        alone = torch.autograd.grad(result, made, vector, retain_graph=True)
        torch.testing.assert_close([b[i] for b in batched], list(alone))


def test_forward_mode():
    primals = double_operands(False)
    tangents = mapped(torch.randn_like, primals)

    def tangent(function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(primals, tangents, strict=True)]
            return forward_ad.unpack_dual(function(*duals)).tangent

    torch.testing.assert_close(tangent(paramixer.link_weights), tangent(reference.link_weights))


def test_compiled_autograd():
    made = double_operands()
    expected = torch.autograd.grad(paramixer.link_weights(*made).sin().sum(), made)
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        leaves = [t.detach().requires_grad_() for t in made]
        paramixer.link_weights(*leaves).sin().sum().backward()
    torch.testing.assert_close(tuple(leaf.grad for leaf in leaves), expected)


def test_no_grad_checkpoint_and_second_backward():
    made = double_operands()
    with torch.no_grad():
        assert not paramixer.link_weights(*made).requires_grad
    with torch.inference_mode():
        assert paramixer.link_weights(*made).is_inference()
    run = lambda *t: paramixer.link_weights(*t).sin().sum()
    loss = torch.utils.checkpoint.checkpoint(run, *made, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(loss, made), torch.autograd.grad(run(*made), made)
    )
    result = run(*made)
    result.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


# ---- Compilation, export, autocast


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_compile(dynamic, bias):
    torch._dynamo.reset()
    function = lambda *t: (paramixer.link_weights(*t) * 2).sin()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (9, 17) if dynamic else (9,):
        made = operands((2, rows), bias=bias)
        gradient = torch.randn(2, rows, 2, 3)
        torch.testing.assert_close(
            forward_and_gradients(compiled, made, gradient),
            forward_and_gradients(function, made, gradient),
        )


def test_compile_counts_graphs():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(
        lambda *t: paramixer.link_weights(*t), fullgraph=True, dynamic=True, backend=counter
    )
    for rows in (9, 17, 33):
        compiled(*operands((2, rows)))
    assert counter.frame_count == 1


def test_export_with_dynamic_sizes():
    class Links(torch.nn.Module):
        def forward(self, *made):
            return paramixer.link_weights(*made)

    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=4096)
    program = torch.export.export(
        Links(), tuple(operands((2, 9))), dynamic_shapes=(({0: batch, 1: length}, *[None] * 4),)
    )
    for shape in ((3, 20), (1, 9)):
        made = operands(shape)
        torch.testing.assert_close(program.module()(*made), paramixer.link_weights(*made))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_autocast(dtype, bias):
    made = mapped(torch.Tensor.requires_grad_, operands(bias=bias))
    wanted = [t for t in made if t is not None]
    with torch.autocast("cpu", dtype):
        result = paramixer.link_weights(*made)
        gradients = torch.autograd.grad(result.float().sum(), wanted)
    assert result.dtype == dtype
    assert {g.dtype for g in gradients} == {torch.float32}
    expected = paramixer.link_weights(*mapped(lambda t: t.to(dtype), made))
    assert torch.equal(result, expected)


def test_backward_inside_autocast_keeps_its_dtype():
    made = mapped(torch.Tensor.requires_grad_, operands())
    result = paramixer.link_weights(*made)
    expected = torch.autograd.grad(result.sum(), made, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(result.sum(), made)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def test_autocast_on_cuda_gives_its_dtype():
    """The CUDA key under FakeTensorMode, which needs no GPU; torch.autocast itself asks for one."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            made = [t.to("cuda") for t in operands()]
            assert paramixer.link_weights(*made).dtype == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def test_the_composition_for_other_devices():
    """What the CUDA key runs, reached without a GPU: it does not need one."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for bias, dtype in itertools.product((True, False), (torch.float64, torch.float32)):
        made = operands(dtype=dtype, bias=bias)
        result = OPS.link_weights.default.redispatch(cuda, *made)
        torch.testing.assert_close(result, paramixer.link_weights(*made))
        assert result.is_contiguous()
        gradient = torch.randn_like(result)
        torch.testing.assert_close(
            OPS.link_weights_backward.default.redispatch(cuda, gradient, *made[:4], True),
            OPS.link_weights_backward(gradient, *made[:4], True),
        )


def test_module_parameters_under_functional_call():
    torch.manual_seed(0)
    module = paramixer.nn.Paramixer(4, 8, hidden=3, factors=2, links=2).double()
    parameters = {k: v.detach() for k, v in module.named_parameters()}
    x = torch.randn(3, 2, 8, 4, dtype=torch.float64)
    loss = lambda p, one: functional_call(module, p, (one,)).square().sum()
    per_sample = vmap(grad(loss), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        alone = torch.autograd.grad(loss(dict(module.named_parameters()), one), module.parameters())
        for (name, _), expected in zip(module.named_parameters(), alone, strict=True):
            torch.testing.assert_close(per_sample[name][i], expected)


# ---- Errors


@pytest.mark.parametrize("device_name", ["cpu", "meta", "cuda"])
@pytest.mark.parametrize(
    ("index", "change", "error", "message"),
    [
        (0, lambda t: t.long(), TypeError, "x must be float64, float32, bfloat16 or float16"),
        (0, lambda t: t[0, 0, 0], ValueError, r"x must have at least one dimension \(got shape"),
        (1, lambda t: t.double(), TypeError, "x and hidden_weight must have one dtype"),
        (1, lambda t: t[:-1], ValueError, r"hidden_weight must be \(M h, E\) = \[8, 3\] \(got sh"),
        (1, lambda t: t[:, 1:], ValueError, r"hidden_weight must be .* \(got shape \[8, 2\]\)"),
        (2, lambda t: t[1:], ValueError, r"hidden_bias must be \(M h\) = \[8\] \(got shape \[7\]"),
        (2, lambda t: t.half(), TypeError, "x and hidden_bias must have one dtype"),
        (3, lambda t: t[0], ValueError, r"output_weight must be \(M, Q, h\) \(got shape \[3, 4\]"),
        (3, lambda t: t[..., 1:], ValueError, r"hidden_weight must be \(M h, E\) = \[6, 3\]"),
        (3, lambda t: t.bfloat16(), TypeError, "x and output_weight must have one dtype"),
        (4, lambda t: t[0], ValueError, r"output_bias must be \(M, Q\) = \[2, 3\] \(got shape \[3"),
        (4, lambda t: t.double(), TypeError, "x and output_bias must have one dtype"),
    ],
)
def test_errors(device_name, index, change, error, message):
    if device_name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    made = operands(device=device_name)
    made[index] = change(made[index])
    with pytest.raises(error, match=f"link_weights: {message}"):
        paramixer.link_weights(*made)


def test_errors_of_devices_and_of_the_gradient():
    made = operands()
    with pytest.raises(ValueError, match="x and output_weight must be on one device"):
        paramixer.link_weights(*made[:3], made[3].to("meta"), made[4])
    wrong = torch.zeros(2, 5, 2, 4)
    with pytest.raises(ValueError, match="link_weights_backward: grad must have the shape of the"):
        OPS.link_weights_backward(wrong, *made[:4], True)
    with pytest.raises(TypeError, match="link_weights_backward: grad and x must have one dtype"):
        OPS.link_weights_backward(wrong.double(), *made[:4], True)


def test_schemas():
    """The operators' interface is a promise to saved models."""
    assert str(OPS.link_weights.default._schema) == (
        "paramixer::link_weights(Tensor x, Tensor hidden_weight, Tensor? hidden_bias, "
        "Tensor output_weight, Tensor? output_bias) -> Tensor"
    )
    for name in ("link_weights", "link_weights_backward"):
        assert torch.Tag.pt2_compliant_tag in getattr(OPS, name).default.tags
        for key in ("CPU", "CUDA", "Meta", "Autograd", "AutocastCPU", "AutocastCUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"paramixer::{name}", key), key
