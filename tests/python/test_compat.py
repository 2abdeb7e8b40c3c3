"""Published parameter sets against the published formulas, written out with gather and scatter."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from paramixer.compat import load_official


@dataclass(frozen=True)
class Network:
    """One published network: its sizes, and what its code did with them."""

    length: int
    width: int
    factors: int
    links: int
    hidden: int
    value_width: int
    classes: int
    parameters: int  # of the published state dict, unused tables included
    vocabulary: int = 0
    features: int = 0
    layers: int = 1
    prefix: str = ""
    head_hidden: int = 0
    cls: bool = False
    table: str = "pos_embedding"
    positions: bool = True
    protocol: str = "chord"
    residual: str = "none"


def paramixer_network(length, width, factors, links, hidden, classes, parameters, **options):
    return Network(
        length,
        width,
        factors,
        links,
        hidden,
        width,
        classes,
        parameters,
        prefix="attention.{layer}.",
        table="apc_embedding",
        residual="previous",
        **options,
    )


ADDING = {"features": 2, "vocabulary": 1, "positions": False}
NETWORKS = {
    "psf-adding": Network(128, 32, 7, 8, 32, 8, 1, 15809, residual="initial", **ADDING),
    "psf-adding-1024": Network(1024, 32, 10, 11, 32, 8, 1, 56599, residual="initial", **ADDING),
    "psf-order": Network(128, 32, 7, 8, 32, 8, 4, 18948, vocabulary=6, residual="initial"),
    "psf-listops": Network(2000, 512, 11, 12, 128, 128, 10, 1855502, vocabulary=17, cls=True),
    "psf-image": Network(1024, 16, 10, 11, 16, 16, 10, 287944, vocabulary=256, head_hidden=16),
    # 12 links at N = 1024: the last offset, 1024, repeats the self link.
    "psf-pathfinder": Network(1024, 32, 11, 12, 128, 32, 2, 177350, vocabulary=225),
    "psf-pathfinder-5": Network(1024, 32, 11, 12, 32, 32, 2, 123590, vocabulary=225),
    "psf-text": Network(
        4097,
        32,
        12,
        13,
        128,
        32,
        2,
        213438,
        vocabulary=97,
        cls=True,
        residual="initial",
        positions=False,
    ),
    "psf-genome": Network(16384, 32, 14, 15, 32, 32, 2, 1596884, vocabulary=6, positions=False),
    "adding": paramixer_network(128, 32, 7, 8, 32, 1, 19673, **ADDING),
    "order": paramixer_network(128, 32, 7, 8, 32, 4, 32028, vocabulary=6),
    "listops": paramixer_network(1999, 128, 11, 12, 32, 10, 2874894, vocabulary=17),
    "image": paramixer_network(1024, 32, 10, 11, 32, 10, 384952, vocabulary=256),
    "image-cdil": paramixer_network(
        1024, 32, 10, 9, 32, 10, 384292, vocabulary=256, protocol="cdil"
    ),
    "pathfinder": paramixer_network(1024, 64, 10, 11, 32, 2, 239632, vocabulary=225),
    "text": paramixer_network(
        4097, 32, 13, 14, 128, 2, 394500, vocabulary=97, layers=3, cls=True, positions=False
    ),
    "longdoc": paramixer_network(
        16385, 100, 14, 15, 128, 4, 2301814, vocabulary=4290, cls=True, positions=False
    ),
    "hfdna": paramixer_network(16384, 32, 14, 15, 128, 2, 1667604, vocabulary=5),
    "mtcdna": paramixer_network(16384, 32, 14, 15, 128, 2, 1667636, vocabulary=6),
}


# The published formula, evaluated in float32, itself misses 1e-6 here on some instruction set: a
# product of a dozen factors, or a head that sums thousands of terms of both signs, leaves float32
# no six digits. For these twice its error is allowed.
BEYOND_FLOAT32 = frozenset(
    {
        "psf-listops",
        "psf-image",
        "psf-pathfinder",
        "psf-pathfinder-5",
        "psf-genome",
        "adding",
        "listops",
        "image",
        "image-cdil",
        "pathfinder",
        "text",
        "hfdna",
        "mtcdna",
    }
)


def random_state_dict(network):
    """Parameters with the published names and shapes, drawn as PyTorch's modules draw them."""
    generator = torch.Generator().manual_seed(1)
    state_dict = {}

    def normal(name, *shape):
        state_dict[f"{name}.weight"] = torch.randn(*shape, generator=generator)

    def linear(name, out_features, in_features):
        for part, shape in (("weight", (out_features, in_features)), ("bias", (out_features,))):
            draw = torch.rand(*shape, generator=generator)
            state_dict[f"{name}.{part}"] = (2 * draw - 1) / in_features**0.5

    n = network
    normal("embedding", n.vocabulary, n.width)
    normal(n.table, n.length, n.width)
    if n.features:
        linear("init_linear", n.width, n.features)
    for layer in range(n.layers):
        prefix = n.prefix.format(layer=layer)
        for m in range(n.factors):
            linear(f"{prefix}fs.{m}.network.0", n.hidden, n.width)
            linear(f"{prefix}fs.{m}.network.2", n.links, n.hidden)
        linear(f"{prefix}g.network.0", n.hidden, n.width)
        linear(f"{prefix}g.network.2", n.value_width, n.hidden)
    pooled = n.value_width * (1 if n.cls else n.length)
    if n.head_hidden:
        linear("final.0", n.head_hidden, pooled)
        linear("final.2", n.classes, n.head_hidden)
    else:
        linear("final", n.classes, pooled)
    return state_dict


