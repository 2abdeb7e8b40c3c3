"""Derivatives everywhere PyTorch has them, and the dispatcher's own checks."""

import paramixer
import pytest
import torch
from support import LAYOUTS, OPERATOR_IDS, OPERATORS, check_derivatives, forward_and_gradients
from torch.autograd import forward_ad, gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

OFFSETS = [0, 1, -2, 14]
per_operator = pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)


def double_operands(operator, batch=(2,), requires_grad=True):
    return operator.operands(
        batch, 5, 3, len(OFFSETS), dtype=torch.float64, requires_grad=requires_grad
    )


def loss_of(operator):
    """A scalar that no derivative of order two makes vanish."""
    return lambda *operands: operator.function(*operands, OFFSETS).sin().sum()


def oracle_loss_of(operator):
    return lambda *operands: operator.oracle(*operands, OFFSETS).sin().sum()


def all_of(operands):
    """The operands' numbers, for `argnums`."""
    return tuple(range(len(operands)))


@per_operator
@pytest.mark.parametrize("batch", [(2,), ((), (2,)), ((2, 1), (1, 2))])
def test_gradcheck(operator, batch):
    operands = double_operands(operator, batch)
    function = lambda *inputs: operator.function(*inputs, OFFSETS)
    check_derivatives(function, operands)


@per_operator
def test_third_order(operator):
    def third(loss, *operands):
        value = loss(*operands)
        for variable in (operands[0], operands[-1], operands[0]):
            value = torch.autograd.grad(value, variable, create_graph=True)[0].square().sum()
        return value

    operands = double_operands(operator)
    torch.testing.assert_close(
        third(loss_of(operator), *operands), third(oracle_loss_of(operator), *operands)
    )


@per_operator
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(operator, requires_grad):
    def opcheck(operands, **tolerances):
        arguments = operator.arguments(operands, OFFSETS)
        torch.library.opcheck(operator.overload, (*operands, *arguments), **tolerances)

    operands = double_operands(operator, requires_grad=requires_grad)
    opcheck(operands)
    opcheck(double_operands(operator, ((3, 1), (2,)), requires_grad))
    strided = [LAYOUTS["channel_sliced"](o.detach()).bfloat16() for o in operands]
    opcheck([o.requires_grad_(requires_grad) for o in strided], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_mix_backward(requires_grad):
    weight, value = double_operands(OPERATORS[0], requires_grad=requires_grad)
    gradient = torch.randn_like(value)
    torch.library.opcheck(
        torch.ops.paramixer.mix_backward.default, (gradient, weight, value, OFFSETS)
    )


def test_mix_backward_is_differentiable():
    weight, value = double_operands(OPERATORS[0])
    gradient = torch.randn_like(value, requires_grad=True)
    function = lambda *inputs: torch.ops.paramixer.mix_backward(*inputs, OFFSETS)
    assert gradcheck(function, (gradient, weight, value), check_forward_ad=True)


@per_operator
def test_functorch(operator):
    operands = tuple(double_operands(operator, requires_grad=False))
    loss, oracle_loss = loss_of(operator), oracle_loss_of(operator)
    assert_same = torch.testing.assert_close
    for argnums in (*all_of(operands), all_of(operands)):
        for transform in (grad, jacrev, jacfwd, hessian):
            assert_same(
                transform(loss, argnums)(*operands), transform(oracle_loss, argnums)(*operands)
            )
    tangents = tuple(torch.randn_like(operand) for operand in operands)
    assert_same(jvp(loss, operands, tangents), jvp(oracle_loss, operands, tangents))
    assert_same(
        vjp(loss, *operands)[1](torch.ones((), dtype=torch.float64)),
        vjp(oracle_loss, *operands)[1](torch.ones((), dtype=torch.float64)),
    )
    first, *others = operands
    nested = lambda f: grad(lambda a: grad(f)(a, *others).square().sum())(first)
    assert_same(nested(loss), nested(oracle_loss))


@per_operator
@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_jacobians_of_a_tensor(operator, outer, inner):
    """Of every element of the result, so that gradients are taken under a mapped dimension."""
    operands = operator.operands((2,), 4, 2, len(OFFSETS), dtype=torch.float64)
    function = lambda *inputs: operator.function(*inputs, OFFSETS).sin()
    oracle = lambda *inputs: operator.oracle(*inputs, OFFSETS).sin()
    every = all_of(operands)
    actual = inner(function, every)(*operands)
    torch.testing.assert_close(actual, inner(oracle, every)(*operands))
    actual = outer(inner(function, every))(*operands)
    torch.testing.assert_close(actual, outer(inner(oracle, every))(*operands))


@per_operator
def test_vmap_of_jacrev_and_of_vjp(operator):
    operands = operator.operands((3, 2), 4, 2, len(OFFSETS), dtype=torch.float64)
    function = lambda *inputs: operator.function(*inputs, OFFSETS).sin()
    oracle = lambda *inputs: operator.oracle(*inputs, OFFSETS).sin()
    every = all_of(operands)
    actual = vmap(jacrev(function, every))(*operands)
    torch.testing.assert_close(actual, vmap(jacrev(oracle, every))(*operands))
    result, pull = vjp(function, *operands)
    vectors = torch.randn(5, *result.shape, dtype=torch.float64)
    expected = vmap(vjp(oracle, *operands)[1])(vectors)
    torch.testing.assert_close(vmap(pull)(vectors), expected)


@per_operator
def test_vmap_of_grad(operator):
    *others, value = double_operands(operator, (3, 2), requires_grad=False)
    every = all_of([*others, value])
    actual = vmap(grad(loss_of(operator), every))(*others, value)
    expected = vmap(grad(oracle_loss_of(operator), every))(*others, value)
    torch.testing.assert_close(actual, expected)
    alone, in_dims = [other[0] for other in others], (*(None for _ in others), 0)
    actual = vmap(grad(loss_of(operator), every), in_dims)(*alone, value)
    expected = vmap(grad(oracle_loss_of(operator), every), in_dims)(*alone, value)
    torch.testing.assert_close(actual, expected)


@per_operator
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 0), (2, 1), (-1, -1)])
@pytest.mark.parametrize("ranks", [(0, 0), (1, 0), (0, 1), (2, 1), (1, 1)])
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap(operator, in_dims, ranks):
    """Also with unequal ranks, and with a mapped size that equals the batch size."""
    mapped = 2
    batches = tuple((2,) * rank for rank in ranks)
    operands = operator.operands(batches, 5, 3, len(OFFSETS), dtype=torch.float64)
    in_dims = in_dims[: len(operands)]
    if in_dims == (None,):
        return  # nothing is mapped
    stacked = []
    for operand, dim in zip(operands, in_dims, strict=True):
        if dim is None:
            stacked.append(operand)
        else:
            dim = min(dim, operand.dim())
            stacked.append(torch.stack([operand, 2 * operand], dim))
    dims = tuple(
        dim if dim is None else min(dim, operand.dim())
        for dim, operand in zip(in_dims, operands, strict=True)
    )
    run = lambda *inputs: operator.function(*inputs, OFFSETS)
    actual = vmap(run, dims)(*stacked)
    expected = [
        run(*(t if d is None else t.select(d, i) for t, d in zip(stacked, dims, strict=True)))
        for i in range(mapped)
    ]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=0)


