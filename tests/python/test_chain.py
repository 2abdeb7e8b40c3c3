"""What chains have beyond the single factor: protocols, states saved in between, exactness."""

import paramixer
import pytest
import torch
from paramixer import reference
from support import DTYPES, assert_as_exact_as_torch, chain_of, forward_and_gradients
from torch.autograd import gradcheck

OPS = torch.ops.paramixer
per_residual = pytest.mark.parametrize("residual", reference.RESIDUALS)
OFFSETS = [[0, 1, -2], [0, 2, 5], [0, -1, 3], [1, 2, 7]]
FLAT = [offset for factor in OFFSETS for offset in factor]
BOUNDARIES = ([], [2], [1, 3], [1, 2, 3])


def operands_of(offsets, length, channels, batch=(2,), **options):
    """Weights that keep the states' size, and values."""
    factors, links = len(offsets), len(offsets[0])
    weight = torch.randn(*batch, length, factors, links, **options) / links**0.5
    return weight, torch.randn(*batch, length, channels, **options)


@per_residual
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "offsets"),
    [
        (1, [[0]]),
        (2, paramixer.links.chord(2)),
        (100, paramixer.links.chord(100)),
        (128, paramixer.links.cdil(128)),
        (509, paramixer.links.cdil(509, links=9)),
        (2000, paramixer.links.cdil(2000)),
        (31, [[5, 5, -40], [0, 100, 1]]),
    ],
)
def test_protocols(residual, dtype, length, offsets, device):
    """As exact as one product at a time, also of this library's own: at most 1.05 of its error."""
    operands = operands_of(offsets, length, 20, dtype=torch.float64, device=device)
    operands = [operand.to(dtype) for operand in operands]
    grad = torch.randn(2, length, 20, device=device).to(dtype)
    single = lambda w, v, o: chain_of(paramixer.mix, w, v, o, residual)
    rolled = lambda w, v, o: chain_of(reference.mix, w, v, o, residual)
    oracle = lambda w, v, o: reference.mix_chain(w, v, o, residual)
    fused = lambda w, v, o: paramixer.mix_chain(w, v, o, residual)
    actual = forward_and_gradients(fused, operands, offsets, grad)
    singles = forward_and_gradients(single, operands, offsets, grad)
    torchs = forward_and_gradients(rolled, operands, offsets, grad)
    doubles = [operand.double() for operand in operands]
    exact = forward_and_gradients(oracle, doubles, offsets, grad.double())
    for mine, theirs, yardstick, truth in zip(actual, singles, torchs, exact, strict=True):
        assert_as_exact_as_torch(mine, yardstick, truth, residual, products=len(offsets))
        error = lambda result, truth=truth: (result.double() - truth).norm()
        # The oracle itself is no more exact than float64.
        tiny = (2 * len(offsets) if dtype == torch.float64 else 0.1) * torch.finfo(dtype).eps
        assert error(mine) <= 1.05 * error(theirs) + tiny * truth.norm()


@per_residual
@pytest.mark.parametrize("boundaries", BOUNDARIES)
def test_states_at_boundaries(residual, boundaries, device):
    """Forward hands out the states it is asked for, and backward starts anew from them."""
    operands = operands_of(OFFSETS, 11, 6, dtype=torch.float64, device=device)
    result, states = OPS.mix_chain_forward(*operands, FLAT, residual, boundaries)
    assert states.is_contiguous()
    assert states.shape == (len(boundaries), *result.shape)
    torch.testing.assert_close(result, reference.mix_chain(*operands, OFFSETS, residual))
    for state, count in zip(states, boundaries, strict=True):
        weight = operands[0][..., :count, :]
        expected = reference.mix_chain(weight, operands[1], OFFSETS[:count], residual)
        torch.testing.assert_close(state, expected)
    grad = torch.randn_like(result)
    gradients = OPS.mix_chain_backward(grad, *operands, states, FLAT, residual, boundaries)
    oracle = lambda w, v, o: reference.mix_chain(w, v, o, residual)
    expected = forward_and_gradients(oracle, operands, OFFSETS, grad)[1:]
    torch.testing.assert_close(list(gradients), expected)
    assert gradients[0].is_contiguous()


@per_residual
@pytest.mark.parametrize("boundaries", BOUNDARIES[:3])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(residual, boundaries, requires_grad):
    operands = operands_of(OFFSETS, 5, 3, dtype=torch.float64)
    operands = [operand.requires_grad_(requires_grad) for operand in operands]
    result, states = OPS.mix_chain_forward(*operands, FLAT, residual, boundaries)
    arguments = (FLAT, residual, boundaries)
    torch.library.opcheck(OPS.mix_chain_forward.default, (*operands, *arguments))
    inputs = (torch.randn_like(result), *operands, states.detach())
    torch.library.opcheck(OPS.mix_chain_backward.default, (*inputs, *arguments))


