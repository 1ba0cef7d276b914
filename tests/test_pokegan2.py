"""Step 2 of PokeGAN-2.0: equal parameters and a wider view, flat colour by another count, one look at each
picture, a frozen judge, exact resume."""
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pokegan.data import Images, to_float
from pokegan.training.checkpoint import flatten, load_state, save_state
from pokegan.training.trainer import adam, Trainer
from pokegan.models.encoder import Encoder
from pokegan.models.pretraining import (
    Dilated, DilatedGenerator, flatness, PaintCB, perceptual_loss, pixel_loss, pretrain_phases,
    PRETRAIN_RECIPES, PretrainRecipe, pyramid, reconstruct, SmallEncoder)

TOY = replace(PRETRAIN_RECIPES[0], size=16, nz=12, ngf=4, components=3, batch=4)


def rng(seed=0): return torch.Generator().manual_seed(seed)


def noise(n=24, size=16, seed=0) -> Images:
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng(seed))
    return Images(x, source='noise')


def encoder(d=12, seed=0):
    torch.manual_seed(seed)
    E = SmallEncoder(5, 4, d).train()
    for _ in range(3): E(to_float(noise(32).x))  # running statistics that are not those of the start
    return E.eval()


def game(r=TOY, E=None, callbacks=(), seed=0, images=None) -> Trainer:
    nets = r.networks(seed)
    phases = r.phases(nets | dict(E=E or encoder()))
    kw = dict(device='cpu', bf16=False)
    return Trainer(nets, phases, images or noise(), nets['mixture'], r.batch, seed=seed,
                   callbacks=callbacks, **kw)


