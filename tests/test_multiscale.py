"""Step 3 of PokeGAN-2.0: one slope over all scales against other ways to get it, one backward pass, who sees scales, exact resume."""
import json
from dataclasses import asdict, replace

import pytest
import torch

from pokegan.checkpoint import flatten, load_state, save_state, write_tensors
from pokegan.data import Images, to_float
from pokegan.dcgan import conv_discriminator
from pokegan.losses import PAIRS, gp
from pokegan.multiscale import POKEGAN2_RECIPES, MultiScaleDiscriminator, PokeGAN2Recipe, gp_scales, msg_phases, start_from
from pokegan.pokegan2 import DilatedGenerator, pyramid
from pokegan.train import Trainer, adam

SMALL = dict(size=16, nz=12, ngf=4, ndf=4, components=3, batch=4)
TOYS = {r.name: replace(r, **SMALL) for r in POKEGAN2_RECIPES}
MSG = TOYS['pokegan2-msg']


def rng(seed=0): return torch.Generator().manual_seed(seed)


def noise(n=24, size=16) -> Images:
    return Images(torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng()), source='noise')


def game(r=MSG, seed=0) -> Trainer:
    nets = r.networks(seed)
    return Trainer(nets, r.phases(nets), noise(), nets['mixture'], r.batch, seed, device='cpu', bf16=False)


def scales(n=4, size=16, seed=0, dtype=torch.float32): return pyramid(torch.rand(n, 3, size, size, generator=rng(seed), dtype=dtype)*2 - 1)


@pytest.mark.parametrize('size', [16, 32, 64, 128])
def test_discriminator_looks_at_every_scale(size):
    D, x = MultiScaleDiscriminator(size, 4), [s.requires_grad_() for s in scales(3, size)]
    logits = D(x)
    logits.sum().backward()
    assert logits.shape == (3,) and all(s.grad.abs().sum() > 0 for s in x)
    n, plain = (sum(p.numel() for p in net.parameters()) for net in (D, conv_discriminator(size, 4, 'none')))
    assert plain < n or size == 128   # beyond 64 px the plain one goes on doubling its channels
    for wrong in (x[1:], x[::-1], [*x[:-1], x[-2]]):
        with pytest.raises(ValueError, match='this discriminator takes'): D(wrong)


def test_discriminator_takes_what_the_generator_gives_with_its_width():
    G, D = DilatedGenerator(32, 12, 4), MultiScaleDiscriminator(32, 4)
    assert D(G(torch.randn(5, 12), scales=True)).shape == (5,)
    for m in D.modules():
        if isinstance(m, torch.nn.Conv2d): assert abs(m.weight.std() - .02) < .006


def test_one_scale_is_the_penalty_of_lesson_04():
    D, x, x_hat = conv_discriminator(16, 4, 'none'), scales(seed=1)[-1], scales(seed=2)[-1]
    assert gp_scales(lambda s: D(s[0]), [x], [x_hat], rng(3)).item() == pytest.approx(gp(D, x, x_hat, rng(3)).item(), rel=1e-6)


def test_slope_against_differences():
    "The length of the slope of D along the line of steepest ascent, by finite differences in float64."
    D, x, x_hat = MultiScaleDiscriminator(16, 4).double(), scales(1, seed=1, dtype=torch.float64), scales(1, seed=2, dtype=torch.float64)
    a = torch.rand(1, 1, 1, 1, generator=rng(5)).double()
    at = [r + a*(f - r) for r, f in zip(x, x_hat)]
    slope = []
    for i, s in enumerate(at):
        for j in range(s.numel()):
            d = [torch.zeros_like(v) for v in at]
            d[i].view(-1)[j] = 1e-6
            up, down = ([v + k*e for v, e in zip(at, d)] for k in (1, -1))
            slope.append((D(up) - D(down)).item()/2e-6)
    want = (torch.tensor(slope).norm().item() - 1)**2
    assert gp_scales(D, x, x_hat, rng(5)).item() == pytest.approx(want, rel=1e-5)


def test_penalty_teaches_D():
    D = MultiScaleDiscriminator(16, 4)
    gp_scales(D, scales(seed=1), scales(seed=2), rng()).backward()
    weights = [p for n, p in D.named_parameters() if n.endswith('weight')]
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in weights)


def test_the_two_players_take_turns(monkeypatch):
    "One backward pass for each move; in each only the mover learns; both look at one fake batch."
    nets = {k: v for k, v in MSG.networks(0).items()}
    calls, backward, forward = [], torch.Tensor.backward, DilatedGenerator.forward
    monkeypatch.setattr(torch.Tensor, 'backward', lambda *a, **k: (calls.append('backward'), backward(*a, **k))[1])
    monkeypatch.setattr(DilatedGenerator, 'forward', lambda *a, **k: (calls.append('G'), forward(*a, **k))[1])
    t = Trainer(nets, msg_phases(nets['G'], nets['D'], adam(nets['G']), adam(nets['D']), *PAIRS['wgan']), noise(), nets['mixture'], 4, device='cpu', bf16=False)
    t.fit(steps=2)
    assert calls == ['G', 'backward', 'backward']*2
    was = {k: v.clone() for k, v in flatten(t.nets).items()}
    from pokegan.train import Batch
    t.run_phase(t.phases[0], Batch(t))
    learned = {k.split('.')[0] for k, p in flatten(t.nets).items() if not torch.equal(p, was[k]) and 'num_batches' not in k and 'running' not in k}
    assert learned == {'D'} and 'D/penalty' in t.logs
    was = {k: v.clone() for k, v in flatten(t.nets).items()}
    t.run_phase(t.phases[1], Batch(t))
    learned = {k.split('.')[0] for k, p in flatten(t.nets).items() if not torch.equal(p, was[k]) and 'num_batches' not in k and 'running' not in k}
    assert learned == {'G'}


