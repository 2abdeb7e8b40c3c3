"""Bad input: the same message, of the type Python expects, from every device."""

import paramixer
import pytest
import torch
from support import CHAINS, ELEMENTARY, OPERATOR_IDS, OPERATORS

OPS = torch.ops.paramixer
W, V = (2, 5, 3), (2, 5, 4)
C, S = (2, 5, 2, 3), (0, 2, 5, 4)  # the weight of a chain of two factors, no states
OFFSETS = [0, 1, 2]
CHAIN = [0, 1, 2, 0, 2, 4]
# What an operator takes besides operands and offsets.
MORE = {"mix_chain_forward": ("none", []), "mix_chain_backward": ("none", [])}


def tensors(device, *shapes, dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]


WRONG_SHAPES = [
    (
        "mix",
        ((5,), V),
        OFFSETS,
        r"mix: weight must have at least two dimensions \(got shape \[5\]\)",
    ),
    ("mix", (W, (4,)), OFFSETS, "mix: value must have at least two dimensions"),
    ("mix", ((2, 6, 3), V), OFFSETS, r"mix: weight and value must have the same length N"),
    ("mix", (W, V), [0, 1], r"mix: weight must have one column per offset .*\[2, 5, 3\] and 2 off"),
    ("mix", (W, V), [], r"mix: offsets must hold 1 to 64 links \(got 0\)"),
    ("mix", ((2, 5, 65), V), [0] * 65, r"mix: offsets must hold 1 to 64 links \(got 65\)"),
    ("mix", ((3, 5, 3), V), OFFSETS, "mix: batch dimensions of weight and value must broadcast"),
    (
        "mix_transpose",
        ((2, 6, 3), V),
        OFFSETS,
        "mix_transpose: weight and value must have the same",
    ),
    ("mix_transpose", (W, V), [0], "mix_transpose: weight must have one column per offset"),
    ("link_dot", (V, (2, 5, 6)), OFFSETS, "link_dot: grad and value must have the same number of"),
    ("link_dot", (V, (2, 7, 4)), OFFSETS, "link_dot: grad and value must have the same length N"),
    ("link_dot", (V, V), [], "link_dot: offsets must hold 1 to 64 links"),
    ("mix_backward", (V[1:], W, V), OFFSETS, "mix_backward: grad must have the shape of mix"),
    ("mix_backward", ((2, 5, 9), W, V), OFFSETS, "mix_backward: grad and value must have the same"),
    ("mix_backward", (V, (2, 5, 2), V), OFFSETS, "mix_backward: weight must have one column per"),
    ("mix_chain", (W[1:], V), CHAIN, r"mix_chain: weight must have at least three .*\[5, 3\]"),
    ("mix_chain", (C, (4,)), CHAIN, "mix_chain: value must have at least two dimensions"),
    ("mix_chain", (C, (2, 6, 4)), CHAIN, "mix_chain: .* the same length N in dimensions -3 and -2"),
    ("mix_chain", (C, (3, 5, 4)), CHAIN, "mix_chain: batch dimensions of weight and value must br"),
    ("mix_chain", ((2, 5, 0, 3), V), [], "mix_chain: weight must hold at least one factor"),
    ("mix_chain", ((2, 5, 2, 0), V), [], "mix_chain: weight must hold 1 to 64 links in dim"),
    ("mix_chain", ((2, 5, 1, 65), V), [0] * 65, "mix_chain: weight must hold 1 to 64 links in dim"),
    ("mix_chain", (C, V), OFFSETS, r"mix_chain: offsets must hold M K .*got 3 for shape \[2, 5, 2"),
    ("mix_chain_forward", (C, V), OFFSETS, "mix_chain_forward: offsets must hold M K integers"),
    ("mix_chain_backward", (V[1:], C, V, S), CHAIN, "mix_chain_backward: grad must have the shape"),
    ("mix_chain_backward", (V, C, V, S[1:]), CHAIN, "mix_chain_backward: states must have the sha"),
    ("mix_chain_backward", (V, C, V, S), OFFSETS, "mix_chain_backward: offsets must hold M K int"),
    ("rotate_tracks", ((4,),), [0, 1], "rotate_tracks: value must have at least two dimensions"),
    ("rotate_tracks", (V,), [], r"rotate_tracks: shifts must hold 1 to 64 tracks \(got 0\)"),
    ("rotate_tracks", ((5, 65),), [0] * 65, r"rotate_tracks: shifts must hold .* \(got 65\)"),
    ("rotate_tracks", (V,), OFFSETS, r"rotate_tracks: value .* divide .*\[2, 5, 4\] and 3 shifts"),
    ("rotate_tracks", (V,), [0, -(2**63)], "rotate_tracks: shifts must be greater than -2"),
]


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
@pytest.mark.parametrize(("name", "shapes", "offsets", "message"), WRONG_SHAPES)
def test_shapes_and_values(device, name, shapes, offsets, message):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    operands = tensors(device, *shapes)
    with pytest.raises(ValueError, match=message):
        getattr(OPS, name)(*operands, offsets, *MORE.get(name, ()))
    with pytest.raises(ValueError, match=message):
        getattr(OPS, name)(*(o.requires_grad_() for o in operands), offsets, *MORE.get(name, ()))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_choices_of_a_chain(device, requires_grad):
    weight, value = (t.requires_grad_(requires_grad) for t in tensors(device, C, V))
    message = r"mix_chain: residual must be one of \('none', 'previous', 'initial'\) \(got 'last'\)"
    with pytest.raises(ValueError, match=message):
        paramixer.mix_chain(weight, value, CHAIN, "last")
    message = r"mix_chain: save must be one of \('boundaries', 'input'\) \(got 'all'\)"
    with pytest.raises(ValueError, match=message):
        paramixer.mix_chain(weight, value, CHAIN, save="all")
    for boundaries in ([0], [2], [1, 1], [-1]):
        with pytest.raises(ValueError, match="mix_chain_forward: boundaries must ascend"):
            OPS.mix_chain_forward(weight, value, CHAIN, "none", boundaries)


