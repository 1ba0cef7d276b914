"""Inputs that nobody means to give: each is right, or gets one line, and nothing is lost."""
import gzip, io, json, os, re, shutil, struct, subprocess, sys, tarfile, time, zipfile
from unicodedata import normalize

import fresh
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pokegan import load_run, resume, train
from pokegan.compare import compare, evaluate
from pokegan.core import pick_device
from pokegan.data import files, load_images
from pokegan.data.cleaning import clean, FORMATS, MAX_PAGES, may_be_picture, Report, Skip
from pokegan.data.download import BadArchive, unpack
from pokegan.data.files import match_labels, read_csv, walk
from pokegan.latents.walks import film
from pokegan.playground import play
from pokegan.publish import publish
from pokegan.recipes import variant
from pokegan.runs import new_folder
from pokegan.training.callbacks import make_gif, read_log, read_stamp
from pokegan.training.checkpoint import kept
from test_cli import ENV, pokegan, refused
from test_data import data, eight, picture # noqa: F401 (a fixture)

HOW = dict(steps=2, progress=False, device='cpu', size=32, ngf=8, ndf=8, batch=8)
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no pipes with names, nor such file names')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    return train('dcgan-quick', 'creatures:40', tmp_path_factory.mktemp('odd')/'run', **HOW).folder


@pytest.fixture
def run(trained, tmp_path): return shutil.copytree(trained, tmp_path/'run')


def change(path, **new):
    path.write_text(json.dumps(json.loads(path.read_text(encoding='utf-8')) | new), encoding='utf-8')


# ---- archives ----

def tar(path, *parts): # (name, size in the header, type, bytes)
    with gzip.open(path, 'wb', 1) as g:
        for name, size, kind, body in parts:
            h = tarfile.TarInfo(name)
            h.size, h.type = size, kind
            g.write(h.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512))
        g.write(bytes(1024))
    return path


PNG = data(picture(1))
GOOD = 'a.png', len(PNG), tarfile.REGTYPE, PNG


