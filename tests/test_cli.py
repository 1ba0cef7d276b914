"""The command as a user types it: starts fast, trains, samples, and answers a mistake with one line."""
import json, os, subprocess, sys, time

import fresh
import pytest
from PIL import Image

from pokegan.cli import main

ENV = os.environ | dict(OMP_NUM_THREADS='1')


def pokegan(*words, cwd, ok=True):
    p = fresh.run(words, cwd, ENV)
    assert (p.returncode == 0) == ok, p.stdout + p.stderr
    return p


def refused(*words, cwd): # the one line on stderr
    p = pokegan(*words, cwd=cwd, ok=False)
    assert p.returncode == 2, p.stdout + p.stderr
    assert p.stderr.count('\n') == len(p.stderr.strip().splitlines()) == 1, p.stderr
    return p.stderr


def read_info(run): return json.loads((run/'run.json').read_text(encoding='utf-8'))
def pictures(folder): return sorted(folder.glob('*.png'))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of twelve steps on sixty-four creatures."
    at = tmp_path_factory.mktemp('cli')
    words = '--recipe dcgan-quick --data creatures:64 --steps 12 --size 32 --run first --seed 3'.split()
    out = pokegan('train', *words, cwd=at).stdout
    assert 'step 12' in out and 'pokegan sample first' in out
    return at/'first'


def seconds(*code) -> float: # the fastest of three
    times = []
    for _ in range(3):
        t0 = time.perf_counter()
        subprocess.run([sys.executable, *code], check=True, capture_output=True)
        times.append(time.perf_counter() - t0)
    return min(times)


def test_starts_fast():
    assert seconds('-c', 'import pokegan') - seconds('-c', 'pass') < .2
    assert seconds('-m', 'pokegan', '--help') < 1


def test_run_folder_is_complete(run):
    files = {'run.json', 'log.csv', 'last.safetensors', 'state.safetensors', 'progress.gif', 'samples'}
    assert files <= {p.name for p in run.iterdir()}
    info = read_info(run)
    assert info['schema'] == 1 and info['versions']['torch']
    assert (info['step'], info['seed'], info['recipe']['size']) == (12, 3, 32)
    assert info['data']['source'] == 'creatures:64'
    assert len(info['data']['fingerprint']) == 16
    with Image.open(run/'progress.gif') as g: assert g.n_frames > 1


def test_sample_is_repeatable_and_truncation_changes_it(run):
    at = run.parent
    knobs = dict(a=(), b=(), c=('--truncation', .5), d=('--seed', 1), e=('--psi', .5))
    for name, words in knobs.items():
        pokegan('sample', run, '--n', 6, '--out', f'{name}.png', '--each', f'each-{name}', *words, cwd=at)
    a, b, *others = ((at/f'{k}.png').read_bytes() for k in knobs)
    assert a == b
    assert len({a, *others}) == 4
    each = pictures(at/'each-a')
    assert len(each) == 6 and each[0].name == '00000.png'
    with Image.open(each[0]) as im: assert im.size == (32, 32)


def test_sample_like_pictures(run, tmp_path):
    pytest.importorskip('efficientnet_lite_pytorch')
    ready = 'creatures-projected'
    pokegan('sample', ready, '--n', 3, '--each', 'mine', '--out', 'few.png', cwd=tmp_path)
    (tmp_path/'mine/note.txt').write_text('no picture')
    pokegan('sample', ready, '--like', 'mine', '--n', 5, '--out', 'rows.png', '--each', 'new', cwd=tmp_path)
    with Image.open(tmp_path/'rows.png') as im: assert im.size == (6*66 + 2, 3*66 + 2)
    with Image.open(tmp_path/'rows.png') as im, Image.open(tmp_path/'mine/00001.png') as first:
        tile = im.crop((2, 68, 66, 132))
        assert tile.tobytes() == first.convert('RGB').tobytes() # each row begins with what was given
    assert len(pictures(tmp_path/'new')) == 15
    for name, seed in dict(a=0, b=0, c=1).items():
        words = '--like', 'mine/00000.png', '--seed', seed, '--out', f'{name}.png'
        pokegan('sample', ready, *words, cwd=tmp_path)
    a, b, c = ((tmp_path/f'{k}.png').read_bytes() for k in 'abc')
    assert a == b != c
    assert 'cannot read pictures' in refused('sample', run, '--like', 'mine', cwd=tmp_path)
    for words, hint in {('mine/note.txt',): 'give a picture', ('none.png',): 'none.png',
                        ('mine', '--psi', .5): 'leave out', ('mine', '--n', 0): 'at least 1'}.items():
        assert hint in refused('sample', ready, '--like', *words, '--out', 'no.png', cwd=tmp_path)
    assert not (tmp_path/'no.png').exists()