def test_the_step_is_loss_plus_penalty():
    "D's gradients of one move equal those of both terms computed apart."
    from pokegan.train import Batch
    t, other = game(), game()
    opt = t.phases[0].opt
    opt.step = lambda *a, **k: None
    t.generator.manual_seed(9), other.generator.manual_seed(9)
    t.run_phase(t.phases[0], Batch(t))
    b, (G, D) = Batch(other), (other.nets['G'], other.nets['D'])
    x_hat = [s.detach() for s in G(b.z, scales=True)]
    d, _ = PAIRS['wgan']
    d(D(pyramid(b.x)), D(x_hat)).backward()
    (10*gp_scales(D, pyramid(b.x), x_hat, other.generator)).backward()
    for p, q in zip(t.nets['D'].parameters(), D.parameters()): assert torch.allclose(p.grad, q.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', TOYS)
def test_recipes_train(name):
    r = TOYS[name]
    t = game(r)
    fixed = {k: v.clone() for k, v in t.nets['mixture'].state_dict().items()}
    t.fit(steps=3)
    assert all(torch.isfinite(v) for v in t.logs.values()) and [p.name for p in t.phases] == ['D']*r.d_rounds + ['G']
    assert all(torch.equal(v, fixed[k]) for k, v in t.nets['mixture'].state_dict().items())
    assert ('D/penalty' in t.logs) == bool(r.penalty)
    if r.clip: assert max(p.abs().max() for p in t.nets['D'].parameters()) <= r.clip
    assert t.nets['G'](torch.randn(2, 12)).shape == (2, 3, 16, 16), 'everybody but D gets a picture'
    assert PokeGAN2Recipe(**json.loads(json.dumps(asdict(r)))) == r and r.callbacks(t.nets, '', noise()) == []


def test_there_are_four_with_the_published_update_rules():
    named = {r.name: r for r in POKEGAN2_RECIPES}
    assert list(named) == ['pokegan2-dcgan', 'pokegan2-wgan', 'pokegan2-wgangp', 'pokegan2-msg']
    wgan, wgangp, msg = list(named.values())[1:]
    assert (wgan.loss, wgan.opt, wgan.clip, wgan.d_rounds) == ('wgan', 'rmsprop', .01, 5)
    assert (wgangp.loss, wgangp.penalty, wgangp.penalty_weight, wgangp.d_norm) == ('wgan', 'gp', 10, 'none')
    assert msg.msg and replace(msg, name='', source='', differs='', msg=False) == replace(wgangp, name='', source='', differs='')
    for r in named.values(): assert r.nz == 512 and r.size == 64 and r.family == 'pokegan2' and r.source


def test_wrong_recipes():
    for wrong, says in ((dict(d_norm='batch'), "give d_norm='none'"), (dict(penalty='r1'), 'msg goes with'), (dict(loss='relativistic'), 'msg goes with'), (dict(loss='x'), 'loss')):
        with pytest.raises(ValueError, match=says): replace(MSG, **wrong)


def test_start_from_step_2(tmp_path):
    step2 = MSG.pretrain()
    nets = step2.networks(5)
    nets['mixture'].means.normal_()
    write_tensors(tmp_path/'last.safetensors', flatten(nets), step=1)
    new = MSG.networks(0)
    start_from(new, tmp_path)
    assert all(torch.equal(a, b) for n in ('G', 'mixture') for a, b in zip(nets[n].state_dict().values(), new[n].state_dict().values()))
    fresh = MSG.networks(0)
    start_from(fresh, tmp_path, ('mixture',))
    assert torch.equal(fresh['mixture'].means, nets['mixture'].means) and not torch.equal(fresh['G'].rgb[0][0].weight, nets['G'].rgb[0][0].weight)
    with pytest.raises(ValueError, match='holds another G'): start_from(replace(MSG, ngf=8).networks(0), tmp_path)
    with pytest.raises(ValueError, match='nothing was saved'): start_from(new, tmp_path/'elsewhere')


def test_start_prefers_the_moving_average(tmp_path):
    nets = MSG.pretrain().networks(5)
    nets['G_ema'] = MSG.pretrain().networks(6)['G']
    write_tensors(tmp_path/'last.safetensors', flatten(nets), step=1)
    start_from(new := MSG.networks(0), tmp_path)
    assert torch.equal(new['G'].rgb[0][0].weight, nets['G_ema'].rgb[0][0].weight)


@pytest.mark.parametrize('name', ['pokegan2-wgan', 'pokegan2-msg'])
def test_resume_is_exact(name, tmp_path):
    r = TOYS[name]
    whole, first, rest = game(r).fit(steps=4), game(r).fit(steps=2), game(r)
    save_state(first, tmp_path/'state.safetensors')
    load_state(rest, tmp_path/'state.safetensors')
    rest.fit(steps=4)
    a, b = flatten(whole.nets), flatten(rest.nets)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_in_bfloat16_the_penalty_stays_in_full_precision():
    nets = MSG.networks(0)
    t = Trainer(nets, MSG.phases(nets), noise(), nets['mixture'], 4, device='cpu', bf16=True).fit(steps=2)
    assert all(torch.isfinite(v) for v in t.logs.values()) and t.logs['D/penalty'].dtype == torch.float32
    assert to_float(noise().x).dtype == torch.float32
