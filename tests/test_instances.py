"""Codes of pictures: white, saved, resumed;
D hears the question, and each real is asked about with its own."""
import json
from dataclasses import asdict, replace

import pytest
import torch

from pokegan.core import run_eval
from pokegan.data import load_images, to_float
from pokegan.training.checkpoint import flatten, read_tensors
from pokegan.training.trainer import Batch
from pokegan.metrics.features import Extractor
from pokegan.models.instance import (
    Codes, ConditionalDiscriminator, CopiesCB, INSTANCE_RECIPES, InstanceRecipe, map_means)
from pokegan.models.projected import PROJECTED_RECIPES
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe
from pokegan.runs import load_run, resume, train
from test_projected import CHANNELS, SMALL as PROJECTED, eyes, noise, rng

SMALL = PROJECTED | dict(lr_decay=0., zoom_share=0., nc=5)


def learned(x, nc=6, batch=64): # (n,3,h,w) uint8
    codes = Codes(7, nc)
    codes.learn(map_means(eyes(), to_float(x).split(batch)))
    return codes


def test_codes_are_white_and_of_this_picture_alone():
    x = noise(40).x
    codes = learned(x).codes
    assert codes.shape == (40, 6)
    assert torch.allclose(codes.mean(0), torch.zeros(6), atol=1e-4)
    torch.testing.assert_close(codes.T @ codes/40, torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(learned(x, batch=7).codes, codes, atol=1e-2, rtol=0)
    order = torch.randperm(40, generator=rng()) # the axes have their signs, whatever the order
    torch.testing.assert_close(learned(x[order]).codes, codes[order], atol=1e-2, rtol=0)


def test_codes_are_principal_components_of_levels_of_equal_weight():
    g = rng()
    levels = [torch.randn(50, 4, generator=g)*torch.tensor([9., 1, 1, 1]), torch.randn(50, 3, generator=g)]
    codes = Codes(7, 3)
    codes.learn(levels)
    f = torch.cat([(l - l.mean(0))/l.var(0).sum().sqrt() for l in levels], 1).double()
    want = torch.linalg.svd(f, full_matrices=False).U[:, :3]*50**.5
    for got, axis in zip(codes.codes.double().T, want.T):
        assert min((got - axis).abs().max(), (got + axis).abs().max()) < 1e-4


def test_any_picture_has_a_code_and_keeps_it_when_saved():
    x = noise(60).x
    codes = learned(x[:40])
    def of(c, x): return c.of(map_means(eyes(), [to_float(x)]))
    torch.testing.assert_close(of(codes, x[:40]), codes.codes, atol=1e-4, rtol=0)
    again = Codes(7, 6)
    again.load_state_dict(codes.state_dict())
    assert torch.equal(of(again, x[40:]), of(codes, x[40:]))
    again.learn(map_means(eyes(), [to_float(x[40:])])) # by the axes that are there
    assert torch.equal(again.axes, codes.axes) and len(again.codes) == 20
    torch.testing.assert_close(again.codes, of(codes, x[40:]), atol=1e-5, rtol=0)


def test_too_few_pictures():
    with pytest.raises(ValueError, match='24 pictures are too few for codes of 24 values'):
        learned(noise(24).x, 24)


def test_prior_draws_a_code_of_the_data_behind_random_numbers():
    c = Codes(7, 3)
    with pytest.raises(ValueError, match='knows no training pictures yet'): c(1, torch.Generator())
    c.codes = torch.randn(5, 3)
    z = c(400, rng())
    assert z.shape == (400, 10)
    assert torch.equal(z, c(400, rng()))
    which = torch.cdist(z[:, 7:], c.codes).min(1)
    assert which.values.max() < 1e-3
    assert set(which.indices.tolist()) == set(range(5))
    assert which.indices.bincount().min() > 40
    assert abs(z[:, :7].std() - 1) < .05
    again = Codes(7, 3)
    again.load_state_dict(c.state_dict())
    assert torch.equal(again.codes, c.codes)


def test_every_level_hears_the_question():
    torch.manual_seed(0)
    D = ConditionalDiscriminator(CHANNELS, 5, 32, 2, 4).eval()
    maps, code = eyes()(torch.rand(3, 3, 32, 32)), torch.randn(3, 5, requires_grad=True)
    logits = D(maps, code)
    assert [tuple(v.shape) for v in logits] == [(3, 1)]*4
    for v in logits:
        grad, = torch.autograd.grad(v.sum(), code, retain_graph=True)
        assert grad.abs().sum() > 0


def test_the_logit_is_the_sum_of_both_terms():
    torch.manual_seed(0)
    D = ConditionalDiscriminator(CHANNELS, 5, 32, 2, 4).eval()
    maps = eyes()(torch.rand(3, 3, 32, 32))
    plain, mixed = super(ConditionalDiscriminator, D).forward(maps), D.mix(maps)
    got = D(maps, torch.zeros(3, 5)) # of a code of zeros only the bias is heard
    for logit, p, n, seen, wish, m in zip(got, plain, D.nets, D.seen, D.wish, mixed):
        fits = (seen(n.body(m)).flatten(1)*wish.bias).sum(1, keepdim=True)
        assert torch.allclose(logit, p + fits/8, atol=1e-6)


def test_reals_are_asked_about_with_their_own_code():
    pytest.importorskip('efficientnet_lite_pytorch')
    images = noise(24)
    t = make_trainer(recipe('projected-instance', **SMALL), images, device='cpu')
    b, codes = Batch(t), t.nets['codes']
    (real,), (fake,) = codes.condition(b)
    assert torch.equal(real, codes.codes[b.idx])
    assert torch.equal(fake, b.z[:, SMALL['nz']:])
    assert torch.equal(b.x, to_float(images.x[b.idx]))


def test_run_resumes_exactly_and_opens_without_eyes(tmp_path, monkeypatch):
    pytest.importorskip('efficientnet_lite_pytorch')
    images = load_images('creatures:40', 32, progress=False)
    kw = dict(progress=False, device='cpu')
    train('projected-instance', images, tmp_path/'a', steps=4, **kw, **SMALL)
    train('projected-instance', images, tmp_path/'b', steps=2, **kw, **SMALL)
    resume(tmp_path/'b', steps=4, data=images, **kw)
    monkeypatch.setattr('pokegan.models.backbone.extractor', None)
    a, b = load_run(tmp_path/'a'), load_run(tmp_path/'b')
    other = flatten(b.nets)
    for k, v in flatten(a.nets).items(): assert torch.equal(v, other[k]), k
    assert a.nets['codes'].codes.shape == (40, 5)
    assert torch.equal(a.sample(3, seed=1), b.sample(3, seed=1))
    assert a.latents(2).shape == (2, 17)


def test_a_run_reads_pictures(tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    images = load_images('creatures:40', 32, progress=False)
    run = train('projected-instance', images, tmp_path/'a', steps=2, progress=False, device='cpu', **SMALL)
    codes, x = run.nets['codes'].codes, to_float(images.x[:3])
    z = run.encode(x, n=2, seed=1)
    assert z.shape == (6, 17) and torch.equal(z, run.encode(x, n=2, seed=1))
    torch.testing.assert_close(z[:, 12:], codes[:3].repeat_interleave(2, 0), atol=1e-3, rtol=0)
    assert not torch.equal(z[0, :12], z[1, :12]) # other random numbers
    assert run.like(x, 4).shape == (12, 3, 32, 32)


def test_the_ready_generator_knows_its_creatures():
    "Its axes were found once, in float32; they are the same on every machine."
    pytest.importorskip('efficientnet_lite_pytorch')
    run = load_run('creatures-projected')
    codes = run.encode(to_float(load_images('creatures', 64, progress=False).x[:64]))[:, run.recipe.nz:]
    off = (codes - run.nets['codes'].codes[:64]).square().mean(0).sqrt()
    assert off.max() < .05 # the codes themselves are those of its training, in bfloat16


def test_recipe():
    r = INSTANCE_RECIPES[0]
    assert InstanceRecipe(**json.loads(json.dumps(asdict(r)))) == r
    assert recipe('projected-instance') == r
    plain, words = asdict(PROJECTED_RECIPES[0]), ('name', 'source', 'differs')
    new = {k: v for k, v in asdict(r).items() if v != plain.get(k) and k not in words}
    assert new == dict(nc=32, lr_decay=.3, zoom_share=.2, label='', classes=0, copies=0., paint=0)
    with pytest.raises(ValueError, match='nc is 0'): replace(r, nc=0)


def test_networks_of_the_recipe():
    state = torch.random.get_rng_state()
    nets = INSTANCE_RECIPES[0].networks(0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(nets) == {'G', 'D', 'codes'}
    far, near = nets['D'].far, nets['D'].near
    for d in (far, near): assert isinstance(d, ConditionalDiscriminator)
    assert len(near.nets[0].body) > len(far.nets[0].body)


class Copier(torch.nn.Module): # z: numbers of training pictures; from some step on nothing but copies
    def __init__(self, images, since):
        super().__init__()
        self.w, self.images, self.since, self.step = torch.nn.Parameter(torch.zeros(1)), images, since, 0

    def forward(self, z):
        if self.step >= self.since: return to_float(self.images.x[z[:, 0].long()])
        return torch.rand(len(z), 3, 32, 32, generator=rng())*2 - 1


class Fake: # as much of a trainer as the callback asks for
    rank, device, images_seen, stop, seconds = 0, None, 0, '', 0.
    def __init__(self, G, images): self.nets, self.images, self.metrics, self.step = dict(G=G), images, {}, 0


pixels = Extractor('pixels', torch.nn.Flatten(), 32, 3*32*32)


@pytest.mark.parametrize('since, stops_at', [(60, 80), (1000, None)])
def test_a_training_that_copies_ends_and_the_last_good_networks_stay(tmp_path, since, stops_at):
    images = load_images('creatures:120', 32, progress=False)
    G = Copier(images, since)
    def draw(n, g): return torch.randint(0, 120, (n, 1), generator=g).float()
    t, cb = Fake(G, images), CopiesCB(tmp_path, G, draw, images, pixels, limit=.2, share=.99)
    cb.before_fit(t)
    (tmp_path/'kept').mkdir()
    (tmp_path/'kept/0000020.safetensors').write_bytes(b'kept by another')
    for t.step in range(1, 101):
        t.seconds += 1000
        G.step = t.step
        cb.after_step(t)
        if t.stop: break
    cb.after_fit(t)
    shares = dict(cb.looks)
    assert shares[20] == shares[40] == 0
    names = sorted(p.name for p in (tmp_path/'kept').iterdir())
    if stops_at:
        assert t.step == stops_at and shares[60] == shares[80] == 1
        assert t.stop.startswith('100% of new pictures') and t.stop.endswith('--step 40')
        assert names == ['0000020.safetensors', '0000040.safetensors']
        assert torch.equal(read_tensors(tmp_path/'kept/0000040.safetensors')[0]['G.w'], G.w)
    else: assert not t.stop and names == ['0000020.safetensors']


def test_copies_are_looked_for_among_a_hundred_pictures_or_more(tmp_path):
    r = replace(recipe('projected-instance', **SMALL), copies=.2)
    def looks(n):
        found = r.callbacks(r.networks(0), tmp_path, dict(train=noise(n)))
        return [type(c).__name__ for c in found]
    assert looks(100) == ['CopiesCB'] and looks(99) == []
    assert replace(r, copies=0.).callbacks(r.networks(0), tmp_path, dict(train=noise(100))) == []


def test_painting_teaches_G_pictures_from_codes_and_is_repeated_by_a_seed():
    images = load_images('creatures:60', 32, progress=False)
    def begun(steps, seed=0):
        r = replace(recipe('projected-quick', **SMALL | dict(size=32)), paint=steps)
        nets = r.networks(0)
        r.begin(nets, images, seed=seed)
        return nets
    def error(nets): # between pictures, and what G makes of their codes
        z = nets['codes'].latents(nets['codes'].told(torch.arange(60)), rng())
        return (run_eval(nets['G'], z) - to_float(images.x)).square().mean().item()
    painted, again = begun(40), begun(40)['G'].state_dict()
    assert error(painted) < .5*error(begun(0))
    for k, v in painted['G'].state_dict().items(): assert torch.equal(v, again[k])
    assert not torch.equal(begun(3, 1)['G'].rgb[0].weight, begun(3)['G'].rgb[0].weight)
