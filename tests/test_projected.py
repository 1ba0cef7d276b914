"""A discriminator behind frozen eyes: gradients against autograd, nothing frozen moves, one look for both moves, exact resume."""
import json, sys, types
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pokegan.core import normal
from pokegan.data import Images
from pokegan.training.checkpoint import (
    CheckpointCB, flatten, load_state, read_tensors, save_state, unflatten, write_tensors)
from pokegan.training.trainer import adam, Batch, Trainer
from pokegan.models.backbone import feature_maps, FeatureMaps, freeze, FrozenConv, map_channels
from pokegan.models.encoder import EncoderRecipe
from pokegan.models.projected import (
    FastGenerator, LRDecayCB, Mix, projected_phases, PROJECTED_RECIPES, ProjectedDiscriminator,
    ProjectedRecipe, TwoResolutionD)
from pokegan.models.recipe import make_trainer

CHANNELS = (4, 6, 8, 10)
TOY = replace(PROJECTED_RECIPES[0], size=32, nz=12, ngf=2, w=2, ndf=4, look_size=32, batch=4, diffaug='translation')


class Eyes(nn.Module):
    "Four strided convolutions, the first of them twice: maps at 1/4, 1/8, 1/16 and 1/32."
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in zip((8, *CHANNELS), CHANNELS))

    def forward(self, x):
        x, out = self.stem(x), []
        for s in self.stages: out.append(x := s(x))
        return out


def eyes(size=32):
    torch.manual_seed(7)
    return FeatureMaps('toy', Eyes(), CHANNELS, size)


def noise(n=24, size=32) -> Images:
    return Images(torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), source='noise')


def prior(n, generator): return normal(n, TOY.nz, generator, generator.device)


def game(look=None, bf16=False, seed=0) -> Trainer:
    torch.manual_seed(seed)
    G, D = FastGenerator(32, TOY.nz, 2), ProjectedDiscriminator(CHANNELS, 32, 2, 4)
    return Trainer(dict(G=G, D=D), projected_phases(G, D, look or eyes(), adam(G), adam(D)), noise(), prior, 4, seed=seed, device='cpu', bf16=bf16)


@pytest.mark.parametrize('side', [8, 9, 10, 11])
@pytest.mark.parametrize('ks,stride,pad', [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 2), (3, 2, 0), (1, 2, 0), (4, 2, 1), (5, 3, 1)])
@pytest.mark.parametrize('groups', [1, 2, 8])
def test_gradient_is_autograds(ks, stride, pad, groups, side):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, ks, stride, pad, groups=groups, bias=groups != 2)
    a, b = (torch.randn(2, 8, side, side, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in range(2))
    ya, yb = conv(a), FrozenConv(conv)(b)
    weight = torch.randn_like(ya)
    (ya*weight).sum().backward(), (yb*weight).sum().backward()
    assert torch.allclose(ya, yb, atol=1e-5) and torch.allclose(a.grad, b.grad, atol=1e-5)
    assert not list(FrozenConv(conv).parameters()) and not FrozenConv(conv).state_dict()


def test_only_what_can_be_replaced_is():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, padding='same'), nn.Conv2d(8, 8, (1, 3)),
                        nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect'), nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 8, 3, 2, 1))
    x = torch.randn(1, 3, 24, 24)
    want = net(x)
    assert [type(m) is FrozenConv for m in freeze(net)] == [False]*6 + [True]
    assert torch.allclose(net(x), want, atol=1e-5) and not any(p.requires_grad for p in net.parameters())


def test_maps_are_frozen_and_keep_their_dtype():
    look, x = eyes(), torch.rand(2, 3, 20, 20)*2 - 1
    was = look(x)
    assert [tuple(m.shape) for m in was] == [(2, c, 32//2**(i+2), 32//2**(i+2)) for i, c in enumerate(CHANNELS)]
    nn.Sequential(look).train()
    assert not any(m.training for m in look.modules()) and all(torch.equal(a, b) for a, b in zip(was, look(x)))
    with torch.autocast('cpu', torch.bfloat16): assert look(x)[0].dtype == torch.float32
    look.to(torch.bfloat16)
    assert look(x)[0].dtype == torch.bfloat16
    x.requires_grad_()
    sum(m.float().sum() for m in look(x)).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0 and all(p.grad is None for p in look.parameters())


def test_mixing_is_fixed_by_its_seed_and_does_not_learn():
    maps = eyes()(torch.rand(2, 3, 32, 32))
    torch.manual_seed(1)
    a = Mix(CHANNELS, 3)
    torch.manual_seed(2)
    b, c = Mix(CHANNELS, 3), Mix(CHANNELS, 3, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a(maps), b(maps))) and not torch.equal(a(maps)[0], c(maps)[0])
    assert [m.shape[1] for m in a(maps)] == [3, 6, 12, 24] and not list(a.parameters()) and len(a.state_dict()) == 7
    deep = [*maps[:3], maps[3] + 1]
    assert not torch.equal(a(deep)[0], a(maps)[0]), 'the finest map hears of the coarsest'
    t = game()
    was = {k: v.clone() for k, v in t.nets['D'].mix.state_dict().items()}
    t.fit(steps=2)
    assert all(torch.equal(v, was[k]) for k, v in t.nets['D'].mix.state_dict().items())


@pytest.mark.parametrize('size', [16, 32, 64, 128, 256])
def test_generator(size):
    G = FastGenerator(size, 12, 2)
    z = torch.randn(2, 12)
    x = G(z)
    assert x.shape == (2, 3, size, size) and x.abs().max() <= 1 and (G.nz, G.size) == (12, size)
    x.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in G.parameters())
    with pytest.raises(ValueError, match=r'this generator takes \(b, 12\)'): G(torch.randn(2, 13))


