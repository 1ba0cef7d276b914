"""Tracking leaves no trace in the training, keeps to its share of the time, never loses or spoils the
best checkpoint, and gives every family its curves."""
import time

import pytest
import torch

from pokegan.core import run_eval
from pokegan.data import Images
from pokegan.training.callbacks import LogCB, read_log
from pokegan.training.checkpoint import (
    CheckpointCB, flatten, load_state, read_tensors, unflatten, write_tensors)
from pokegan.training.trainer import Callback
from pokegan.metrics.features import extractor
from pokegan.metrics.tracking import Allowance, KIDCB, plot_curves, read_best
from pokegan.models.dcgan import GANRecipe
from pokegan.models.recipe import make_trainer
from pokegan.runs import resume, train
from pokegan import runs

RNG = torch.Generator().manual_seed(0)
IMAGES = Images(torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=RNG), source='noise')
TINY = dict(size=32, nz=16, ngf=8, ndf=8, batch=16)
SMALL = GANRecipe('small', '', **TINY)
KERAS = GANRecipe('keras', '', arch='keras', split_d=True, **TINY)  # it has dropout


class Spy:
    "The random extractor, counting its calls, perhaps slowly."
    name, size, d = 'spy', 64, 128

    def __init__(self, seconds=0.):
        self.net, self.calls, self.seconds = extractor('random', 'cpu'), 0, seconds

    def __call__(self, x):
        self.calls += 1
        time.sleep(self.seconds*len(x))
        return self.net(x)


def kid_callback(t, folder, extract=None, images=IMAGES, **kw):
    kw = dict(n=32, share=.9, every=1) | kw
    shown = t.nets.get('G_ema', t.nets['G'])
    return KIDCB(folder, shown, t.prior, images, extract or extractor('random', 'cpu'), **kw)


def tracked(folder, recipe=SMALL, extract=None, watch=True, log=True, **kw): # a trainer, and what tracks it
    t = make_trainer(recipe, IMAGES, 0, 'cpu')
    cb = kid_callback(t, folder, extract, **kw)
    if watch: t.callbacks.append(cb)
    if log: t.callbacks.append(LogCB(folder, every=1))
    folder.mkdir(exist_ok=True)
    return t, cb


class AfterStepCB(Callback):
    "One function of the trainer, called after each step."
    def __init__(self, f): self.after_step = f


def assert_same_networks(t, other):
    a, b = flatten(t.nets), flatten(other.nets)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def break_first(net): next(net.parameters()).data.fill_(float('nan'))


def pretend_that_it_was_best(file): # what was stored of the best, now with a KID that nothing can beat
    tensors, meta = read_tensors(file)
    meta |= dict(kid=-1.)
    write_tensors(file, tensors, **meta)
    return meta


@pytest.mark.parametrize('recipe', [SMALL, KERAS], ids=lambda r: r.name)
def test_not_a_bit_of_the_training_changes(tmp_path, recipe):
    a, _ = tracked(tmp_path/'a', recipe, watch=False)
    b, cb = tracked(tmp_path/'b', recipe)
    for t in (a, b): t.fit(steps=8)
    assert len(cb.curve) >= 3
    assert_same_networks(a, b)


def test_best_is_the_smallest_and_loads(tmp_path):
    t, cb = tracked(tmp_path)
    seen = {}
    def keep(t): seen[t.step] = flatten(t.nets)
    t.callbacks.append(AfterStepCB(keep))  # after KIDCB: the weights of each step
    t.fit(steps=12)
    step, value, se = min(cb.curve, key=lambda c: c[1])
    tensors, meta = read_tensors(tmp_path/'best.safetensors')
    assert (meta['step'], meta['kid'], meta['se']) == (step, value, se)
    assert meta['card']['n_fake'] == 32
    assert tensors.keys() == seen[step].keys()
    for k, v in tensors.items(): assert torch.equal(v, seen[step][k]), k
    G = SMALL.networks(1)['G']
    G.load_state_dict(unflatten(tensors, 'G'))
    assert torch.isfinite(run_eval(G, cb.z[:2])).all()


