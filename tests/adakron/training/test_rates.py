import torch
from torch import nn

from adakron.training.rates import decay_by_layer


def test_each_layer_has_its_rate_and_the_head_the_whole_one() -> None:
    adapters, head = [nn.Linear(2, 3) for _ in range(3)], nn.Linear(3, 2)
    weights = [module.weight for module in (*adapters, head)]
    biases = [module.bias for module in (*adapters, head)]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], lr=0.08
    )
    decay_by_layer(optimizer, adapters, 0.5)
    found = {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert [found[p] for p in weights] == [(0.02, 0.1), (0.04, 0.1), (0.08, 0.1), (0.08, 0.1)]
    assert [found[p] for p in biases] == [(0.02, 0.0), (0.04, 0.0), (0.08, 0.0), (0.08, 0.0)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 8


def test_without_decay_nothing_is_touched() -> None:
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.08)
    groups = [dict(group) for group in optimizer.param_groups]
    decay_by_layer(optimizer, [layer], 1.0)
    assert optimizer.param_groups == groups


def test_a_schedule_scales_each_rate_from_its_own_start() -> None:
    low, high = nn.Linear(2, 3), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([*low.parameters(), *high.parameters()], lr=0.08)
    decay_by_layer(optimizer, [low, high], 0.25)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    schedule.step()
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.01, 0.04]
