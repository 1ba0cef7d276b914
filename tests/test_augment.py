"Augmentation in front of D: ranges, gradients, no waiting for the device, exact resume, its place."
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pokegan.core import normal
from pokegan.data import Images
from pokegan.training.augment import (
    ADACB, AdaptiveAugment, brightness, contrast, cutout, diffaugment, HeldOutCB, POLICIES,
    saturation, Shift, translate)
from pokegan.training.checkpoint import load_state, save_state
from pokegan.training.losses import d_bce, d_relativistic, d_wgan, g_bce, g_relativistic, g_wgan, gp
from pokegan.training.trainer import gan_phases, logit_stats, Trainer
from pokegan.models.dcgan import GANRecipe

FUNCTIONS = [f for fs in POLICIES.values() for f in fs]
TOY = GANRecipe('toy', '', size=32, nz=16, ngf=8, ndf=8, d_norm='group')


def rng(seed=0): return torch.Generator().manual_seed(seed)


def pictures(n=64, size=32, seed=0, dtype=torch.float32):
    return torch.rand(n, 3, size, size, generator=rng(seed), dtype=dtype)*2 - 1


def noise(n=40, size=32) -> Images:
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng())
    return Images(x, source='noise')


def game(augment=None, bf16=False, pair=(d_bce, g_bce), callbacks=(), r=TOY, **kw) -> Trainer:
    nets, (d, g) = r.networks(seed=0), pair
    opts = [torch.optim.Adam(nets[k].parameters(), 1e-3, (.5, .99), fused=True) for k in 'GD']
    phases = gan_phases(nets['G'], nets['D'], *opts, d, g, augment=augment, **kw)
    if isinstance(augment, AdaptiveAugment): nets['augment'] = augment
    def prior(n, generator): return normal(n, r.nz, generator)
    return Trainer(nets, phases, noise(), prior, 8, callbacks=callbacks, device='cpu', bf16=bf16)


def test_colour_ranges_are_those_of_the_paper():
    x = pictures(2000, 8)
    shift = brightness(x, rng()) - x
    assert shift.flatten(1).std(1).max() < 1e-6, 'one number for each picture'
    shift = shift[:, 0, 0, 0]
    assert -.5 <= shift.min() < -.49 and .49 < shift.max() <= .5 and shift.mean().abs() < .03
    grey = x.mean(1, keepdim=True)
    k = ((saturation(x, rng()) - grey)/(x - grey)).flatten(1).median(1).values
    assert -1e-4 <= k.min() < .01 and 1.99 < k.max() <= 2.0001
    grey = x.mean((1, 2, 3), keepdim=True)
    k = ((contrast(x, rng()) - grey)/(x - grey)).flatten(1).median(1).values
    assert .4999 <= k.min() < .51 and 1.49 < k.max() <= 1.5001