def copies(tensors): return {k: v.clone() for k, v in tensors.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


class Counting(torch.nn.Module):
    "An encoder that counts its looks, and whether they wanted gradients."
    def __init__(self, E):
        super().__init__()
        self.E, self.looks = E, []

    def look(self, x):
        self.looks.append((torch.is_grad_enabled(), x.requires_grad))
        return self.E.look(x)


@pytest.mark.parametrize('size', [16, 32, 64, 128])
@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_dilation_costs_no_parameter(size, norm):
    a, b = (DilatedGenerator(size, 20, 4, dilate, norm) for dilate in (True, False))
    assert [p.shape for p in a.parameters()] == [p.shape for p in b.parameters()]
    z = torch.randn(3, 20, generator=rng())
    for G in (a, b):
        x, scales = G.eval()(z), G(z, scales=True)
        assert x.shape == (3, 3, size, size) and x.abs().max() <= 1
        assert torch.equal(x, scales[-1])
        sides = [s.shape[-1] for s in scales]
        assert sides == [4*2**i for i in range(len(scales))] and sides[-1] == size
    b.load_state_dict(a.state_dict())
    assert not torch.equal(a(z), b(z)), 'and yet another function'


def test_constructor_initialises():
    G = DilatedGenerator(64)
    for m in G.modules():
        if not isinstance(m, torch.nn.Conv2d): continue
        assert abs(m.weight.std() - .02) < .004
        assert m.bias is None
    assert 2_000_000 < sum(p.numel() for p in G.parameters()) < 2_500_000
    with pytest.raises(ValueError, match=r'this generator takes \(b, 512\)'): G(torch.randn(2, 100))
    with pytest.raises(ValueError, match='must be one of 16, 32'): DilatedGenerator(50)


@pytest.mark.parametrize('d', [1, 2, 4])
def test_dilated_block_is_a_sparse_large_kernel(d):
    block = Dilated(3, d, 'none')
    w = torch.zeros(3, 3, 2*d+1, 2*d+1)
    w[:, :, ::d, ::d] = block.conv[0].weight.detach()
    x = torch.randn(2, 3, 12, 12, generator=rng())
    want = x + F.relu(F.conv2d(x, w, padding=d))
    assert torch.allclose(block(x), want, atol=1e-6)


@torch.no_grad()
def painted(G, side): # px a side that a change of one place of a map can reach, by trying it
    i = [4, 8, 16, 32].index(side)
    h = torch.randn(64, G.nz, generator=rng()).double()
    for stage in G.stages[:i+1]: h = stage(h)
    other, out = h.clone(), []
    other[:, :, side//2, side//2] += 3
    for m in (h, other):
        for stage in G.stages[i+1:]: m = stage(m)
        out.append(G.rgb[-1](m))
    differs = (out[0] != out[1]).any(0).any(0)
    at = differs.nonzero()
    return int((at.amax(0) - at.amin(0)).max()) + 1


def test_a_map_reaches_further_with_dilation():
    generators = [DilatedGenerator(64, 32, 8, dilate) for dilate in (True, False)]
    far, near = (painted(G.double().eval(), 16) for G in generators)
    assert near <= 24 and far >= 32 and far > 1.5*near, (near, far)


def naive_flatness(x, tolerance, paper):
    flat = drawn = 0
    for im in x.numpy().astype(int):
        for i in range(1, im.shape[1]-1):
            for j in range(1, im.shape[2]-1):
                nine = im[:, i-1:i+2, j-1:j+2].reshape(3, 9)
                if not paper and nine.min() >= 255 - tolerance: continue
                drawn += 1
                flat += bool((np.ptp(nine, axis=1) <= tolerance).all())
    return flat/max(drawn, 1)


@pytest.mark.parametrize('paper', [True, False])
@pytest.mark.parametrize('tolerance', [0, 8, 40])
def test_flatness_against_loops(paper, tolerance):
    x = torch.full((3, 3, 14, 14), 255, dtype=torch.uint8)
    x[:, :, 2:9, 2:9] = torch.randint(90, 130, (3, 3, 7, 7), generator=rng()).to(torch.uint8)
    x[:, :, 8:13, 6:12] = 40
    share = flatness(x, tolerance, paper)
    assert share == pytest.approx(naive_flatness(x, tolerance, paper))
    assert flatness(to_float(x), tolerance, paper) == share, 'floats are rounded to uint8 first'


def test_flatness_at_its_ends():
    one_colour = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
    assert flatness(one_colour) == 1
    assert flatness(noise(size=64).x) < .001


def test_pyramid_averages():
    x = to_float(noise(size=64).x)
    p = pyramid(x)
    assert [s.shape[-1] for s in p] == [4, 8, 16, 32, 64]
    assert p[-1] is x
    for s in p:
        want = F.interpolate(x, s.shape[-2:], mode='area')
        assert torch.allclose(s, want, atol=1e-6)


def naive_perceptual(fake, real, power):
    terms = []
    for a, b in zip(fake, real):
        a, b = a.detach().numpy(), b.detach().numpy()
        unit = np.sqrt((b**2).mean())
        terms.append((np.abs((a - b)/unit)**power).mean())
    return np.mean(terms)


@pytest.mark.parametrize('kind, power', [('l1', 1), ('mse', 2)])
def test_perceptual_loss_against_numpy(kind, power):
    real = [torch.randn(4, 3, 8, 8, generator=rng(1))*5, torch.randn(4, 6, 4, 4, generator=rng(2))]
    fake = [torch.randn(m.shape, generator=rng(3)).requires_grad_() for m in real]
    for m in real: m.requires_grad_()
    want = naive_perceptual(fake, real, power)
    loss = perceptual_loss(fake, real, kind)
    assert loss.item() == pytest.approx(want, rel=1e-5)
    loss.backward()
    assert all(a.grad is not None for a in fake)
    assert all(b.grad is None for b in real)
    bigger = perceptual_loss([1000*a for a in fake], [1000*b for b in real], kind)
    assert bigger.item() == pytest.approx(loss.item(), rel=1e-4), 'a stage counts in its own units'
    with pytest.raises(ValueError, match="kind is 'lpips'"): pixel_loss(real[0], real[0], 'lpips')


@pytest.mark.parametrize('features, looks', [
    (1., [(False, False), (True, True)]),
    (0., [(False, False)])])
def test_one_look_at_each_picture(features, looks):
    E, nets = Counting(encoder()), TOY.networks(0)
    phases = pretrain_phases(nets['G'], E, adam(nets['G']), features)
    t = Trainer(nets, phases, noise(), nets['mixture'], 4, device='cpu', bf16=False)
    t.fit(steps=1)
    assert E.looks == looks
    assert set(t.logs) == {'G/loss', 'G/features', 'G/pixels'}


def test_features_alone():
    "The loss is the perceptual one, and G's small pictures, which E does not see, learn nothing."
    r = replace(TOY, pixels=0.)
    t = game(r)
    was = copies(t.nets['G'].rgb.state_dict())
    t.fit(steps=2)
    assert t.logs['G/loss'] == t.logs['G/features'] > 0 and t.logs['G/pixels'] > 0
    learned = {k[0] for k, p in t.nets['G'].rgb.state_dict().items() if not torch.equal(p, was[k])}
    assert learned == {'2'}, 'of three'


@pytest.mark.parametrize('weights', [(0., 0.), (1., -1.), (-1., 2.)])
def test_wrong_weights(weights):
    G = TOY.networks(0)['G']
    with pytest.raises(ValueError, match='pixel_weight'): pretrain_phases(G, encoder(), adam(G), *weights)


def test_the_encoder_is_frozen_and_everything_in_G_learns():
    E = encoder()
    before = copies(E.state_dict())
    t = game(E=E)
    was = copies(t.nets['G'].state_dict())
    t.fit(steps=2)
    assert not E.training and same(before, E.state_dict())
    assert all(p.grad is None for p in E.parameters())
    for k, p in t.nets['G'].named_parameters():
        assert not torch.equal(p, was[k]), f'{k}: the small pictures are compared too'
    assert set(t.nets) == {'G', 'mixture'}, 'without E'


def test_it_learns():
    small = noise(8, 4).x
    blocks = Images(small.repeat_interleave(4, 2).repeat_interleave(4, 3))
    t = game(replace(TOY, lr=2e-3), images=blocks)
    t.fit(steps=1)
    first = t.logs['G/loss'].item()
    t.fit(steps=150)
    assert t.logs['G/loss'].item() < .8*first


def test_look_and_embed_agree_and_a_picture_has_one_embedding():
    E, x = encoder(), to_float(noise(6).x)
    maps, z = E.look(x)
    assert isinstance(E, Encoder) and len(maps) == 4
    assert torch.equal(z, E.embed(x))
    assert torch.allclose(E.embed(x[2:3]), z[2:3], atol=1e-5)
    G = DilatedGenerator(16, 12, 4)
    E.train()
    a = reconstruct(G, E, x)
    assert E.training and G.training
    assert torch.allclose(reconstruct(G, E, x[3:4]), a[3:4], atol=1e-5)


def test_inputs_beside_reconstructions(tmp_path):
    def files(): return sorted(p.name for p in (tmp_path/'reconstructions').iterdir())
    def painter(t): return PaintCB(tmp_path, t.nets['G'], encoder(), noise(40), frames=4)
    t = game()
    t.callbacks = [painter(t)]
    t.fit(steps=8)
    assert files() == ['0000001.png', '0000002.png', '0000004.png', '0000006.png', '0000008.png']
    at = np.asarray(Image.open(tmp_path/'reconstructions'/files()[-1]))
    assert at.shape == (8*18+2, 8*18+2, 3), '32 pairs'
    first = noise(40).x[0].permute(1, 2, 0).numpy()
    assert np.array_equal(at[2:18, 2:18], first), 'the first is the first picture itself'
    again = game()
    again.step, again.callbacks = 4, [painter(again)]
    again.fit(steps=4)
    assert files()[-1] == '0000004.png', 'pictures of a lost future are removed'


@pytest.mark.parametrize('wrong, says', [
    (dict(kind='l3'), "kind is 'l3'"),
    (dict(size=50), 'size'),
    (dict(features=0., pixels=0.), 'both 0'),
    (dict(pixels=-1.), 'pixels is -1'),
    (dict(encoder='resnet'), "encoder is 'resnet'"),
    (dict(norm='layer'), 'norm'),
    (dict(lr=-1.), 'lr')])
def test_wrong_recipes(wrong, says):
    with pytest.raises(ValueError, match=says): replace(TOY, **wrong)


def test_recipe():
    assert PretrainRecipe(**json.loads(json.dumps(asdict(TOY)))) == TOY
    assert TOY.family == 'pokegan2-pretrain'
    state = torch.get_rng_state()
    a, b = TOY.networks(3), TOY.networks(3)
    assert torch.equal(state, torch.get_rng_state())
    assert same(flatten(a), flatten(b))
    assert set(replace(TOY, components=0).networks()) == {'G'}


@pytest.mark.parametrize('changes', [dict(), dict(components=0), dict(components=0, latent='uniform')])
def test_latents_of_a_recipe(changes):
    r = replace(TOY, **changes)
    z = r.prior(r.networks(0))(5, rng())
    assert z.shape == (5, 12)
    assert torch.equal(z, r.prior(r.networks(0))(5, rng()))


def test_resume_is_exact(tmp_path):
    whole = game().fit(steps=6)
    first = game().fit(steps=3)
    save_state(first, tmp_path/'state.safetensors')
    rest = game(seed=0)
    load_state(rest, tmp_path/'state.safetensors')
    rest.fit(steps=6)
    assert same(flatten(whole.nets), flatten(rest.nets))


@pytest.mark.parametrize('bf16', [True, False])
def test_gradients_are_finite_as_the_trainer_computes_them(bf16):
    """Channels-last and bfloat16: there, kernels of the CPU have returned NaN for dilated convolutions
    of 24 channels."""
    G = DilatedGenerator(64, 16, 24).to(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
        pictures = G(torch.randn(4, 16), scales=True)
        loss = sum(x.float().square().mean() for x in pictures)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in G.parameters())