@pytest.mark.parametrize('kind', [
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_gigabytes_is_not_read(tmp_path, kind):
    bad = tar(tmp_path/'bad.tar.gz', GOOD, ('x', 3 << 30, kind, bytes(5 << 20)))
    with pytest.raises(ValueError, match='is damaged, or was cut'): load_images(bad)
    with pytest.raises(BadArchive, match='damaged'): unpack(bad, tmp_path/'out')
    first = tar(tmp_path/'first.tar.gz', ('x', 3 << 30, kind, bytes(1024)))
    with pytest.raises(ValueError, match='no complete .zip or .tar'): load_images(first)


def test_a_size_that_no_file_can_have(tmp_path):
    size = f'9{"9"*39}'
    words = f'{len(size) + 9} size={size}\n'.encode()
    bad = tar(tmp_path/'bad.tar.gz', GOOD, ('x', len(words), tarfile.XHDTYPE, words), GOOD)
    with pytest.raises(ValueError, match='is damaged'): load_images(bad)


def test_more_files_than_anybody_has(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'MAX_FILES', 3)
    bad = tar(tmp_path/'bad.tar.gz', *[GOOD]*4)
    with zipfile.ZipFile(tmp_path/'bad.zip', 'w') as z:
        for i in range(4): z.writestr(f'{i}.txt', '')
    for f in (bad, tmp_path/'bad.zip'):
        with pytest.raises(ValueError, match='holds more than 3 files'): load_images(f)


def test_a_tar_reads_only_what_may_be_a_picture(tmp_path):
    t = tar(tmp_path/'a.tar.gz', GOOD, ('big.mp4', 100, tarfile.REGTYPE, bytes(100)))
    found = {f.name: f for f in walk(t)}
    assert found['big.mp4'].read is None and found['big.mp4'].reason == 'unsupported format: MP4'
    assert found['a.png'].read() == PNG and found['a.png'].size == len(PNG)


def test_a_member_without_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(2): z.writestr(f'{i}.png', data(picture(i)))
        nameless = zipfile.ZipInfo('x')
        nameless.filename = ''
        z.writestr(nameless, b'abc')
    im = load_images(tmp_path/'a.zip')
    assert len(im) == 2 and im.report.counts()['skip', 'no name'] == 1


def test_one_picture_of_many_files_says_what_became_of_the_others(tmp_path, eight): # noqa: F811
    for f in sorted(eight.iterdir())[1:]: f.write_bytes(b'no picture')
    r = refused('data', eight, '--out', 'x', cwd=tmp_path)
    assert 'one picture in all (7 skipped: not an image)' in r


@posix
def test_folders_a_thousand_deep(tmp_path):
    at = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir('d')
            os.chdir('d')
    finally: os.chdir(at)
    try:
        if sys.version_info >= (3, 12): words = 'none of' # os.walk does not call itself any more
        else: words = 'folders within folders without end'
        with pytest.raises(ValueError, match=words): load_images(tmp_path)
    finally: subprocess.run(['rm', '-rf', tmp_path/'d'], check=True)


# ---- tables ----

def test_tables_that_would_fill_the_memory():
    for words, table in {
            'longer than 64 MB': b'a\n'*(33 << 20), 'more than 20,000,000 cells': b'a,b\n'*11_000_000,
            'two columns of labels are called': b'file,type,type\na.png,1,2\n'}.items():
        with pytest.raises(ValueError, match=words): read_csv(table)
    with pytest.raises(ValueError, match='more than'): read_csv(b','*21_000_000)


def test_accents_that_a_mac_takes_apart():
    names = ['\u00e9t\u00e9.png', 'zo\u00eb.png']
    apart = [normalize('NFD', n) for n in names]
    assert apart != names
    labels, hits = match_labels(apart, {'file': names, 'type': ['a', 'b']})
    assert hits == 2 and labels['type'] == ['a', 'b']


# ---- pictures ----

def test_formats_that_are_slow_to_read_must_be_small():
    def ppm(side): return b'P6 %d %d 254 ' % (side, side) + os.urandom(3*side*side)
    assert clean(ppm(64)).width == 64
    with pytest.raises(Skip, match='too many pixels for a slow format: 1500x1500'): clean(ppm(1500))


def test_pages_are_counted_up_to_a_point_and_a_bad_one_spoils_none():
    pages = [picture(i).convert('RGB') for i in range(3)]
    b = io.BytesIO()
    pages[0].save(b, 'TIFF', save_all=True, append_images=pages[1:])
    assert clean(b.getvalue()).note == 'first of 3 frames'
    whole = bytearray(b.getvalue())
    second = Image.open(io.BytesIO(whole))._frame_pos[-1] # where its directory begins
    struct.pack_into('<H', whole, second, 60_000) # it claims to have so many entries
    assert clean(bytes(whole)).width == 48
    b = io.BytesIO()
    small = [Image.new('L', (16, 16), i) for i in range(120)]
    picture(0).convert('RGB').save(b, 'TIFF', save_all=True, append_images=small)
    assert clean(b.getvalue()).note == f'first of {MAX_PAGES} or more frames'


def test_much_text_in_a_picture_is_the_reason():
    info = PngImagePlugin.PngInfo()
    info.add_text('note', 'a'*(2 << 20), zip=True)
    with pytest.raises(Skip, match='too much text in it'): clean(data(picture(0), pnginfo=info))


# ---- prepared sets and runs ----

@posix
@pytest.mark.parametrize('name', ['x.npy', 'report.csv', 'labels.csv', 'prepared.json'])
def test_a_pipe_within_a_prepared_set(tmp_path, eight, name): # noqa: F811
    at = load_images(eight).save(tmp_path/'set')
    (at/name).unlink()
    os.mkfifo(at/name)
    with pytest.raises(ValueError, match='no complete prepared set'): load_images(at)


@pytest.mark.parametrize('rows', ['x,skip', 'x,burn,ok,1,1,RGB,white', 'x,load,ok,a,1,RGB,white'])
def test_reports_with_wrong_rows(tmp_path, rows):
    text = f'file,action,reason,width,height,mode,paper\n{rows}\n'
    (tmp_path/'report.csv').write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match='is no report'): Report.from_csv(tmp_path/'report.csv')


@posix
def test_names_that_are_no_text_train_prepare_and_come_back(tmp_path):
    at = os.fsdecode(os.fsencode(tmp_path) + b'/pics\xff')
    for i in range(10):
        folder = at + os.fsdecode(b'/a\xe9' if i % 2 else b'/b')
        os.makedirs(folder, exist_ok=True)
        picture(i).save(f'{folder}/{i}.png')
    train('dcgan-quick', at, tmp_path/'run', **HOW)
    small = {k: v for k, v in HOW.items() if k != 'steps'}
    run = train('dcgan-types', at, tmp_path/'types', steps=2, label='folder', **small)
    assert run.kinds == ['a\\udce9', 'b'] and run.sample(2, kind='a\\udce9').shape[0] == 2
    resume(tmp_path/'types', steps=3, data=at, progress=False, device='cpu')
    load_images(at).save(tmp_path/'set')
    assert len(load_images(tmp_path/'set')) == 10


def test_a_run_without_its_state_is_not_begun_anew(run):
    (run/'state.safetensors').unlink()
    before = (run/'last.safetensors').read_bytes()
    with pytest.raises(ValueError, match='has no state.safetensors.*--start'): resume(run, steps=3)
    assert (run/'last.safetensors').read_bytes() == before


def test_other_weights_in_the_place_of_the_last(run):
    shutil.copy(run/'state.safetensors', run/'last.safetensors')
    with pytest.raises(ValueError, match='holds none of the networks'): load_run(run)


@pytest.mark.parametrize('log', [
    b'step,step,step,loss\n1,2\n\n,,,,,,\n', b'a,b\n1,2\n', b'step\n1.5\n', b'\xff\xfe\0'])
def test_a_log_of_rubbish(run, log):
    (run/'log.csv').write_bytes(log)
    with pytest.raises(ValueError, match=r'log\.csv is no log of a training'): read_log(run/'log.csv')
    with pytest.raises(ValueError, match='move it away'): resume(run, steps=3, progress=False, device='cpu')


@pytest.mark.parametrize('start', [5, {'name': [1]}, {'name': 'a'}, []])
def test_what_a_run_began_from_is_checked(run, tmp_path, start):
    change(run/'run.json', start=start)
    for call in (lambda: publish(run, tmp_path/'pub'), lambda: resume(run, steps=3), lambda: load_run(run)):
        with pytest.raises(ValueError, match='run.json is not what it should be'): call()


def test_files_of_others_beside_the_grids_and_checkpoints_are_left_alone(run):
    (run/'kept').mkdir()
    others = run/'samples/notes.png', run/'samples/a-epoch1.png', run/'kept/abc.safetensors'
    for f in others: f.write_bytes(b'mine')
    assert kept(run) == {} and [read_stamp(f) for f in others] == [()]*3
    resume(run, steps=4, progress=False, device='cpu')
    make_gif(run)
    assert film(run, run/'film.gif') >= 2 and all(f.read_bytes() == b'mine' for f in others)
    (run/'samples/0000003.png').write_bytes(b'rubbish')
    with pytest.raises(ValueError, match='0000003.png is no picture'): film(run, run/'film.gif')


def test_nothing_is_left_of_a_training_that_never_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir()
    for run in ('a/b/c', 'empty', None):
        with pytest.raises(ValueError, match='no such file'): train('dcgan-quick', 'nowhere', run, **HOW)
    assert [p.name for p in tmp_path.iterdir()] == ['empty'] and not [*(tmp_path/'empty').iterdir()]
    with new_folder('x', 'd/e') as f: (f/'mine').write_text('1', encoding='utf-8')
    assert (tmp_path/'d/e/mine').exists()


def test_a_publication_within_its_run(run):
    with pytest.raises(ValueError, match='lies within the run'): publish(run, run/'pub')
    assert not (run/'pub').exists()


# ---- what is there already ----

def test_a_page_takes_the_place_of_a_page_alone(run, tmp_path):
    pytest.importorskip('onnxscript')
    before = (run/'run.json').read_bytes()
    (tmp_path/'mine.html').write_text('<h1>mine</h1>', encoding='utf-8')
    for out in (run/'run.json', tmp_path/'mine.html', tmp_path/'page.txt', os.devnull):
        with pytest.raises(ValueError, match='written as .html|no page of pokegan'): play(run, out)
    assert (run/'run.json').read_bytes() == before and not os.path.isfile(os.devnull)
    play(run, tmp_path/'page.html')
    play(run, tmp_path/'page.html') # its own


def test_a_comparison_leaves_what_others_made(run, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/table.csv').write_text('my own', encoding='utf-8')
    (tmp_path/'notes').mkdir()
    (tmp_path/'notes/a.txt').write_text('a', encoding='utf-8')
    how = dict(minutes=.01, features='random', n=16, progress=False, device='cpu')
    for out in (tmp_path/'mine', tmp_path/'notes', run):
        with pytest.raises(ValueError, match='something else than a comparison'):
            compare(['dcgan-quick'], 'creatures:40', size=32, out=out, **how)
    assert (tmp_path/'mine/table.csv').read_text(encoding='utf-8') == 'my own'
    wrong = {'trains no generator': dict(names=['encoder-rotnet']), 'n is 9': dict(n=99999999)}
    for words, more in wrong.items():
        names = more.pop('names', ['dcgan-quick'])
        with pytest.raises(ValueError, match=words):
            compare(names, 'creatures:40', size=32, out=tmp_path/'new', **how | more)
    assert not (tmp_path/'new').exists()


@posix
def test_grids_that_are_none(run):
    Image.new('L', (13000, 2000)).save(run/'samples/0000001.png')
    with pytest.raises(ValueError, match='no picture that pokegan wrote'): film(run, run/'a.gif')
    (run/'samples/0000001.png').unlink()
    os.mkfifo(run/'samples/0000001.png')
    for call in (lambda: film(run, run/'a.gif'), lambda: make_gif(run)):
        with pytest.raises(ValueError, match='no picture that pokegan wrote'): call()


@pytest.mark.parametrize('changes', [dict(ngf=2**20), dict(nz=2**20, ngf=512), dict(batch=2**20, size=256)])
def test_networks_and_batches_for_which_there_is_no_room(tmp_path, changes):
    with pytest.raises(ValueError, match='needs more memory than is free'):
        train('dcgan-quick', 'creatures:40', tmp_path/'run', steps=1, progress=False, device='cpu', **changes)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('changes', [dict(ngf=2**20), dict(ndf=2**20)])
def test_networks_of_the_third_step_have_room_before_the_first_begins(tmp_path, changes):
    with pytest.raises(ValueError, match='pokegan2-msg as asked for needs more memory than is free'):
        train('pokegan2-msg', 'creatures:64', tmp_path/'run', size=32, steps=1, progress=False, device='cpu',
              **changes)
    assert not [*tmp_path.iterdir()]


def test_a_card_shows_what_others_wrote_as_text(run, tmp_path):
    info = json.loads((run/'run.json').read_text(encoding='utf-8'))
    trick = 'x\n\n# Owned <script>alert(1)</script> | \x1b[31m'
    change(run/'run.json', notes=[trick], data=info['data'] | dict(source=trick))
    publish(run, tmp_path/'pub', licence=trick, limits='Of **mine**\x1b[31m.')
    card = (tmp_path/'pub/README.md').read_text(encoding='utf-8')
    assert '\x1b' not in card and '\n# Owned' not in card
    assert '<script>' not in re.sub('`[^`]*`', '', card).replace('\\<', '').replace('\\>', '')
    assert 'Of **mine**' in card


def test_files_that_are_no_pictures_need_no_room(tmp_path, eight, monkeypatch): # noqa: F811
    from pokegan.data import prepare
    for i in range(200): (eight/f'{i}.txt').write_text('', encoding='utf-8')
    asked = []
    was = prepare._Shelf
    monkeypatch.setattr(prepare, '_Shelf', lambda n, *a: asked.append(n) or was(n, *a))
    assert len(load_images(eight)) == 8 and asked == [8]


def test_likenesses_without_end():
    run = load_run('creatures-projected')
    with pytest.raises(ValueError, match='it must be from 1 to 65536'):
        run.encode(np.zeros((40, 3, 64, 64), np.float32), n=70_000)


# ---- words and surroundings ----

def test_values_that_cannot_be(tmp_path):
    for device in ('cpu:abc', 'cpu:'):
        with pytest.raises(ValueError, match='name one as cpu'): pick_device(device)
    with pytest.raises(ValueError, match='is no colour'):
        load_images('creatures:2', background=(np.inf, 0, 0))
    with pytest.raises(ValueError, match='no such file'): load_images('~nobodyhere/x')
    for words in ('dcgan-quick:name=x', 'dcgan-quick:size=32,size=64'):
        with pytest.raises(ValueError, match='can be given once'): variant(words)
    for steps in (2.5, True):
        with pytest.raises(ValueError, match='a whole number'):
            train('dcgan-quick', 'creatures:8', tmp_path/'r', **HOW | dict(steps=steps))
    with pytest.raises(ValueError): evaluate(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_each_image_into_a_file_is_refused_before_the_grid_is_written(run):
    (run/'thesis.txt').write_text('years', encoding='utf-8')
    said = refused('sample', run, '--each', 'thesis.txt', '--out', 'q.png', cwd=run)
    assert 'is a file; name a folder' in said
    assert not (run/'q.png').exists()
    assert 'from 0.01 to 50' in refused('film', run, '--fps', '1e-300', cwd=run)


@pytest.mark.parametrize('env, words, said', [
    (dict(RANK='abc'), 'recipes', ''), (dict(RANK='1'), 'sample nothing', 'not a run folder'),
    (dict(WORLD_SIZE='abc', RANK='0'), 'train --steps 1', "WORLD_SIZE is 'abc'"),
    (dict(WORLD_SIZE='2', RANK='x'), 'train --steps 1', "RANK is 'x'")])
def test_numbers_of_processes_that_are_none(tmp_path, env, words, said):
    p = fresh.run(words.split(), tmp_path, ENV | env)
    assert p.returncode == (2 if said else 0) and said in p.stderr and 'Traceback' not in p.stderr
    assert len(p.stderr.strip().splitlines()) == bool(said) and not [*tmp_path.iterdir()]


@posix
@pytest.mark.parametrize('ears', ['2>&-', '2>/dev/full', '2>&1 | true', '>&-'])
def test_the_work_goes_on_when_nobody_hears(tmp_path, ears):
    words = 'train --recipe dcgan-quick:size=32,ngf=8,ndf=8,batch=8 --data creatures:40 --steps 3 --run r'
    command = f'{sys.executable} -m pokegan {words} {ears}'
    subprocess.run(command, shell=True, cwd=tmp_path, env=ENV, timeout=240)
    assert load_run(tmp_path/'r').info['step'] == 3
    assert {'losses.png', 'progress.gif', 'state.safetensors'} <= {p.name for p in (tmp_path/'r').iterdir()}


@posix
def test_names_of_ones_own_are_shown_escaped_too(run):
    name = 'evil\x1b[31m\u202e.png'
    p = pokegan('sample', run, '--n', 4, '--out', name, cwd=run)
    assert p.stdout == '4 images are in evil\\x1b[31m\\u202e.png\n' and (run/name).exists()


@posix
def test_a_current_folder_that_is_gone(tmp_path):
    (tmp_path/'gone').mkdir()
    code = f'cd gone && rmdir ../gone && {sys.executable} -m pokegan sample creatures-dcgan'
    env = ENV | dict(PYTHONPATH=os.pathsep.join(filter(os.path.isabs, sys.path)))
    p = subprocess.run(code, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert p.returncode == 2 and p.stderr == 'pokegan: the current folder is gone; cd to another\n'


@pytest.mark.parametrize('words', [
    ['train', '--recipe', ''], ['train', '--device='], ['sample', ''],
    ['sample', 'creatures-dcgan', '--like', ' ']])
def test_empty_words(tmp_path, words):
    assert 'is empty; say something there, or leave it out' in refused(*words, cwd=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_size_of_none(tmp_path):
    for words in (['train'], ['data', 'creatures:4'], ['compare', 'dcgan-quick', '--data', 'creatures:4']):
        assert 'size is 0; it must be one of' in refused(*words, '--size', 0, cwd=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_zip_whose_members_lie_over_one_another(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for k in range(200): z.writestr(f'{k}.png', b'x'*1000 if k else os.urandom(100_000))
        first, *rest = z.infolist()
        for i in rest:  # all of them are the first
            for k in ('header_offset', 'compress_size', 'file_size', 'CRC'): setattr(i, k, getattr(first, k))
    with pytest.raises(ValueError, match='is damaged'): [*walk(tmp_path/'a.zip')]
    with pytest.raises(BadArchive, match='lie over one another'): unpack(tmp_path/'a.zip', tmp_path/'to')
    assert not (tmp_path/'to').exists()


@posix
def test_a_file_with_holes_in_a_tar_is_not_read(tmp_path):
    with open(tmp_path/'holes.png', 'wb') as f: f.truncate(200 << 20)
    subprocess.run(['tar', '--sparse', '-cf', 'a.tar', 'holes.png'], cwd=tmp_path, check=True)
    assert (tmp_path/'a.tar').stat().st_size < 1 << 20
    assert [f.reason for f in walk(tmp_path/'a.tar')] == ['not a regular file']
    with pytest.raises(BadArchive, match='a file with holes'): unpack(tmp_path/'a.tar', tmp_path/'to')


@posix
def test_a_run_that_is_removed_while_it_trains(tmp_path):
    words = 'train --recipe dcgan-quick:size=32,ngf=8,ndf=8,batch=8 --data creatures:40 --minutes 2 --run r'
    p = fresh.Command(words.split(), tmp_path, ENV)
    while not (tmp_path/'r/samples').exists(): time.sleep(.05)
    os.rename(tmp_path/'r', tmp_path/'elsewhere')
    p = p.end()
    said = p.stderr
    last = said.strip().splitlines()[-1]
    assert p.returncode == 2 and last.startswith('pokegan: r')
    assert re.search('[Nn]o such (file|folder)', last), last # it depends on which file was to be written next
    assert 'Traceback' not in said and not (tmp_path/'r').exists()
    assert load_run(tmp_path/'elsewhere').info['step'] == 0


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_what_cannot_be_a_picture_is_not_read_to_its_end(tmp_path, kind):
    src = tmp_path/'src'
    src.mkdir()
    (src/'a.png').write_bytes(bytes(9 << 20))
    (src/'b.png').write_bytes(PNG + bytes(3 << 20)) # a picture, with a long tail
    (src/'labels.csv').write_bytes(b'file,kind\nb.png,' + b'x'*(2 << 20) + b'\n')
    path = src if kind == 'folder' else shutil.make_archive(str(tmp_path/'set'), kind, src)
    read = {f.name.removeprefix('./'): len(f.read()) for f in walk(path) if f.read}
    assert read == {'a.png': 1 << 20, 'b.png': len(PNG) + (3 << 20), 'labels.csv': 17 + (2 << 20)}


def test_every_format_may_be_a_picture_by_its_first_bytes():
    for fmt in FORMATS:
        out = io.BytesIO()
        picture(1).convert('RGB').save(out, {'JPEG2000': 'JPEG2000', 'DIB': 'DIB'}.get(fmt, fmt))
        assert may_be_picture(out.getvalue()), fmt
    for head in (b'', bytes(1 << 20), b'<svg', b'%PDF-1.7', b'PK\3\4'): assert not may_be_picture(head)
