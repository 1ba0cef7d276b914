"""Directions and kinds where the right answer is known, and for every family of generators."""
import pytest, torch
import torch.nn.functional as F
from torch import nn

from pokegan.data import Images, to_float
from pokegan.metrics.coverage import labelled_creatures
from pokegan.latents.directions import (
    colour_scores, colour_shares, first_activations, pick_kinds, principal_directions)
from pokegan.models.aegan import AEGANRecipe
from pokegan.models.dcgan import GANRecipe
from pokegan.models.pretraining import DilatedGenerator
from pokegan.models.projected import FastGenerator


def gen(seed=0): return torch.Generator().manual_seed(seed)


FAMILIES = {
    'conv': lambda: GANRecipe('g', '', size=32, nz=12, ngf=4).networks(0)['G'],
    'linear stem': lambda: GANRecipe('g', '', size=32, nz=12, ngf=4, stem='linear').networks(0)['G'],
    'keras': lambda: GANRecipe('g', '', size=32, nz=12, ngf=4, arch='keras').networks(0)['G'],
    'resize': lambda: GANRecipe('g', '', size=32, nz=12, ngf=4, resize=True).networks(0)['G'],
    'aegan': lambda: AEGANRecipe('a', '', size=32, nz=12, ngf=4, ndf=4).networks(0)['G'],
    'dilated': lambda: DilatedGenerator(32, 12, 4),
    'fast': lambda: FastGenerator(32, 12, 4),
}


@pytest.mark.parametrize('name', FAMILIES)
def test_any_generator_is_heard_and_left_as_it_was(name):
    G = FAMILIES[name]().train()
    z = torch.randn(300, 12, generator=gen())
    before = {k: v.clone() for k, v in G.state_dict().items()}
    whole = first_activations(G, z)
    assert whole.shape[0] == 300 and whole.shape[1] > 12 and whole.std() > 0
    torch.testing.assert_close(first_activations(G, z, 7), whole, rtol=1e-4, atol=1e-5)
    d, share = principal_directions(G, z, 3)
    assert d.shape == (3, 12) and share.shape == (3,)
    assert list(share) == sorted(share, reverse=True) and 0 < share.sum() < 1
    assert G.training and not any(m._forward_hooks for m in G.modules())
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
    torch.testing.assert_close(principal_directions(G, z, 3)[0], d)   # no global randomness


def test_components_of_a_matrix_are_its_singular_vectors():
    s = torch.tensor([8., 6, 4, 3, 2, 1, 1, 1])
    left, right = (torch.linalg.qr(torch.randn(n, 8, generator=gen(1))).Q for n in (60, 8))
    W = nn.Linear(8, 60)
    with torch.no_grad(): W.weight.copy_(left @ torch.diag(s) @ right.T)
    d, share = principal_directions(nn.Sequential(W), torch.randn(20_000, 8, generator=gen(2)), 4)
    assert (F.normalize(d, dim=1)*right[:, :4].T).sum(1).abs().min() > .995
    assert (share - s[:4]**2/s.square().sum()).abs().max() < .01
    # latents of unit variance: one standard deviation is one unit
    assert (d.norm(dim=1) - 1).abs().max() < .05
    assert all(v[v.abs().argmax()] > 0 for v in d)  # a sign that does not depend on chance


def test_exact_components_are_found():
    G = FAMILIES['conv']().eval()
    z = torch.randn(2000, 12, generator=gen(3))
    y = first_activations(G, z)
    y -= y.mean(0)
    _, s, v = torch.linalg.svd(y, full_matrices=False)
    u = (y @ v[:3].T/(s[:3]/2000**.5)).T @ (z - z.mean(0))/2000
    d, share = principal_directions(G, z, 3)
    assert F.cosine_similarity(d, u).abs().min() > .999
    torch.testing.assert_close(share, s[:3]**2/s.square().sum(), rtol=1e-3, atol=1e-5)


def test_hook_goes_even_when_the_network_fails():
    G = FAMILIES['conv']()
    with pytest.raises(ValueError, match='latents have shape'): first_activations(G, torch.zeros(2, 5))
    assert not any(m._forward_hooks for m in G.modules())


def test_colour_shares():
    x = torch.ones(2, 3, 4, 4)          # white paper
    x[0, :, :2] = torch.tensor([1., -1, -1])[:, None, None]   # half of it red
    x[0, :, 0, 0] = -1.                  # one black pixel
    h = colour_shares(x)
    assert h.shape == (2, 216) and torch.allclose(h.square().sum(1), torch.tensor([1., 0.]))
    assert torch.isclose(h[0, 5*36], torch.tensor((7/8)**.5))
    assert torch.isclose(h[0, 0], torch.tensor((1/8)**.5))
    assert torch.isfinite(colour_shares(torch.full((1, 3, 2, 2), 1.0001))).all()


def test_colours_tell_types_of_unseen_creatures():
    mine, others = (labelled_creatures(300, size=32, seed=s) for s in (1, 2))
    names, score = colour_scores(mine, 'type')
    right = [names[i] for i in score(to_float(others.x)).argmax(1)]
    assert sum(a == b for a, b in zip(right, others.labels['type']))/300 > .6
    kinds = pick_kinds(to_float(others.x), mine, best=5)
    assert set(kinds) == set(names) and all(len(v) == len(set(v)) == 5 for v in kinds.values())
    hits = [others.labels['type'][i] == k for k, v in kinds.items() for i in v[:2]]
    assert sum(hits)/len(hits) > .6


def test_labels_that_cannot_be_learned():
    im = Images(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), {'type': ['a']*4})
    with pytest.raises(ValueError, match='fewer than two values'): colour_scores(im, 'type')
    with pytest.raises(ValueError, match="no label 'plan'"): colour_scores(im, 'plan')
