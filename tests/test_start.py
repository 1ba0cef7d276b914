"""A run that begins from another: what it takes, what run.json says of it, what is refused, exact resume."""
import shutil
from dataclasses import replace

import pytest
import torch

from pokegan.data import load_images, to_float
from pokegan.models.recipe import make_trainer, read_info
from pokegan.models.transfer import Start
from pokegan.publish import publish
from pokegan.recipes import recipe
from pokegan.runs import load_run, open_start, resume, train
from pokegan.training.checkpoint import flatten
from pokegan.training.schedules import linear
from test_cli import refused
from test_projected import SMALL as PROJECTED

TINY = dict(size=16, nz=8, ngf=4, ndf=4, batch=8)
INSTANCE = PROJECTED | dict(lr_decay=0., zoom_share=0., nc=5)
HOW = dict(progress=False, device='cpu')


@pytest.fixture(scope='module')
def images(): return load_images('creatures:40', 16, progress=False)


@pytest.fixture(scope='module')
def first(images, tmp_path_factory):
    return train('dcgan-quick', images, tmp_path_factory.mktemp('start')/'first', steps=6, **HOW, **TINY)


def equal(a, b): return all(torch.equal(v, flatten(b)[k]) for k, v in flatten(a).items())


def test_networks_begin_where_the_other_run_ended(images, first):
    "G and its average where that run's average was, D where its D was; the rest is new."
    r = recipe('dcgan-quick', start=str(first.folder), **TINY)
    start = open_start(r)
    t = make_trainer(r, images, seed=3, device='cpu', start=start)
    assert equal(dict(G=first.nets['G']), dict(G=t.nets['G']))
    assert equal(dict(G=first.nets['G']), dict(G=t.nets['G_ema']))
    assert equal(dict(D=first.nets['D']), dict(D=t.nets['D']))
    assert not any(p.opt.state for p in t.phases)
    wide = replace(r, ndf=8)
    assert set(open_start(wide).nets) == {'G'} # a D of another shape stays new
    make_trainer(wide, images, device='cpu', start=open_start(wide))


def test_run_json_says_where_it_began_and_it_resumes_without_that(images, first, tmp_path):
    old = shutil.copytree(first.folder, tmp_path/'old')
    kw = HOW | dict(start=str(old), lr_warmup=.5)
    train('dcgan-quick', images, tmp_path/'a', steps=8, **kw, **TINY)
    train('dcgan-quick', images, tmp_path/'b', steps=8, **kw, **TINY)
    train('dcgan-quick', images, tmp_path/'c', steps=3, **(kw | dict(lr_warmup=0.)), **TINY)
    shutil.rmtree(old)
    c = resume(tmp_path/'c', steps=6, data=images, **HOW)
    facts = dict(name='old', recipe='dcgan-quick', step=6, networks=['D', 'G'],
                 data=dict(source='creatures:40', n=40, fingerprint=images.fingerprint))
    for k in 'abc': assert read_info(tmp_path/k)['start'] == facts
    assert read_info(tmp_path/'c')['recipe']['start'] == str(old)
    a, b = load_run(tmp_path/'a'), load_run(tmp_path/'b')
    assert equal(a.nets, b.nets)
    whole = tmp_path/'whole'
    train('dcgan-quick', images, whole, steps=6, **(HOW | dict(start=str(first.folder))), **TINY)
    assert equal(load_run(whole).nets, c.nets)


def test_what_was_begun_elsewhere_is_published_with_its_origin(images, first, tmp_path):
    def begin(start, data, name):
        return train('dcgan-quick', data, tmp_path/name, steps=1, start=str(start), **HOW, **TINY).folder
    other = images.take(range(30))
    other.source = 'my/pictures'
    elsewhere = begin(begin(first.folder, other, 'mine'), images, 'again')
    info = read_info(publish(elsewhere, tmp_path/'out').folder)
    assert info['start']['start']['name'] == 'first' and info['recipe']['start'] == 'mine'
    card = (tmp_path/'out/README.md').read_text(encoding='utf-8')
    assert '`mine` at step 1, trained on my/pictures' in card
    assert 'No licence is named' in card # its last data were creatures, those before were not
    assert set(load_run(tmp_path/'out').nets) == {'G'}
    trainable = publish(begin(first.folder, images, 'ours'), tmp_path/'with-d', trainable=True)
    assert set(trainable.nets) == {'G', 'D'}
    assert 'Apache-2.0' in (tmp_path/'with-d/README.md').read_text(encoding='utf-8')
    r = recipe('dcgan-quick', start=str(tmp_path/'with-d'), **TINY)
    assert set(open_start(r).nets) == {'G', 'D'}


