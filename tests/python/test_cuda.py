"""What only a GPU shows: graphs, streams, devices, tensors beyond 2^31 elements, whole modules."""

import copy

import paramixer
import pytest
import torch
from paramixer import reference
from paramixer.nn import ChordMixer, Paramixer, PSFAttention
from support import relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
LENGTH, CHANNELS = 1024, 64
DTYPES = [torch.float32, torch.bfloat16]


def operands(dtype, length=LENGTH, channels=CHANNELS, device="cuda"):
    """Offsets of CDIL, weights that keep the states' size, values."""
    offsets = paramixer.links.cdil(length)
    shape = (2, length, len(offsets), len(offsets[0]))
    weight = torch.randn(shape, device=device, dtype=dtype) / len(offsets[0]) ** 0.5
    return offsets, weight, torch.randn(2, length, channels, device=device, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_training_pass_replays(dtype):
    offsets, weight, value = operands(dtype)
    weight.requires_grad_()
    value.requires_grad_()

    def step():
        result = paramixer.mix_chain(weight, value, offsets, residual="previous")
        return (result, *torch.autograd.grad(result, (weight, value), torch.ones_like(result)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        value.copy_(torch.randn_like(value))
    for x in captured:
        x.detach().fill_(float("nan"))
    graph.replay()
    for mine, expected in zip(captured, step(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_that_is_not_the_default(dtype):
    offsets, weight, value = operands(dtype)
    expected = paramixer.mix_chain(weight, value, offsets)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = value.clone()  # a chain on another stream would read it too early
        result = paramixer.mix_chain(weight, late, offsets)
    stream.synchronize()
    assert torch.equal(result, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_a_device_that_is_not_current():
    offsets, weight, value = operands(torch.bfloat16)
    expected = paramixer.mix_chain(weight, value, offsets)
    result = paramixer.mix_chain(weight.to("cuda:1"), value.to("cuda:1"), offsets)
    assert result.device.index == 1
    assert torch.equal(result.cpu(), expected.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_beyond_2_to_the_31_elements(dtype):
    """Rows around the ring's seam, against the reference on a short ring of them."""
    length, channels, near = 2**25 + 3, 64, 16
    needed = 4 * length * channels * torch.empty((), dtype=dtype).element_size()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip("too little free memory")
    offsets = [[0, 1, -1], [0, 2, -2]]
    value = torch.zeros(1, length, channels, device="cuda", dtype=dtype)
    weight = torch.zeros(1, length, 2, 3, device="cuda", dtype=dtype)
    rows = torch.arange(-near, near, device="cuda") % length
    value[:, rows] = torch.randn(1, 2 * near, channels, device="cuda").to(dtype)
    weight[:, rows] = torch.randn(1, 2 * near, 2, 3, device="cuda").to(dtype)
    result = paramixer.mix_chain(weight, value, offsets)[:, rows]
    expected = reference.mix_chain(weight[:, rows].double(), value[:, rows].double(), offsets)
    inner = slice(3, -3)  # the short ring joins its ends
    bound = 1e-6 if dtype == torch.float32 else 1e-2
    assert relative_error(result[:, inner], expected[:, inner]) <= bound


@pytest.mark.parametrize(
    "make",
    [
        lambda: Paramixer(32, 100, protocol="cdil"),
        lambda: Paramixer(32, 100, heads=2),
        lambda: PSFAttention(32, 100),
        lambda: ChordMixer(32, 100, tracks=8),
    ],
    ids=["cdil", "chord", "psf", "chord-mixer"],
)
def test_modules_compute_what_they_do_on_the_cpu(make):
    module = make().eval()
    other = copy.deepcopy(module).cuda()
    x = torch.randn(3, 90, 32)
    outputs = []
    for own, device in ((module, "cpu"), (other, "cuda")):
        given = x.to(device).requires_grad_()
        result = own(given)
        result.square().sum().backward()
        gradients = [p.grad for p in own.parameters() if p.grad is not None]
        outputs.append([t.cpu() for t in (result.detach(), given.grad, *gradients)])
    for mine, expected in zip(*outputs, strict=True):
        assert relative_error(mine, expected) <= 1e-4


def test_a_module_under_autocast_on_cuda():
    module = Paramixer(32, 100, protocol="cdil").cuda().eval()
    x = torch.randn(3, 100, 32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        result = module(x)
    assert relative_error(result.float(), module(x)) <= 5e-2
