import math

import pytest
import torch
from lightning import Trainer
from paramixer import nn
from paramixer.tasks.adding import adding
from paramixer.tasks.copying import copying
from paramixer.tasks.task import Classes, Counts, Parts, Regression, Sample, Task, Tokens
from paramixer.tasks.temporal_order import temporal_order
from paramixer.training import Learner, TaskData, decay_groups, evaluate, judge, learner_for


def trainer(epochs=1, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def train(task: Task, epochs: int, batch_size: int, **settings) -> dict:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the data are too small for more
    try:
        data = TaskData(task, batch_size, full_length=settings.get("pooling") == "flatten")
        module = learner_for(task, **settings)
        run = trainer(epochs, gradient_clip_val=1.0)
        run.fit(module, data)
        return evaluate(run, module, data)
    finally:
        torch.set_num_threads(threads)


class Pairs:
    """Two sequences of different lengths; the class says whether they have the same token."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, 4, (count, 2), generator=generator)
        self.both = torch.randint(2, 9, (count, 2), generator=generator)
        self.lengths = self.both.max(1).values.numpy()

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        first, second = self.tokens[index]
        x = tuple(t.repeat(int(n)) for t, n in zip((first, second), self.both[index], strict=True))
        return Sample(x, (first == second).long())


def pairs_task() -> Task:
    parts = Parts(*(Pairs(count, seed) for seed, count in enumerate((1000, 50, 200))))
    return Task("pairs", "made up", Tokens(4, 0), Classes(2), 8, parts, {}, sequences=2)


def test_classes_are_learned():
    task = temporal_order(32, Counts(3000, 100, 300))
    result = train(
        task, 5, 30, positions="learned", pooling="flatten", width=16, learning_rate=5e-3
    )
    assert result["count"] == 300
    assert result["accuracy"] > 0.45 and result["interval"][0] > 0.25 + 0.1


def test_values_are_learned():
    result = train(
        adding(32, Counts(2000, 100, 300)), 4, 20, pooling="flatten", width=16, learning_rate=5e-3
    )
    assert result["accuracy"] > 0.1536 + 0.15


def test_classes_at_positions_are_learned():
    task = copying(16, Counts(1000, 50, 100), memorized=4, alphabet=4)
    options = {"protocol": "cdil", "norm": True, "positions": "learned", "width": 16}
    result = train(task, 4, 20, learning_rate=5e-3, **options)
    assert result["count"] == 400
    assert result["accuracy"] > 0.25 + 0.15


def test_pairs_are_learned():
    result = train(pairs_task(), 3, 20, width=8, learning_rate=5e-3, roc_auc=True)
    assert result["accuracy"] > 0.68 + 0.1  # two of three pairs differ
    assert result["roc_auc"] > result["accuracy"] - 0.1


def test_judgement():
    scores = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [1.0, 0.0]]])
    losses, right = judge(scores, torch.tensor([[0, 0], [1, 0]]), Classes(2, positions=2))
    assert right.tolist() == [True, False, True, True]
    assert losses[1] == pytest.approx(math.log(1 + math.e))
    values = torch.tensor([[0.5], [0.7]])
    losses, right = judge(values, torch.tensor([0.54, 0.6]), Regression(0.05))
    assert right.tolist() == [True, False]
    assert losses.tolist() == pytest.approx([0.0016, 0.01], rel=1e-4)


def test_what_decays():
    model = nn.SequenceClassifier(
        [nn.Paramixer(4, 8)], width=4, length=8, classes=2, vocabulary=5, positions="learned",
        norm=True,
    )  # fmt: skip
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, plain = decay_groups(model)
    assert {names[p] for p in decayed} == {
        "mixers.0.link_hidden.weight",
        "mixers.0.link_output.weight",
        "mixers.0.value_hidden.weight",
        "mixers.0.value_output.weight",
        "head.weight",
    }
    assert len(decayed) + len(plain) == len(names)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedule(schedule):
    task = adding(32, Counts(40, 4, 4))
    module = learner_for(task, width=2, schedule=schedule, warmup=0.5, learning_rate=1.0)
    rates = []
    module.on_before_optimizer_step = lambda optimizer: rates.append(
        optimizer.param_groups[0]["lr"]
    )
    trainer(2).fit(module, TaskData(task, 10))
    rise = [0.2, 0.4, 0.6, 0.8]
    fall = [1.0] * 4 if schedule == "constant" else [1.0, 0.8536, 0.5, 0.1464]
    assert rates == pytest.approx(rise + fall, abs=1e-4)


def test_random_numbers_depend_on_seed_and_step_alone():
    task = temporal_order(32, Counts(20, 4, 4))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        module = learner_for(task, width=4, dropout=0.5, seed=seed)
        torch.manual_seed(len(losses))
        run = trainer()
        run.fit(module, TaskData(task, 5))
        losses.append(float(run.callback_metrics["train_loss"]))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "Learner: schedule must be one of"),
        ({"warmup": 1.0}, "Learner: warmup must be at least 0 and below 1"),
        ({"roc_auc": True}, "Learner: roc_auc must be False unless classes are 2"),
    ],
)
def test_arguments_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Learner(torch.nn.Identity(), Classes(4), **settings)


def test_mixed_precision_clipping_and_accumulation():
    task = temporal_order(32, Counts(40, 4, 4))
    module = learner_for(task, width=4)
    before = [parameter.clone() for parameter in module.network.parameters()]
    run = trainer(precision="bf16-mixed", gradient_clip_val=1.0, accumulate_grad_batches=2)
    run.fit(module, TaskData(task, 10))
    assert run.global_step == 2
    assert all(
        p.dtype == torch.float32 and not torch.equal(p, b)
        for p, b in zip(module.network.parameters(), before, strict=True)
    )


def test_endless_training_has_no_cosine():
    task = adding(32, Counts(4, 4, 4))
    module = learner_for(task, schedule="cosine")
    with pytest.raises(ValueError, match="must know max_epochs"):
        trainer(-1).fit(module, TaskData(task, 4))


def test_compiled_network_has_the_same_parameters(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    task = adding(32, Counts(4, 4, 4))
    module = learner_for(task, compile=True)
    assert compiled == [module.network]