def test_log_has_kid_only_where_it_was_measured(tmp_path):
    t, cb = tracked(tmp_path, every=3)
    t.fit(steps=20)
    rows = read_log(tmp_path/'log.csv')
    logged = {r['step']: r['kid'] for r in rows if 'kid' in r}
    assert len(rows) == 20
    assert 1 < len(cb.curve) < 7
    assert list(logged) == [s for s, *_ in cb.curve]
    assert set(logged.values()) == {float(f'{v:.6g}') for _, v, _ in cb.curve}
    for word in ('KID:', 'best KID'): assert sum(n.startswith(word) for n in t.notes) == 1


def test_resume_keeps_the_best(tmp_path):
    t, cb = tracked(tmp_path)
    t.callbacks.append(CheckpointCB(tmp_path))
    t.fit(steps=8)
    old = cb.best
    meta = pretend_that_it_was_best(tmp_path/'best.safetensors')
    t, cb = tracked(tmp_path)
    t.callbacks.append(CheckpointCB(tmp_path))
    load_state(t, tmp_path/'state.safetensors')
    t.fit(steps=16)
    assert cb.curve
    assert read_best(tmp_path/'best.safetensors') == meta
    assert cb.best['step'] == old['step']
    assert sum(n.startswith('best KID') for n in t.notes) == 1


def test_resumed_and_tracked_equals_never_stopped(tmp_path):
    whole, _ = tracked(tmp_path/'whole', watch=False)
    whole.fit(steps=12)
    t, _ = tracked(tmp_path/'parts')
    t.callbacks.append(CheckpointCB(tmp_path/'parts'))
    t.fit(steps=5)
    t, _ = tracked(tmp_path/'parts')
    load_state(t, tmp_path/'parts/state.safetensors')
    t.fit(steps=12)
    assert_same_networks(whole, t)


def test_another_card_begins_anew(tmp_path):
    t, cb = tracked(tmp_path)
    t.fit(steps=4)
    pretend_that_it_was_best(tmp_path/'best.safetensors')
    t, cb = tracked(tmp_path, n=40)
    t.step = 4
    t.fit(steps=10)
    best = read_best(tmp_path/'best.safetensors')
    assert best['kid'] > -1
    assert best['card']['n_fake'] == 40


def test_a_new_run_ignores_the_best_of_another(tmp_path):
    (tmp_path/'best.safetensors').write_bytes(b'of another run')
    t, cb = tracked(tmp_path)
    t.fit(steps=5)
    assert read_best(tmp_path/'best.safetensors')['step'] <= 5


def test_a_broken_generator_spoils_nothing(tmp_path):
    t, cb = tracked(tmp_path)
    def break_at_6(t):
        if t.step == 6: break_first(t.nets['G'])
    t.callbacks.insert(0, AfterStepCB(break_at_6))
    t.fit(steps=14)
    assert cb.curve
    assert max(s for s, *_ in cb.curve) < 6
    assert 'kid' not in t.metrics
    tensors, meta = read_tensors(tmp_path/'best.safetensors')
    assert meta['step'] < 6
    assert all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())
    assert sum('NaN' in n for n in t.notes) == 1


def test_broken_discriminator_is_not_kept(tmp_path):
    t, cb = tracked(tmp_path, log=False)
    break_first(t.nets['D'])
    t.phases = []  # G stays as it is, and can be measured
    t.fit(steps=4)
    assert cb.curve
    assert not (tmp_path/'best.safetensors').exists()
    assert cb.best is None


def test_share_of_the_time(tmp_path):
    spy = Spy(.001)  # a look at 32 pictures takes 32 ms, a step a few
    t, cb = tracked(tmp_path, extract=spy, share=.04)
    t.fit(minutes=6/60)
    assert cb.curve, 'six seconds are enough for a look of 32 ms'
    assert cb.pace.spent/t.seconds < .05
    assert spy.calls <= len(cb.curve) + 3  # no call outside a look: eight pictures, reals, noise


def test_too_short_a_run_is_measured_once_at_its_end(tmp_path):
    t, cb = tracked(tmp_path, extract=Spy(.01), share=.001)
    t.fit(steps=3)
    assert [s for s, *_ in cb.curve] == [3]
    assert read_best(tmp_path/'best.safetensors')['step'] == 3


def test_only_the_first_process_looks(tmp_path):
    spy = Spy()
    t, cb = tracked(tmp_path, extract=spy, log=False)
    t.rank = 1
    t.fit(steps=5)
    assert spy.calls == 0
    assert not (tmp_path/'best.safetensors').exists()
    assert not t.notes