def random_input(network, batch):
    if network.features:
        return torch.rand(batch, network.length, network.features)
    return torch.randint(network.vocabulary, (batch, network.length))


def published_formula(network, state_dict, x):
    """Logits in the dtype of the parameters."""
    n = network
    rows = torch.arange(n.length)

    def linear(name, x):
        return F.linear(x, state_dict[f"{name}.weight"], state_dict[f"{name}.bias"])

    def mlp(name, x):
        return linear(f"{name}.2", F.gelu(linear(f"{name}.0", x)))

    def columns(m):
        if n.protocol == "chord":
            powers = [2**power for power in range(n.links - 1)]
            links = [rows] + [(rows + power) % n.length for power in powers]
        else:
            steps = [k * 2**m for k in range(1, (n.links - 1) // 2 + 1)]
            links = [rows] + [(rows + step) % n.length for step in steps]
            links += [(rows - step) % n.length for step in steps]
        return torch.stack(links, dim=1).flatten()

    def product(f, v, m):
        gathered = v.index_select(1, columns(m)).mul(f.flatten(1).unsqueeze(2))
        target = rows.repeat_interleave(n.links).view(1, -1, 1).expand_as(gathered)
        return torch.zeros_like(v).scatter_add(1, target, gathered)

    embedded = linear("init_linear", x) if n.features else state_dict["embedding.weight"][x]
    if n.positions:
        embedded = embedded + state_dict[f"{n.table}.weight"]
    v = embedded
    for layer in range(n.layers):
        prefix = n.prefix.format(layer=layer)
        v = initial = mlp(f"{prefix}g.network", v)
        for m in range(n.factors):
            f = mlp(f"{prefix}fs.{m}.network", embedded)
            residual = {"none": 0, "previous": v, "initial": initial}[n.residual]
            v = product(f, v, m) + residual
    pooled = v[:, 0] if n.cls else v.flatten(1)
    return mlp("final", pooled) if n.head_hidden else linear("final", pooled)


def load(network, state_dict, **options):
    arguments = {
        "length": network.length,
        "protocol": network.protocol,
        "residual": network.residual,
        "pooling": "first" if network.cls else "flatten",
        "positions": network.positions,
    }
    return load_official(state_dict, **(arguments | options))


def relative(actual, expected):
    return (actual - expected).norm() / expected.norm()


def errors(network, seed):
    """Of our model and of the formula in float32, for one draw of parameters and input."""
    torch.manual_seed(seed)
    state_dict = random_state_dict(network)
    assert sum(tensor.numel() for tensor in state_dict.values()) == network.parameters
    model = load(network, state_dict)
    x = random_input(network, 1 if network.length > 5000 else 2)
    with torch.no_grad():
        logits = model(x)
        double = {name: tensor.double() for name, tensor in state_dict.items()}
        exact = published_formula(network, double, x.double() if network.features else x)
        formula = published_formula(network, state_dict, x)
    assert logits.shape == (len(x), network.classes)
    assert logits.dtype == torch.float32
    return relative(logits, exact), relative(formula, exact)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name):
    network = NETWORKS[name]
    if name not in BEYOND_FLOAT32:
        assert errors(network, 2)[0] <= 1e-6
        return
    # The error of a few cancelling numbers is chance: three draws together.
    ours, formula = torch.tensor([errors(network, seed) for seed in (2, 3, 4)]).T
    assert ours.norm() <= max(3**0.5 * 1e-6, 2 * formula.norm().item())


SMALL = paramixer_network(
    20, 8, 4, 6, 5, 3, 0, vocabulary=11, layers=2, positions=True, protocol="chord"
)


@pytest.mark.parametrize(
    "network",
    [
        replace(SMALL, prefix="", layers=1, table="pos_embedding"),
        replace(SMALL, residual="initial"),
        replace(SMALL, residual="none", head_hidden=7),
        replace(SMALL, protocol="cdil", links=9, factors=5),
        replace(SMALL, protocol="cdil", links=3, cls=True),
        replace(SMALL, layers=1, value_width=6),
        replace(SMALL, features=3, positions=True),
        replace(SMALL, length=1, factors=1, links=2),
    ],
)
def test_float64_and_gradients(network):
    """Exact to rounding in float64, and training reaches every parameter."""
    state_dict = {k: v.double() for k, v in random_state_dict(network).items()}
    model = load(network, state_dict)
    x = random_input(network, 3)
    x = x.double() if network.features else x
    logits = model(x)
    torch.testing.assert_close(
        logits, published_formula(network, state_dict, x), rtol=1e-12, atol=1e-12
    )
    logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def layers(count, *shapes):
    """Names and shapes of the linear layers of `count` small networks fs."""
    names = [f"fs.{m}.network" for m in range(count)] + ["g.network"]
    tensors = {}
    for name in names:
        inner, outer = shapes[-1] if name == "g.network" else shapes[0]
        tensors |= {f"{name}.0.weight": inner, f"{name}.0.bias": inner[:1]}
        tensors |= {f"{name}.2.weight": outer, f"{name}.2.bias": outer[:1]}
    return tensors


# What the four published files of PSF-Attn hold (SparseFactorization, LRA/attention_maps).
CHECKPOINTS = {
    "pathfinder_epoch27": (
        "psf-pathfinder",
        {"embedding.weight": (225, 32), "pos_embedding.weight": (1024, 32)}
        | layers(11, ((128, 32), (12, 128)), ((128, 32), (32, 128)))
        | {"final.weight": (2, 32768), "final.bias": (2,)},
    ),
    "PSF_5": (
        "psf-pathfinder-5",
        {"embedding.weight": (225, 32), "pos_embedding.weight": (1024, 32)}
        | layers(11, ((32, 32), (12, 32)), ((32, 32), (32, 32)))
        | {"final.weight": (2, 32768), "final.bias": (2,)},
    ),
    "cifar10_epoch35": (
        "psf-image",
        {"embedding.weight": (256, 16), "pos_embedding.weight": (1024, 16)}
        | layers(10, ((16, 16), (11, 16)), ((16, 16), (16, 16)))
        | {"final.0.weight": (16, 16384), "final.0.bias": (16,)}
        | {"final.2.weight": (10, 16), "final.2.bias": (10,)},
    ),
    "imdb_epoch138": (
        "psf-text",
        {"embedding.weight": (97, 32), "pos_embedding.weight": (4097, 32)}
        | layers(12, ((128, 32), (13, 128)), ((128, 32), (32, 128)))
        | {"final.weight": (2, 32), "final.bias": (2,)},
    ),
}


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_published_checkpoints(file):
    """The networks of the table are those in the files, and load from exactly what these hold."""
    name, shapes = CHECKPOINTS[file]
    state_dict = {key: torch.zeros(shape) for key, shape in shapes.items()}
    drawn = random_state_dict(NETWORKS[name])
    assert {key: tuple(tensor.shape) for key, tensor in drawn.items()} == shapes
    assert load(NETWORKS[name], state_dict).length == NETWORKS[name].length


def grown(magnitude):
    """A network of Pathfinder's size with links so large that its logits reach `magnitude`.

    Trained factors grow like this: nothing normalises them. Also inputs and the exact logits.
    """
    network = NETWORKS["psf-pathfinder"]
    torch.manual_seed(0)
    state_dict, x = random_state_dict(network), random_input(network, 8)

    def exact():
        double = {key: tensor.double() for key, tensor in state_dict.items()}
        return published_formula(network, double, x)

    gain = (magnitude / exact().abs().max()).item() ** (1 / network.factors)
    for key, tensor in state_dict.items():
        if key.startswith("fs.") and ".network.2." in key:
            tensor *= gain
    return network, state_dict, x, exact()


def test_magnitudes_of_trained_factors():
    """3.6e5 is what the published Pathfinder network was seen to reach, and more than float16."""
    network, state_dict, x, exact = grown(3.6e5)
    model = load(network, state_dict)
    with torch.no_grad():
        allowed = 2 * relative(published_formula(network, state_dict, x), exact)
        assert relative(model(x), exact) <= max(1e-6, allowed)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(model(x).double(), exact) < 0.03
        with torch.autocast("cpu", torch.float16):
            assert not model(x).isfinite().any()
        assert relative(copy.deepcopy(model).bfloat16()(x).double(), exact) < 0.03
        assert not copy.deepcopy(model).half()(x).isfinite().any()


@pytest.mark.parametrize("autocast", [True, False])
def test_float16_is_right_or_not_finite(autocast):
    """States beyond 65504 become infinite in the sequences that have them, and in no others."""
    network, state_dict, x, exact = grown(1.4e4)
    model = load(network, state_dict)
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        largest = load(network, state_dict).double().encode(x).abs().amax((1, 2))
        logits = (model if autocast else model.half())(x)
    assert 0 < (largest > 65504).sum() < len(x)
    finite = logits.isfinite().all(1)
    assert torch.equal(finite, largest < 65504)
    assert relative(logits[finite].double(), exact[finite]) < 0.03


def test_positions_by_default():
    tokens = random_state_dict(SMALL)
    x = random_input(SMALL, 2)
    expected = published_formula(SMALL, tokens, x)
    torch.testing.assert_close(load(SMALL, tokens, positions=None)(x), expected)
    real = replace(SMALL, features=3, positions=False)
    state_dict, x = random_state_dict(real), random_input(real, 2)
    expected = published_formula(real, state_dict, x)
    torch.testing.assert_close(load(real, state_dict, positions=None)(x), expected)
    del tokens["apc_embedding.weight"]
    load(SMALL, tokens, positions=None)
    with pytest.raises(ValueError, match=r"must hold pos_embedding.weight or apc_embedding.weight"):
        load(SMALL, tokens, positions=True)


def test_loads_a_copy():
    state_dict = random_state_dict(SMALL)
    model = load(SMALL, state_dict, padding_idx=4)
    assert model.embedding.padding_idx == 4
    assert torch.equal(model.embedding.weight[4], state_dict["embedding.weight"][4])
    model.embedding.weight.data.zero_()
    assert state_dict["embedding.weight"].any()


def changed(**changes):
    state_dict = random_state_dict(SMALL)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state_dict[key]
        else:
            state_dict[key] = tensor
    return state_dict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention__1__fs__2__network__0__weight": None}, "attention.1.fs.2.network.0.weight"),
        ({"attention__1__fs__3__network__2__bias": None}, "attention.1.fs.3.network.2.bias"),
        ({"attention__0__g__network__0__weight": None}, "attention.0.g.network.0.weight"),
        ({"embedding__weight": None}, "must hold init_linear.weight or embedding.weight"),
        ({"final__weight": None}, r"must hold final.weight or final.0.weight \(got .* other names"),
        ({"final__bias": None}, "must hold final.bias "),
        ({"encoder__weight": torch.zeros(1)}, r"published parameters \(got encoder.weight\)"),
        ({"fs__0__bias": torch.zeros(1)}, r"published parameters \(got fs.0.bias\)"),
        (
            {"attention__0__fs__1__network__2__weight": torch.zeros(7, 5)},
            r"fs.1.network.2.weight must have the shape \[6, 5\] \(got shape \[7, 5\]\)",
        ),
        (
            {"attention__0__fs__1__network__2__bias": torch.zeros(7)},
            r"attention.0.fs.1.network.2.bias must have the shape \[6\] \(got shape \[7\]\)",
        ),
        (
            {"attention__1__g__network__0__weight": torch.zeros(5, 9)},
            r"attention.1.g.network.0.weight must have the shape \[5, 8\] \(got shape \[5, 9\]\)",
        ),
        (
            {"apc_embedding__weight": torch.zeros(21, 8)},
            r"apc_embedding.weight must have the shape \[20, 8\] \(got shape \[21, 8\]\)",
        ),
        (
            {"final__weight": torch.zeros(3, 8)},
            r"final.weight must have the shape \[\*, 160\] \(got shape \[3, 8\]\)",
        ),
    ],
)
def test_state_dict_errors(changes, message):
    with pytest.raises(ValueError, match=f"load_official: .*{message}"):
        load(SMALL, changed(**changes))