def test_warm_up():
    assert [linear(p, 0, .2) for p in (0, .1, .2, 1)] == [0, .5, 1, 1]
    assert [linear(p, .5, .2) for p in (.1, .5, .75, 1)] == [.5, 1, .5, 0]
    assert recipe('dcgan-quick', lr_warmup=.5, lr_decay=0.).schedule()(.25) == .5
    with pytest.raises(ValueError, match='lr_warmup is 2'): recipe('dcgan-quick', lr_warmup=2.)


def test_codes_stay_in_the_basis_they_came_with(tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    images = load_images('creatures:40', 32, progress=False)
    run = train('projected-instance', images, tmp_path/'a', steps=1, **HOW, **INSTANCE)
    few = images.take(range(4)) # too few for axes of their own
    r = recipe('projected-instance', start=str(run.folder), **INSTANCE)
    t = make_trainer(r, few, device='cpu', start=open_start(r))
    codes, was = t.nets['codes'], run.nets['codes']
    assert torch.equal(codes.axes, was.axes)
    torch.testing.assert_close(codes.codes, was.codes[:4], atol=1e-3, rtol=0)
    again = train(r, few, tmp_path/'b', steps=1, **HOW)
    torch.testing.assert_close(again.encode(to_float(few.x))[:, 12:], codes.codes, atol=1e-3, rtol=0)


def test_finetune_on_five_pictures(tmp_path, capsys):
    pytest.importorskip('efficientnet_lite_pytorch')
    five = load_images('creatures:5', 64, progress=False)
    r = recipe('finetune')
    plain = recipe('projected-instance', lr_decay=.1, zoom_share=.3, diffaug='translation+cutout',
                   copies=.2)
    assert replace(r, **{k: getattr(plain, k) for k in ('name', 'source', 'differs')}, start='') == plain
    run = train('finetune', five, tmp_path/'a', steps=2, **(HOW | dict(progress=True)))
    assert capsys.readouterr().out.startswith('5 pictures are few: ')
    assert run.info['start']['name'] == 'creatures-projected'
    assert torch.equal(run.nets['codes'].axes, load_run('creatures-projected').nets['codes'].axes)
    assert run.nets['codes'].codes.shape == (5, 32) and run.sample(3).isfinite().all()


@pytest.mark.parametrize('name, changes, hint', [
    ('projected-instance', {}, 'it is of the family gan, not instance'),
    ('encoder-species', {}, 'it is of the family gan, not encoder'),
    ('dcgan-quick', TINY | dict(size=32), 'size is 16 there and 32 here'),
    ('dcgan-quick', TINY | dict(ngf=8, nz=9), 'nz is 8 there and 9 here and ngf is 4 there and 8 here'),
    ('dcgan-quick', dict(start='no/such'), 'no/such is not a run folder'),
    ('projected-instance', dict(start='creatures-projected', resolution=128), 'at 96 px, not'),
    ('projected-instance', dict(start='creatures-projected', size=32), 'size is 64 there and 32 here'),
    ('pokegan2-msg', {}, 'it begins with its own pre-training')])
def test_what_does_not_fit_is_refused(first, tmp_path, name, changes, hint):
    changes = dict(start=str(first.folder)) | changes
    with pytest.raises(ValueError, match=hint) as e:
        train(name, 'creatures:40', tmp_path/'new', steps=1, **HOW, **changes)
    assert '\n' not in str(e.value) and not (tmp_path/'new').exists()


def test_an_old_run_without_axes(tmp_path):
    from test_old_runs import OLD
    old = load_run(OLD/'instance')
    r = replace(old.recipe, start=str(OLD/'instance'))
    with pytest.raises(ValueError, match='its codes have no axes'): open_start(r)
    with pytest.raises(ValueError, match='cannot read pictures'): old.encode(torch.zeros(1, 3, 16, 16))


def test_command(first, tmp_path):
    words = '--steps 1 --data creatures:40 --run x'.split()
    assert 'not a run folder' in refused('train', '--start', 'nowhere', *words, cwd=tmp_path)
    assert 'leave out --start' in refused('train', '--resume', '--start', first.folder, cwd=tmp_path)
    assert not (tmp_path/'x').exists()


def test_start_fills_nothing_where_a_run_goes_on(): Start(dict(name='x')).fill({})
