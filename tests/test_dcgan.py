"""Networks and recipes of lessons 03 and 09d, checked on what is built: counts, shapes, starts, Keras' padding
by hand, and DCGAN819 against a literal copy of its published loop."""
import itertools, json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import torch
from torch import nn

from pokegan.core import LATENTS, mix_seed, normal, uniform
from pokegan.models.dcgan import (
    conv_discriminator, conv_generator, DCGAN_RECIPES, down, GANRecipe, k5_discriminator, k5_generator,
    keras_discriminator, keras_generator, make_norm, SameConv2d, SameConvTranspose2d, up)
from pokegan.data.images import Images
from pokegan.models.recipe import make_trainer
from literal import Literal

RECIPES = {r.name: r for r in DCGAN_RECIPES}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
WEIGHTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def count(net): return sum(p.numel() for p in net.parameters() if p.requires_grad)
def tiny(r, **kw): return replace(r, ngf=8, ndf=8, nz=6, **kw)
def parts(net, kinds): return [m for m in net.modules() if isinstance(m, kinds)]
def parameters(*nets): return [p for net in nets for p in net.parameters()]


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@pytest.mark.parametrize('name, g, d', [
    ('dcgan-keras', 11_926_080, 1_443_073),
    ('dcgan-uniform', 3_576_704, None),
    ('wgan-clip', 5_183_267, 4_340_225),
    ('dcgan-fc-64', 3_614_496, 694_657),
    ('dcgan-819', 3_806_080, 2_765_696)])
def test_published_counts(name, g, d):
    nets = RECIPES[name].networks()
    assert count(nets['G']) == g
    assert d is None or count(nets['D']) == d


def test_count_of_the_aegan_generator():
    nets = replace(RECIPES['dcgan-819'], nz=16).networks()
    assert count(nets['G']) == 2_888_576


def test_layers_of_fc_128():
    """1024 → 512 → 256 → 128 → 64 up to 128 px;
    64 → 128 → 256 → 512 (k3 s1) → 1024 down to 8 px."""
    G, D = RECIPES['dcgan-fc-128'].networks().values()
    convs = parts(G, (nn.ConvTranspose2d, nn.Conv2d))
    assert G.blocks[0][0].out_features == 65536
    assert [m.out_channels for m in convs] == [512, 256, 128, 64, 3]
    assert convs[-1].kernel_size == (3, 3)
    convs = parts(D, nn.Conv2d)
    assert [m.out_channels for m in convs] == [64, 128, 256, 512, 1024]
    assert [m.kernel_size[0] for m in convs] == [4, 4, 4, 3, 4]
    assert [m.stride[0] for m in convs] == [2, 2, 2, 1, 2]
    assert D.blocks[-1][1].in_features == 8*8*1024


@pytest.mark.parametrize('size', [16, 32, 64, 128])
@pytest.mark.parametrize('name', RECIPES)
def test_shapes_ranges_gradients(name, size):
    r = tiny(RECIPES[name], size=size)
    nets = r.networks()
    G, D = nets['G'], nets['D']
    assert (G.nz, G.size, D.size) == (6, size, size)
    x = G(LATENTS[r.latent](3, r.nz))
    assert x.shape == (3, 3, size, size) and x.abs().max() <= 1
    l = D(x)
    assert l.shape == (3,) and l.dtype == torch.float32
    l.square().sum().backward()
    for p in parameters(G, D): assert p.grad is not None and torch.isfinite(p.grad).all()
    assert sum(p.grad.abs().sum() for p in G.parameters()) > 0


@pytest.mark.parametrize('name', RECIPES)
def test_bf16_and_channels_last(name):
    nets = tiny(RECIPES[name], size=32).networks()
    G, D = (nets[k].to(memory_format=torch.channels_last) for k in 'GD')
    with torch.autocast('cpu', torch.bfloat16): l = D(G(normal(4, 6)))
    assert l.dtype == torch.bfloat16 and l.shape == (4,)
    l.float().sum().backward()
    for p in parameters(G, D): assert p.dtype == torch.float32 and torch.isfinite(p.grad).all()
    for b in D.buffers(): assert b.dtype in (torch.float32, torch.int64)