def test_argument_errors():
    state_dict = random_state_dict(SMALL)
    with pytest.raises(ValueError, match=r"load_official: length must be at least 1 \(got 0\)"):
        load(SMALL, state_dict, length=0)
    with pytest.raises(TypeError, match=r"load_official: length must be an integer \(got 20.0\)"):
        load(SMALL, state_dict, length=20.0)
    with pytest.raises(
        ValueError, match=r"load_official: protocol must be one of .* \(got 'ring'\)"
    ):
        load(SMALL, state_dict, protocol="ring")
    with pytest.raises(
        ValueError, match=r"load_official: pooling must be one of .* \(got 'mean'\)"
    ):
        load(SMALL, state_dict, pooling="mean")
    with pytest.raises(
        ValueError, match=r"load_official: residual must be one of .* \(got 'all'\)"
    ):
        load(SMALL, state_dict, residual="all")
    with pytest.raises(ValueError, match=r"cdil: links must be odd.* \(got 6\)"):
        load(SMALL, state_dict, protocol="cdil")
    with pytest.raises(ValueError, match=r"padding_idx must be one of the 11 tokens \(got 11\)"):
        load(SMALL, state_dict, padding_idx=11)
    with pytest.raises(ValueError, match=r"final.weight must have the shape \[\*, 8\]"):
        load(SMALL, state_dict, pooling="cls")
