"""The command as a user types it: starts fast, trains, samples, and answers a mistake with one line."""
import json, os, subprocess, sys, time

import pytest
from PIL import Image

from pokegan.cli import main

ENV = os.environ | dict(OMP_NUM_THREADS='1')


def pokegan(*words, cwd, ok=True):
    p = subprocess.run([sys.executable, '-m', 'pokegan', *map(str, words)], cwd=cwd, capture_output=True, text=True, env=ENV, timeout=60)
    assert (p.returncode == 0) == ok, p.stdout + p.stderr
    return p


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of twelve steps on sixty-four creatures."
    at = tmp_path_factory.mktemp('cli')
    out = pokegan('train', '--data', 'creatures:64', '--steps', 12, '--size', 32, '--run', 'first', '--seed', 3, cwd=at).stdout
    assert 'step 12' in out and 'pokegan sample first' in out
    return at/'first'


def seconds(*code) -> float:
    t0 = time.perf_counter()
    subprocess.run([sys.executable, *code], check=True, capture_output=True)
    return time.perf_counter() - t0


def test_starts_fast():
    bare = min(seconds('-c', 'pass') for _ in range(3))
    assert min(seconds('-c', 'import pokegan') for _ in range(3)) - bare < .2
    assert min(seconds('-m', 'pokegan', '--help') for _ in range(3)) < 1


def test_run_folder_is_complete(run):
    assert {'run.json', 'log.csv', 'last.safetensors', 'state.safetensors', 'progress.gif', 'samples'} <= {p.name for p in run.iterdir()}
    info = json.loads((run/'run.json').read_text())
    assert info['schema'] == 1 and info['step'] == 12 and info['seed'] == 3 and info['recipe']['size'] == 32
    assert len(info['data']['fingerprint']) == 16 and info['data']['source'] == 'creatures:64' and info['versions']['torch']
    with Image.open(run/'progress.gif') as g: assert g.n_frames > 1


def test_sample_is_repeatable_and_truncation_changes_it(run):
    for name, words in dict(a=(), b=(), c=('--truncation', .5), d=('--seed', 1), e=('--psi', .5)).items():
        pokegan('sample', run, '--n', 6, '--out', f'{name}.png', '--each', f'each-{name}', *words, cwd=run.parent)
    a, b, *others = ((run.parent/f'{k}.png').read_bytes() for k in 'abcde')
    assert a == b and len({a, *others}) == 4
    assert len(list((run.parent/'each-a').glob('*.png'))) == 6
    with Image.open(run.parent/'each-a/00000.png') as im: assert im.size == (32, 32)


def test_resume_goes_on(run):
    pokegan('train', '--resume', '--run', run, '--steps', 15, cwd=run.parent)
    assert json.loads((run/'run.json').read_text())['step'] == 15


def test_data_prepares_and_trains(tmp_path, run):
    folder = tmp_path/'mine'
    folder.mkdir()
    for i in range(9): Image.radial_gradient('L').rotate(40*i).point(lambda v, i=i: (v*(i+3)) % 256).convert('RGB').resize((50+i, 40)).save(folder/f'{i}.png')
    (folder/'notes.txt').write_text('x')
    out = pokegan('data', folder, '--size', 32, '--out', 'prepared', cwd=tmp_path).stdout
    assert '9 images of 32 px are in prepared' in out and 'skip' in out
    pokegan('train', '--data', 'prepared', '--size', 32, '--steps', 2, '--run', 'r', cwd=tmp_path)
    pokegan('train', '--recipe', 'dcgan-quick:ngf=8,betas=0/0.9', '--data', 'prepared', '--size', 32, '--steps', 2, '--run', 'c', cwd=tmp_path)
    changed = json.loads((tmp_path/'c'/'run.json').read_text())['recipe']
    assert (changed['name'], changed['ngf'], changed['betas'], changed['size']) == ('dcgan-quick', 8, [0., .9], 32)
    other = pokegan('train', '--resume', '--run', run, '--steps', 20, '--data', 'prepared', cwd=tmp_path, ok=False)
    assert 'other images' in other.stderr


def test_recipes_lists_and_shows(tmp_path):
    names = pokegan('recipes', cwd=tmp_path).stdout
    assert all(n in names for n in ('dcgan-quick', 'dcgan-keras', 'dcgan-uniform', 'dcgan-fc-32', 'dcgan-fc-64', 'dcgan-fc-128', 'dcgan-819'))
    assert 'target_noise' in pokegan('recipes', 'dcgan-819', cwd=tmp_path).stdout


MISTAKES = {
    'train --recipe dcgan-820': 'dcgan-819', 'train --size 65': '64', 'train --size big': 'size', 'train --data nowhere': 'creatures',
    'train --data creatures:none': 'creatures', 'train --minutes -1': 'minutes', 'train --steps 0': 'steps', 'train --steps 1 --device abacus': 'cpu',
    'train --colour red': 'colour', 'train --resume': 'pokegan train', 'train --resume --run nowhere': 'nowhere', 'sample nowhere': 'pokegan train',
    'sample': "'run'", 'paint': 'paint', 'recipes dcgan-820': 'dcgan-819', 'data nowhere.zip': 'nowhere.zip', 'data . --background puce': 'puce',
    'data . --fit squeeze': 'pad', 'train --recipe dcgan-quick:ngf=wide': 'ngf', 'train --recipe dcgan-quick:colour=red': 'colour',
}


