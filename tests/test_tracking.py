"Tracking leaves no trace in the training, keeps to its share of the time, and never loses or spoils the best checkpoint."
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
from pokegan.metrics.tracking import Allowance, KIDCB, read_best
from pokegan.models.dcgan import GANRecipe
from pokegan.models.recipe import make_trainer
from pokegan.runs import resume, train
from pokegan import recipes

IMAGES = Images(torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), source='noise')
SMALL = GANRecipe('small', '', size=32, nz=16, ngf=8, ndf=8, batch=16)
KERAS = GANRecipe('keras', '', arch='keras', split_d=True, size=32, nz=16, ngf=8, ndf=8, batch=16)  # it has dropout


class Spy:
    "The random extractor, counting its calls, perhaps slowly."
    name, size, d = 'spy', 64, 128

    def __init__(self, seconds=0.): self.net, self.calls, self.seconds = extractor('random', 'cpu'), 0, seconds

    def __call__(self, x):
        self.calls += 1
        time.sleep(self.seconds*len(x))
        return self.net(x)


def tracked(folder, recipe=SMALL, extract=None, watch=True, seed=0, log=True, **kw):
    t = make_trainer(recipe, IMAGES, seed, 'cpu')
    cb = KIDCB(folder, t.nets.get('G_ema', t.nets['G']), t.prior, IMAGES, extract or extractor('random', 'cpu'), **(dict(n=32, share=.9, every=1) | kw))
    t.callbacks += [cb]*watch + [LogCB(folder, every=1)]*log
    folder.mkdir(exist_ok=True)
    return t, cb


@pytest.mark.parametrize('recipe', [SMALL, KERAS], ids=lambda r: r.name)
def test_not_a_bit_of_the_training_changes(tmp_path, recipe):
    runs = [tracked(tmp_path/str(w), recipe, watch=w) for w in (False, True)]
    for t, _ in runs: t.fit(steps=8)
    (a, _), (b, cb) = runs
    assert len(cb.curve) >= 3
    a, b = flatten(a.nets), flatten(b.nets)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_best_is_the_smallest_and_loads(tmp_path):
    t, cb = tracked(tmp_path)
    seen = {}

    class Keep(Callback):  # after KIDCB: the weights of each step
        def after_step(self, t): seen[t.step] = flatten(t.nets)
    t.callbacks.append(Keep())
    t.fit(steps=12)
    step, value, se = min(cb.curve, key=lambda c: c[1])
    tensors, meta = read_tensors(tmp_path/'best.safetensors')
    assert (meta['step'], meta['kid'], meta['se']) == (step, value, se) and meta['card']['n_fake'] == 32
    assert tensors.keys() == seen[step].keys() and all(torch.equal(v, seen[step][k]) for k, v in tensors.items())
    G = SMALL.networks(1)['G']
    G.load_state_dict(unflatten(tensors, 'G'))
    assert torch.isfinite(run_eval(G, cb.z[:2])).all()


def test_log_has_kid_only_where_it_was_measured(tmp_path):
    t, cb = tracked(tmp_path, every=3)
    t.fit(steps=20)
    rows = read_log(tmp_path/'log.csv')
    assert [r['step'] for r in rows if 'kid' in r] == [s for s, *_ in cb.curve] and len(rows) == 20 and 1 < len(cb.curve) < 7
    assert {r['kid'] for r in rows if 'kid' in r} == {float(f'{v:.6g}') for _, v, _ in cb.curve}
    assert sum(n.startswith('KID:') for n in t.notes) == sum(n.startswith('best KID') for n in t.notes) == 1


def test_resume_keeps_the_best(tmp_path):
    t, cb = tracked(tmp_path)
    t.callbacks.append(CheckpointCB(tmp_path))
    t.fit(steps=8)
    old = cb.best
    tensors, meta = read_tensors(tmp_path/'best.safetensors')
    write_tensors(tmp_path/'best.safetensors', tensors, **(meta | dict(kid=-1.)))
    t, cb = tracked(tmp_path)
    t.callbacks.append(CheckpointCB(tmp_path))
    load_state(t, tmp_path/'state.safetensors')
    t.fit(steps=16)
    assert cb.curve and read_best(tmp_path/'best.safetensors') == meta | dict(kid=-1.) and cb.best['step'] == old['step']
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
    a, b = flatten(whole.nets), flatten(t.nets)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_another_card_begins_anew(tmp_path):
    t, cb = tracked(tmp_path)
    t.fit(steps=4)
    tensors, meta = read_tensors(tmp_path/'best.safetensors')
    write_tensors(tmp_path/'best.safetensors', tensors, **(meta | dict(kid=-1.)))
    t, cb = tracked(tmp_path, n=40)
    t.step = 4
    t.fit(steps=10)
    assert read_best(tmp_path/'best.safetensors')['kid'] > -1 and read_best(tmp_path/'best.safetensors')['card']['n_fake'] == 40


