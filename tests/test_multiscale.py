"""Step 3 of PokeGAN-2.0: one slope over all scales against other ways to get it, one backward pass, who sees
scales, new latents for G, lengths in epochs, exact resume in each of the three steps."""
import json, signal
from dataclasses import asdict, replace

import pytest
import torch

from pokegan import runs
from pokegan.data import Images, to_float
from pokegan.training.checkpoint import flatten, load_state, read_tensors, save_state, write_tensors
from pokegan.training.losses import gp, PAIRS
from pokegan.training.trainer import adam, Batch, Callback, Trainer
from pokegan.metrics.coverage import labelled_creatures
from pokegan.models import encoder, recipe
from pokegan.models.dcgan import conv_discriminator
from pokegan.models.pokegan2 import (
    gp_scales, msg_phases, MultiScaleDiscriminator, POKEGAN2_RECIPES, PokeGAN2Recipe, start_from)
from pokegan.models.pretraining import DilatedGenerator, pyramid
from pokegan.recipes import variant

SMALL = dict(size=16, nz=12, ngf=4, ndf=4, components=3, batch=4)
NAMED = {r.name: r for r in POKEGAN2_RECIPES}
TOYS = {name: replace(r, **SMALL) for name, r in NAMED.items()}
MSG = TOYS['pokegan2-msg']
CPU = dict(device='cpu', bf16=False)


def rng(seed=0): return torch.Generator().manual_seed(seed)


def noise(n=24, size=16) -> Images:
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng())
    return Images(x, source='noise')


def game(r=MSG, seed=0) -> Trainer:
    nets = r.networks(seed)
    return Trainer(nets, r.phases(nets), noise(), nets['mixture'], r.batch, seed=seed, **CPU)


def scales(n=4, size=16, seed=0, dtype=torch.float32):
    x = torch.rand(n, 3, size, size, generator=rng(seed), dtype=dtype)
    return pyramid(x*2 - 1)


