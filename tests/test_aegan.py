"Four networks, two phases, six losses: the published counts, exact resume, and what a user's mistake says."
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from pokegan.data import load_images
from pokegan.training.callbacks import LogCB, read_log
from pokegan.training.checkpoint import load_state, save_state
from pokegan.training.health import HealthCB
from pokegan.training.trainer import Batch, Trainer
from pokegan.metrics.features import extractor
from pokegan.metrics.tracking import CurvesCB, CurvesPictureCB, plot_curves
from pokegan.latents.priors import prior
from pokegan.models.aegan import AEGAN_RECIPES, AEGANRecipe, judge, latent_discriminator, RoundTrips

SMALL = AEGANRecipe('small', 'a test', size=16, nz=8, ngf=8, ndf=8, batch=8)


@pytest.fixture(scope='module')
def images(): return load_images('creatures:64', 16, progress=False)


def trainer(r, images, seed=0, callbacks=(), **kw):
    nets = r.networks(seed)
    draw = prior(r.latent, r.nz)
    return Trainer(nets, r.phases(nets), images, draw, r.batch, seed=seed, callbacks=callbacks,
                   device='cpu', **kw)


def own_callbacks(t, folder, images): return SMALL.callbacks(t.nets, folder, dict(train=images))
def n_params(net): return sum(p.numel() for p in net.parameters())


def assert_same_networks(a, b):
    for k in a.nets:
        mine, other = a.nets[k].state_dict(), b.nets[k].state_dict()
        for p, q in zip(mine.values(), other.values()): assert torch.equal(p, q), k


def test_published_counts():
    r = AEGAN_RECIPES[0]
    counts = {k: n_params(v) for k, v in r.networks(0).items()}
    assert counts == dict(G=2_888_576, E=2_924_560, Dx=2_765_696, Dz=45_217)
    assert n_params(replace(r, faithful=True).networks(0)['Dz']) == 45_219


def test_published_values():
    ours, article, *_ = AEGAN_RECIPES
    assert (ours.size, ours.nz, ours.batch) == (64, 16, 64)
    assert (ours.betas, ours.weight_decay) == ((.5, .999), 1e-8)
    assert (ours.lr, ours.lr_d, *ours.weights.values()) == (2e-4, 2e-4, 1, 1, 1, 1)
    assert (ours.real_target, ours.fake_target) == (.85, .15)
    assert (ours.target_noise, ours.flip) == (.15, .05)
    assert (article.adv_x, article.rec_x, article.adv_z, article.rec_z) == (1, .5, .005, .1)
    assert (article.lr, article.lr_d) == (2e-4, 1e-4)


def test_optimisers_have_the_published_values_and_the_networks_of_their_phase():
    r = AEGAN_RECIPES[0]
    for p in r.phases(r.networks(0)):
        g = p.opt.param_groups[0]
        assert (g['lr'], g['betas'], g['weight_decay']) == (2e-4, (.5, .999), 1e-8)
        own = {id(v) for m in p.nets for v in m.parameters()}
        assert {id(v) for v in g['params']} == own


def test_a_recipe_survives_json_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    again = AEGANRecipe(**json.loads(json.dumps(asdict(SMALL))))
    a, b = SMALL.networks(3), again.networks(3)
    assert torch.equal(before, torch.get_rng_state())
    for k in a:
        for p, q in zip(a[k].parameters(), b[k].parameters()): assert torch.equal(p, q)


@pytest.mark.parametrize('wrong, what', [
    (dict(size=60), 'size'),
    (dict(lr_d=-1.), 'lr_d'),
    (dict(flip=1.), 'flip'),
    (dict(nz=0), 'nz'),
    (dict(adv_x=0., adv_z=0., rec_x=0., rec_z=0.), 'all 0'),
    (dict(latent='cauchy'), 'latent'),
    (dict(whole='yes'), 'whole')])
def test_wrong_values(wrong, what):
    with pytest.raises(ValueError, match=what) as e: replace(SMALL, **wrong)
    assert '\n' not in str(e.value)


