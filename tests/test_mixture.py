"""Each item of a batch draws its own component, by weight;
densities and BIC agree with other people's code."""
import pytest
import torch

from pokegan.training.checkpoint import flatten, read_tensors, unflatten, write_tensors
from pokegan.latents.mixture import bic, choose_k, fit_mixture, Mixture, n_numbers

W, M = torch.tensor([.5, .3, .15, .05]), torch.tensor([[-6., 0.], [6., 0.], [0., 6.], [0., -6.]])


@pytest.fixture
def four():
    m = Mixture(4, 2)
    factors = torch.tensor([[.5, .5], [.3, .6], [.4, .2], [.1, .1]])
    m.load_state_dict(dict(weights=W, means=M, factors=factors))
    return m


def hits(z): return torch.cdist(z, M).argmin(1).bincount(minlength=4)


def test_a_batch_hits_all_components_in_proportion(four):
    from scipy.stats import chisquare
    h = hits(four(4000, torch.Generator().manual_seed(0)))
    assert chisquare(h.numpy(), (W.double()/W.double().sum()*4000).numpy()).pvalue > .01
    many = sum(hits(four(64, torch.Generator().manual_seed(s))) for s in range(100))
    want = W.double()/W.double().sum()*6400
    assert chisquare(many.numpy(), want.numpy()).pvalue > .01, 'also in batches of 64'


def test_items_draw_independently(four):
    pairs = (four(2, torch.Generator().manual_seed(s)) for s in range(2000))
    a = torch.stack([torch.cdist(z, M).argmin(1) for z in pairs])
    same = (a[:, 0] == a[:, 1]).double().mean()
    assert abs(same - W.square().sum()) < .04, 'two items share a component as often as chance makes them'


def test_draws_follow_from_the_generator_alone(four):
    state = torch.random.get_rng_state()
    a, b = (four(8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(state, torch.random.get_rng_state()) and a.shape == (8, 2)


@pytest.mark.parametrize('covariance', ['diag', 'full'])
def test_log_prob_agrees_with_torch_distributions(four, covariance):
    import torch.distributions as D
    m, g = four, torch.Generator().manual_seed(0)
    if covariance == 'full':
        m = Mixture(4, 2, 'full')
        factors = torch.randn(4, 2, 2, generator=g).tril(-1) + 2*torch.eye(2)
        m.load_state_dict(dict(weights=W, means=M, factors=factors))
        parts = D.MultivariateNormal(M, scale_tril=m.factors)
    else: parts = D.Independent(D.Normal(M, m.factors), 1)
    z = m(500, g)
    assert torch.allclose(m.log_prob(z), D.MixtureSameFamily(D.Categorical(W), parts).log_prob(z), atol=1e-4)


def test_full_factors_draw_the_right_covariance():
    m = Mixture(1, 3, 'full')
    L = torch.tensor([[1., 0, 0], [.8, .5, 0], [-.3, .2, 2.]])
    m.factors.copy_(L[None])
    z = m(20_000, torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cov(z.T), L @ L.T, atol=.1)


@pytest.mark.parametrize('covariance', ['diag', 'full'])
def test_fit_and_bic_agree_with_scikit_learn(four, covariance):
    from sklearn.mixture import GaussianMixture
    x = four(1500, torch.Generator().manual_seed(1))
    m = fit_mixture(x, 4, covariance=covariance)
    gm = GaussianMixture(4, covariance_type=covariance, random_state=0, reg_covar=1e-4)
    gm.fit(x.double().numpy())
    assert n_numbers(m) == gm._n_parameters()
    assert bic(m, x) == pytest.approx(gm.bic(x.double().numpy()), rel=1e-3)
    assert torch.allclose(m.weights.sort().values, W.sort().values, atol=.03)


def test_a_fit_in_two_stages_ends_like_one_in_one(four):
    x = four(3000, torch.Generator().manual_seed(1))
    a, b = fit_mixture(x, 4), fit_mixture(x, 4, start=500)
    assert abs(a.log_prob(x).mean() - b.log_prob(x).mean()) < .01
    again = fit_mixture(x, 4).state_dict()
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), again.values()))


def test_k_is_found(four):
    x = four(2000, torch.Generator().manual_seed(2))
    m, curve = choose_k(x, (1, 2, 3, 4, 5, 6))
    assert len(m.weights) == 4 and min(curve, key=curve.get) == 4 and list(curve) == [1, 2, 3, 4, 5, 6]


def test_saved_and_loaded_like_a_network(four, tmp_path):
    assert not list(four.parameters())
    write_tensors(tmp_path/'m.safetensors', flatten(dict(prior=four)))
    m = Mixture(4, 2)
    m.load_state_dict(unflatten(read_tensors(tmp_path/'m.safetensors')[0], 'prior'))
    assert torch.equal(m(9, torch.Generator().manual_seed(0)), four(9, torch.Generator().manual_seed(0)))


def test_is_a_prior_of_the_trainer(four):
    from pokegan.data import Images
    from pokegan.training.trainer import Trainer
    t = Trainer(dict(prior=four), [], Images(torch.zeros(8, 3, 16, 16, dtype=torch.uint8)), four, 4)
    t.one_step()
    assert t.batch.z.shape == (4, 2)


@pytest.mark.parametrize('x, k, word', [
    (torch.zeros(10), 2, 'n,d'), (torch.full((10, 2), float('nan')), 2, 'finite'),
    (torch.zeros(10, 2), 0, 'k is 0'), (torch.zeros(10, 2), 9, '1 to 5')])
def test_wrong_values_are_one_line(x, k, word):
    with pytest.raises(ValueError, match=word) as e: fit_mixture(x, k)
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='diag'): Mixture(2, 2, 'tied')