@pytest.mark.parametrize('words', MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(words, tmp_path):
    p = pokegan(*words.split(), cwd=tmp_path, ok=False)
    assert p.returncode == 2 and p.stdout == '' and len(p.stderr.strip().splitlines()) == 1, p.stdout + p.stderr
    assert p.stderr.startswith('pokegan: ') and MISTAKES[words] in p.stderr and 'Traceback' not in p.stderr


def test_a_mistake_about_a_run(run, tmp_path):
    for words, hint in ((('sample', run, '--n', 0), 'at least 1'), (('sample', run, '--truncation', -1), 'above 0'), (('sample', run, '--psi', 2), 'from 0 to 1'),
                        (('train', '--run', run), '--resume'), (('sample', run, '--out', 'no/such/folder/x.png'), 'no/such/folder')):
        p = pokegan(*words, cwd=tmp_path, ok=False)
        assert p.returncode == 2 and hint in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr


def test_resume_removes_frames_later_than_its_checkpoint(tmp_path):
    run = tmp_path/'r'
    pokegan('train', '--data', 'creatures:32', '--size', 32, '--steps', 4, '--run', run, cwd=tmp_path)
    (run/'samples/0000999.png').write_bytes((run/'samples/0000004.png').read_bytes())
    pokegan('train', '--resume', '--run', run, '--steps', 6, cwd=tmp_path)
    assert sorted(int(p.stem) for p in (run/'samples').glob('*.png'))[-1] == 6


def test_walk_through_latents(run, tmp_path):
    films = dict(a=(), b=(), c=('--seed', 1), d=('--truncation', .5), e=('--psi', .3), f=('--stops', 3), g=('--loop',))
    for name, words in films.items(): main(['walk', str(run), '--frames', '9', '--out', str(tmp_path/f'{name}.gif'), *map(str, words)])
    a, b, *others = ((tmp_path/f'{k}.gif').read_bytes() for k in films)
    assert a == b and len({a, *others}) == 6
    pytest.importorskip('imageio_ffmpeg')
    assert 'through 4 latents of seed 0 are in walk.mp4' in pokegan('walk', run, '--frames', 5, '--out', 'walk.mp4', cwd=tmp_path).stdout
    assert (tmp_path/'walk.mp4').read_bytes()[4:8] == b'ftyp'


@pytest.mark.parametrize('words, hint', [('--out walk.webm', '.mp4'), ('--frames 3', '4 or more'), ('--stops 1', 'stops'), ('--stops 5 --frames 4', '5 or more'),
    ('--truncation 0', 'above 0'), ('--psi -1', 'from 0 to 1'), ('--between a.png', 'between'), ('--out no/such/folder/x.gif', 'no/such/folder'), ('--between a.png b.png --stops 3', 'leave out')])
def test_a_mistake_about_a_walk(run, tmp_path, words, hint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: main(['walk', str(run), *words.split()])
    said = capsys.readouterr()
    assert e.value.code == 2 and said.out == '' and hint in said.err and said.err.count('\n') == 1, said.err
    assert not list(tmp_path.iterdir())


def test_walk_between_two_pictures(run, tmp_path):
    pokegan('train', '--recipe', 'aegan', '--data', 'creatures:64', '--steps', 40, '--size', 32, '--run', 'road', cwd=tmp_path)
    pokegan('sample', run, '--n', 2, '--each', tmp_path/'ends', cwd=tmp_path)
    ends = sorted((tmp_path/'ends').glob('*.png'))
    pokegan('walk', 'road', '--between', *ends, '--frames', 5, cwd=tmp_path)
    with Image.open(tmp_path/'walk.gif') as gif: assert 2 <= gif.n_frames <= 5 and gif.size == (32, 32)  # equal neighbours become one
    assert list((tmp_path/'road/reconstructions').glob('*.png'))
    for words, said in ((('walk', run, '--between', *ends), 'has no encoder'), (('walk', 'road', '--between', ends[0], 'none.png'), 'none.png'),
                        (('walk', 'road', '--between', *ends, '--frames', 1), '2 or more')):
        p = pokegan(*words, cwd=tmp_path, ok=False)
        assert p.returncode == 2 and p.stderr.count('\n') == 1 and said in p.stderr, p.stderr


def test_pokegan2_does_its_three_steps_and_goes_on(tmp_path):
    "An encoder, a generator that paints from its embeddings, a GAN that starts there: one command, one folder."
    pokegan('train', '--recipe', 'pokegan2-msg', '--data', 'creatures:100', '--size', 32, '--steps', 2, '--run', 'mine', cwd=tmp_path)
    at = tmp_path/'mine'
    info = {k: json.loads((at/k/'run.json').read_text()) for k in ('encoder', 'pretrain', '.')}
    assert [i['step'] for i in info.values()] == [2, 2, 2] and [i['recipe']['family'] for i in info.values()] == ['encoder', 'pokegan2-pretrain', 'pokegan2']
    assert list((at/'pretrain/reconstructions').glob('*.png'))
    before = (at/'pretrain/last.safetensors').read_bytes()
    (at/'state.safetensors').unlink()  # as if it had been killed before step 3
    pokegan('train', '--resume', '--run', 'mine', cwd=tmp_path)
    pokegan('train', '--resume', '--run', 'mine', '--steps', 3, cwd=tmp_path)
    assert json.loads((at/'run.json').read_text())['step'] == 3 and (at/'pretrain/last.safetensors').read_bytes() == before
    pokegan('sample', 'mine', '--n', 4, cwd=tmp_path)
    assert 'trains E' in pokegan('sample', 'mine/encoder', cwd=tmp_path, ok=False).stderr
