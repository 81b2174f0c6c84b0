"""The network a round works on: cut, it says what the whole one says with units silent."""

import pytest
import torch

from bayespare import nets
from bayespare.bayes.likelihood import likelihood_for
from bayespare.posthoc.live import LiveUnits, LiveWeights
from bayespare.posthoc.removal import masks_of, remove_units
from bayespare.structure import Verdict, mask, trace
from bayespare.structure.positions import with_positions
from bayespare.training.loop import placed

CPU = torch.device("cpu")
NETS = {
    "mlp:48,24": (64,),
    "lenet5": (1, 28, 28),
    "resnet20:width=4": (3, 16, 16),
    "vit:dim=16,depth=2,heads=4,patch=4": (1, 16, 16),
    "mixer:dim=16,depth=2,tokens=8,mlp=16,patch=4": (1, 16, 16),
}


@pytest.fixture(params=NETS)
def case(request):
    """A network without some of its units, and data to measure it on."""
    inputs = NETS[request.param]
    model = nets.build(request.param, inputs=inputs, outputs=3, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, *inputs, generator=generator)
    y = torch.randint(3, (64,), generator=generator)
    plan = with_positions(trace(model, x[:4]))
    keep = {g.name: torch.rand(g.size, generator=generator) > 0.3 for g in plan.groups}
    odds = {n: torch.rand(len(line), generator=generator) for n, line in keep.items()}
    keep = plan.surviving(keep, odds)
    return mask(model, Verdict(plan, keep)), plan, keep, [(x, y)]


def measured(batches):
    generator = torch.Generator().manual_seed(2)
    return (batches, likelihood_for("classification"), 5000, 0.2, generator)


def test_the_same_units_go_for_the_same_reasons(case):
    """To a few hundredths: the ridge is in units of a layer's inputs, without the silent ones."""
    whole, plan, keep, batches = case
    live = LiveUnits(whole, plan, keep)
    cut = live.decide(*measured(batches), trust=1.0, forced=True)
    given = remove_units(whole, plan, keep, *measured(batches), forced=True)
    assert cut.removed == pytest.approx(given.removed, rel=0.03)
    assert cut.removed > 0
    assert cut.gain == pytest.approx(given.gain, rel=0.03)
    rise = given.gain - given.predicted
    assert cut.gain - cut.predicted == pytest.approx(rise, rel=0.05)
    reduced = mask(live.model, Verdict(live.plan, cut.keep))
    left = live.trained(reduced, cut, lambda _network, _masks: None)
    differ = sum(int((left.keep[name] != line).sum()) for name, line in given.keep.items())
    assert differ <= 0.02 * sum(len(line) for line in keep.values())
    for name, line in given.log_odds.items():
        there = keep[name]
        torch.testing.assert_close(left.log_odds[name][there], line[there], rtol=0.05, atol=0.02)


def test_it_finds_its_way_back_to_the_old_shapes(case):
    whole, plan, keep, batches = case
    live = LiveUnits(whole, plan, keep)
    removal = live.decide(*measured(batches), trust=1.0, forced=True)
    reduced = mask(live.model, Verdict(live.plan, removal.keep))

    def double(network, masks):
        assert not masks
        parameters = list(network.parameters())
        assert sum(p.numel() for p in parameters) < sum(p.numel() for p in whole.parameters())
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(2)

    left = live.trained(reduced, removal, double)
    wanted = mask(whole, Verdict(plan, left.keep))
    for name, parameter in left.model.named_parameters():
        torch.testing.assert_close(parameter, 2 * wanted.get_parameter(name))
    masks = masks_of(whole, Verdict(plan, left.keep))
    assert masks.keys() == left.masks.keys()
    assert all(torch.equal(masks[name], left.masks[name]) for name in masks)


def test_single_weights_are_trained_behind_their_masks(case):
    whole, _, _, batches = case
    masks = {n: p.detach() != 0 for n, p in whole.named_parameters() if p.ndim > 1}
    live = LiveWeights(whole, masks)
    removal = live.decide(*measured(batches), trust=1.0, forced=True)
    seen = []
    left = live.trained(whole, removal, lambda network, given: seen.append((network, given)))
    assert seen == [(whole, removal.masks)]
    assert left.model is whole
    assert left.masks is removal.masks
    assert sum(int(m.sum()) for m in removal.masks.values()) == (
        sum(int(m.sum()) for m in masks.values()) - removal.removed
    )


def test_a_cut_network_keeps_the_fast_memory_layout():
    """Lines cut out of a convolution leave it contiguous: a round would take a third longer."""
    model = placed(nets.build("lenet5", inputs=(1, 28, 28), outputs=3, seed=0), CPU).eval()
    plan = with_positions(trace(model, torch.randn(2, 1, 28, 28)))
    keep = {name: torch.arange(len(line)) > 0 for name, line in plan.all_units.items()}
    live = LiveUnits(model, plan, plan.closed(keep))
    batches = [(torch.randn(32, 1, 28, 28), torch.randint(3, (32,)))]
    cut = live.decide(*measured(batches), trust=1.0, forced=True)
    seen = [live.model]
    live.trained(live.model, cut, lambda network, _masks: seen.append(network))
    for network in seen:
        for weight in (p for p in network.parameters() if p.ndim == 4):
            assert weight.is_contiguous(memory_format=torch.channels_last)
    assert len(seen) == 2
