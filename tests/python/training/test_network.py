from pathlib import Path

import pytest
import torch
import yaml
from paramixer.tasks.task import Classes, Parts, Reals, Regression, Task, Tokens
from paramixer.training import MIXERS, Learner, learner_for, network_for, noise

CONFIGS = Path(__file__).parents[3] / "scripts" / "configs"
LEARNING = {"learning_rate", "weight_decay", "schedule", "warmup", "roc_auc"}


def task_of(input, output, length, **options) -> Task:
    return Task("shape", "made up", input, output, length, Parts(None, None, None), {}, **options)


def shape(name: str, length: int | None = None) -> Task:
    """What the task of a configuration looks like to a network."""
    tasks = {
        "adding": task_of(Reals(2), Regression(0.04), length or 128),
        "temporal": task_of(Tokens(6), Classes(4), length or 128),
        "listops": task_of(Tokens(17, padding=15), Classes(10), 1999),
        "image": task_of(Tokens(256), Classes(10), 1024),
        "pathfinder": task_of(Tokens(225), Classes(2), 1024),
        "text": task_of(Tokens(97, padding=95), Classes(2), 4097),
    }
    return tasks[name.split("-")[0]]


def model_settings(name: str) -> dict:
    model = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    return {key: value for key, value in model.items() if key not in LEARNING}


# As counted by the published code; `unused` are embeddings that its networks hold but never use.
@pytest.mark.parametrize(
    ("name", "published", "unused"),
    [
        ("adding", 19_673, 128 * 32 + 32),
        ("adding-psf", 15_809, 128 * 32 + 32),
        ("temporal-order", 32_028, 0),
        ("temporal-order-psf", 18_948, 0),
        ("listops", 2_874_894, 0),
        ("listops-psf", 1_855_502, 0),
        ("image", 384_952, 0),
        ("image-cdil", 384_292, 0),
        ("image-psf", 287_944, 0),
        ("pathfinder", 239_632, 0),
        ("pathfinder-psf", 177_350, 0),
        ("text", 394_500, 4097 * 32),
        ("text-psf", 213_438, 4097 * 32),
        ("long-documents", 2_301_814, 16_385 * 100),
        ("genome-hfdna", 1_667_604, 0),
        ("genome-mtcdna", 1_667_636, 0),
        ("genome-ddcdna-psf", 1_596_884, 16_384 * 32),
    ],
)
def test_parameters_are_as_many_as_published(name, published, unused):
    data = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]
    task = noise(**data["settings"]) if data["task"] == "noise" else shape(name)
    network = network_for(task, **model_settings(name))
    assert sum(p.numel() for p in network.parameters()) == published - unused


@pytest.mark.parametrize(
    ("name", "length", "published", "unused"),
    [
        ("adding", 16_384, 1_072_531, 16_384 * 32 + 32),
        ("temporal-order", 16_384, 2_645_462, 0),
        ("adding-psf", 1024, 56_599, 1024 * 32 + 32),
        ("temporal-order-psf", 1024, 81_242, 0),
    ],
)
def test_parameters_at_other_lengths(name, length, published, unused):
    network = network_for(shape(name, length), **model_settings(name))
    assert sum(p.numel() for p in network.parameters()) == published - unused


TASKS = {
    "tokens": task_of(Tokens(7, padding=0), Classes(3), 12),
    "reals": task_of(Reals(2), Classes(3), 12),
    "values": task_of(Tokens(7, padding=0), Regression(0.1), 12),
    "positions": task_of(Tokens(7, padding=0), Classes(3, positions=4), 12),
    "pairs": task_of(Tokens(7, padding=0), Classes(2), 12, sequences=2),
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", TASKS)
def test_any_mixer_meets_any_task(kind, mixer, deep):
    task = TASKS[kind]
    form = {"norm": True, "feed_forward": 16, "layers": 2} if deep else {}
    options = {"tracks": 4} if mixer == "chord-mixer" else None  # the default must divide width
    network = network_for(task, mixer=mixer, width=8, options=options, **form).eval()
    pair = (2,) if task.sequences == 2 else ()
    mask = torch.rand(3, *pair, 10) < 0.5
    mask = mask.sort(dim=-1, descending=True).values
    mask[..., :4] = True
    if isinstance(task.input, Reals):
        x = torch.randn(3, 10, 2)
        other = torch.where(mask.unsqueeze(-1), x, torch.randn_like(x))
    else:
        x = torch.randint(1, 7, (3, *pair, 10))
        other = torch.where(mask, x, 0)
    scores = network(x, mask)
    expected = {"values": (3, 1), "positions": (3, 4, 3), "pairs": (3, 2)}.get(kind, (3, 3))
    assert scores.shape == expected
    torch.testing.assert_close(network(other, mask), scores)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_classes_at_the_last_valid_positions():
    network = network_for(TASKS["positions"], width=8).eval()
    x = torch.randint(1, 7, (1, 10))
    mask = torch.arange(10).unsqueeze(0) < 7
    rows = network.classifier.head(network.classifier.encode(x, mask))
    torch.testing.assert_close(network(x, mask), rows[:, 3:7])
    torch.testing.assert_close(
        network(x, None), network.classifier.head(network.classifier.encode(x))[:, -4:]
    )


def test_class_token_precedes_the_data():
    network = network_for(TASKS["tokens"], width=8, class_token=True, pooling="first").eval()
    x = torch.randint(1, 6, (2, 12))
    mask = torch.arange(12) < torch.tensor([[12], [5]])
    token = torch.full((2, 1), 6)
    valid = torch.ones(2, 1, dtype=torch.bool)
    torch.testing.assert_close(
        network(x, mask), network.network(torch.cat([token, x], 1), torch.cat([valid, mask], 1))
    )


def test_embedding_range():
    network = network_for(TASKS["tokens"], width=64, embedding_range=0.1)
    weight = network.embedding.weight
    assert 0.09 < weight.abs().max() <= 0.1 and not weight[0].any()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("tokens", {"mixer": "nothing"}, "network_for: mixer must be one of"),
        ("tokens", {"options": {"tracks": 2}}, "network_for: tracks must be null for paramixer"),
        ("positions", {"pooling": "flatten"}, "LastPositions: pooling must be mean, first"),
        ("positions", {"pooling": "lama"}, "LastPositions: pooling must be mean, first"),
        ("pairs", {"head_hidden": 4}, "Comparison: head_hidden must be None"),
        ("reals", {"class_token": True}, "ClassToken: class_token must be False"),
        ("reals", {"embedding_range": 0.1}, "network_for: embedding_range must be null"),
    ],
)
def test_arguments_are_checked(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        network_for(TASKS[kind], **settings)


def test_deep_recipe_sets_everything():
    """Or a setting of the task's own configuration would remain."""
    import inspect

    recipe = set(yaml.safe_load((CONFIGS / "deep.yaml").read_text())["model"])
    network = set(inspect.signature(network_for).parameters) - {"task"}
    learning = set(inspect.signature(Learner).parameters) - {"network", "output"}
    assert recipe == (network | learning) - {"seed", "compile", "roc_auc"}


@pytest.mark.parametrize("kind", TASKS)
def test_deep_recipe_takes_any_input(kind):
    """One set of values for all tasks, tokens and real values alike."""
    learner_for(TASKS[kind], **yaml.safe_load((CONFIGS / "deep.yaml").read_text())["model"])