@pytest.mark.parametrize('size, s', [(16, 2), (32, 4), (64, 8)])
def test_translation_moves_by_at_most_an_eighth_and_equally_often(size, s):
    x = torch.full((4000, 1, size, size), 1.)
    x[:, :, size//2, size//2] = -1.
    y = translate(x, rng())
    at = (y[:, 0] == -1).nonzero()
    down, right = ((at[:, i] - size//2).tolist() for i in (1, 2))
    assert len(at) == 4000 and set(down) == set(right) == set(range(-s, s+1))
    counts = torch.bincount(at[:, 1] - size//2 + s).double()
    assert ((counts - 4000/(2*s+1))**2/(4000/(2*s+1))).sum() < 3*(2*s) + 12, 'uniform, by chi square'
    assert torch.corrcoef(at[:, 1:].T.double())[0, 1].abs() < .06, 'down and right on their own'


def test_shift_against_roll():
    by = torch.tensor([[-2, -2, -2, 0, 0, 0, 1, 2, 2], [-2, 0, 1, -1, 0, 2, -2, 0, 2]])
    x = pictures(9, 8)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = Shift.apply(x.contiguous(memory_format=layout), by, 2, .25)
        for a, b, (dy, dx) in zip(y, x, by.T.tolist()):
            padded = torch.nn.functional.pad(b, (2, 2, 2, 2), value=.25)
            assert torch.equal(a, padded.roll((dy, dx), (1, 2))[:, 2:-2, 2:-2])


def test_cutout_covers_at_most_a_quarter_and_every_pixel():
    hole = cutout(torch.ones(5000, 1, 32, 32), rng()) == 0
    share = hole.float().mean((1, 2, 3))
    assert share.max() == .25 and share.min() == (8/32)**2 and abs(share.mean() - .18647) < .004
    often = hole.float().mean((0, 1))
    assert 0 < often.min() and often.max() < 1
    assert (hole.any(3).sum(2)*hole.any(2).sum(2) == hole.sum((2, 3))).all(), 'one rectangle'
    assert cutout(torch.ones(50, 1, 15, 15), rng()).eq(0).sum((2, 3)).max() == 64, 'odd sides: 7.5 becomes 8'


@pytest.mark.parametrize('f', FUNCTIONS, ids=lambda f: f.__name__)
def test_gradients_by_finite_differences(f):
    x = pictures(3, 8, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: f(v, rng()), x)
    assert torch.autograd.gradgradcheck(lambda v: f(v, rng())**2, x)


@pytest.mark.parametrize('f', [*FUNCTIONS, diffaugment()], ids=lambda f: f.__name__)
def test_seed_chance_shape(f):
    x = pictures().contiguous(memory_format=torch.channels_last)
    assert torch.equal(f(x, rng()), f(x, rng())) and not torch.equal(f(x, rng()), f(x, rng(1)))
    assert torch.equal(f(x, rng(), 0.), x) and torch.equal(f(x, rng(), torch.tensor(0.)), x)
    some = (f(x, rng(), .5) != x).flatten(1).any(1).float().mean()
    assert (some > .9 if f.__name__ == 'change' else .2 < some < .8)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert f(x, rng()).shape == x.shape
    assert torch.equal(torch.random.get_rng_state(), before), 'randomness from the generator alone'


def test_layout_and_precision():
    T, x = diffaugment(), pictures(8).bfloat16().contiguous(memory_format=torch.channels_last)
    y = T(x, rng())
    assert y.dtype == torch.float32 and y.is_contiguous(memory_format=torch.channels_last)
    x.requires_grad_(True)
    T(x, rng()).sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all()


def test_nothing_waits_for_the_device():
    "Fake tensors have no values: reading one, as .item() or a loop over offsets would, raises."
    with FakeTensorMode():
        a, x = AdaptiveAugment(p=.5), torch.empty(4, 3, 32, 32, requires_grad=True)
        a(x, None).sum().backward()
        a.steer(torch.empty(()), 32)
        assert x.grad.shape == x.shape


def test_names():
    a, b = (diffaugment(names)(pictures(), rng()) for names in ('color, translation', 'color+translation'))
    assert torch.equal(a, b)
    for wrong in ('colour', '', 'color+'):
        with pytest.raises(ValueError, match='color, translation, cutout'): diffaugment(wrong)


def test_d_sees_changed_reals_and_fakes_in_both_moves():
    calls = []
    def spy(x, generator):
        calls.append((tuple(x.shape), x.requires_grad))
        return x + 10
    t, seen = game(spy), []
    t.nets['D'].register_forward_pre_hook(lambda m, a: seen.append(a[0].min().item()))
    t.one_step()
    size = (8, 3, 32, 32)
    assert calls == [(size, False), (size, False), (size, True)] and len(seen) == 3 and min(seen) > 8
    assert t.batch.x.abs().max() <= 1, 'the data itself is not changed'
    calls.clear()
    game(spy, pair=(d_relativistic, g_relativistic), paired=True).one_step()
    assert len(calls) == 4, 'a paired loss of G sees changed reals as well'
    assert sum(grad for _, grad in calls) == 1


def test_no_augmentation_changes_nothing():
    def same(x, generator): return x
    a, b = game().fit(steps=3), game(same).fit(steps=3)
    assert all(torch.equal(p, q) for p, q in zip(a.nets['D'].parameters(), b.nets['D'].parameters()))


@pytest.mark.parametrize('bf16', [False, True])
def test_penalty_joins_the_loss_in_one_backward_pass(bf16):
    D, seen = TOY.networks(seed=0)['D'], []
    def keep(x, generator):  # what D will see, drawn once
        seen.append(diffaugment()(x, generator))
        return seen[-1]
    def penalty(D, x, x_hat, generator): return 10*gp(D, x, x_hat, rng(5))
    t = game(keep, bf16, (d_wgan, g_wgan), penalty=penalty)
    move, grads = t.phases[0], {}
    def step(): grads.update({k: p.grad.clone() for k, p in t.nets['D'].named_parameters()})
    move.opt.step = step
    t.one_step()
    x, x_hat = seen[:2]
    with t.autocast(): wasserstein = d_wgan(D(x).float(), D(x_hat).float())
    extra = 10*gp(D, x, x_hat, rng(5))
    torch.testing.assert_close(t.logs['D/penalty'], extra.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(t.logs['D/loss'], (wasserstein + extra).detach(), rtol=1e-5, atol=1e-5)
    want = torch.autograd.grad(wasserstein + extra, D.parameters())
    for (k, p), g in zip(D.named_parameters(), want):
        torch.testing.assert_close(grads[k], g, rtol=2e-4, atol=1e-5)


def test_penalty_runs_in_full_precision():
    kinds = []
    def penalty(D, x, x_hat, generator):
        kinds.extend([x.dtype, x_hat.dtype, D(x).dtype])
        return 0*D(x).sum()
    game(bf16=True, penalty=penalty).one_step()
    assert kinds == [torch.float32]*3


def test_sign_of_reals():
    assert logit_stats(torch.tensor([2., -1., .1, 5.]), torch.zeros(4))['sign'] == .5


def test_controller_reaches_its_target_at_the_promised_speed():
    a = AdaptiveAugment(images=1000, memory=0.)
    for _ in range(10): a.steer(torch.tensor(1.), 50)
    assert abs(a.p - .5) < 1e-6
    for _ in range(30): a.steer(torch.tensor(1.), 50)
    assert a.p == 1
    for _ in range(5): a.steer(torch.tensor(.59), 50)
    assert abs(a.p - .75) < 1e-6 and abs(a.sign - .59) < 1e-6
    assert {k for k, _ in a.named_buffers()} == {'p', 'sign'} and not list(a.parameters())


@pytest.mark.parametrize('rounds', [1, 3])
def test_adaptive_run_resumes_to_the_bit(rounds, tmp_path):
    def run():
        a = AdaptiveAugment(images=2000, p=.5, target=.1)
        return game(a, callbacks=[ADACB(a)], d_rounds=rounds)
    whole, parts = run().fit(steps=12), run().fit(steps=5)
    save_state(parts, tmp_path/'s.safetensors')
    again = run()
    load_state(again, tmp_path/'s.safetensors')
    again.fit(steps=12)
    for n, m in whole.nets.items():
        for k, v in m.state_dict().items(): assert torch.equal(v, again.nets[n].state_dict()[k]), f'{n}.{k}'
    p = whole.nets['augment'].p
    assert p not in (.5, parts.nets['augment'].p) and torch.equal(whole.logs['ADA/p'], p)
    step = 8*rounds/2000
    moved = (p - .5).item()/step
    assert abs(moved - round(moved)) < 1e-3, 'p moves by the images of a step'


@pytest.mark.parametrize('r', [
    TOY,
    GANRecipe('sn', '', size=32, nz=16, ngf=8, ndf=8, sn=True, norm_first=True),
    GANRecipe('keras', '', arch='keras', size=32, nz=16, ngf=8, ndf=8),
], ids=lambda r: r.name)
def test_looking_at_held_out_pictures_changes_nothing(r):
    look = HeldOutCB(noise(300), every=2)
    a, b = game(r=r).fit(steps=4), game(r=r, callbacks=[look]).fit(steps=4)
    for n, m in a.nets.items():
        for k, v in m.state_dict().items(): assert torch.equal(v, b.nets[n].state_dict()[k]), f'{n}.{k}'
    assert b.metrics.keys() == {'seen/real', 'unseen/real'} and all(abs(v) < 100 for v in b.metrics.values())
    assert not b.fit(steps=5).metrics, 'a step without a look has no logits to log'