def ce(logits, target): return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def assert_close(got, want): torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def losses_of_d(nets, xs, zs): # the real thing, hat and tilde
    def of(D, vs):
        terms = zip(vs, (2, 1, 1), (.9, .2, .2))
        return sum(w*ce(D(v), y) for v, w, y in terms)/4
    return dict(Dx=of(nets['Dx'], xs), Dz=of(nets['Dz'], zs))


@torch.no_grad()
def losses_of_ge(nets, xs, zs):
    Dx, Dz = nets['Dx'], nets['Dz']
    return dict(adv_x=ce(Dx(xs[1]), 1) + ce(Dx(xs[2]), 1),
                adv_z=ce(Dz(zs[1]), 1) + ce(Dz(zs[2]), 1),
                rec_x=F.l1_loss(xs[2], xs[0]),
                rec_z=F.mse_loss(zs[2], zs[0]))


def test_losses_against_torch(images):
    r = replace(SMALL, real_target=.9, fake_target=.2, target_noise=0., flip=0., adv_x=2., rec_z=.5)
    t = trainer(r, images, bf16=False)
    for net in t.nets.values(): net.eval()
    t.generator.manual_seed(0)
    b = Batch(t)
    (d, d_parts), (ge, ge_parts) = [p.loss(b) for p in t.phases]
    G, E = t.nets['G'], t.nets['E']
    with torch.no_grad():
        xs = [b.x, G(b.z), G(E(b.x))]
        zs = [b.z, E(b.x), E(G(b.z))]
    want_d = losses_of_d(t.nets, xs, zs)
    want = losses_of_ge(t.nets, xs, zs)
    for k, v in want_d.items(): assert_close(d_parts[k], v)
    for k, v in want.items(): assert_close(ge_parts[k], v)
    assert_close(d.detach(), want_d['Dx'] + want_d['Dz'])
    assert_close(ge.detach(), 2*want['adv_x'] + want['adv_z'] + want['rec_x'] + .5*want['rec_z'])


def test_targets_are_drawn_for_each_imitation():
    drawn = []
    def targets():
        drawn.append(torch.rand(2, 4))
        return drawn[-1]
    def first_value(v): return v[:, 0]
    judge(first_value, *torch.randn(3, 4, 2), targets)
    assert len(drawn) == 2


def copies(nets): return {k: [p.detach().clone() for p in m.parameters()] for k, m in nets.items()}


def test_each_phase_moves_its_own_networks(images):
    t = trainer(SMALL, images)
    t.batch = Batch(t)
    for phase, mine in zip(t.phases, ({'Dx', 'Dz'}, {'G', 'E'})):
        before, moved = copies(t.nets), set()
        t.run_phase(phase, t.batch)
        for k, m in t.nets.items():
            if any(not torch.equal(p, q) for p, q in zip(m.parameters(), before[k])): moved.add(k)
        assert moved == mine
        for m in phase.nets:
            for p in m.parameters(): assert torch.isfinite(p.grad).all()


def test_everything_is_made_once(images):
    t = trainer(SMALL, images)
    calls = dict.fromkeys(t.nets, 0)
    def count(k):
        def hook(*_): calls[k] += 1
        return hook
    for k, m in t.nets.items(): m.register_forward_hook(count(k))
    t.fit(steps=2)
    assert calls == dict(G=4, E=4, Dx=10, Dz=10)


def test_the_letter_draws_anew_for_each_move(images):
    t = trainer(replace(SMALL, redraw='move'), images)
    passes, seen = [], []
    t.nets['G'].register_forward_hook(lambda m, args, out: passes.append(out.requires_grad))
    t.nets['Dz'].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    t.one_step()
    assert passes == [False, False, True, True] # hat and tilde: D's, then those that teach
    assert len(seen) == 5 and len({v.sum().item() for v in seen}) == 4 # z hat is that of the same x
    r = AEGAN_RECIPES[0]
    assert (r.redraw, r.init, r.sn_head, r.epochs) == ('move', 'torch', True, 160)
    assert not hasattr(SMALL.networks(0)['Dx'].blocks[-1][0], 'parametrizations')
    assert hasattr(replace(SMALL, sn_head=True).networks(0)['Dx'].blocks[-1][0], 'parametrizations')