def test_resume_goes_on(run):
    pokegan('train', '--resume', '--run', run, '--steps', 15, cwd=run.parent)
    assert read_info(run)['step'] == 15


def draw_nine(folder): # no two alike, none square, and a file that is no picture
    folder.mkdir()
    for i in range(9):
        im = Image.radial_gradient('L').rotate(40*i)
        im = im.point(lambda v, i=i: (v*(i+3)) % 256).convert('RGB')
        im.resize((50+i, 40)).save(folder/f'{i}.png')
    (folder/'notes.txt').write_text('x', encoding='utf-8')


def test_data_prepares_and_trains(tmp_path, run):
    draw_nine(tmp_path/'mine')
    out = pokegan('data', 'mine', '--size', 32, '--out', 'prepared', cwd=tmp_path).stdout
    assert '9 images of 32 px are in prepared' in out and 'skip' in out
    words = '--data prepared --size 32 --steps 2'.split()
    assert '--recipe finetune' in refused('train', *words, cwd=tmp_path) # nine are too few for the default
    pokegan('train', '--recipe', 'dcgan-quick:ngf=8,betas=0/0.9', *words, '--run', 'c', cwd=tmp_path)
    r = read_info(tmp_path/'c')['recipe']
    assert (r['name'], r['ngf'], r['betas'], r['size']) == ('dcgan-quick', 8, [0., .9], 32)
    said = refused('train', '--resume', '--run', run, '--steps', 20, '--data', 'prepared', cwd=tmp_path)
    assert 'other images' in said


def test_data_does_not_replace_the_set_of_another_source(tmp_path):
    "Two folders of the same name have the same default place."
    for name in ('a', 'b'):
        (tmp_path/name).mkdir()
        draw_nine(tmp_path/name/'images')
    pokegan('data', 'a/images', '--size', '32', cwd=tmp_path)
    before = (tmp_path/'data/images-32/x.npy').read_bytes()
    assert 'holds pictures of a/images; name another folder with --out' in \
        refused('data', 'b/images', '--size', '32', cwd=tmp_path)
    assert (tmp_path/'data/images-32/x.npy').read_bytes() == before
    (tmp_path/'data/images-32/x.npy').write_bytes(b'cut')
    said = pokegan('data', 'b/images', '--size', '32', cwd=tmp_path).stdout
    assert '9 images of 32 px' in said, 'what is not whole is made again'


def test_recipes_lists_and_shows(tmp_path):
    names = pokegan('recipes', cwd=tmp_path).stdout
    for n in 'dcgan-quick dcgan-keras dcgan-uniform dcgan-fc-32 dcgan-fc-64 dcgan-fc-128 dcgan-819'.split():
        assert n in names
    assert 'target_noise' in pokegan('recipes', 'dcgan-819', cwd=tmp_path).stdout


MISTAKES = {
    'train --recipe dcgan-820': 'dcgan-819',
    'train --size 65': '64',
    'train --size big': 'size',
    'train --data nowhere': 'creatures',
    'train --data creatures:none': 'creatures',
    'train --minutes -1': 'minutes',
    'train --steps 0': 'steps',
    'train --steps 1 --device abacus': 'cpu',
    'train --colour red': 'colour',
    'train --resume': 'pokegan train',
    'train --resume --run nowhere': 'nowhere',
    'sample nowhere': 'pokegan train',
    'sample': "'run'",
    'paint': 'paint',
    'recipes dcgan-820': 'dcgan-819',
    'data nowhere.zip': 'nowhere.zip',
    'data . --background puce': 'puce',
    'data . --fit squeeze': 'pad',
    'train --recipe dcgan-quick:ngf=wide': 'ngf',
    'train --recipe dcgan-quick:colour=red': 'colour',
    'train --keep-every 0': 'keep_every',
    'train --grid-epochs half': 'grid-epochs',
    'film nowhere': 'nowhere',
}


@pytest.mark.parametrize('words', MISTAKES)
def test_a_mistake_gets_one_line_and_exit_2(words, tmp_path):
    p = pokegan(*words.split(), cwd=tmp_path, ok=False)
    assert p.returncode == 2 and p.stdout == '', p.stdout + p.stderr
    assert len(p.stderr.strip().splitlines()) == 1, p.stderr
    assert p.stderr.startswith('pokegan: ')
    assert MISTAKES[words] in p.stderr.lower() and 'Traceback' not in p.stderr


