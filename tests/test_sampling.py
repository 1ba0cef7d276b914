"""Priors are exact, truncated or not, whatever they are made of; a seed names a set of latents;
one place decides where they come from."""
import pytest
import torch
from scipy import stats

from pokegan.core import normal, run_eval, uniform
from pokegan.latents.mixture import Mixture
from pokegan.latents.priors import prior, sample, truncated_normal
from pokegan.models.dcgan import conv_generator
from pokegan.models.instance import Codes
from pokegan.recipes import recipe


def rng(seed=0): return torch.Generator().manual_seed(seed)


def ks(z, cdf): return stats.kstest(z.flatten().double().numpy(), cdf).pvalue


@pytest.fixture
def lumps():
    "Two lumps, far apart, of different weights and spreads."
    m = Mixture(2, 3)
    means = torch.tensor([[50., 50., 50.], [-50., -50., -50.]])
    spreads = torch.tensor([[1., 2., 3.], [.1, .2, .3]])
    m.load_state_dict(dict(weights=torch.tensor([.7, .3]), means=means, factors=spreads))
    return m


@pytest.mark.parametrize('t', [.05, .3, 1., 2.5, 6.])
def test_truncated_normal_is_exact(t):
    z = prior('normal', 50, t)(400, rng())
    assert z.shape == (400, 50) and z.abs().max() <= t and ks(z, stats.truncnorm(-t, t).cdf) > .01


def test_values_of_one_latent_are_independent():
    z = truncated_normal(20_000, 4, 1., rng())
    assert (torch.corrcoef(z.T) - torch.eye(4)).abs().max() < .03


def test_untouched_priors_are_those_of_training():
    assert torch.equal(prior('normal', 8)(5, rng()), normal(5, 8, rng()))
    assert torch.equal(prior('uniform', 8)(5, rng()), uniform(5, 8, rng()))
    m = Mixture(3, 8)
    assert torch.equal(prior(m, 8)(5, rng()), m(5, rng()))


@pytest.mark.parametrize('truncation, psi, half', [(.4, 1., .4), (7., 1., 1.), (None, .3, .3), (.5, .5, .25)])
def test_uniform_stays_uniform(truncation, psi, half):
    z = prior('uniform', 50, truncation, psi)(400, rng())
    assert z.abs().max() <= half and ks(z, stats.uniform(-half, 2*half).cdf) > .01


@pytest.mark.parametrize('psi', [.3, .8])
def test_shrinking(psi):
    assert torch.allclose(prior('normal', 8, psi=psi)(5, rng()), psi*normal(5, 8, rng()))
    z = prior('normal', 50, 1., psi)(400, rng())
    assert ks(z/psi, stats.truncnorm(-1, 1).cdf) > .01
    assert prior('normal', 4, psi=0.)(3, rng()).count_nonzero() == 0


@pytest.mark.parametrize('covariance', ['diag', 'full'])
def test_a_mixture_is_truncated_within_each_component(lumps, covariance):
    m = lumps
    if covariance == 'full':
        m = Mixture(2, 3, 'full')
        below = torch.tensor([[0., 0, 0], [.5, 0, 0], [.2, -.4, 0]])
        factors = torch.stack([torch.diag(f) for f in lumps.factors]) + below
        m.load_state_dict(dict(weights=lumps.weights, means=lumps.means, factors=factors))
    z = prior(m, 3, .7)(6000, rng())
    first = z[:, 0] > 0
    assert abs(first.double().mean() - .7) < .02, 'components come as often as before'
    for k, part in enumerate((z[first], z[~first])):
        e = part - m.means[k]
        if covariance == 'diag': e = e/m.factors[k]
        else: e = torch.linalg.solve_triangular(m.factors[k], e.T, upper=False).T
        assert e.abs().max() < .7 + 1e-3 and ks(e, stats.truncnorm(-.7, .7).cdf) > .01
    middles = prior(m, 3, psi=0.)(50, rng()).unique(dim=0)
    assert torch.equal(middles, m.means.flip(0)), 'wholly shrunk, only the means are left'


@pytest.mark.parametrize('latent, bound', [('normal', .7), ('uniform', .7)])
def test_codes_are_left_alone_and_their_noise_is_truncated(latent, bound):
    c = Codes(5, 3, latent)
    c.codes = 9*torch.eye(3)
    own = recipe('projected-instance').prior(dict(codes=c))
    plain, cut = (prior(own, 5, t)(400, rng()) for t in (None, bound))
    assert torch.equal(plain, c(400, rng())) and torch.equal(plain[:, 5:], cut[:, 5:])
    want = stats.truncnorm(-bound, bound) if latent == 'normal' else stats.uniform(-bound, 2*bound)
    assert ks(cut[:, :5], want.cdf) > .01


def test_the_same_seed_picks_the_same_components_whatever_the_bound(lumps):
    signs = [prior(lumps, 3, t, psi)(200, rng(5))[:, 0].sign()
             for t, psi in ((None, 1.), (2., 1.), (.1, 1.), (None, .2))]
    assert all(torch.equal(s, signs[0]) for s in signs)


def test_draws_leave_the_global_generator_alone(lumps):
    state = torch.random.get_rng_state()
    for latent in ('normal', 'uniform', lumps):
        for t, psi in ((None, 1.), (.5, .5)):
            a, b = (prior(latent, 3, t, psi)(4, rng(2)) for _ in range(2))
            assert torch.equal(a, b)
    assert torch.equal(state, torch.random.get_rng_state())


def test_wrong_values(lumps):
    calls = {
        'above 0': lambda: prior('normal', 4, 0.),
        'above 0 ': lambda: prior(lumps, 3, -1.),
        'from 0 to 1': lambda: prior('normal', 4, psi=1.2),
        'psi is nan': lambda: prior(lumps, 3, psi=float('nan')),
        'normal, uniform': lambda: prior('gauss', 4)}
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words) as e: call()
        assert '\n' not in str(e.value)


def test_one_place_decides_where_latents_come_from():
    for name in ('dcgan-uniform', 'aegan', 'dcgan-819'):
        r = recipe(name)
        cut, same = prior(r.prior({}), r.nz, .5, .8), prior(r.latent, r.nz, .5, .8)
        assert torch.equal(cut(3, rng()), same(3, rng()))
        assert torch.equal(r.prior({})(3, rng()), prior(r.latent, r.nz)(3, rng()))
    r = recipe('pokegan2-dcgan', nz=12, components=3)
    m = Mixture(3, 12)
    assert torch.equal(prior(r.prior(dict(mixture=m)), 12, .5)(3, rng()), prior(m, 12, .5)(3, rng()))


def test_pictures_do_not_depend_on_their_batch():
    G, z = conv_generator(16, 8, 8), normal(70, 8, rng())
    G(normal(64, 8)).sum()  # running statistics that are not those of the start
    whole = sample(G, z)
    assert whole.shape == (70, 3, 16, 16) and G.training
    for batch in (1, 7, 70): torch.testing.assert_close(sample(G, z, batch), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, run_eval(G, z), rtol=0, atol=1e-5)