@per_residual
@pytest.mark.parametrize("boundaries", BOUNDARIES[:3])
def test_gradcheck_of_the_inner_operators(residual, boundaries):
    """States carry no derivative themselves: they are made of the weight and value beside them."""
    operands = operands_of(OFFSETS, 4, 2, (), dtype=torch.float64, requires_grad=True)
    operands = [operand.detach().requires_grad_() for operand in operands]
    grad = torch.randn_like(operands[1], requires_grad=True)

    def backward(grad, weight, value):
        states = OPS.mix_chain_forward(weight, value, FLAT, residual, boundaries)[1]
        return OPS.mix_chain_backward(grad, weight, value, states, FLAT, residual, boundaries)

    forward = lambda *inputs: OPS.mix_chain_forward(*inputs, FLAT, residual, boundaries)
    assert gradcheck(forward, operands, check_forward_ad=True, check_batched_grad=True)
    assert gradcheck(backward, (grad, *operands), check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("in_dims", [(0, 0, 0, 1), (1, 0, None, 1), (None, 2, 1, None)])
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap_of_the_inner_operators(in_dims):
    mapped = []
    operands = operands_of(OFFSETS, 5, 3, dtype=torch.float64)
    result, states = OPS.mix_chain_forward(*operands, FLAT, "initial", [1, 2])
    for tensor, dim in zip((result, *operands, states), in_dims, strict=True):
        mapped.append(tensor if dim is None else torch.stack([tensor, tensor * 2], dim))
    pick = lambda i: [
        t if d is None else t.select(d, i) for t, d in zip(mapped, in_dims, strict=True)
    ]
    backward = lambda *inputs: OPS.mix_chain_backward(*inputs, FLAT, "initial", [1, 2])
    actual = torch.vmap(backward, in_dims)(*mapped)
    for gradient, *expected in zip(actual, backward(*pick(0)), backward(*pick(1)), strict=True):
        torch.testing.assert_close(gradient, torch.stack(expected), rtol=0, atol=0)
    forward = lambda *inputs: OPS.mix_chain_forward(*inputs, FLAT, "initial", [1, 2])
    actual = torch.vmap(forward, in_dims[1:3])(*mapped[1:3])
    for output, *expected in zip(
        actual, forward(*pick(0)[1:3]), forward(*pick(1)[1:3]), strict=True
    ):
        torch.testing.assert_close(output, torch.stack(expected), rtol=0, atol=0)


def saved_tensors(operands, offsets, residual="none", save="boundaries"):
    """The result, and what hooks see of the tensors saved for backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = paramixer.mix_chain(*operands, offsets, residual, save)
    return result, saved


@per_residual
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_only_needed_tensors_are_saved(residual, wanted, device):
    """The gradient of the value needs the weight alone."""
    operands = operands_of(OFFSETS, 9, 4, dtype=torch.float64, device=device)
    leaves = [o.requires_grad_(needs) for o, needs in zip(operands, wanted, strict=True)]
    result, saved = saved_tensors(leaves, OFFSETS, residual, "input")
    expected = leaves if wanted[0] else leaves[:1]
    assert [t.data_ptr() for t in saved if t.numel()] == [t.data_ptr() for t in expected]
    wanted_leaves = [leaf for leaf in leaves if leaf.requires_grad]
    grad = torch.randn_like(result)
    actual = torch.autograd.grad(result, wanted_leaves, grad)
    oracle = reference.mix_chain(*leaves, OFFSETS, residual)
    torch.testing.assert_close(actual, torch.autograd.grad(oracle, wanted_leaves, grad))


@pytest.mark.parametrize(("factors", "count"), [(1, 0), (2, 1), (3, 2), (4, 2), (14, 2)])
@pytest.mark.parametrize("save", ["boundaries", "input"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_states_saved_beside_weight_and_value(factors, count, save, device):
    """On any device but the CPU, whose kernels compute all states again on chip."""
    expected = count if (device, save) == ("meta", "boundaries") else 0
    weight = torch.randn(2, 5, factors, 3, requires_grad=True, device=device)
    value = torch.randn(2, 5, 4, requires_grad=True, device=device)
    result, saved = saved_tensors((weight, value), [[0, 1, 2]] * factors, save=save)
    assert sum(t.numel() for t in saved[2:]) == expected * value.numel()
    result.sum().backward()
    assert (weight.grad.shape, value.grad.shape) == (weight.shape, value.shape)


def test_offsets_in_one_list_or_one_a_factor():
    operands = operands_of(OFFSETS, 9, 4)
    expected = paramixer.mix_chain(*operands, FLAT)
    for offsets in (OFFSETS, tuple(map(tuple, OFFSETS)), tuple(FLAT)):
        assert torch.equal(paramixer.mix_chain(*operands, offsets), expected)


@per_residual
def test_compile_of_the_whole_chain(residual):
    """Lists of offsets, one graph for all lengths and batches."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = lambda w, v: paramixer.mix_chain(w, v, OFFSETS, residual=residual, save="input")
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in ((2, 9), (3, 17), (4, 33)):
        operands = operands_of(OFFSETS, length, 5, (batch,))
        grad = torch.randn_like(operands[1])
        torch.testing.assert_close(
            forward_and_gradients(lambda w, v, _: compiled(w, v), operands, None, grad),
            forward_and_gradients(lambda w, v, _: run(w, v), operands, None, grad),
        )
    assert counter.frame_count == 1


def test_torchscript_with_a_list_a_factor(tmp_path):
    class Chain(torch.nn.Module):
        def forward(self, weight, value, offsets: list[list[int]]):
            return paramixer.mix_chain(weight, value, offsets, "previous")

    torch.jit.script(Chain()).save(str(tmp_path / "chain.pt"))
    operands = operands_of(OFFSETS, 9, 5)
    loaded = torch.jit.load(str(tmp_path / "chain.pt"))
    assert torch.equal(loaded(*operands, OFFSETS), Chain()(*operands, OFFSETS))
