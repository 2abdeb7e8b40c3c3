"""torch.compile, torch.export, autocast and TorchScript on the operators."""

import paramixer
import pytest
import torch
from support import OPERATOR_IDS, OPERATORS
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

OFFSETS = [0, 1, -2, 14]
per_operator = pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_with_gradients(function, operands):
    leaves = [operand.detach().requires_grad_() for operand in operands]
    loss = function(*leaves)
    return loss.detach(), torch.autograd.grad(loss, leaves)


@per_operator
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_forward_and_backward(operator, dynamic):
    function = lambda a, *more: (operator.function(a.tanh(), *more, OFFSETS) * 2).sin().sum()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="inductor")
    lengths = (9, 17) if dynamic else (9,)
    for length in lengths:
        operands = operator.operands((2,), length, 5, len(OFFSETS))
        torch.testing.assert_close(
            loss_with_gradients(compiled, operands), loss_with_gradients(function, operands)
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_counts_graphs(dynamic):
    counter = CompileCounter()
    compiled = torch.compile(
        lambda w, v: paramixer.mix(w, v, OFFSETS), fullgraph=True, dynamic=dynamic, backend=counter
    )
    for length in (9, 17, 33):
        compiled(*OPERATORS[0].operands((2,), length, 5, len(OFFSETS)))
    assert counter.frame_count == (1 if dynamic else 3)


def test_offsets_from_a_symbolic_length():
    def shifted(weight, value):
        return paramixer.mix(weight, value, [0, value.shape[-2] // 2])

    compiled = torch.compile(shifted, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (8, 12):
        operands = OPERATORS[0].operands((2,), length, 5, 2)
        torch.testing.assert_close(compiled(*operands), shifted(*operands))


def test_compile_of_grad():
    def function(weight, value):
        loss = lambda w: paramixer.mix(w, value, OFFSETS).sin().sum()
        return torch.func.grad(loss)(weight)

    operands = OPERATORS[0].operands((2,), 9, 5, len(OFFSETS))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), function(*operands))


def test_export_with_dynamic_sizes(tmp_path):
    class Mix(torch.nn.Module):
        def forward(self, weight, value):
            return paramixer.mix(weight.softmax(-1), value, [0, 1, 2, 4])

    operands = OPERATORS[0].operands((2,), 9, 5, 4)
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(
        Mix(), tuple(operands), dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length})
    )
    torch.export.save(program, tmp_path / "mix.pt2")
    loaded = torch.export.load(tmp_path / "mix.pt2").module()
    for shape in ((3, 20), (1, 9)):
        others = OPERATORS[0].operands(shape[:1], shape[1], 5, 4)
        torch.testing.assert_close(loaded(*others), Mix()(*others))


@per_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_the_cpu(operator, dtype):
    operands = [o.requires_grad_() for o in operator.operands((2,), 9, 5, len(OFFSETS))]
    with torch.autocast("cpu", dtype):
        result = operator.function(*operands, OFFSETS)
        gradients = torch.autograd.grad(result.float().sum(), operands)
    assert result.dtype == (dtype if operator.autocasts else torch.float32)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    expected = operator.function(*(o.to(result.dtype) for o in operands), OFFSETS)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@per_operator
def test_backward_inside_autocast_keeps_its_dtype(operator):
    """A float32 forward pass has full float32 gradients, wherever backward is called."""
    operands = [o.requires_grad_() for o in operator.operands((2,), 9, 5, len(OFFSETS))]
    result = operator.function(*operands, OFFSETS)
    expected = torch.autograd.grad(result, operands, torch.ones_like(result), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(result, operands, torch.ones_like(result))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@per_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda_gives_its_dtype(operator, dtype):
    """The CUDA key under FakeTensorMode, which needs no GPU; torch.autocast itself asks for one."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            operands = [o.to("cuda") for o in operator.operands((2,), 9, 5, len(OFFSETS))]
            result = operator.function(*operands, OFFSETS)
            assert result.dtype == (dtype if operator.autocasts else torch.float32)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def test_autocast_of_mixed_and_of_wrong_dtypes():
    weight, value = OPERATORS[0].operands((2,), 9, 5, len(OFFSETS))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = paramixer.mix(weight.bfloat16(), value, OFFSETS)
        assert mixed.dtype == torch.bfloat16
        with pytest.raises(TypeError, match="mix: weight must be float64"):
            paramixer.mix(weight.long(), value, OFFSETS)


@per_operator
def test_autocast_under_compile(operator):
    def function(*operands):
        with torch.autocast("cpu", torch.bfloat16):
            return operator.function(*operands, OFFSETS)

    operands = operator.operands((2,), 9, 5, len(OFFSETS))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), function(*operands), rtol=0, atol=0)


@per_operator
def test_torchscript(operator, tmp_path):
    modules = {
        "mix": Mix,
        "mix_transpose": MixTranspose,
        "link_dot": LinkDot,
        "mix_chain": MixChain,
        "rotate_tracks": RotateTracks,
    }
    scripted = torch.jit.script(modules[operator.name]())
    scripted.save(str(tmp_path / "op.pt"))
    loaded = torch.jit.load(str(tmp_path / "op.pt"))
    operands = [o.requires_grad_() for o in operator.operands((2,), 9, 5, len(OFFSETS))]
    result = loaded(*operands, *operator.arguments(operands, OFFSETS))
    torch.testing.assert_close(result, operator.function(*operands, OFFSETS), rtol=0, atol=0)
    assert result.requires_grad


class Mix(torch.nn.Module):
    def forward(self, weight, value, offsets: list[int]):
        return paramixer.mix(weight, value, offsets)


class MixTranspose(torch.nn.Module):
    def forward(self, weight, value, offsets: list[int]):
        return paramixer.mix_transpose(weight, value, offsets)


class LinkDot(torch.nn.Module):
    def forward(self, grad, value, offsets: list[int]):
        return paramixer.link_dot(grad, value, offsets)


class RotateTracks(torch.nn.Module):
    def forward(self, value, shifts: list[int], lengths: torch.Tensor | None = None):
        return paramixer.rotate_tracks(value, shifts, lengths)


class MixChain(torch.nn.Module):
    def forward(self, weight, value, offsets: list[int], residual: str):
        return paramixer.mix_chain(weight, value, offsets, residual)
