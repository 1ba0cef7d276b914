"""Losses and penalties of lesson 04 against independent references: PyTorch's own in float64,
closed forms, finite differences."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pokegan.training.losses import (
    bce, clip_weights, d_bce, d_hinge, d_relativistic, d_wgan, g_bce, g_hinge, g_relativistic,
    g_wgan, gp, PAIRED, PAIRS, PENALTIES, r1, r2)

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

def logits(n=32, scale=4.):
    return (torch.randn(n, dtype=torch.float64)*scale, torch.randn(n, dtype=torch.float64)*scale)
def close(a, b, tol=1e-7):
    a, b = (float(v.detach() if torch.is_tensor(v) else v) for v in (a, b))
    return abs(a - b) < tol*(1 + abs(b))

@pytest.mark.parametrize('t', [0., 1., 0.9, 0.3])
def test_bce_is_the_textbook_formula(t):
    l, _ = logits()
    assert close(bce(l, t), F.binary_cross_entropy(l.sigmoid(), torch.full_like(l, t)))

def test_bce_with_a_target_for_each_example():
    l, _ = logits()
    t = torch.rand(32, dtype=torch.float64)
    assert close(bce(l, t), F.binary_cross_entropy(l.sigmoid(), t))
    t = t*3 - 1   # noise can push targets beyond 0 and 1, where the formula goes on as a straight line
    assert close(bce(l, t), (-t*l.sigmoid().log() - (1-t)*(-l).sigmoid().log()).mean())

def test_bce_gradient_is_opinion_minus_target():
    l, _ = logits()
    l.requires_grad_()
    g, = torch.autograd.grad(bce(l, 0.9), l)
    assert torch.allclose(g, (l.sigmoid() - 0.9)/32)

def test_bce_never_overflows():
    l = torch.tensor([-1e4, -100., 0., 100., 1e4], requires_grad=True)
    for t in (0., 1.):
        loss = bce(l, t)
        g, = torch.autograd.grad(loss, l)
        assert torch.isfinite(loss) and torch.isfinite(g).all()
    assert bce(torch.tensor([1e4]), 0.) == 1e4

def test_d_bce_and_g_bce():
    r, f = logits()
    one, zero = torch.ones_like(r), torch.zeros_like(r)
    bce = F.binary_cross_entropy
    assert close(d_bce(r, f), bce(r.sigmoid(), one) + bce(f.sigmoid(), zero))
    assert close(d_bce(r, f, 0.85, 0.15), bce(r.sigmoid(), one*0.85) + bce(f.sigmoid(), one*0.15))
    assert close(g_bce(f), -f.sigmoid().log().mean())
    assert close(d_bce(zero, zero), 2*math.log(2))

def test_hinge_by_hand():
    r, f = torch.tensor([2., 0.5, -1.]), torch.tensor([-2., 0., 1.])
    assert close(d_hinge(r, f), (0 + 0.5 + 2)/3 + (0 + 1 + 2)/3) and close(g_hinge(f), 1/3)

def test_wgan_by_hand():
    r, f = torch.tensor([2., 4.]), torch.tensor([-1., 0.])
    assert close(d_wgan(r, f), -3.5) and close(g_wgan(f), 0.5)

def test_wgan_reads_the_distance_of_two_points():
    x, y = torch.tensor([[0., 0.]]), torch.tensor([[3., 4.]])
    critic = lambda p: p @ torch.tensor([0.6, 0.8])      # slope 1 along the line between them
    assert close(-d_wgan(critic(y), critic(x)), 5.)

def test_relativistic_is_cross_entropy_of_differences():
    r, f = logits()
    assert close(d_relativistic(r, f), F.binary_cross_entropy((r-f).sigmoid(), torch.ones_like(r)))
    assert close(g_relativistic(f, r), F.binary_cross_entropy((f-r).sigmoid(), torch.ones_like(r)))
    assert close(d_relativistic(r+5, f+5), d_relativistic(r, f))

@pytest.mark.parametrize('name', PAIRS)
def test_signs_shapes_and_gradients_against_finite_differences(name):
    d, g = PAIRS[name]
    r, f = (v.requires_grad_() for v in logits(6, 0.7))
    assert d(r, f).shape == ()
    assert torch.autograd.gradcheck(d, (r, f))
    a, b = torch.autograd.grad(d(r, f), (r, f))
    assert (a <= 0).all() and (b >= 0).all()
    make = (lambda v: g(v, r.detach())) if g in PAIRED else g
    assert torch.autograd.gradcheck(make, (f,))
    assert (torch.autograd.grad(make(f), f)[0] < 0).all()

@pytest.mark.parametrize('name', PAIRS)
def test_half_precision_logits_are_raised_to_float32(name):
    d, g = PAIRS[name]
    r, f = torch.randn(64).bfloat16(), torch.randn(64).bfloat16()
    assert d(r, f).dtype == torch.float32 and close(d(r, f), d(r.float(), f.float()))
    assert (g(f, r) if g in PAIRED else g(f)).dtype == torch.float32

class Plane(nn.Module):
    "D(x) = <w, x>: its slope is w everywhere."
    def __init__(self, *shape):
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape, dtype=torch.float64))
    def forward(self, x): return (x*self.w).flatten(1).sum(1)

@pytest.mark.parametrize('shape', [(2,), (3, 4, 4)])
def test_penalties_of_a_plane(shape):
    D = Plane(*shape)
    x, y = torch.randn(5, *shape, dtype=torch.float64), torch.randn(5, *shape, dtype=torch.float64)
    n = D.w.norm().item()
    assert close(r1(D, x, y), n**2/2) and close(r2(D, x, y), n**2/2) and close(gp(D, x, y), (n-1)**2)
    assert close(r1(D, x), n**2/2)
    for f, want in ((r1, D.w), (r2, D.w), (gp, 2*(n-1)*D.w/n)):
        g, = torch.autograd.grad(f(D, x, y), D.w)
        assert torch.allclose(g, want)

def test_r1_at_reals_and_r2_at_fakes():
    D = lambda x: x.square().flatten(1).sum(1)            # slope 2x, so both are the mean of 2|x|^2
    x, y = torch.randn(5, 3), torch.randn(5, 3)*10
    assert close(r1(D, x, y), 2*x.square().sum(1).mean(), 1e-5)
    assert close(r2(D, x, y), 2*y.square().sum(1).mean(), 1e-5)

@pytest.mark.parametrize('name', PENALTIES)
def test_penalties_against_finite_differences(name):
    "The slope by central differences of D itself, then the formula."
    D = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    got = PENALTIES[name](D, x, y, torch.Generator().manual_seed(5))
    a = torch.rand(6, 1, generator=torch.Generator().manual_seed(5)).double()
    at = {'r1': x, 'r2': y, 'gp': (1-a)*x + a*y}[name]
    eps = 1e-5*torch.eye(4, dtype=torch.float64)
    with torch.no_grad(): slope = torch.stack([(D(at + e) - D(at - e))/2e-5 for e in eps], 1)
    want = ((slope.norm(dim=1) - 1)**2).mean() if name == 'gp' else slope.square().sum(1).mean()/2
    assert close(got, want, 1e-6)

@pytest.mark.parametrize('name', PENALTIES)
def test_penalties_train_d_alone_and_repeat(name):
    D = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(),
                      nn.Linear(4*36, 1), nn.Flatten(0))
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8, requires_grad=True)
    one = PENALTIES[name](D, x, y, torch.Generator().manual_seed(1))
    one.backward()
    assert y.grad is None and D[0].weight.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in D.parameters() if p.grad is not None)
    assert torch.equal(one, PENALTIES[name](D, x, y, torch.Generator().manual_seed(1)))

def test_gp_survives_a_flat_d():
    D = Plane(2)
    nn.init.zeros_(D.w)
    loss = gp(D, torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64))
    loss.backward()
    assert close(loss, 1, 1e-5) and torch.isfinite(D.w.grad).all()

def test_penalties_under_autocast():
    D = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), nn.Flatten(0))
    x, y = torch.randn(32, 4), torch.randn(32, 4)
    for f in PENALTIES.values():
        want = f(D, x, y, torch.Generator().manual_seed(0))
        with torch.autocast('cpu', torch.bfloat16): got = f(D, x, y, torch.Generator().manual_seed(0))
        assert got.dtype == torch.float32 and abs(got - want) < 0.05*(want + 0.1)
        fake = y.bfloat16()   # what G returns under autocast
        got, want = (f(D, x, v, torch.Generator().manual_seed(0)) for v in (fake, fake.float()))
        assert close(got, want, 1e-5)

def test_clip_weights():
    D = nn.Linear(10, 10)
    clip_weights(D, 0.01)
    assert all(p.abs().max() <= 0.01 and p.requires_grad for p in D.parameters())
    norm = nn.BatchNorm2d(4)
    norm.bias.data.fill_(1)
    clip_weights(norm, 0.01)
    assert (norm.weight == 1).all() and norm.bias.allclose(torch.tensor(.01)) # gains stay, offsets do not
    for c in (0, -1., float('nan')):
        with pytest.raises(ValueError, match='above 0'): clip_weights(D, c)