def fan_in(w): return nn.init._calculate_fan_in_and_fan_out(w)[0]
def glorot(w): return (2/sum(nn.init._calculate_fan_in_and_fan_out(w)))**.5
def weights(m): return m.parametrizations.weight.original if hasattr(m, 'parametrizations') else m.weight
def inner(net): return [m for m in parts(net, WEIGHTS) if weights(m).numel() > 2000] # enough to measure


def assert_spread(w, std, most=None): # and no value beyond `most` deviations
    assert abs(w.std()/std - 1) < 0.1
    assert abs(w.mean()) < 0.1*std + 3*std/w.numel()**.5
    if most: assert w.abs().max() <= most*std*(1 + 1e-5)


def assert_norms_start_well(net, spread): # gains near 1, not near 0; offsets 0
    for m in parts(net, NORMS):
        assert not m.bias.any()
        if m.weight is None: continue
        assert abs(m.weight.mean() - 1) < 0.02 and (m.weight > 0.8).all()
        assert (0.01 < m.weight.std() < 0.03) if spread else (m.weight == 1).all()


NORMAL = 'dcgan-quick dcgan-small-data dcgan-uniform wgan-gp wgan-clip'.split()
TORCH = 'dcgan-fc-32 dcgan-fc-64 dcgan-fc-128 dcgan-819 dcgan-14000'.split()


def test_every_recipe_has_a_named_start(): assert {*NORMAL, *TORCH, 'dcgan-keras'} == {*RECIPES}


@pytest.mark.parametrize('name', NORMAL)
def test_radfords_start(name):
    for net in RECIPES[name].networks(seed=3).values():
        assert_norms_start_well(net, spread=True)
        for m in inner(net): assert_spread(weights(m), 0.02)
        for m in parts(net, WEIGHTS): assert m.bias is None or not m.bias.any()


@pytest.mark.parametrize('name', TORCH)
def test_pytorchs_start(name):
    "Uniform within 1/sqrt(fan in), so with a deviation of a root of three less; gains are 1."
    r = RECIPES[name]
    for net in (tiny(r) if r.size == 128 else r).networks(seed=3).values():
        assert_norms_start_well(net, spread=False)
        for m in inner(net): assert_spread(weights(m), (3*fan_in(weights(m)))**-.5, most=3**.5)


def test_system_1_starts_convolutions_and_dense_layers_apart():
    nets, glorots = (replace(RECIPES['dcgan-keras'], init=k).networks(seed=3) for k in ('normal', 'glorot'))
    for k, net in nets.items():
        assert_norms_start_well(net, spread=False)
        for m, g in zip(inner(net), inner(glorots[k])):
            assert_spread(g.weight, glorot(g.weight), most=3**.5)
            if isinstance(m, nn.Linear): assert_spread(m.weight, glorot(m.weight), most=3**.5)
            else: assert_spread(m.weight, 0.02)
        for m in parts(net, WEIGHTS): assert m.bias is None or not m.bias.any()


def test_system_2s_code_has_offsets_and_no_gains():
    G, D = k5_generator(32, 6, 8), k5_discriminator(32, 8)
    assert [len(parts(net, NORMS)) for net in (G, D)] == [3, 1] # none behind D's first convolution
    for m in parts(nn.ModuleList([G, D]), NORMS):
        assert m.weight is None and m.bias is not None and (m.eps, m.momentum) == (1e-5, .1)
    with torch.no_grad(): x = D.blocks[:-1](G(normal(4, 6)))
    assert x.shape == (4, 16, 8, 8)
    for m in parts(nn.ModuleList([G, D]), WEIGHTS): assert m.bias is not None
    z = normal(64, 6)
    with torch.no_grad(): y = G.blocks[0][:3](z) # normalised, before the ReLU
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(32), rtol=.01, atol=.01)


