"""Codes of pictures: white, saved, resumed; D hears the question, and each real is asked about with its own code."""
import json
from dataclasses import asdict, replace

import pytest
import torch

from pokegan.data import Images, load_images, to_float
from pokegan.training.checkpoint import flatten
from pokegan.training.trainer import Batch
from pokegan.models.instance import (
    Codes, ConditionalDiscriminator, INSTANCE_RECIPES, InstanceRecipe, picture_codes)
from pokegan.models.projected import PROJECTED_RECIPES
from pokegan.models.recipe import make_trainer
from pokegan.recipes import latents, recipe
from pokegan.runs import load_run, resume, train
from test_projected import CHANNELS, eyes, noise

SMALL = dict(lr_decay=0., closer=0., size=32, nz=12, ngf=2, w=2, ndf=4, look_size=32, batch=4, nc=5, diffaug='translation')


def test_codes_are_white_and_of_this_picture_alone():
    images = noise(40)
    codes = picture_codes(eyes(), images, 6)
    assert codes.shape == (40, 6) and torch.allclose(codes.mean(0), torch.zeros(6), atol=1e-5)
    torch.testing.assert_close(codes.T @ codes/40, torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(picture_codes(eyes(), images, 6, batch=7), codes, atol=1e-3, rtol=0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other = picture_codes(eyes(), Images(images.x[order], source='noise'), 6)
    torch.testing.assert_close(torch.cdist(other, other), torch.cdist(codes[order], codes[order]), atol=1e-2, rtol=0)


def test_too_few_pictures():
    with pytest.raises(ValueError, match='24 pictures are too few for codes of 24 values'): picture_codes(eyes(), noise(24), 24)


def test_prior_draws_a_code_of_the_data_behind_random_numbers():
    c = Codes(7, 3)
    with pytest.raises(ValueError, match='no codes yet'): c(1, torch.Generator())
    c.codes = torch.randn(5, 3)
    z = c(400, torch.Generator().manual_seed(0))
    assert z.shape == (400, 10) and torch.equal(z, c(400, torch.Generator().manual_seed(0)))
    which = torch.cdist(z[:, 7:], c.codes).min(1)
    assert which.values.max() < 1e-3 and set(which.indices.tolist()) == set(range(5)) and which.indices.bincount().min() > 40
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
    for v in logits: assert torch.autograd.grad(v.sum(), code, retain_graph=True)[0].abs().sum() > 0
    plain = super(ConditionalDiscriminator, D).forward(maps)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(D(maps, torch.zeros(3, 5) - 0*code), [p + (s(n.body(m)).flatten(1)*w.bias).sum(1, keepdim=True)/8 for p, n, s, w, m in
                                                               zip(plain, D.nets, D.seen, D.wish, D.mix(maps))])), 'the logit is the sum of both terms'


def test_reals_are_asked_about_with_their_own_code():
    pytest.importorskip('efficientnet_lite_pytorch')
    t = make_trainer(recipe('projected-instance', **SMALL), images := noise(24), device='cpu')
    b = Batch(t)
    (real,), (fake,) = t.nets['codes'].asked(b)
    assert torch.equal(real, t.nets['codes'].codes[b.idx]) and torch.equal(fake, b.z[:, SMALL['nz']:]) and torch.equal(b.x, to_float(images.x[b.idx]))


def test_run_resumes_exactly_and_opens_without_eyes(tmp_path, monkeypatch):
    pytest.importorskip('efficientnet_lite_pytorch')
    images = load_images('creatures:40', 32, progress=False)
    train('projected-instance', images, tmp_path/'a', steps=4, progress=False, device='cpu', **SMALL)
    train('projected-instance', images, tmp_path/'b', steps=2, progress=False, device='cpu', **SMALL)
    resume(tmp_path/'b', steps=4, data=images, progress=False, device='cpu')
    monkeypatch.setattr('pokegan.eyes.extractor', None)
    a, b = load_run(tmp_path/'a'), load_run(tmp_path/'b')
    assert all(torch.equal(v, flatten(b.nets)[k]) for k, v in flatten(a.nets).items()) and a.nets['codes'].codes.shape == (40, 5)
    assert torch.equal(a.sample(3, seed=1), b.sample(3, seed=1)) and latents(a.recipe, a.nets)(2, torch.Generator()).shape == (2, 17)


def test_recipe():
    r = INSTANCE_RECIPES[0]
    assert InstanceRecipe(**json.loads(json.dumps(asdict(r)))) == r and recipe('projected-instance') == r
    plain = asdict(PROJECTED_RECIPES[0])
    assert {k: v for k, v in asdict(r).items() if v != plain.get(k) and k not in ('name', 'source', 'differs')} == dict(nc=32, lr_decay=.3, closer=.2)
    with pytest.raises(ValueError, match='nc is 0'): replace(r, nc=0)
    state = torch.random.get_rng_state()
    D = r.networks(0)['D']
    assert all(isinstance(d, ConditionalDiscriminator) for d in (D.far, D.near)) and len(D.near.nets[0].body) > len(D.far.nets[0].body)
    assert set(r.networks(0)) == {'G', 'D', 'codes'} and torch.equal(state, torch.random.get_rng_state())