@per_operator
def test_nested_vmap(operator):
    operands = operator.operands((2, 3), 5, 4, len(OFFSETS), dtype=torch.float64)
    run = lambda *inputs: operator.function(*inputs, OFFSETS)
    actual = vmap(vmap(run, 0), 1, 1)(*operands)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(actual[i, j], run(*(operand[i, j] for operand in operands)))


@per_operator
def test_batched_gradients(operator):
    operands = double_operands(operator)
    result = operator.function(*operands, OFFSETS)
    vectors = torch.randn(4, *result.shape, dtype=torch.float64)
    batched = torch.autograd.grad(
        result, operands, vectors, is_grads_batched=True, retain_graph=True
    )
    for i, vector in enumerate(vectors):
        alone = torch.autograd.grad(result, operands, vector, retain_graph=True)
        torch.testing.assert_close([b[i] for b in batched], list(alone))


@per_operator
def test_forward_mode(operator):
    primals = double_operands(operator, requires_grad=False)
    tangents = [torch.randn_like(p) for p in primals]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(operator.function(*duals, OFFSETS)).tangent
    oracle = lambda *inputs: operator.oracle(*inputs, OFFSETS)
    _, expected = jvp(oracle, tuple(primals), tuple(tangents))
    torch.testing.assert_close(tangent, expected)


@per_operator
def test_compiled_autograd(operator):
    operands = double_operands(operator)
    expected = torch.autograd.grad(loss_of(operator)(*operands), operands)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        leaves = [operand.detach().requires_grad_() for operand in operands]
        loss_of(operator)(*leaves).backward()
    torch.testing.assert_close(tuple(leaf.grad for leaf in leaves), expected)


def test_saved_tensors_are_released_and_refused_twice():
    weight, value = double_operands(OPERATORS[0])
    result = paramixer.mix(weight, value, OFFSETS).sum()
    result.backward()
    with pytest.raises(RuntimeError, match="second time"):
        result.backward()


def test_in_place_change_of_a_saved_tensor_is_noticed():
    weight, value = double_operands(OPERATORS[0])
    saved = value.clone()
    result = paramixer.mix(weight, saved, OFFSETS).sum()
    with torch.no_grad():
        saved.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


@per_operator
def test_no_grad_and_inference_mode(operator):
    operands = double_operands(operator)
    with torch.no_grad():
        assert not operator.function(*operands, OFFSETS).requires_grad
    with torch.inference_mode():
        result = operator.function(*operands, OFFSETS)
    assert result.is_inference()
    torch.testing.assert_close(result, operator.function(*operands, OFFSETS).detach())


@per_operator
def test_hooked_and_checkpointed(operator):
    """Saved tensors go through hooks, so activation checkpointing and offloading work."""
    operands = double_operands(operator)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        operator.function(*operands, OFFSETS)
    assert len([tensor for tensor in packed if tensor.numel()]) == operator.saved
    run = lambda *inputs: operator.function(*inputs, OFFSETS).sin().sum()
    loss = torch.utils.checkpoint.checkpoint(run, *operands, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(loss, operands), torch.autograd.grad(run(*operands), operands)
    )


@per_operator
def test_incoming_gradient_of_any_layout(operator):
    operands = operator.operands((2,), 6, 3, len(OFFSETS), dtype=torch.float64)
    grad_output = torch.randn_like(operator.oracle(*operands, OFFSETS)).sum(0, keepdim=True)
    expanded = grad_output.expand(2, *grad_output.shape[1:])
    torch.testing.assert_close(
        forward_and_gradients(operator.function, operands, OFFSETS, expanded),
        forward_and_gradients(operator.oracle, operands, OFFSETS, expanded),
    )
