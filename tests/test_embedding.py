"""Neighbours, shadows, probes and the test of shape, each against an independent reference."""
import pytest
import torch

from pokegan.metrics.embedding import gaussianity, ks_normal, nearest, pca, probe


@pytest.fixture
def x(): return torch.randn(200, 7, generator=torch.Generator().manual_seed(0))*torch.arange(1, 8) + 1


def test_nearest_agrees_with_scikit_learn(x):
    from sklearn.neighbors import NearestNeighbors
    want = NearestNeighbors(metric='cosine').fit(x[50:].numpy()).kneighbors(x[:50].numpy(), 3)[1]
    assert nearest(x[:50], x[50:], 3).tolist() == want.tolist()


def test_shadow_agrees_with_scikit_learn(x):
    from sklearn.decomposition import PCA
    p = PCA(2).fit(x.double().numpy())
    at, share = pca(x)
    want = torch.from_numpy(p.transform(x.double().numpy())).abs().float()
    assert torch.allclose(at.abs(), want, atol=1e-3)
    assert share.tolist() == pytest.approx(p.explained_variance_ratio_.tolist(), rel=1e-4)
    assert torch.equal(pca(x)[0], at)


def test_ks_and_moments_agree_with_scipy(x):
    from scipy.stats import kstest, kurtosis, skew
    x = x.exp().clamp(max=30)
    want = [kstest(c.double().numpy(), 'norm').statistic for c in x.T]
    assert ks_normal(x).tolist() == pytest.approx(want, abs=1e-5)
    g = gaussianity(x)
    assert g['skew'] == pytest.approx(skew(x.double().numpy()).mean(), rel=1e-4)
    assert g['kurtosis'] == pytest.approx(kurtosis(x.double().numpy()).mean(), rel=1e-4)
    assert g['mean'] == pytest.approx(float(x.mean(0).abs().mean()), rel=1e-4)


def test_shape_is_what_scale_cannot_change(x):
    a, b = gaussianity(x), gaussianity(x*5 - 3)
    assert a['ks_shape'] == pytest.approx(b['ks_shape'], abs=1e-5) and b['ks'] > a['ks']
    n = gaussianity(torch.randn(5000, 20, generator=torch.Generator().manual_seed(1)))
    assert n['ks'] < .02 and abs(n['kurtosis']) < .1


def test_probe_reads_what_lies_open_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 10, generator=g), torch.arange(400) % 2
    assert probe(x[:300], y[:300], x[300:], y[300:]) < .7
    x[:, 3] += 4*y
    assert probe(x[:300], y[:300], x[300:], y[300:]) > .95