def copies(tensors): return {k: v.clone() for k, v in tensors.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize('size', [16, 32, 64, 128])
def test_discriminator_looks_at_every_scale(size):
    D = MultiScaleDiscriminator(size, 4)
    x = [s.requires_grad_() for s in scales(3, size)]
    logits = D(x)
    logits.sum().backward()
    assert logits.shape == (3,)
    assert all(s.grad.abs().sum() > 0 for s in x)
    nets = D, conv_discriminator(size, 4, 'none')
    n, plain = (sum(p.numel() for p in net.parameters()) for net in nets)
    assert plain < n or size == 128   # beyond 64 px the plain one goes on doubling its channels
    for wrong in (x[1:], x[::-1], [*x[:-1], x[-2]]):
        with pytest.raises(ValueError, match='this discriminator takes'): D(wrong)


def test_discriminator_takes_what_the_generator_gives_with_its_width():
    G, D = DilatedGenerator(32, 12, 4), MultiScaleDiscriminator(32, 4)
    pictures = G(torch.randn(5, 12), scales=True)
    assert D(pictures).shape == (5,)
    for m in D.modules():
        if isinstance(m, torch.nn.Conv2d): assert abs(m.weight.std() - .02) < .006


def test_one_scale_is_the_penalty_of_lesson_04():
    D = conv_discriminator(16, 4, 'none')
    x, x_hat = scales(seed=1)[-1], scales(seed=2)[-1]
    def first(s): return D(s[0])
    got = gp_scales(first, [x], [x_hat], rng(3))
    want = gp(D, x, x_hat, rng(3))
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


def differences(D, at, by=1e-6): # D's slope along each value of each scale
    slope = []
    for i, s in enumerate(at):
        for j in range(s.numel()):
            up, down = ([v.clone() for v in at] for _ in range(2))
            up[i].view(-1)[j] += by
            down[i].view(-1)[j] -= by
            slope.append((D(up) - D(down)).item()/(2*by))
    return torch.tensor(slope)


def test_slope_against_differences():
    "The length of the slope of D along the line of steepest ascent, by finite differences in float64."
    D = MultiScaleDiscriminator(16, 4).double()
    x, x_hat = (scales(1, seed=seed, dtype=torch.float64) for seed in (1, 2))
    a = torch.rand(1, 1, 1, 1, generator=rng(5)).double()
    at = [r + a*(f - r) for r, f in zip(x, x_hat)]
    want = (differences(D, at).norm().item() - 1)**2
    assert gp_scales(D, x, x_hat, rng(5)).item() == pytest.approx(want, rel=1e-5)


def test_penalty_teaches_D():
    D = MultiScaleDiscriminator(16, 4)
    gp_scales(D, scales(seed=1), scales(seed=2), rng()).backward()
    for n, p in D.named_parameters():
        if not n.endswith('weight'): continue
        assert torch.isfinite(p.grad).all()
        assert p.grad.abs().sum() > 0


def counted(calls, word, f): # f, and each call leaves its word
    def call(*args, **kw):
        calls.append(word)
        return f(*args, **kw)
    return call


def msg_game() -> Trainer:
    nets = MSG.networks(0)
    phases = msg_phases(nets['G'], nets['D'], adam(nets['G']), adam(nets['D']), *PAIRS['wgan'])
    return Trainer(nets, phases, noise(), nets['mixture'], 4, **CPU)


def test_one_backward_pass_for_each_move_and_one_fake_batch_for_both(monkeypatch):
    calls, t = [], msg_game()
    monkeypatch.setattr(torch.Tensor, 'backward', counted(calls, 'backward', torch.Tensor.backward))
    monkeypatch.setattr(DilatedGenerator, 'forward', counted(calls, 'G', DilatedGenerator.forward))
    t.fit(steps=2)
    assert calls == ['G', 'backward', 'backward']*2


class Watched(torch.nn.Module):
    "Keeps the latents that G was given, and whether a gradient was wanted."
    def __init__(self, G):
        super().__init__()
        self.G, self.seen = G, []

    def forward(self, z, **kw):
        out = self.G(z, **kw)
        self.seen.append((z, (out[-1] if kw else out).requires_grad))
        return out


@pytest.mark.parametrize('name', TOYS)
def test_published_games_draw_new_latents_for_G(name):
    "Without a gradient through G where D learns, and without other reals; 'batch' saves a pass."
    r = TOYS[name]
    assert r.redraw == 'move' and PokeGAN2Recipe('mine', 'me').redraw == 'batch'
    for redraw, passes in dict(move=r.d_rounds + 1, batch=r.d_rounds, step=1).items():
        nets = r.networks(0)
        nets['G'] = G = Watched(nets['G'])
        t = Trainer(nets, replace(r, redraw=redraw).phases(nets), noise(), nets['mixture'], 4, **CPU)
        t.fit(steps=1)
        latents, wanted = zip(*G.seen)
        assert wanted == ((False,)*r.d_rounds + (True,) if redraw == 'move' else (True,)*passes)
        assert len({z.sum().item() for z in latents}) == passes, 'all are new'
        assert t.batch.draw == r.d_rounds - 1, 'D has reals of its own in each round'


def learners(t, phase): # the networks that a move changes, running statistics aside
    was = copies(flatten(t.nets))
    t.run_phase(phase, Batch(t))
    changed = [k for k, p in flatten(t.nets).items() if not torch.equal(p, was[k])]
    return {k.split('.')[0] for k in changed if 'num_batches' not in k and 'running' not in k}


def test_in_each_move_only_the_mover_learns():
    t = msg_game().fit(steps=2)
    D_move, G_move = t.phases
    assert learners(t, D_move) == {'D'}
    assert 'D/penalty' in t.logs
    assert learners(t, G_move) == {'G'}


def test_the_step_is_loss_plus_penalty():
    "D's gradients of one move equal those of both terms computed apart."
    t, other = game(), game()
    t.phases[0].opt.step = lambda *a, **k: None
    for one in (t, other): one.generator.manual_seed(9)
    t.run_phase(t.phases[0], Batch(t))
    b, G, D = Batch(other), other.nets['G'], other.nets['D']
    x_hat = [s.detach() for s in G(b.z, scales=True)]
    x = pyramid(b.x)
    d, _ = PAIRS['wgan']
    d(D(x), D(x_hat)).backward()
    (10*gp_scales(D, x, x_hat, other.generator)).backward()
    for p, q in zip(t.nets['D'].parameters(), D.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', TOYS)
def test_recipes_train(name):
    r = TOYS[name]
    t = game(r)
    fixed = copies(t.nets['mixture'].state_dict())
    t.fit(steps=3)
    assert all(torch.isfinite(v) for v in t.logs.values())
    assert [p.name for p in t.phases] == ['D']*r.d_rounds + ['G']
    assert same(fixed, t.nets['mixture'].state_dict())
    assert ('D/penalty' in t.logs) == bool(r.penalty)
    held = [m for m in t.nets['D'].modules() if not isinstance(m, torch.nn.BatchNorm2d)]
    largest = max(p.abs().max() for m in held for p in m.parameters(recurse=False))
    assert not r.clip or largest <= r.clip, 'all but the gains of its norms'
    picture = t.nets['G'](torch.randn(2, 12))
    assert picture.shape == (2, 3, 16, 16), 'everybody but D gets a picture'
    assert r.callbacks(t.nets, '', noise()) == []


@pytest.mark.parametrize('name', TOYS)
def test_recipes_survive_json(name):
    plain = json.loads(json.dumps(asdict(TOYS[name])))
    assert PokeGAN2Recipe(**plain) == TOYS[name]


def test_there_are_four_with_the_published_update_rules():
    assert list(NAMED) == ['pokegan2-dcgan', 'pokegan2-wgan', 'pokegan2-wgangp', 'pokegan2-msg']
    wgan, wgangp, msg = list(NAMED.values())[1:]
    assert (wgan.loss, wgan.opt, wgan.clip, wgan.d_rounds) == ('wgan', 'rmsprop', .01, 5)
    assert (wgangp.loss, wgangp.penalty, wgangp.penalty_weight) == ('wgan', 'gp', 10)
    assert wgangp.d_norm == 'none'
    unnamed = dict(name='', source='', differs='')
    assert msg.msg
    assert replace(msg, msg=False, **unnamed) == replace(wgangp, **unnamed)
    for r in NAMED.values():
        assert r.nz == 512 and r.size == 64
        assert r.family == 'pokegan2' and r.source


@pytest.mark.parametrize('wrong, says', [
    (dict(d_norm='batch'), "give d_norm='none'"),
    (dict(penalty='r1'), 'msg goes with'),
    (dict(loss='relativistic'), 'msg goes with'),
    (dict(loss='x'), 'loss'),
    (dict(encoder='resnet'), "encoder is 'resnet'"),
    (dict(redraw='never'), "redraw is 'never'"),
    (dict(pixel_weight=-1.), 'pixel_weight is -1'),
    (dict(pretrain_epochs=-2.), 'pretrain_epochs is -2')])
def test_wrong_recipes(wrong, says):
    with pytest.raises(ValueError, match=says): replace(MSG, **wrong)


def first_weight(G): return G.rgb[0][0].weight


def test_start_from_step_2(tmp_path):
    nets = MSG.pretrain().networks(5)
    nets['mixture'].means.normal_()
    write_tensors(tmp_path/'last.safetensors', flatten(nets), step=1)
    new = MSG.networks(0)
    start_from(new, tmp_path)
    for n in ('G', 'mixture'): assert same(nets[n].state_dict(), new[n].state_dict())
    fresh = MSG.networks(0)
    start_from(fresh, tmp_path, ('mixture',))
    assert torch.equal(fresh['mixture'].means, nets['mixture'].means)
    assert not torch.equal(first_weight(fresh['G']), first_weight(nets['G']))
    wider = replace(MSG, ngf=8).networks(0)
    with pytest.raises(ValueError, match='holds another G'): start_from(wider, tmp_path)
    with pytest.raises(ValueError, match='nothing was saved'): start_from(new, tmp_path/'elsewhere')


def test_start_prefers_the_moving_average(tmp_path):
    nets, new = MSG.pretrain().networks(5), MSG.networks(0)
    nets['G_ema'] = MSG.pretrain().networks(6)['G']
    write_tensors(tmp_path/'last.safetensors', flatten(nets), step=1)
    start_from(new, tmp_path)
    assert torch.equal(first_weight(new['G']), first_weight(nets['G_ema']))


@pytest.mark.parametrize('name', ['pokegan2-wgan', 'pokegan2-msg'])
def test_resume_is_exact(name, tmp_path):
    r = TOYS[name]
    whole, first, rest = game(r), game(r), game(r)
    whole.fit(steps=4)
    first.fit(steps=2)
    save_state(first, tmp_path/'state.safetensors')
    load_state(rest, tmp_path/'state.safetensors')
    rest.fit(steps=4)
    assert same(flatten(whole.nets), flatten(rest.nets))


def test_in_bfloat16_the_penalty_stays_in_full_precision():
    nets = MSG.networks(0)
    t = Trainer(nets, MSG.phases(nets), noise(), nets['mixture'], 4, device='cpu', bf16=True)
    t.fit(steps=2)
    assert all(torch.isfinite(v) for v in t.logs.values())
    assert t.logs['D/penalty'].dtype == torch.float32
    assert to_float(noise().x).dtype == torch.float32


# ---- all three steps ----

TINY = dict(size=32, ngf=4, ndf=4, components=3, batch=8, amp=False)
STEPS = 'encoder', 'pretrain', '.'


@pytest.fixture
def small_resnet(monkeypatch):
    from torchvision.models.resnet import BasicBlock, ResNet
    monkeypatch.setattr(encoder, 'resnet', lambda pretrained=False: ResNet(BasicBlock, [1, 1, 1, 1]))


@pytest.fixture(scope='module')
def creatures(): return labelled_creatures(50, [3, 8, 5], 32)


def info(folder): return json.loads((folder/'run.json').read_text(encoding='utf-8'))
def state(folder): return read_tensors(folder/'state.safetensors')[0]


class StopCB(Callback): # in place of a callback that does not matter here
    at = () # network, step
    def after_step(self, t):
        if (''.join(k for k in 'ED' if k in t.nets), t.step) == self.at: signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('name, changes', [
    ('pokegan2-dcgan', dict()),
    ('pokegan2-msg', dict(faithful=True, pixel_weight=0.))])
def test_steps_in_epochs_stopped_in_each_and_resumed(name, changes, creatures, small_resnet,
                                                     monkeypatch, tmp_path):
    """Passes through 40 pictures that the encoder learns from, 64 at a time; through all 50, 32 and 8 at a
    time. Interrupted in each step, the same bits as a run that never was."""
    monkeypatch.setattr(recipe, 'LoadCB', StopCB)
    r, how = NAMED[name], dict(data=creatures, device='cpu', progress=False)
    changes = changes | dict(encoder_epochs=4., pretrain_epochs=2.5, **TINY)
    runs.train(name, run=tmp_path/'whole', epochs=1, **how, **changes)
    at, draws = tmp_path/'parts', r.d_rounds
    want = [3, 4, -(-50//(8*draws))] # 160/64, 125/32, 50/8 or 50/16, rounded up
    for k, n in zip(STEPS, want):
        mine = info(tmp_path/'whole'/k)
        assert (mine['step'], mine['stopped']) == (n, '')
    stops = [('E', 2), ('', 3), ('D', 2)]
    for i, StopCB.at in enumerate(stops):
        try:
            if i: runs.resume(at, **how)
            else: runs.train(name, run=at, epochs=1, **how, **changes)
        except KeyboardInterrupt: assert i < 2
        assert (info(at/STEPS[i])['step'], info(at/STEPS[i])['stopped']) == (stops[i][1], 'interrupted')
    StopCB.at = ()
    runs.resume(at, **how)
    for k in STEPS:
        a, b = state(tmp_path/'whole'/k), state(at/k)
        assert same(a, b), k
        assert info(at/k)['budget'] == info(tmp_path/'whole'/k)['budget'], k


def test_what_a_recipe_says_reaches_steps_1_and_2(creatures, small_resnet, tmp_path):
    name, changes = variant('pokegan2-dcgan:faithful=yes,pixel_weight=0,encoder_epochs=1')
    runs.train(name, creatures, tmp_path, steps=2, device='cpu', progress=False, **changes | TINY)
    kept = [info(tmp_path/k) for k in STEPS]
    assert kept[0]['recipe']['faithful'] and kept[2]['recipe']['faithful']
    assert kept[1]['recipe']['pixels'] == kept[2]['recipe']['pixel_weight'] == 0
    assert [k['step'] for k in kept] == [1, 2, 2], 'epochs for one step, the budget for the others'
    E = encoder.load_encoder(tmp_path/'encoder')
    assert E.norm.running_mean is None
    with pytest.raises(ValueError, match='cannot judge'): encoder.named_features(tmp_path/'encoder', 'cpu')


def test_epochs_of_a_step_need_no_minutes(creatures, small_resnet, tmp_path):
    "40 % and 30 % are for the steps before, unless these have epochs; nobody waits for the clock here."
    for changes, before, given in (
            (dict(), .007, [.004, .003]),
            (dict(encoder_epochs=1.), .003, [None, .003]),
            (dict(encoder_epochs=1., pretrain_epochs=1.), 0., [None, None])):
        at = tmp_path/str(len(changes))
        runs.train('pokegan2-dcgan', creatures, at, minutes=.01, device='cpu', progress=False,
                   **changes | TINY)
        kept = [info(at/k)['budget'] for k in STEPS]
        assert kept[2]['before'] == pytest.approx(before)
        assert [k['minutes'] for k in kept[:2]] == [v and pytest.approx(v) for v in given]
        assert [k['epochs'] for k in kept] == [None if v else 1. for v in given] + [None]