@pytest.mark.parametrize("offsets", [[[0, 1, 2]], [[0, 1], [2, 3]], [[0, 1], [2, 3], [4, 5]]])
def test_lists_of_offsets_of_a_chain(offsets):
    """Their count is checked too: three lists of two are as many integers as two of three."""
    with pytest.raises(ValueError, match="mix_chain: offsets must hold M lists of K integers"):
        paramixer.mix_chain(*tensors("cpu", C, V), offsets)


@pytest.mark.parametrize("states", [False, True])
def test_gradient_and_states_of_a_chain_have_its_dtype(states):
    tensor = tensors("cpu", V, C, V, S)
    wrong = 3 if states else 0
    tensor[wrong] = tensor[wrong].double()
    with pytest.raises(TypeError, match="mix_chain_backward: (grad|states) and value must have on"):
        OPS.mix_chain_backward(*tensor, CHAIN, "none", [])


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_wrong_dtypes(operator, device, dtype):
    operands = [operand.to(device, dtype) for operand in operator.operands((2,), 5, 4, 3)]
    with pytest.raises(TypeError, match=f"{operator.name}: .* must be float64, float32, bfloat16"):
        operator.function(*operands, OFFSETS)


@pytest.mark.parametrize("operator", ELEMENTARY + CHAINS, ids=lambda operator: operator.name)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_mixed_dtypes_are_not_promoted(operator, device):
    first, second = operator.operands((2,), 5, 4, 3, device=device)
    with pytest.raises(TypeError, match=r"must have one dtype \(got Float and Double\)"):
        operator.function(first, second.double(), OFFSETS)


@pytest.mark.parametrize("operator", OPERATORS, ids=OPERATOR_IDS)
def test_not_tensors_and_not_integers(operator):
    operands = operator.operands((2,), 5, 4, 3)
    arguments = operator.arguments(operands, OFFSETS)
    with pytest.raises((TypeError, RuntimeError), match="Expected a value of type 'Tensor'"):
        operator.overload(*operands[:-1], "no tensor", *arguments)
    with pytest.raises((TypeError, RuntimeError), match=r"Expected a value of type 'List\[int\]'"):
        operator.function(*operands, [0.5, 1.0, 2.0])


def test_sparse_tensors_are_refused():
    weight, value = tensors("cpu", W, V)
    with pytest.raises(NotImplementedError):
        paramixer.mix(weight, value.to_sparse(), OFFSETS)


@pytest.mark.skipif(paramixer.has_cuda(), reason="this build has CUDA kernels")
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mix", (W, V)),
        ("mix_transpose", (W, V)),
        ("link_dot", (V, V)),
        ("mix_backward", (V, W, V)),
        ("mix_chain", (C, V)),
        ("mix_chain_forward", (C, V)),
        ("mix_chain_backward", (V, C, V, S)),
        ("rotate_tracks", (V,)),
    ],
)
def test_cuda_tensors_in_a_cpu_build(name, shapes):
    """What the dispatcher calls for CUDA tensors names the remedy; reached without a GPU."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(NotImplementedError, match=f"{name}: .* no CUDA kernels.*PARAMIXER_CUDA=ON"):
        getattr(OPS, name).default.redispatch(
            cuda, *tensors("cpu", *shapes), OFFSETS, *MORE.get(name, ())
        )


def test_negated_views():
    weight = torch.randn(2, 5, 3)
    value = torch._neg_view(torch.randn(2, 5, 4))
    torch.testing.assert_close(
        paramixer.mix(weight, value, OFFSETS), paramixer.mix(weight, value.clone(), OFFSETS)
    )


def test_schemas():
    """The operators' interface is a promise to saved models."""
    expected = {
        "mix": "(Tensor weight, Tensor value, int[] offsets) -> Tensor",
        "mix_transpose": "(Tensor weight, Tensor value, int[] offsets) -> Tensor",
        "link_dot": "(Tensor grad, Tensor value, int[] offsets) -> Tensor",
        "mix_backward": (
            "(Tensor grad, Tensor weight, Tensor value, int[] offsets) -> (Tensor, Tensor)"
        ),
        "mix_chain": (
            '(Tensor weight, Tensor value, int[] offsets, str residual="none", '
            'str save="boundaries") -> Tensor'
        ),
        "mix_chain_forward": (
            "(Tensor weight, Tensor value, int[] offsets, str residual, int[] boundaries) -> "
            "(Tensor, Tensor)"
        ),
        "mix_chain_backward": (
            "(Tensor grad, Tensor weight, Tensor value, Tensor states, int[] offsets, "
            "str residual, int[] boundaries) -> (Tensor, Tensor)"
        ),
        "rotate_tracks": "(Tensor value, int[] shifts, Tensor? lengths=None) -> Tensor",
    }
    for name, schema in expected.items():
        overload = getattr(OPS, name).default
        assert str(overload._schema) == f"paramixer::{name}{schema}"
        assert torch.Tag.pt2_compliant_tag in overload.tags
        for key in ("CPU", "CUDA", "Meta", "Autograd", "AutocastCPU", "AutocastCUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"paramixer::{name}", key), key