def test_system_3s_options():
    kw = dict(size=32, nz=6, ngf=8)
    plain, normed = conv_generator(**kw, stem='linear'), conv_generator(**kw, stem='linear-norm', flipped=True)
    assert [type(m).__name__ for m in normed.blocks[0]] == ['Linear', 'Unflatten', 'BatchNorm2d', 'LeakyReLU']
    assert [type(m).__name__ for m in plain.blocks[0]] == ['Linear', 'Unflatten']
    assert isinstance(normed.blocks[-1][0], nn.ConvTranspose2d) and isinstance(plain.blocks[-1][0], nn.Conv2d)
    assert normed(normal(4, 6)).shape == (4, 3, 32, 32)
    last = RECIPES['dcgan-fc-64'].networks()['G'].blocks[-1][0]
    assert isinstance(last, nn.ConvTranspose2d) and last.kernel_size == (3, 3)


def recipe_and_literal(x, seed=0):
    "Our trainer, and the literal loop with its weights, its reals, its latents and its targets."
    t = make_trainer(replace(RECIPES['dcgan-819'], amp=False), x, seed, 'cpu')
    copy = Literal(None)
    ours, theirs = t.nets['G'].state_dict(), copy.G.state_dict()
    copy.G.load_state_dict(dict(zip(theirs, ours.values())))
    names = dict(weight_orig='parametrizations.weight.original', weight_u='parametrizations.weight.0._u',
                 weight_v='parametrizations.weight.0._v')
    for block, i in zip(t.nets['D'].blocks, (0, 3, 6, 9, 12)):
        state, mine = copy.D[i].state_dict(), block[0].state_dict()
        copy.D[i].load_state_dict({k: mine[names[k]] for k in state})
    g = torch.Generator()
    def at(step): g.manual_seed(mix_seed(seed, 2, step, 0))
    copy.reals = lambda: t.reals(t.indices(0))
    copy.latents = lambda: t.prior(64, g)[:, :, None, None]
    copy.targets = lambda: RECIPES['dcgan-819'].targets(64, g, 'cpu')
    return t, copy, at


def adams(*opts): # their values; then a large eps, as Adam's first step is nearly the sign of each gradient
    values = []
    for o in opts:
        g, = o.param_groups
        values.append((type(o), g['lr'], g['betas'], g['eps'], g['weight_decay']))
        g['eps'] = 1.
    return values


def test_dcgan_819_is_its_published_loop():
    "Two steps, weight by weight: networks, spectral norms, new latents, targets, order, optimisers."
    x = Images(torch.randint(0, 256, (100, 3, 64, 64), dtype=torch.uint8))
    t, copy, at = recipe_and_literal(x)
    assert adams(*(p.opt for p in t.phases)) == adams(*copy.opts)
    before = {k: [p.detach().clone() for p in t.nets[k].parameters()] for k in 'GD'}
    for step in range(2):
        at(step)
        copy.one_step()
        t.one_step()
    for k, theirs in dict(G=copy.G, D=copy.D).items():
        for start, p, q in zip(before[k], t.nets[k].parameters(), theirs.parameters()):
            assert (q - start).norm() > 0
            assert (p - q).norm() < 0.02*(q - start).norm(), f'{k} {tuple(p.shape)}'


def test_keras_details():
    G, D = keras_generator(32, 6, 8), keras_discriminator(32, 8)
    bns = parts(G, NORMS)
    assert all((m.eps, m.momentum) == (1e-3, 0.01) for m in bns)
    assert bns[0].num_features == 32*16
    relus = parts(G, nn.LeakyReLU) + parts(D, nn.LeakyReLU)
    assert {m.negative_slope for m in relus} == {0.3}
    assert [m.p for m in parts(D, nn.Dropout)] == [0.3]*3
    assert not parts(D, NORMS)