def test_a_new_run_ignores_the_best_of_another(tmp_path):
    (tmp_path/'best.safetensors').write_bytes(b'of another run')
    t, cb = tracked(tmp_path)
    t.fit(steps=5)
    assert read_best(tmp_path/'best.safetensors')['step'] <= 5


def test_a_broken_generator_spoils_nothing(tmp_path):
    class Break(Callback):
        def after_step(self, t):
            if t.step == 6: next(t.nets['G'].parameters()).data.fill_(float('nan'))
    t, cb = tracked(tmp_path)
    t.callbacks.insert(0, Break())
    t.fit(steps=14)
    assert cb.curve and max(s for s, *_ in cb.curve) < 6 and 'kid' not in t.metrics
    tensors, meta = read_tensors(tmp_path/'best.safetensors')
    assert meta['step'] < 6 and all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())
    assert sum('NaN' in n for n in t.notes) == 1


def test_broken_discriminator_is_not_kept(tmp_path):
    t, cb = tracked(tmp_path, log=False)
    next(t.nets['D'].parameters()).data.fill_(float('nan'))
    t.phases = []  # G stays as it is, and can be measured
    t.fit(steps=4)
    assert cb.curve and not (tmp_path/'best.safetensors').exists() and cb.best is None


def test_share_of_the_time(tmp_path):
    spy = Spy(.001)  # a look at 32 pictures takes 32 ms, a step a few
    t, cb = tracked(tmp_path, extract=spy, share=.04)
    t.fit(minutes=6/60)
    assert cb.curve, 'six seconds are enough for a look of 32 ms'
    assert cb.pace.spent/t.seconds < .05
    looks = spy.calls
    assert looks <= len(cb.curve) + 3  # no call outside a look: eight pictures, reals, noise


def test_too_short_a_run_is_measured_once_at_its_end(tmp_path):
    spy = Spy(.01)
    t, cb = tracked(tmp_path, extract=spy, share=.001)
    t.fit(steps=3)
    assert [s for s, *_ in cb.curve] == [3] and read_best(tmp_path/'best.safetensors')['step'] == 3


def test_only_the_first_process_looks(tmp_path):
    spy = Spy()
    t, cb = tracked(tmp_path, extract=spy, log=False)
    t.rank = 1
    t.fit(steps=5)
    assert spy.calls == 0 and not (tmp_path/'best.safetensors').exists() and not t.notes


@pytest.mark.parametrize('share', [.01, .04, .2])
def test_allowance_keeps_its_share(share):
    g, pace, clock = torch.Generator().manual_seed(0), Allowance(share), 0.
    while clock < 5000:
        clock += .1
        if pace.due(clock):
            pace.cost = 1 + 4*torch.rand(1, generator=g).item()
            pace.spent += pace.cost
            clock += pace.cost
            assert pace.spent/clock < share + 5/clock  # at most one look dearer than expected
    assert share*.9 < pace.spent/clock < share*1.05


def test_mistakes_are_told():
    with pytest.raises(ValueError, match='between 0 and 1'): Allowance(4)
    t = make_trainer(SMALL, IMAGES, 0, 'cpu')
    with pytest.raises(ValueError, match='16'): KIDCB('x', t.nets['G'], t.prior, IMAGES, extractor('random', 'cpu'), n=8)
    with pytest.raises(ValueError, match='too few'): KIDCB('x', t.nets['G'], t.prior, Images(IMAGES.x[:9]), extractor('random', 'cpu'))


def test_uneven_species_do_not_end_a_run(tmp_path):
    t, cb = tracked(tmp_path)
    cb.images = Images(IMAGES.x, dict(species=[0]*69 + [1]))
    t.fit(steps=5)
    assert cb.curve and cb.card['split'] == 'picture'


def test_fit_twice_keeps_what_was_learned(tmp_path):
    spy = Spy()
    t, cb = tracked(tmp_path, extract=spy)
    t.fit(steps=5)
    ref, looks = cb.ref, len(cb.curve)
    t.fit(steps=9)
    assert cb.ref is ref and len(cb.curve) > looks


def test_features_are_built_once_and_before_anything_is_loaded(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(recipes, 'named_features', lambda name, device: built.append(name) or extractor(name, device))
    train('dcgan-quick', IMAGES, tmp_path/'a', steps=1, track='random', device='cpu', progress=False, size=32, ngf=8, ndf=8)
    assert built == ['random'] and read_best(tmp_path/'a/best.safetensors')['step'] == 1
    resume(tmp_path/'a', steps=2, data=IMAGES, device='cpu', progress=False)
    assert built == ['random']*2
    with pytest.raises(ValueError, match='vgg'): train('dcgan-quick', 'nothing/here', tmp_path/'b', steps=1, track='vgg', device='cpu')
    assert not (tmp_path/'b').exists()