@pytest.mark.parametrize('words, hint', [
    ('sample RUN --n 0', 'at least 1'),
    ('sample RUN --truncation -1', 'above 0'),
    ('sample RUN --psi 2', 'from 0 to 1'),
    ('train --run RUN', '--resume'),
    ('train --resume --run RUN --keep-every 5 --size 32', 'leave out --size and --keep-every'),
    ('sample RUN --step 5', '--keep-every'),
    ('film RUN --out film.mov', '.avi'),
    ('film RUN --fps 0', 'fps'),
    ('sample RUN --out no/such/folder/x.png', 'no/such/folder')])
def test_a_mistake_about_a_run(run, tmp_path, words, hint):
    words = [run if w == 'RUN' else w for w in words.split()]
    assert hint in refused(*words, cwd=tmp_path)


def test_resume_removes_frames_later_than_its_checkpoint(tmp_path):
    words = '--recipe dcgan-quick --data creatures:32 --size 32 --steps 4 --run r'.split()
    pokegan('train', *words, cwd=tmp_path)
    samples = tmp_path/'r/samples'
    (samples/'0000999.png').write_bytes((samples/'0000004.png').read_bytes())
    pokegan('train', '--resume', '--run', 'r', '--steps', 6, cwd=tmp_path)
    assert max(int(p.stem) for p in pictures(samples)) == 6


def test_kept_checkpoints_and_a_film(tmp_path):
    words = '--data creatures:64 --size 32 --steps 6 --keep-every 2 --grid-epochs 1 --run r'.split()
    pokegan('train', *words, cwd=tmp_path)
    budget = read_info(tmp_path/'r')['budget']
    assert (budget['keep_every'], budget['grid_epochs'], budget['keep_epochs']) == (2, 1, None)
    for name, more in dict(last='', six='--step 6', two='--step 2').items():
        pokegan('sample', 'r', '--n', 4, '--out', f'{name}.png', *more.split(), cwd=tmp_path)
    last, six, two = ((tmp_path/f'{k}.png').read_bytes() for k in ('last', 'six', 'two'))
    assert last == six != two
    assert 'there are 2, 4, 6' in refused('sample', 'r', '--step', 3, cwd=tmp_path)
    assert 'there are 2, 4, 6' in refused('walk', 'r', '--step', 3, cwd=tmp_path)
    n = len(pictures(tmp_path/'r/samples'))
    assert f'{n} grids of r, 4 a second' in pokegan('film', 'r', '--fps', 4, cwd=tmp_path).stdout
    with Image.open(tmp_path/'film.gif') as gif: assert (gif.n_frames, gif.info['duration']) == (n, 250)


def test_walk_through_latents(run, tmp_path):
    films = dict(a='', b='', c='--seed 1', d='--truncation .5', e='--psi .3', f='--stops 3', g='--loop')
    for name, words in films.items():
        main(['walk', str(run), '--frames', '9', '--out', str(tmp_path/f'{name}.gif'), *words.split()])
    a, b, *others = ((tmp_path/f'{k}.gif').read_bytes() for k in films)
    assert a == b
    assert len({a, *others}) == 6


def test_walk_as_mp4(run, tmp_path):
    pytest.importorskip('imageio_ffmpeg')
    out = pokegan('walk', run, '--frames', 5, '--out', 'walk.mp4', cwd=tmp_path).stdout
    assert 'through 4 latents of seed 0 are in walk.mp4' in out
    assert (tmp_path/'walk.mp4').read_bytes()[4:8] == b'ftyp'


@pytest.mark.parametrize('words, hint', [
    ('--out walk.webm', '.mp4'),
    ('--frames 3', '4 or more'),
    ('--stops 1', 'stops'),
    ('--stops 5 --frames 4', '5 or more'),
    ('--truncation 0', 'above 0'),
    ('--psi -1', 'from 0 to 1'),
    ('--between a.png', 'between'),
    ('--out no/such/folder/x.gif', 'no/such/folder'),
    ('--between a.png b.png --stops 3', 'leave out')])