def test_gates_are_those_of_three_doublings_earlier():
    G = FastGenerator(64, 12, 2)
    assert [(g.gate[1].in_channels, g.gate[1].out_channels) for g in G.gates] == [(32, 4), (16, 4)] and len(FastGenerator(16, 12, 2).gates) == 0


@pytest.mark.parametrize('size', [32, 64, 96, 128])
@pytest.mark.parametrize('levels', [(0, 1, 2, 3), (0, 1, 2), (3,)])
def test_discriminator(size, levels):
    D = ProjectedDiscriminator(CHANNELS, size, 2, 4, levels)
    maps = [torch.randn(3, c, size//2**(i+2), size//2**(i+2), requires_grad=True) for i, c in enumerate(CHANNELS)]
    logits = D(maps)
    assert [tuple(v.shape) for v in logits] == [(3, 1)]*len(levels)
    sum(v.sum() for v in logits).backward()
    assert maps[3].grad.abs().sum() > 0 and all(p.grad is not None for p in D.parameters())


def test_the_two_players_take_turns_and_share_one_look(monkeypatch):
    look, calls = eyes(), []
    t = game(lambda x: (calls.append(torch.is_grad_enabled()), look(x))[1])
    frozen = {k: v.clone() for k, v in look.state_dict().items()}
    t.fit(steps=1)
    assert calls == [True, False], 'the fakes once with gradient, the reals once without'
    def learned(i, b):
        was = {k: p.detach().clone() for n, m in t.nets.items() for k, p in {f'{n}.{k}': p for k, p in m.named_parameters()}.items()}
        t.run_phase(t.phases[i], b)
        return {f'{n}' for n, m in t.nets.items() for k, p in m.named_parameters() if not torch.equal(p, was[f'{n}.{k}'])}
    b = Batch(t)
    assert learned(0, b) == {'D'} and learned(1, b) == {'G'} and len(calls) == 4
    assert {'D/loss', 'D/real', 'D/fake', 'D/acc', 'G/loss'} <= t.logs.keys()
    assert all(torch.equal(v, frozen[k]) for k, v in look.state_dict().items())
    assert all(p.requires_grad for m in t.nets.values() for p in m.parameters()) and not any(p.requires_grad for p in look.parameters())


def test_losses_are_hinge_summed_over_levels():
    t = game()
    G, D, look = t.nets['G'], t.nets['D'], eyes()
    t.generator.manual_seed(3)
    b = Batch(t)
    with torch.no_grad():
        for m in (G, D): m.eval()   # spectral norm and batch norm stand still
        d, parts = t.phases[0].loss(b)
        g, _ = t.phases[1].loss(b)
        real, fake = D(look(b.x)), D(look(G(b.z)))
    assert d.item() == pytest.approx(sum((F.relu(1-r).mean() + F.relu(1+f).mean()).item() for r, f in zip(real, fake)), rel=1e-5)
    assert g.item() == pytest.approx(-sum(f.mean().item() for f in fake), rel=1e-5)
    assert parts['real'].item() == pytest.approx(torch.cat(real, 1).mean().item(), rel=1e-5)


@pytest.mark.parametrize('bf16', [False, True])
def test_trains_and_resumes_exactly(bf16, tmp_path):
    def look(): return eyes().to(torch.bfloat16 if bf16 else torch.float32)
    whole, first, rest = game(look(), bf16).fit(steps=4), game(look(), bf16).fit(steps=2), game(look(), bf16, seed=0)
    save_state(first, tmp_path/'state.safetensors')
    load_state(rest, tmp_path/'state.safetensors')
    rest.fit(steps=4)
    a, b = flatten(whole.nets), flatten(rest.nets)
    assert all(torch.equal(a[k], b[k]) for k in a) and all(torch.isfinite(v) for v in whole.logs.values())


def test_learning_rate_falls_to_nothing_and_resumes_exactly(tmp_path):
    def play(stop_at=None, state=None):
        used, t = [], game()
        def watch(_): # stands first, so it sees the rates that this step has used
            used.append({g['lr'] for p in t.phases for g in p.opt.param_groups})
            if t.step == stop_at: t.stop = 'enough'
        t.callbacks += [types.SimpleNamespace(before_fit=lambda t: None, after_step=watch, after_fit=lambda t: None), LRDecayCB(1e-2, .5)]
        if state: load_state(t, state)
        return t.fit(steps=8), used
    whole, used = play()
    assert used == [{1e-2}]*5 + [{7.5e-3}, {5e-3}, {2.5e-3}], 'the same for both players; the last step of all still learns'
    first, before = play(stop_at=6)
    save_state(first, tmp_path/'state.safetensors')
    rest, after = play(state=tmp_path/'state.safetensors')
    a, b = flatten(whole.nets), flatten(rest.nets)
    assert before + after == used and all(torch.equal(a[k], b[k]) for k in a)
    (cb,) = replace(TOY, lr_decay=.3).callbacks({}, '', noise())
    assert (cb.lr, cb.share) == (TOY.lr, .3)


def test_eyes_come_closer_with_a_discriminator_of_their_own_and_resume_exactly(monkeypatch, tmp_path):
    sides = []
    monkeypatch.setattr(ProjectedRecipe, 'eyes', lambda self, G: lambda x, size: sides.append(size) or eyes()(x, size))
    monkeypatch.setattr('pokegan.projected.map_channels', lambda look: CHANNELS)
    r = replace(TOY, closer=.5, amp=False)
    def start(stop_at=None, state=None):
        t = make_trainer(r, noise(), 0, 'cpu')
        if stop_at: t.callbacks.append(types.SimpleNamespace(before_fit=lambda t: None, after_fit=lambda t: None,
                                                             after_step=lambda t: setattr(t, 'stop', 'enough' if t.step == stop_at else '')))
        if state: load_state(t, state)
        return t
    whole = start()
    before = {k: v.detach().clone() for k, v in whole.nets['D'].near.named_parameters()}
    whole.fit(steps=8)
    assert sides == [32]*8 + [64]*8, 'one look at the fakes, one at the reals; twice as many px in the second half'
    assert [k for k, v in whole.nets['D'].near.named_parameters() if k.endswith('original') and torch.equal(before[k], v)] == [], 'the near one has learned'
    for stop_at in (3, 6): # before and after the change
        first = start(stop_at).fit(steps=8)
        save_state(first, tmp_path/f'{stop_at}.safetensors')
        rest = start(state=tmp_path/f'{stop_at}.safetensors').fit(steps=8)
        a, b = flatten(whole.nets), flatten(rest.nets)
        assert all(torch.equal(a[k], b[k]) for k in a), stop_at


def test_far_does_not_learn_from_near():
    D = TwoResolutionD(ProjectedDiscriminator(CHANNELS, 32, 2, 4), ProjectedDiscriminator(CHANNELS, 64, 2, 4), 32)
    x = torch.randn(3, 3, 32, 32)
    for size, learns, rests in ((32, D.far, D.near), (64, D.near, D.far)):
        D.zero_grad()
        sum(l.sum() for l in D(eyes()(x, size))).backward()
        assert all(p.grad is not None for p in learns.parameters()) and all(p.grad is None for p in rests.parameters())


def test_checkpoint_opens_without_eyes(tmp_path):
    t = game()
    t.callbacks.append(CheckpointCB(tmp_path, {}))
    t.fit(steps=1)
    tensors, _ = read_tensors(tmp_path/'last.safetensors')
    D = ProjectedDiscriminator(CHANNELS, 32, 2, 4, seed=5)
    D.load_state_dict(unflatten(tensors, 'D'))
    assert torch.equal(D.mix.across0, t.nets['D'].mix.across0), 'the mixing is saved'


def test_recipe_needs_no_eyes_until_its_phases(monkeypatch):
    monkeypatch.setattr('pokegan.eyes.extractor', lambda *a, **k: (_ for _ in ()).throw(ImportError('effnet-lite0 needs two small packages: pip install')))
    state = torch.random.get_rng_state()
    nets = TOY.networks(0)
    assert torch.equal(state, torch.random.get_rng_state()) and set(nets) == {'G', 'D'} and TOY.callbacks(nets, '', noise()) == []
    with pytest.raises(ImportError, match='pip install'): TOY.phases(nets)
    assert all(torch.equal(a, b) for m, n in zip(nets.values(), TOY.networks(0).values()) for a, b in zip(m.state_dict().values(), n.state_dict().values()))
    assert ProjectedRecipe(**json.loads(json.dumps(asdict(TOY)))) == TOY
    assert replace(TOY, size=128, look_size=0).networks(0)['G'](torch.randn(2, 12)).shape == (2, 3, 128, 128)
    assert [replace(TOY, size=s, look_size=0).eyes_size for s in (32, 64, 128)] == [96, 96, 128] and TOY.eyes_size == 32


@pytest.mark.parametrize('wrong,says', [
    (dict(levels=''), 'levels'), (dict(levels='10'), 'levels'), (dict(levels='4'), 'levels'), (dict(levels='00'), 'levels'), (dict(look_size=100), 'multiple of 32'),
    (dict(look_size=-32), '0 or more'), (dict(look=''), 'look is empty'), (dict(diffaug='colour'), 'augmentation'), (dict(size=48), 'size'), (dict(w=0), 'w is 0'),
    (dict(latent='x'), 'latent'), (dict(nz=0), 'nz'), (dict(betas=(0., 1.)), 'betas'), (dict(ema=1.), 'ema'), (dict(lr_decay=1.1), 'lr_decay'), (dict(lr_decay=-.1), 'lr_decay'), (dict(closer=1.1), 'closer')])
def test_wrong_recipes(wrong, says):
    with pytest.raises(ValueError, match=says) as e: replace(TOY, **wrong)
    assert '\n' not in str(e.value)


def test_effnet():
    pytest.importorskip('efficientnet_lite_pytorch')
    state = torch.random.get_rng_state()
    look = feature_maps('effnet-lite0', 64)
    assert torch.equal(state, torch.random.get_rng_state()) and look.name == 'effnet-lite0' and look.channels == map_channels('effnet-lite0')
    x = torch.rand(2, 3, 64, 64)*2 - 1
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    maps = look(a)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    from pokegan.metrics.features import extractor
    net, want = extractor('effnet-lite0', 'cpu').net.net, []
    for m in net.modules():
        if isinstance(m, nn.ReLU6): m.inplace = False
    h = net._swish(net._conv_stem(b))
    for block in net._blocks: want.append(h := block(h))
    want = [want[i] for i in (2, 4, 10, 15)]
    for m, n in zip(maps, want): assert torch.allclose(m, n, atol=1e-4, rtol=1e-4)
    sum(m.square().mean() for m in maps).backward(), sum(m.square().mean() for m in want).backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-4*float(b.grad.abs().max()), rtol=1e-2)


def test_recipe_trains_with_effnet():
    pytest.importorskip('efficientnet_lite_pytorch')
    nets = TOY.networks(0)
    t = Trainer(nets, TOY.phases(nets), noise(), prior, 4, device='cpu').fit(steps=2)
    assert all(torch.isfinite(v) for v in t.logs.values()) and [p.name for p in t.phases] == ['D', 'G']


@pytest.mark.parametrize('stem', ['imagenet', 'sprite'])
def test_eyes_of_an_encoder(stem, tmp_path):
    pytest.importorskip('torchvision')
    r = EncoderRecipe('toy', 'me', classes=3, stem_kind=stem)
    write_tensors(tmp_path/'last.safetensors', flatten(r.networks(0)), step=1)
    (tmp_path/'run.json').write_text(json.dumps(dict(names=['a', 'b', 'c'], recipe=dict(family='encoder', **asdict(r)))))
    look = feature_maps(tmp_path, 64)
    maps = look.to(torch.bfloat16)(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)] and look.channels == map_channels(str(tmp_path))
    D = ProjectedDiscriminator(look.channels, 64, 2, 4)
    assert len(D([m.float() for m in maps])) == 4


def test_timm(monkeypatch):
    asked = []
    def create_model(name, **kw):
        asked.append((name, kw))
        if name == 'nosuch': raise RuntimeError('Unknown model')
        net = Eyes()
        net.feature_info = types.SimpleNamespace(channels=lambda: list(CHANNELS), reduction=lambda: [4, 8, 16, 32] if name == 'good' else [2, 4, 8, 16])
        net.default_cfg = dict(mean=(.5, .5, .25), std=(.5, .25, .5))
        return net
    monkeypatch.setitem(sys.modules, 'timm', types.SimpleNamespace(create_model=create_model))
    look = feature_maps('timm:good', 32)
    assert asked == [('good', dict(pretrained=True, features_only=True, out_indices=(1, 2, 3, 4)))] and look.channels == CHANNELS == map_channels('timm:good')
    assert asked[1][1]['pretrained'] is False
    assert look.mean.flatten().tolist() == [0, 0, -.5] and look.std.flatten().tolist() == [1, .5, 1], 'in [-1,1]'
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