def test_only_pictures_count_for_the_running_statistics_of_e(images):
    t = trainer(SMALL, images, bf16=False)
    b, E = Batch(t), t.nets['E']
    norm = next(m for m in E.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    norm.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    for p in t.phases: p.loss(b)
    assert len(seen) == 2 and norm.momentum == .1
    torch.testing.assert_close(norm.running_mean, .1*seen[0].mean((0, 2, 3)))


def test_stale_imitations_are_forgotten(images):
    t = trainer(SMALL, images)
    b = Batch(t)
    r = RoundTrips(t.nets['G'], t.nets['E'], b)
    x_hat = r.x_hat
    old = [r.z_hat, r.x_tilde, r.z_tilde]
    b.changed([t.nets['E']])
    assert r.x_hat is x_hat
    for new, o in zip([r.z_hat, r.x_tilde, r.z_tilde], old): assert new is not o


@pytest.mark.parametrize('change, nets, logged', [
    (dict(adv_x=0., adv_z=0., rec_z=0.), {'G', 'E'}, {'GE/loss', 'GE/rec_x'}),
    (dict(adv_z=0., rec_x=0.), {'G', 'E', 'Dx'}, {'D/Dx', 'D/acc', 'GE/adv_x', 'GE/rec_z'}),
    (dict(adv_x=0.), {'G', 'E', 'Dz'}, {'D/Dz', 'GE/adv_z', 'GE/rec_x', 'GE/rec_z'})])
def test_terms_without_weight_are_not_there(images, change, nets, logged):
    t = trainer(replace(SMALL, **change), images)
    t.callbacks = [HealthCB(t.nets['G'], t.prior, every=1, say=lambda s: None)]
    t.fit(steps=2)
    assert set(t.nets) == nets
    assert logged <= set(t.logs)
    of_dx = {k for k in t.logs if k.endswith(('adv_x', 'Dx'))}
    assert t.nets.get('Dx') or not of_dx
    assert 'diversity' in t.metrics


def test_resume_is_exact(images, tmp_path):
    whole, half = trainer(SMALL, images), trainer(SMALL, images)
    whole.fit(steps=6)
    half.fit(steps=3)
    save_state(half, tmp_path/'state.safetensors')
    again = trainer(SMALL, images, callbacks=own_callbacks(half, tmp_path, images))
    load_state(again, tmp_path/'state.safetensors')
    again.fit(steps=6)
    assert_same_networks(whole, again)


def test_pictures_on_the_way_do_not_change_training(images, tmp_path):
    a, b = trainer(SMALL, images), trainer(SMALL, images)
    a.fit(steps=4)
    look = extractor('random', 'cpu')
    curves = CurvesCB(b.nets['G'], b.prior, images, look, n=32, share=.9, every=1)
    pictures = [CurvesPictureCB(tmp_path), *own_callbacks(b, tmp_path, images)]
    b.callbacks = [curves, LogCB(tmp_path, every=1), *pictures]
    b.fit(steps=4)
    assert_same_networks(a, b)
    rows = read_log(tmp_path/'log.csv')
    assert any('fid' in r and 'fid_real' in r for r in rows)
    assert not any('IS' in r for r in rows)  # random filters know no classes
    assert sorted((tmp_path/'reconstructions').glob('*.png'))
    assert plot_curves(rows).axes
    assert (tmp_path/'curves.png').stat().st_size > 1000


def test_faithful_dz_answers_the_same_mean():
    torch.manual_seed(0)
    D = latent_discriminator(8, faithful=True)
    a = D(torch.randn(256, 8))
    b = D(torch.randn(256, 8)*3 + 5)
    assert abs(a.mean() - b.mean()) < .1
    plain = latent_discriminator(8)
    assert plain(torch.randn(4, 8)).shape == a[:4].shape == (4,)
