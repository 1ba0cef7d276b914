"Planted gaps are found by name, real pictures are covered, and what cannot be meant is refused in one line."
import pytest
import torch

from pokegan.data import Images, to_float
from pokegan.metrics.coverage import (
    class_numbers, Classifier, Coverage, coverage, coverage_rows, coverage_text, jitter,
    labelled_creatures, probabilities, train_classifier)
from pokegan.metrics.distances import kid
from pokegan.metrics.features import extractor, features


@pytest.fixture(scope='module')
def plans():
    "A classifier of body plans that has seen species 0 to 15, and other pictures of these species."
    few = list(range(16))
    judge = train_classifier(labelled_creatures(960, few), 'plan', epochs=6)
    return judge, labelled_creatures(800, few, seed=1)


def of(images, keep):
    return images.x[torch.tensor([i for i, k in enumerate(keep) if k])]


def test_herd_is_a_labelled_set():
    a = labelled_creatures(6, [3, 5], size=48, seed=2)
    assert a.x.shape == (6, 3, 48, 48) and a.labels['species'] == [3, 5]*3
    # number i does not depend on n
    assert torch.equal(a.x[4:], labelled_creatures(2, [3, 5], size=48, seed=2, start=4).x)
    assert (a.x[:, :, 0, 0] == 255).all()  # white


def test_trained_on_plans(plans):
    net, test = plans
    y = class_numbers(test, 'plan')[1]
    p = probabilities(net, test.x)
    assert (p.argmax(1) == y).float().mean() > .85
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    alone = probabilities(net, to_float(test.x[:5]))   # uint8 or float, alone or in a batch
    torch.testing.assert_close(p[:5], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gone', [(0,), (3, 6), (1, 2, 4, 5, 7)])
def test_planted_gaps_are_named(plans, gone):
    net, test = plans
    gone = [net.names[i] for i in gone]
    c = coverage(of(test, [p not in gone for p in test.labels['plan']])[:300], net)
    assert c.missing == gone and c.share == 1 - len(gone)/8


def test_floor_and_ceiling(plans):
    net, test = plans
    rows, other = coverage_rows(dict(copies=test.x[:1].expand(300, -1, -1, -1)), test.x, net)
    assert [*rows] == ['real (floor)', 'copies', 'noise (ceiling)']
    assert rows['real (floor)'].share == 1 and rows['real (floor)'].distance(other) < .15
    assert rows['copies'].share == 1/8 and rows['noise (ceiling)'].share <= 2/8
    assert {c.n for c in (*rows.values(), other)} == {300} and len({c.k for c in rows.values()}) == 1
    text = coverage_text(rows, other, net)
    assert 'n=300' in text and net.weights in text and 'noise (ceiling)' in text
    with pytest.raises(ValueError, match='too few'): coverage_rows(dict(all=test.x), test.x, net)


def test_histograms():
    a, b = (Coverage(('p', 'q', 'r'), h, 30, 3, .8) for h in ((10, 10, 0), (10, 0, 10)))
    assert a.distance(a) == 0 and a.distance(b) == pytest.approx(.5)
    assert a.missing == ['r'] and a.share == pytest.approx(2/3) and a.counted == pytest.approx(2/3)
    none, other = Coverage(('p', 'q', 'r'), (0, 0, 0), 30, 3, .8), Coverage(('p', 'q'), (1, 1), 2, 3, .8)
    assert a.distance(none) == none.distance(a) == 1  # nothing counted: as far as can be
    with pytest.raises(ValueError, match='different classes'): a.distance(other)


def test_same_seed_same_weights_and_no_trace():
    data = labelled_creatures(64, [0, 1])
    before = torch.get_rng_state()
    a, b, c = (train_classifier(data, 'species', epochs=1, seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert a.weights == b.weights != c.weights
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not a.training and not any(p.requires_grad for p in a.parameters())


def test_is_a_feature_extractor(plans):
    net, test = plans
    assert extractor(net) is net and (net.size, net.d, net.name) == (32, 96, 'plan classifier')
    f = features(net, test.x[:400])
    assert f.shape == (400, 96)
    noise = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8)
    assert kid(features(net, test.x[400:]), f)[0] < kid(features(net, noise), f)[0]
    assert features(net, labelled_creatures(3, 1, size=64).x).shape == (3, 96)  # another size is resized


def test_jitter_moves_whole_pictures():
    x = to_float(labelled_creatures(8).x)
    y = jitter(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean((1, 2, 3)), y.mean((1, 2, 3)))  # mirrored and moved: the same pixels
    assert not torch.equal(x, y) and torch.equal(y, jitter(x, torch.Generator().manual_seed(0)))


def test_mistakes_are_told_in_one_line():
    data = labelled_creatures(8, [0, 1])
    mistakes = [
        (data, 'colour of the hat', 'no label'),
        (Images(data.x), 'type', 'none'),
        (labelled_creatures(4, 0), 'species', 'two or more'),
    ]
    for images, label, said in mistakes:
        with pytest.raises(ValueError, match=said) as e: train_classifier(images, label)
        assert '\n' not in str(e.value)
    net = Classifier(('a', 'b'))
    for kw in (dict(sure=1.5), dict(sure=-1), dict(k=0)):
        with pytest.raises(ValueError, match='sure lies in'): coverage(data.x, net, **kw)
    broken = torch.full((4, 3, 32, 32), float('nan'))
    with pytest.raises(ValueError, match='not finite'): coverage(broken, net)
