"""Averages of weights and batch norm's statistics for them, against what they say they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from solver import WeightAverage, average_weights, make_average, reestimate_batch_norm
from tests.tiny import config
from utils.errors import UserError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def settings(**changes):
    return config(Path("none"), Path("none"), **changes)


def test_the_average_is_the_mean_of_the_weights_and_leaves_running_statistics_to_the_last():
    states = [network(seed).state_dict() for seed in range(3)]
    for i, state in enumerate(states):
        state["1.running_mean"] = torch.full((4,), float(i))
        state["1.num_batches_tracked"] = torch.tensor(i)
    actual = average_weights(iter(states))
    for name in ("0.weight", "1.bias", "4.weight"):
        torch.testing.assert_close(actual[name], torch.stack([s[name] for s in states]).mean(0))
    assert actual["1.running_mean"].tolist() == [2.0] * 4 and actual["1.num_batches_tracked"] == 2
    assert average_weights(states[:1])["0.weight"].data_ptr() != states[0]["0.weight"].data_ptr()


def test_half_precision_is_summed_in_float32():
    states = [{"w": torch.full((1,), 1 + i / 512, dtype=torch.float16)} for i in range(512)]
    assert average_weights(states)["w"].item() == pytest.approx(1 + 511 / 1024, abs=1e-6)


def test_nothing_and_different_networks_are_refused():
    with pytest.raises(UserError, match="no states"):
        average_weights([])
    with pytest.raises(UserError, match="different networks"):
        average_weights([{"a": torch.ones(1)}, {"b": torch.ones(1)}])


def walk(module: nn.Module, average: WeightAverage, epochs: int, steps: int = 2) -> list[dict[str, torch.Tensor]]:
    """Random updates; the weights after each of them."""
    trace = []
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            with torch.no_grad():
                for p in module.parameters():
                    if p.requires_grad:
                        p.add_(torch.randn_like(p))
            average.after_step()
            trace.append({n: p.detach().clone() for n, p in module.named_parameters()})
        average.after_epoch(epoch)
    return trace


def test_a_uniform_average_counts_the_epochs_from_the_first_one_on():
    module = network()
    module[0].requires_grad_(False)
    frozen, average = module[0].weight.clone(), WeightAverage(module, first=3)
    ends = walk(module, average, 5)[1::2]
    average.apply()
    assert average.count == 3
    torch.testing.assert_close(module[4].weight, sum(w["4.weight"] for w in ends[2:]) / 3)
    assert torch.equal(module[0].weight, frozen) and "0.weight" not in average.accumulated


def test_an_exponential_average_counts_every_update():
    module, decay = network(), 0.7
    average = WeightAverage(module, decay=decay)
    trace = walk(module, average, 3)
    expected = trace[0]["4.bias"]
    for weights in trace[1:]:
        expected = decay * expected + (1 - decay) * weights["4.bias"]
    average.apply()
    torch.testing.assert_close(module[4].bias, expected)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_one_copy_of_the_weights_is_kept_however_long_the_run(decay):
    module = network()
    average = WeightAverage(module, first=1, decay=decay)
    walk(module, average, 1)
    addresses = {name: value.data_ptr() for name, value in average.accumulated.items()}
    walk(module, average, 6)
    assert {name: value.data_ptr() for name, value in average.accumulated.items()} == addresses
    assert sum(v.numel() for v in average.accumulated.values()) == sum(p.numel() for p in module.parameters())


def test_a_restored_average_continues():
    whole, parts = network(), network()
    one, two = WeightAverage(whole, first=2), WeightAverage(parts, first=2)
    torch.manual_seed(1)
    walk(whole, one, 4)
    torch.manual_seed(1)
    walk(parts, two, 2)
    again = WeightAverage(parts, first=1)
    again.load_state_dict(two.state_dict())
    walk(parts, again, 2)
    one.apply(), again.apply()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


# ---------------------------------------------------------------- batch norm


def test_statistics_are_means_over_the_batches_weighted_by_their_lengths():
    module = nn.Sequential(nn.BatchNorm1d(3))
    torch.manual_seed(0)
    batches = [torch.randn(n, 3) * n for n in (6, 6, 2)]
    module[0].momentum = 0.3
    module.eval()
    reestimate_batch_norm(module, iter(batches))
    mean = sum(len(b) * b.mean(0) for b in batches) / 14
    var = sum(len(b) * b.var(0) for b in batches) / 14
    torch.testing.assert_close(module[0].running_mean, mean)
    torch.testing.assert_close(module[0].running_var, var)
    assert module[0].momentum == 0.3 and not module.training


def test_equal_batches_give_what_torch_gives():
    ours, theirs = network(), network()
    batches = [torch.randn(4, 3, 4, 4) for _ in range(3)]
    reestimate_batch_norm(ours, batches)
    torch.optim.swa_utils.update_bn(batches, theirs)
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean)
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var)


def test_no_graph_is_built_and_other_networks_are_left_alone():
    module = network()
    reestimate_batch_norm(module, [torch.randn(4, 3, 4, 4)], lambda b: module(b).requires_grad and pytest.fail("graph"))
    reestimate_batch_norm(nn.Linear(2, 2), iter(lambda: pytest.fail("batches are not needed"), None))
    with pytest.raises(UserError, match=r"SOLVER\.EMA\.BN_UPDATE: there is no batch"):
        reestimate_batch_norm(module, [])


# ---------------------------------------------------------------- keys


def test_what_the_keys_make():
    module = network()
    assert make_average(settings(), module, 10) is None
    uniform = make_average(settings(SOLVER__EMA__RATIO=0.57), module, 100)
    assert (uniform.first, uniform.decay, uniform.bn_update) == (56, None, True)  # 100 * 0.57 is 56.99...
    smooth = make_average(
        settings(SOLVER__EMA__MODE="exponential", SOLVER__EMA__DECAY=0.5, SOLVER__EMA__BN_UPDATE=False), module, 9
    )
    assert (smooth.decay, smooth.bn_update) == (0.5, False)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_an_average_that_starts_after_the_last_epoch_or_before_the_first_is_refused(ratio):
    with pytest.raises(UserError, match=r"SOLVER\.EMA\.RATIO: .*outside \(0, 1\].*SOLVER\.MAX_EPOCHS"):
        make_average(settings(SOLVER__EMA__RATIO=ratio), network(), 10)


def test_a_ratio_does_not_go_with_the_exponential_mode():
    with pytest.raises(UserError, match=r"SOLVER\.EMA\.MODE 'exponential' and SOLVER\.EMA\.RATIO"):
        make_average(settings(SOLVER__EMA__RATIO=0.5, SOLVER__EMA__MODE="exponential"), network(), 10)