def same_conv(x, w, s=2):
    "Keras' 'same' convolution, written out: out = ceil(n/s), zeros split with the smaller half before."
    n, k = x.shape[-1], w.shape[-1]
    out = -(-n//s)
    before = max((out-1)*s + k - n, 0)//2
    y = torch.zeros(w.shape[0], out, out)
    for o, i, j in itertools.product(range(w.shape[0]), range(out), range(out)):
        for a, b in itertools.product(range(k), range(k)):
            p, q = i*s + a - before, j*s + b - before
            if 0 <= p < n and 0 <= q < n: y[o, i, j] += (x[:, p, q]*w[o, :, a, b]).sum()
    return y


@pytest.mark.parametrize('n', [2, 4, 6])
def test_same_padding_by_hand(n):
    conv, x = SameConv2d(2, 3, 5, 2, bias=False), torch.randn(2, n, n)
    assert torch.allclose(conv(x[None])[0], same_conv(x, conv.weight), atol=1e-5)


@pytest.mark.parametrize('n', [2, 4, 6])
def test_same_transposed_is_the_gradient_of_the_convolution(n):
    "Keras defines it so; the gradient is taken of the loop above, not of our class."
    convT, y = SameConvTranspose2d(3, 2, 5, 2, 1, bias=False), torch.randn(3, n, n)
    x = torch.zeros(2, 2*n, 2*n, requires_grad=True)
    loss = (same_conv(x, convT.weight.detach())*y).sum()
    want, = torch.autograd.grad(loss, x)
    got = convT(y[None])[0]
    assert got.shape == (2, 2*n, 2*n)
    assert torch.allclose(got, want, atol=1e-5)


def test_spectral_norm_holds_and_resumes_exactly():
    kw = dict(size=32, ndf=8, norm='none', sn=True, sn_head=True, head='conv')
    D, x = conv_discriminator(**kw), torch.randn(4, 3, 32, 32)
    for _ in range(60): D(x)
    for b in D.eval().blocks:
        largest = torch.linalg.matrix_norm(b[0].weight.flatten(1), 2)
        assert abs(largest - 1) < 0.02
    E = conv_discriminator(**kw)
    E.load_state_dict(D.state_dict())
    D.train()
    with torch.no_grad():
        for _ in range(2): assert torch.equal(D(x), E(x))


def test_group_norm_treats_each_picture_alone():
    G, z = conv_generator(32, 6, 8, norm='group'), normal(4, 6)
    assert torch.allclose(G(z)[:1], G(z[:1]), atol=1e-6)
    assert not parts(G, nn.BatchNorm2d)
    assert make_norm(12, 'group').num_groups == 4
    assert make_norm(7, 'group').num_groups == 1


def test_blocks_double_and_halve():
    x = torch.randn(2, 5, 8, 8)
    assert up(5, 7)(x).shape == (2, 7, 16, 16)
    assert down(5, 7)(x).shape == (2, 7, 4, 4)
    assert down(5, 7, same=True)(x).shape == (2, 7, 8, 8)


@pytest.mark.parametrize('draw', LATENTS.values())
def test_latents_follow_from_their_generator(draw):
    a, b = (draw(3, 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


def test_latents():
    z, u = (draw(10_000, 4, torch.Generator().manual_seed(1)) for draw in (normal, uniform))
    assert abs(z.std() - 1) < 0.02
    assert abs(u.std() - 3**-0.5) < 0.01
    assert u.min() >= -1 and u.max() < 1
    assert abs(u.mean()) < 0.02
    half = LATENTS['uniform01'](10_000, 4, torch.Generator().manual_seed(1))
    assert half.min() >= 0 and half.max() < 1 and abs(half.mean() - .5) < 0.01


def same(m, n):
    pairs = zip(m.state_dict().values(), n.state_dict().values())
    return all(torch.equal(p, q) for p, q in pairs)


def test_recipe_seed():
    r = tiny(RECIPES['dcgan-819'], size=32)
    before = torch.get_rng_state()
    a, b, c = (r.networks(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert list(a) == ['G', 'D']
    for k in 'GD':
        assert same(a[k], b[k])
        assert not same(a[k], c[k])


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_plain_and_frozen(name):
    r = RECIPES[name]
    assert GANRecipe(**json.loads(json.dumps(asdict(r)))) == r
    assert r.source and r.differs
    with pytest.raises(FrozenInstanceError): r.nz = 3


def fields(r, names): return tuple(getattr(r, k) for k in names.split())


def test_recipes_say_what_the_systems_say():
    r = {k: v for k, v in RECIPES.items() if v.source.startswith('system')}
    assert len(r) == len(DCGAN_RECIPES) - 3
    assert {x.batch for x in r.values()} == {64} and {x.lr for x in r.values()} == {2e-4}
    assert [n for n, x in r.items() if x.split_d] == ['dcgan-keras']
    assert fields(r['dcgan-uniform'], 'latent hflip') == ('uniform', True)
    for s in (32, 64, 128):
        values = fields(r[f'dcgan-fc-{s}'], 'size real_target fake_target betas nz')
        assert values == (s, 0.9, 0, (0.5, 0.99), 100)
    values = fields(r['dcgan-819'], 'nz betas real_target fake_target target_noise flip')
    assert values == (128, (0.5, 0.9), 0.85, 0.15, 0.15, 0.05)
    assert {n for n, x in r.items() if x.redraw != 'move'} == {'wgan-clip'}
    assert {n: x.epochs for n, x in r.items()} == {
        'dcgan-keras': 350, 'dcgan-uniform': 500, 'wgan-clip': 5000, 'dcgan-fc-32': 500, 'dcgan-fc-64': 500,
        'dcgan-fc-128': 500, 'dcgan-819': 310, 'dcgan-14000': 150}
    assert r['dcgan-819'].sn and r['dcgan-819'].sn_head
    unnamed = dict(name='', source='', differs='', epochs=0)
    assert replace(r['dcgan-14000'], **unnamed) == replace(r['dcgan-819'], **unnamed)


def test_recipes_say_what_the_wgans_say():
    values = fields(RECIPES['wgan-clip'], 'size loss opt lr clip d_rounds epochs hflip brightness contrast')
    assert values == (128, 'wgan', 'rmsprop', 2e-4, .01, 5, 5000, True, .1, .1)
    values = fields(RECIPES['wgan-clip'], 'arch rms_decay redraw latent')
    assert values == ('k5', .9, 'step', 'uniform')
    values = fields(RECIPES['wgan-gp'], 'loss penalty penalty_weight d_rounds lr betas d_norm')
    assert values == ('wgan', 'gp', 10, 5, 1e-4, (0, 0.9), 'none')
    assert not parts(RECIPES['wgan-gp'].networks()['D'], NORMS)


def test_resized_generator_has_no_grid_and_no_transposed_convolution():
    late = RECIPES['dcgan-small-data'].networks()['G'].blocks[1:]
    assert not parts(late, nn.ConvTranspose2d)
    assert parts(late, nn.Upsample)
    for stem, base in (('conv', 4), ('linear', 4), ('linear', 8)):
        G = conv_generator(32, 6, 8, stem=stem, base=base, resize=True)
        assert G(normal(2, 6)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize('wrong', [
    dict(size=48), dict(size='64'), dict(size=512), dict(ngf=0), dict(nz=-1), dict(batch=0),
    dict(d_rounds=0), dict(flip=1.), dict(flip=-0.1), dict(ema=1.), dict(lr=-1.), dict(lr=float('nan')),
    dict(betas=(0.5, 1.)), dict(betas=(0.5,)), dict(arch='vae'), dict(latent='gauss'), dict(opt='sgd'),
    dict(norm='layer'), dict(head='mlp'), dict(stem='fc'), dict(base=5), dict(base=8), dict(sn='yes'),
    dict(penalty='wgan'), dict(d_norm='layer'), dict(ada=.6)])
def test_a_bad_value_is_one_line(wrong):
    with pytest.raises(ValueError) as e: replace(RECIPES['dcgan-819'], **wrong)
    assert '\n' not in str(e.value)
    assert next(iter(wrong)) in str(e.value)


def test_wrong_input_is_one_line():
    G, D = tiny(RECIPES['dcgan-819'], size=32).networks().values()
    wrong = [(G, normal(2, 7)),
             (G, torch.zeros(2, 6, 1, 1)),
             (D, torch.zeros(2, 3, 64, 64)),
             (D, torch.zeros(2, 1, 32, 32))]
    for f, x in wrong:
        with pytest.raises(ValueError, match='takes') as e: f(x)
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='norm'): make_norm(8, 'bacth')
