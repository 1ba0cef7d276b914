"""Targets of lesson 07: what is drawn, what it is worth on average,
and D's optimum against independent references."""
import math

import pytest
import torch
import torch.nn.functional as F

from pokegan.training.label_smoothing import expected_targets, noisy_targets, optimal_logit
from pokegan.training.losses import bce, d_bce

def gen(seed=0): return torch.Generator().manual_seed(seed)

def test_targets_without_noise_are_constant():
    r, f = noisy_targets(7, 0.9, 0.)
    assert r.shape == f.shape == (7,) and (r == 0.9).all() and (f == 0).all() and r.dtype == torch.float32

def test_targets_are_drawn_afresh_and_repeat_with_the_generator():
    g = gen()
    a, b = (noisy_targets(50, 0.85, 0.15, 0.15, 0.05, generator=g) for _ in range(2))
    assert not torch.equal(a[0], b[0])
    assert torch.equal(a[0], noisy_targets(50, 0.85, 0.15, 0.15, 0.05, generator=gen())[0])

def test_noise_has_the_right_spread():
    r, f = noisy_targets(100_000, 0.85, 0.15, 0.15, generator=gen())
    assert abs(r.mean() - 0.85) < 0.003 and abs(f.mean() - 0.15) < 0.003
    assert abs(r.std() - 0.15) < 0.003 and abs(f.std() - 0.15) < 0.003
    assert abs(torch.corrcoef(torch.stack([r, f]))[0, 1]) < 0.02

def test_flips_swap_sides_at_the_right_rate_and_independently():
    r, f = noisy_targets(100_000, 0.9, 0.1, flip=0.05, generator=gen())
    assert set(r.unique().tolist()) == set(f.unique().tolist()) and len(r.unique()) == 2
    a, b = r < 0.5, f > 0.5
    assert abs(a.float().mean() - 0.05) < 0.003 and abs(b.float().mean() - 0.05) < 0.003
    assert abs((a & b).float().mean() - 0.0025) < 0.001
    r, f = noisy_targets(10, flip=1.)
    assert (r == 0).all() and (f == 1).all()

def test_targets_fit_the_loss():
    r, f = torch.randn(16), torch.randn(16)
    assert torch.isfinite(d_bce(r, f, *noisy_targets(16, 0.85, 0.15, 0.15, 0.05)))

@pytest.mark.parametrize('flip', [0., .05, .5, 1.])
def test_expected_targets_are_the_mean_of_the_draws(flip):
    want, got = expected_targets(.85, .15, flip), noisy_targets(200_000, .85, .15, .15, flip, generator=gen())
    for w, g in zip(want, got): assert abs(g.mean() - w) < 0.003
    assert expected_targets(.9, 0.) == (.9, 0.)

def test_noise_moves_neither_the_loss_nor_its_gradient_on_average():
    l, g = torch.linspace(-5, 5, 32, dtype=torch.float64).requires_grad_(), gen()
    draws = [noisy_targets(32, .85, .15, .15, .05, generator=g)[0].double() for _ in range(20_000)]
    mean, _ = expected_targets(.85, .15, .05)
    assert abs(torch.stack([bce(l.detach(), t) for t in draws]).mean() - bce(l.detach(), mean)) < 0.01
    # the gradient is linear in t: the mean of gradients
    grad, = torch.autograd.grad(bce(l, torch.stack(draws).mean(0)), l)
    want, = torch.autograd.grad(bce(l, mean), l)
    assert torch.allclose(grad*32, want*32, atol=0.008)

TARGETS = [(1., 0.), (.9, 0.), (.9, .1), (.815, .185), (1., .2)]

@pytest.mark.parametrize('a,b', TARGETS)
def test_optimal_logit_is_the_ratio_of_mixtures(a, b):
    r = torch.logspace(-4, 4, 33, dtype=torch.float64)
    d = (a*r + b)/(r + 1)
    assert torch.allclose(optimal_logit(r.log(), a, b), (d/(1-d)).log(), rtol=1e-9, atol=1e-9)
    if (a, b) == (1., 0.): assert torch.allclose(optimal_logit(r.log()), r.log())

@pytest.mark.parametrize('a,b', TARGETS)
def test_optimal_logit_is_where_the_loss_is_flat_and_least(a, b):
    for s in (-3., 0., 2.):
        l = optimal_logit(torch.tensor(s, dtype=torch.float64), a, b).requires_grad_()
        at = lambda v: math.exp(s)*bce(v, a) + bce(v, b)
        g, = torch.autograd.grad(at(l), l)
        assert abs(g) < 1e-9 and at(l) < min(at(l+.1), at(l-.1))

@pytest.mark.parametrize('a,b', TARGETS)
def test_optimal_logit_holds_its_limits_at_any_ratio(a, b):
    odds = lambda t: math.inf if t == 1 else -math.inf if t == 0 else math.log(t/(1-t))
    ends = (math.inf, odds(a)), (-math.inf, odds(b)), (1e4, min(odds(a), 1e4)), (-1e4, max(odds(b), -1e4))
    for s, want in ends:
        got = optimal_logit(torch.tensor(s), a, b).item()
        assert got == pytest.approx(want, rel=1e-4, abs=1e-4), s

@pytest.mark.parametrize('a', [1., .9, .5])
def test_one_sided_smoothing_leaves_the_slope_of_g_as_it_was(a):
    s = torch.linspace(-6, 6, 25, dtype=torch.float64).requires_grad_()
    g, = torch.autograd.grad(F.softplus(-optimal_logit(s, a)).sum(), s)
    assert torch.allclose(g, -torch.sigmoid(-s))   # d/ds of -log(r/(1+r))

@pytest.mark.parametrize('wrong', [(1.1, 0.), (.9, -.1), (.5, .5), (.1, .9), (math.nan, 0.)])
def test_targets_without_an_optimum_are_refused(wrong):
    with pytest.raises(ValueError, match='fake_target < real_target'): optimal_logit(torch.zeros(1), *wrong)