@pytest.mark.parametrize('share', [.01, .04, .2])
def test_allowance_keeps_its_share(share):
    g, pace, clock = torch.Generator().manual_seed(0), Allowance(share), 0.
    while clock < 5000:
        clock += .1
        if not pace.due(clock): continue
        pace.cost = 1 + 4*torch.rand(1, generator=g).item()
        pace.spent += pace.cost
        clock += pace.cost
        assert pace.spent/clock < share + 5/clock  # at most one look dearer than expected
    assert share*.9 < pace.spent/clock < share*1.05


def test_mistakes_are_told():
    with pytest.raises(ValueError, match='between 0 and 1'): Allowance(4)
    t = make_trainer(SMALL, IMAGES, 0, 'cpu')
    with pytest.raises(ValueError, match='16'): kid_callback(t, 'x', n=8)
    with pytest.raises(ValueError, match='too few'): kid_callback(t, 'x', images=Images(IMAGES.x[:9]))


def test_uneven_species_do_not_end_a_run(tmp_path):
    t, cb = tracked(tmp_path)
    cb.images = Images(IMAGES.x, dict(species=[0]*69 + [1]))
    t.fit(steps=5)
    assert cb.curve
    assert cb.card['split'] == 'picture'


def test_fit_twice_keeps_what_was_learned(tmp_path):
    t, cb = tracked(tmp_path, extract=Spy())
    t.fit(steps=5)
    ref, looks = cb.ref, len(cb.curve)
    t.fit(steps=9)
    assert cb.ref is ref
    assert len(cb.curve) > looks


def test_features_are_built_once_and_before_anything_is_loaded(tmp_path, monkeypatch):
    built, kw = [], dict(device='cpu', progress=False)
    def features(name, device):
        built.append(name)
        return extractor(name, device)
    monkeypatch.setattr(runs, 'named_features', features)
    train('dcgan-quick', IMAGES, tmp_path/'a', steps=1, track='random', size=32, ngf=8, ndf=8, **kw)
    assert built == ['random']
    assert read_best(tmp_path/'a/best.safetensors')['step'] == 1
    resume(tmp_path/'a', steps=2, data=IMAGES, **kw)
    assert built == ['random']*2
    with pytest.raises(ValueError, match='vgg'):
        train('dcgan-quick', 'nothing/here', tmp_path/'b', steps=1, track='vgg', device='cpu')
    assert not (tmp_path/'b').exists()


class Judge(Spy):
    "A spy that takes pictures for one of five kinds, so that there is an Inception Score."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(self.d, 5)


FAMILIES = {
    'dcgan-quick': dict(ngf=8, ndf=8),
    'aegan-quick': dict(ngf=8, ndf=8),
    'projected': dict(ngf=2, w=2, ndf=4, nz=12, resolution=32),
    'projected-instance': dict(ngf=2, w=2, ndf=4, nz=12, nc=5, resolution=32),
    'pokegan2-msg': dict(ngf=4, ndf=4, nz=12, components=3, pretrained=False)}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_gets_its_curves(name, tmp_path, monkeypatch):
    if 'projected' in name: pytest.importorskip('efficientnet_lite_pytorch')
    monkeypatch.setattr(runs, 'named_features', lambda name, device: Judge())
    changes = dict(size=32, batch=8) | FAMILIES[name]
    run = train(name, IMAGES, tmp_path/'r', steps=20, track='judge', device='cpu', progress=False, **changes)
    row = run.log[-1]
    assert {'fid', 'fid_real', 'IS', 'IS_real'} <= row.keys(), row.keys()
    assert row['step'] == 20 and row['fid'] > 0 and 1 <= row['IS'] <= 5
    assert (tmp_path/'r/curves.png').stat().st_size > 1000


def test_curves_stand_over_steps_or_epochs():
    rows = [dict(step=k, images=16*k, fid=9. - k, fid_real=1.) for k in (1, 2, 3)]
    for n, label, places in ((0, 'step', [1, 2, 3]), (32, 'epoch', [.5, 1, 1.5])):
        ax = plot_curves(rows, n=n).axes[0]
        assert ax.get_xlabel() == label
        assert list(ax.lines[0].get_xdata()) == places
