"""Hold-outs are fair and the same for everyone, labels are looked up rightly,
the schedule needs no memory."""
import math

import pytest
import torch
from torch import nn

from pokegan.data import Images
from pokegan.training.trainer import adam, Callback, Trainer
from pokegan.metrics.coverage import labelled_creatures
from pokegan.models.classifier import (
    accuracy, AccuracyCB, by_label, by_rotation, classifier_phases, rotate, rows_together,
    split_rows, subset, three_sets, turned)


def noise(n=40, size=16, **labels):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g)
    return Images(x, labels, source='noise')


def small(n): return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(128, n))


def test_every_class_is_held_out_in_proportion():
    y = torch.tensor([0]*100 + [1]*40 + [2]*20 + [3]*3)
    rows = split_rows(noise(163), y)
    assert sorted(torch.cat([*rows.values()]).tolist()) == list(range(163))
    for k in ('val', 'test'):
        for c, n in enumerate((100, 40, 20, 3)): assert abs(int((y[rows[k]] == c).sum()) - n/10) <= 1
    assert all(torch.equal(a, b) for a, b in zip(rows.values(), split_rows(noise(163), y).values()))
    assert not torch.equal(rows['val'], split_rows(noise(163), y, seed=1)['val'])


def test_a_column_split_decides():
    images = noise(6, split=['train', 'test', 'val', 'train', 'test', 'other'], name=list('abcabc'))
    names, sets = three_sets(images)
    assert names == ('a', 'b', 'c')
    classes = {k: s.labels['class'] for k, s in sets.items()}
    assert classes == dict(train=[0, 0], val=[2], test=[1, 1])
    assert torch.equal(sets['test'].x, images.x[[1, 4]])


def test_class_numbers_are_the_same_in_all_three_sets():
    names, sets = three_sets(labelled_creatures(60, [7, 3, 9], 16))
    assert names == (3, 7, 9)
    for s in sets.values(): assert [names[c] for c in s.labels['class']] == s.labels['species']


@pytest.mark.parametrize('labels', [{}, dict(look=['big']*40), dict(species=[1]*40)])
def test_unlabelled_images_are_refused_in_one_line(labels):
    with pytest.raises(ValueError) as e: three_sets(noise(**labels))
    assert 'label' in str(e.value) and '\n' not in str(e.value)


def test_part_keeps_rows_together():
    images = noise(5, k=list('abcde'))
    p = subset(images, torch.tensor([4, 0, 4]), extra=[1, 2, 3])
    assert p.labels == dict(k=['e', 'a', 'e'], extra=[1, 2, 3]) and torch.equal(p.x, images.x[[4, 0, 4]])
    p.x.zero_()
    assert images.x.any(), 'a copy'


def test_turn_is_numpys_rot90_for_each_picture():
    x = noise(4).x
    for i, t in enumerate(rotate(x, torch.tensor([0, 1, 2, 3]))):
        assert torch.equal(t, torch.rot90(x[i], i, (1, 2)))
    four = turned(noise(3))
    assert four.labels['class'] == [0]*3 + [1]*3 + [2]*3 + [3]*3
    assert torch.equal(four.x[4], torch.rot90(noise(3).x[1], 1, (1, 2)))


def test_labels_belong_to_their_pictures():
    images = noise(**{'class': list(range(40))})
    E = small(40)
    t = Trainer(dict(E=E), classifier_phases(E, adam(E)), images, None, 16, bf16=False)
    for _ in range(4): # over the end of an epoch
        t.one_step()
        x, y = by_label(t.batch)
        assert torch.allclose(x, images.x[y]/127.5 - 1, atol=1e-6)
    x, y = by_rotation(t.batch)
    assert torch.equal(rotate(x, -y % 4), t.batch.x) and len(y.unique()) == 4


def test_only_the_classifier_learns_and_smoothing_is_the_textbook_one():
    images = noise(**{'class': [i % 3 for i in range(40)]})
    E, other = small(3), small(3)
    phases = classifier_phases(E, adam(E), smoothing=.1)
    t = Trainer(dict(E=E, other=other), phases, images, None, 16, bf16=False)
    before = [p.clone() for p in E.parameters()], [p.clone() for p in other.parameters()]
    E2 = small(3)
    E2.load_state_dict(E.state_dict())
    t.one_step()
    x, y = by_label(t.batch)
    target = torch.full((16, 3), .1/3).scatter_(1, y[:, None], .9 + .1/3)
    assert torch.allclose(t.logs['C/loss'], -(target*E2(x).log_softmax(1)).sum(1).mean(), atol=1e-5)
    assert all(not torch.equal(a, b) for a, b in zip(before[0], E.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before[1], other.parameters()))


def test_accuracy_agrees_with_scikit_learn():
    from sklearn.metrics import log_loss, top_k_accuracy_score
    images = noise(200, **{'class': [i % 10 for i in range(200)]})
    torch.manual_seed(0)
    E = small(10).train()
    a = accuracy(E, images, batch=64)
    with torch.no_grad(): p = E(images.x/127.5 - 1).softmax(1).double().numpy()
    y = images.labels['class']
    assert a['top1'] == pytest.approx(top_k_accuracy_score(y, p, k=1))
    assert a['top5'] == pytest.approx(top_k_accuracy_score(y, p, k=5))
    assert a['loss'] == pytest.approx(log_loss(y, p/p.sum(1, keepdims=True)), rel=1e-4) and E.training
    few = subset(images, torch.arange(3), **{'class': [0, 1, 2]})
    assert accuracy(small(3), few)['top5'] == 1, 'fewer than five classes'


def test_who_answers_by_the_batch_is_asked_in_mixed_company():
    "And each answer is held against its own picture's class."
    images = noise(41, **{'class': [i//5 for i in range(41)]})
    E = nn.Sequential(small(9), nn.BatchNorm1d(9, track_running_stats=False)).eval()
    assert torch.equal(torch.cat(rows_together(small(9), 41, 20)), torch.arange(41)), 'others in order'
    rows = rows_together(E, 41, 20)
    assert [len(r) for r in rows] == [14, 14, 13], 'nobody is left alone'
    assert torch.cat(rows).sort().values.tolist() == list(range(41))
    with torch.no_grad(): right = sum((E(images.x[r]/127.5 - 1).argmax(1) == r//5).sum().item() for r in rows)
    assert accuracy(E, images, batch=20)['top1'] == pytest.approx(right/41)


class NoteCB(Callback): # notes the steps with a look, and stops once
    def __init__(self, at, stop): self.at, self.stop = at, stop
    def after_step(self, t):
        if t.metrics.pop('val/top1', None) is not None: self.at.append(t.step)
        t.stop = 'x' if t.step == self.stop else ''


def test_looks_come_at_the_same_steps_however_often_one_stops():
    images = noise(**{'class': [0, 1]*20})
    def looks(stops):
        at, E = [], small(2)
        cb = AccuracyCB(E, images, looks=4)
        t = Trainer(dict(E=E), classifier_phases(E, adam(E)), images, None, 8, callbacks=[cb])
        for s in (*stops, 20):
            t.callbacks = [cb, NoteCB(at, s)]
            t.fit(steps=20)
        return at
    assert looks([]) == looks([3, 11]) == [5, 10, 15, 20]


def test_rotation_needs_no_labels():
    images = noise()
    E = small(4)
    t = Trainer(dict(E=E), classifier_phases(E, adam(E), by_rotation), images, None, 8).fit(steps=2)
    assert math.isfinite(t.logs['C/loss'])