def test_a_mistake_about_a_walk(run, tmp_path, words, hint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: main(['walk', str(run), *words.split()])
    said = capsys.readouterr()
    assert e.value.code == 2 and said.out == ''
    assert hint in said.err and said.err.count('\n') == 1, said.err
    assert not list(tmp_path.iterdir())


def test_walk_between_two_pictures(run, tmp_path):
    words = '--recipe aegan --data creatures:64 --steps 40 --size 32 --run road'.split()
    pokegan('train', *words, cwd=tmp_path)
    pokegan('sample', run, '--n', 2, '--each', 'ends', cwd=tmp_path)
    ends = pictures(tmp_path/'ends')
    pokegan('walk', 'road', '--between', *ends, '--frames', 5, cwd=tmp_path)
    with Image.open(tmp_path/'walk.gif') as gif:
        assert 2 <= gif.n_frames <= 5  # equal neighbours become one
        assert gif.size == (32, 32)
    assert pictures(tmp_path/'road/reconstructions')
    assert 'cannot read pictures' in refused('walk', run, '--between', *ends, cwd=tmp_path)
    assert 'none.png' in refused('walk', 'road', '--between', ends[0], 'none.png', cwd=tmp_path)
    assert '2 or more' in refused('walk', 'road', '--between', *ends, '--frames', 1, cwd=tmp_path)


def test_pokegan2_does_its_three_steps_and_goes_on(tmp_path):
    "An encoder, a generator that paints from its embeddings, a GAN that starts there: one command does all."
    words = '--recipe pokegan2-msg --data creatures:100 --size 32 --steps 2 --run mine'.split()
    pokegan('train', *words, cwd=tmp_path)
    at = tmp_path/'mine'
    info = [read_info(at/k) for k in ('encoder', 'pretrain', '.')]
    assert [i['step'] for i in info] == [2, 2, 2]
    assert [i['recipe']['family'] for i in info] == ['encoder', 'pokegan2-pretrain', 'pokegan2']
    assert pictures(at/'pretrain/reconstructions')
    before = (at/'pretrain/last.safetensors').read_bytes()
    (at/'state.safetensors').unlink()  # as if it had been killed before step 3: there is the plan alone
    plan = read_info(at) | dict(step=0)
    (at/'run.json').write_text(json.dumps(plan), encoding='utf-8')
    pokegan('train', '--resume', '--run', 'mine', cwd=tmp_path)
    pokegan('train', '--resume', '--run', 'mine', '--steps', 3, cwd=tmp_path)
    assert read_info(at)['step'] == 3
    assert (at/'pretrain/last.safetensors').read_bytes() == before
    pokegan('sample', 'mine', '--n', 4, cwd=tmp_path)
    assert 'trains E' in refused('sample', 'mine/encoder', cwd=tmp_path)


EDGES = [
    *[f'sample creatures-dcgan --n {n}' for n in (0, -1, 10**9)],
    *[f'sample creatures-dcgan --n 2 --seed {s}' for s in (-2**63-1, 2**63, 2**64)],
    *[f'sample creatures-dcgan --n 2 --truncation {v}' for v in ('nan', 0, -1)],
    *[f'sample creatures-dcgan --n 2 --psi {v}' for v in ('nan', 'inf', -1, 2)],
    *[f'walk creatures-dcgan --frames {n}' for n in (0, -1, 10**6)],
    *[f'walk creatures-dcgan --stops {n}' for n in (0, 1, 10**9)],
    *[f'evaluate creatures-dcgan --features random --data creatures:64 --n {n}' for n in (0, -1, 10**9)],
    *[f'train --data creatures:8 --size 16 --{k} {v}' for k, v in (
        ('minutes', 0), ('minutes', 'nan'), ('minutes', 'inf'), ('minutes', 1e300), ('epochs', 1e308),
        ('steps', 0), ('steps', -1), ('save-every', 0), ('keep-every', -1),
        ('seed', 2**63), ('seed', 2**64))],
    *[f'data creatures:{n}' for n in (0, 1, -1, 10**9)],
    *[f'data creatures:8 --size {n}' for n in (0, 96, 10**9)],
    'compare dcgan-quick --seeds 0', 'compare dcgan-quick --n 0',
    'sample creatures-dcgan --n 2 --out nowhere/g.png',
    'sample creatures-dcgan --n 2 --out g.jpg', 'sample creatures-dcgan --n 2 --out .']


@pytest.mark.parametrize('words', EDGES)
def test_numbers_at_the_edge(words, tmp_path, monkeypatch, capsys):
    "One line, exit 2, nothing written."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: main(words.split())
    said = capsys.readouterr().err.splitlines()
    assert e.value.code == 2 and len(said) == 1 and said[0].startswith('pokegan: '), said
    assert not [*tmp_path.iterdir()]


def test_numbers_just_inside(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ['--recipe', 'dcgan-quick:ngf=4,ndf=4', '--size', '16', '--data', 'creatures:8']
    for i, words in enumerate((['--minutes', '0.001'], ['--steps', '1', '--seed', str(2**63-1)],
                               ['--steps', '1', '--seed', '-5', '--save-every', str(10**12)])):
        main(['train', *small, *words, '--run', str(i), '--device', 'cpu'])
    main(['sample', '2', '--n', '1', '--seed', str(-2**63)])
    capsys.readouterr()
    assert all((tmp_path/f'{i}/run.json').exists() for i in range(3))
