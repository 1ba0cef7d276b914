"""Folders, archives, twins, labels and prepared sets: what load_images makes of them."""
import io, json, os, subprocess, sys, tarfile, time, zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pokegan.data import audit, grid, Images, load_images, show_grid, to_float, to_uint8
from pokegan.data.cleaning import Report
from pokegan.data.download import CREATURES, source_help, SOURCES
from pokegan.data.duplicates import near_duplicates, twin_trees
from pokegan.data.files import choose, folder_labels, match_labels, read_csv, walk, write_csv
from pokegan.data.images import show_small
from pokegan.training.callbacks import save_png

REAL = Path(__file__).parent.parent/os.environ.get('POKEGAN_REAL_DATA', '../shared/data')
real = pytest.mark.skipif(not (REAL/'kaggle819.zip').exists(), reason='the real sets are not here')


def picture(seed, size=48, alpha=True):
    "Six random ellipses: no two seeds look alike."
    from PIL import ImageDraw
    r = np.random.default_rng(seed)
    im = Image.new('RGBA', (size, size))
    d = ImageDraw.Draw(im)
    for _ in range(6):
        x, y = sorted(r.integers(2, size-2, 2)), sorted(r.integers(2, size-2, 2))
        d.ellipse((x[0], y[0], x[1]+1, y[1]+1), fill=(*(int(v) for v in r.integers(0, 220, 3)), 255))
    if alpha: return im
    paper = Image.new('RGB', im.size, 'white')
    paper.paste(im, mask=im)
    return paper


def data(im, fmt='PNG', **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def folder(root, files):
    for name, content in files.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(content)
    return root


def archives(root, files):
    with zipfile.ZipFile(root.with_suffix('.zip'), 'w') as z:
        for name, content in files.items(): z.writestr(name, content)
    for mode, ext in (('w', '.tar'), ('w:gz', '.tar.gz')):
        with tarfile.open(str(root) + ext, mode) as t:
            for name, content in files.items():
                m = tarfile.TarInfo(name)
                m.size = len(content)
                t.addfile(m, io.BytesIO(content))
    return [root.with_suffix('.zip'), Path(f'{root}.tar'), Path(f'{root}.tar.gz')]


@pytest.fixture
def eight(tmp_path): return folder(tmp_path/'eight', {f'{i}.png': data(picture(i)) for i in range(8)})


# ---- the two doors, grids

def test_doors_are_exact():
    x = torch.arange(256, dtype=torch.uint8)
    f = to_float(x)
    assert f.dtype == torch.float32 and f[0] == -1 and f[255] == 1 and (to_uint8(f) == x).all()
    assert (to_uint8(torch.tensor([-3., 3., 0.])) == torch.tensor([0, 255, 128])).all()
    assert (x == torch.arange(256)).all()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert (to_uint8(torch.tensor([-1, 1], dtype=dtype)) == torch.tensor([0, 255])).all()
    assert to_uint8(f.half()).sub(x.int()).abs().max() <= 1
    with pytest.raises(ValueError, match='uint8'): to_float(f)
    with pytest.raises(ValueError, match='floats'): to_uint8(x)


def test_grid_and_png(tmp_path):
    x = torch.zeros(5, 3, 8, 6, dtype=torch.uint8)
    x[4] = 7
    g = grid(x, ncol=3, pad=2)
    assert g.shape == (3, 2*10+2, 3*8+2)
    assert g[0, 0, 0] == 255 and g[0, 12, 10] == 7 and g[0, 12, 18] == 255 and g[0, 2, 2] == 0
    assert (grid(to_float(x), ncol=3) == g).all() and grid(x[:2]).shape == (3, 12, 18)
    save_png(x, tmp_path/'a.png')
    save_png(to_float(x[4]), tmp_path/'b.png')
    assert (np.asarray(Image.open(tmp_path/'b.png')) == 7).all() and not list(tmp_path.glob('*.tmp'))


def test_scale_repeats_whole_pixels_and_leaves_the_gaps_alone():
    x = torch.arange(3*2*2).view(1, 3, 2, 2).to(torch.uint8).repeat(5, 1, 1, 1)
    for same in (x, to_float(x)):
        shown = show_grid(same, 3, scale=3).images[0].get_array()
        by_hand = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
        assert (shown == grid(by_hand, 3).permute(1, 2, 0).numpy()).all()
        assert shown.shape == (2*8 + 2, 3*8 + 2, 3)
    assert (show_grid(x, 3).images[0].get_array() == grid(x, 3).permute(1, 2, 0).numpy()).all()


def test_a_small_figure_has_a_palette_and_is_closed():
    import matplotlib.pyplot as plt
    plt.close('all')
    x = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    for figure in (show_grid(x, 2), show_grid(x, 2).figure):
        im = show_small(figure, 16)
        assert im.mode == 'P' and len(im.getcolors()) == 16 and im.size == (2*18 + 2, 2*18 + 2)
    assert show_small(plt.figure(figsize=(2, 1)), dpi=50).size == (100, 50) and plt.get_fignums() == []


# ---- sources

def test_creatures():
    a, b = load_images('creatures:70', size=32), load_images('creatures:70', size=32)
    assert len(a) == 70 and a.x.shape == (70, 3, 32, 32) and a.x.dtype == torch.uint8
    assert a.fingerprint == b.fingerprint
    assert len(a.labels['species']) == 70 and a.source == 'creatures:70' and CREATURES >= 2048
    assert (load_images('creatures:10', size=32).x == a.x[:10]).all()
    assert load_images('creatures:70', size=32, seed=1).fingerprint != a.fingerprint
    black = load_images('creatures:70', size=32, background='black')
    assert a.x[:, :, 0, 0].float().mean() > 200 > 60 > black.x[:, :, 0, 0].float().mean()


def test_folder_zip_and_tar_agree(tmp_path):
    files = {f'{k}/{i}.png': data(picture(10*j + i)) for j, k in enumerate(('red', 'blue')) for i in range(4)}
    sources = folder(tmp_path/'set', files), *archives(tmp_path/'set', files)
    sets = [load_images(p, size=32) for p in sources]
    assert {s.x.shape for s in sets} == {(8, 3, 32, 32)} and len({s.fingerprint for s in sets[:2]}) == 1
    for s in sets:
        assert s.labels == {'folder': [f.split('/')[0] for f in s.files]}
        assert set(s.labels['folder']) == {'red', 'blue'}
        assert {hash(p.numpy().tobytes()) for p in s.x} == {hash(p.numpy().tobytes()) for p in sets[0].x}
    assert load_images(tmp_path/'set', size=32, labels=False).labels == {}


def red_and_blue(root, **table):
    "Eight pictures in two folders, and a labels.csv if it has columns."
    files = [f'{k}/{i}.png' for k in ('blue', 'red') for i in range(4)]
    folder(root, {f: data(picture(i)) for i, f in enumerate(files)})
    if table: write_csv({'file': files, **table}, root/'labels.csv')
    return root


def places(tmp_path):
    "One labelled set as every kind of source: (name, its columns, where, what must be left)."
    table = dict(type=[*'aabbccdd'], big=[i % 2 for i in range(8)])
    bare, labelled = red_and_blue(tmp_path/'bare'), red_and_blue(tmp_path/'labelled', **table)
    load_images(labelled, 32).save(tmp_path/'prepared')
    for p in (bare, labelled): archives(p, {f.name: f.read() for f in walk(p)})
    for p in (bare, f'{bare}.zip', f'{bare}.tar.gz'):
        yield p, 'folder', 'folder=red', [f'red/{i}.png' for i in range(4)]
    for p in (labelled, f'{labelled}.zip', f'{labelled}.tar', tmp_path/'prepared',
              'kaggle:me/labelled', 'mine:8', 'mine'):
        yield p, 'type, big', 'type=b', ['blue/2.png', 'blue/3.png']
        yield p, 'type, big', dict(type='b', big=1), ['blue/3.png']


def test_where_means_the_same_for_every_source(tmp_path, monkeypatch):
    monkeypatch.setattr('pokegan.data.download.download', lambda name, **own: tmp_path/name.split('/')[1])
    monkeypatch.setitem(SOURCES, 'mine', lambda rest, **how: load_images(tmp_path/'labelled', how['size']))
    for source, columns, where, left in places(tmp_path):
        whole, im = load_images(source, 32), load_images(source, 32, where=where)
        wish = dict([where.split('=')]) if isinstance(where, str) else where
        rows = [i for i in range(8) if all(whole.labels[c][i] == v for c, v in wish.items())]
        assert sorted(im.files) == left and im.source == str(source), (source, where)
        assert (im.x == whole.x[rows]).all(), (source, where)
        assert im.labels == {c: [v[i] for i in rows] for c, v in whole.labels.items()}
        assert ', '.join(im.labels) == columns
        assert im.fingerprint == Images(im.x).fingerprint != whole.fingerprint
        assert sorted(r.file for r in im.report.rows if r.action == 'load') == left
        mistakes = {'colour=red': f'columns: .*{columns}$', 'red': 'column=value'}
        mistakes['type=x' if 'type' in columns else 'folder=x'] = 'there are (a, b, c, d|blue, red)$'
        for wrong, words in mistakes.items():
            with pytest.raises(ValueError, match=words) as e: load_images(source, 32, where=wrong)
            assert '\n' not in str(e.value) and wrong in str(e.value)
        if 'type' in columns:
            with pytest.raises(ValueError, match='folder=red.*columns: .*type, big'):
                load_images(source, 32, where='folder=red')


def test_where_on_creatures():
    im = load_images('creatures:64', 16, where='type=ember')
    whole = load_images('creatures:64', 16)
    rows = [i for i, t in enumerate(whole.labels['type']) if t == 'ember']
    assert 0 < len(rows) < 64 and (im.x == whole.x[rows]).all()
    assert im.files == [f'creature {i}' for i in rows]
    assert set(im.labels['type']) == {'ember'} and len(im.labels['hue']) == len(rows)
    assert im.source == 'creatures:64'
    with pytest.raises(ValueError, match="no type is 'fire'; there are .*ember.* more$"):
        load_images('creatures:64', 16, where='type=fire')
    with pytest.raises(ValueError, match='columns: species, plan, build, type'):
        load_images('creatures:64', 16, where='kind=ember')


def test_nothing_left_is_one_line(tmp_path):
    p = red_and_blue(tmp_path/'p', type=[*'aabbccdd'], big=[0]*4 + [1]*4)
    load_images(p, 32).save(tmp_path/'prepared')
    for source in (p, tmp_path/'prepared'):
        with pytest.raises(ValueError, match='leaves nothing') as e:
            load_images(source, 32, where=dict(type='a', big=1))
        assert '\n' not in str(e.value)
    assert choose({'a': [1, 2, 1], 'b': ['x', 'x', 'y']}, dict(a=1, b='x')) == [0]
    assert choose({'a': [True, False]}, 'a=False') == [1]


def test_labels_that_a_source_cannot_use(tmp_path, eight):
    write_csv({'file': [f'{i}.png' for i in range(8)], 'kind': [*'aaaabbbb']}, eight/'labels.csv')
    load_images(eight, 32).save(tmp_path/'prepared')
    for source in ('creatures:8', tmp_path/'prepared'):
        with pytest.raises(ValueError, match='labels of its own') as e:
            load_images(source, 32, labels=eight/'labels.csv')
        assert '\n' not in str(e.value) and 'labels.csv' in str(e.value)
    for source in ('creatures:8', tmp_path/'prepared', eight):
        assert load_images(source, 32, labels=False).labels == {}
        with pytest.raises(ValueError, match='columns: none'):
            load_images(source, 32, labels=False, where='kind=a')


def test_a_source_of_ones_own(tmp_path, eight, monkeypatch):
    asked = {}
    def mine(rest, **how):
        asked.update(how, rest=rest)
        if rest == 'files': return str(eight)
        return Images(torch.zeros(2, 3, how['size'], how['size'], dtype=torch.uint8))
    monkeypatch.setitem(SOURCES, 'mine', mine)
    assert load_images('mine:files', 16, seed=3, colour='red').files == [f'{i}.png' for i in range(8)]
    assert asked == dict(rest='files', size=16, background=(255, 255, 255), seed=3, memory=256 << 20,
                         progress=None, colour='red')
    im = load_images('mine', 16)
    assert len(im) == 2 and im.source == 'mine' and asked['rest'] == '' and 'mine:...' in source_help()
    monkeypatch.setitem(SOURCES, 'mine', lambda rest, **how: im)
    assert load_images('mine:again', 16).source == 'mine:again'
    assert im.source == 'mine'   # a copy: the maker's set is not touched
    mine.__doc__ = 'mine:PLACE'
    monkeypatch.setitem(SOURCES, 'mine', mine)
    words = 'a source is creatures, creatures:N, kaggle:owner/name, mine:PLACE, a folder'
    with pytest.raises(ValueError, match=words): load_images('nowhere')


def test_options_that_nobody_knows_are_refused(eight, monkeypatch):
    got = []
    def fake(name, **own): return got.append((name, own)) or eight
    monkeypatch.setattr('pokegan.data.download.download', fake)
    load_images('kaggle:a/b', 16, cache='here', timeout=3)
    assert got == [('a/b', dict(cache='here', timeout=3))]
    with pytest.raises(ValueError, match='no option wehre'): load_images(eight, 16, wehre='type=ember')
    with pytest.raises(TypeError, match='wehre'): load_images('creatures:8', 16, wehre='type=ember')


def test_the_list_of_sources_needs_no_torch():
    code = ('import sys; from pokegan.data.download import SOURCES, source_help; '
            "print(*SOURCES, 'torch' in sys.modules, source_help(), sep='|')")
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert p.stdout.strip() == (
        'creatures|kaggle|False|'
        'creatures, creatures:N, kaggle:owner/name, a folder, a .zip or .tar, or a prepared folder')


@pytest.mark.parametrize('source,words', [
    ('pokemon', 'a source is creatures, creatures:N'), ('creatures:', 'creatures:N'),
    ('creatures:x', 'creatures:N'), ('creatures:0', 'creatures:N'),
    ('kaggle:pokemon', 'owner/name'), ('', 'a source is'), ('/no/such/place', 'no such file')])
def test_wrong_sources_say_what_would_be_right(source, words):
    with pytest.raises(ValueError, match=words) as e: load_images(source)
    assert '\n' not in str(e.value)


def test_wrong_options_and_empty_sets(tmp_path, eight):
    for wrong in (dict(size=4), dict(size=5000), dict(fit='squash'), dict(near='maybe'), dict(exact='no'),
                  dict(background='whitish'), dict(where='type=fire')):
        with pytest.raises(ValueError, match=str(list(wrong.values())[0])): load_images(eight, **wrong)
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='none of 0 files'): load_images(tmp_path/'empty')
    with pytest.raises(ValueError, match='notes.txt: not an image extension'):
        load_images(folder(tmp_path/'text', {'notes.txt': b'x'}))
    cut = archives(tmp_path/'a', {'a.png': data(picture(1))})[0].read_bytes()[:-30]
    for name, content in {'cut.zip': cut, 'not.zip': b'hello', 'one.png': data(picture(1))}.items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ValueError, match='no folder and no complete'): load_images(tmp_path/name)


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='a file that cannot be read, as Linux has it')
def test_a_source_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match='/proc/self/mem: cannot be read'): load_images('/proc/self/mem')


@pytest.mark.skipif(os.name == 'nt', reason='links')
def test_links_and_what_is_no_file(tmp_path, eight):
    (eight/'sub').mkdir()
    links = {'loop_a.png': 'loop_b.png', 'loop_b.png': 'loop_a.png', 'dangling.png': 'nothing.png',
             'copy.png': '0.png', 'sub/up': '..'}
    for link, target in links.items():
        (eight/link).symlink_to(target)
    os.link(eight/'1.png', eight/'hard.png')
    os.mkfifo(eight/'pipe.png')   # opening it would wait for ever
    im = load_images(eight)
    reasons = {r.file: r.reason for r in im.report.rows if r.action == 'skip'}
    assert len(im) == 8
    assert reasons == {
        'loop_a.png': 'symbolic-link loop', 'loop_b.png': 'symbolic-link loop',
        'dangling.png': 'dangling link', 'copy.png': 'exact duplicate: of 0.png',
        'hard.png': 'exact duplicate: of 1.png', 'pipe.png': 'not a regular file',
        'sub/up': 'link to a folder: not followed'}
    if os.geteuid():
        os.chmod(eight/'2.png', 0)
        assert {r.file: r.reason for r in load_images(eight).report.rows}['2.png'] == 'no permission'


def test_damage_inside_an_archive_is_a_reason_not_an_end(tmp_path):
    path = archives(tmp_path/'a', {f'{i}.png': data(picture(i)) for i in range(4)})[0]
    raw = path.read_bytes()
    at = raw.index(b'IDAT') + 10
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at+1:])
    im = load_images(path)
    assert len(im) == 3
    assert [r.reason[:22] for r in im.report.rows if r.action == 'skip'] == ['corrupt in the archive']


# ---- repeats

def test_exact_duplicates_keep_the_shortest_name(tmp_path):
    a = picture(1)
    files = {'copy of a.png': data(a), 'a.png': data(a), 'b.png': data(picture(2)),
             'z/a.bmp': data(picture(1, alpha=False), 'BMP')}   # the same pixels in another format
    im = load_images(folder(tmp_path/'s', files))
    assert sorted(im.files) == ['a.png', 'b.png']
    assert {r.file: r.reason for r in im.report.rows if r.action == 'skip'} == {
        'copy of a.png': 'exact duplicate: of a.png', 'z/a.bmp': 'exact duplicate: of a.png'}
    assert len(load_images(tmp_path/'s', exact='keep')) == 4


def test_near_duplicates_are_reported_and_dropped_on_request(tmp_path):
    files = {f'{i}.png': data(picture(i, 96, alpha=False)) for i in range(12)}
    files['again.jpg'] = data(picture(3, 96, alpha=False).resize((90, 90), Image.LANCZOS), 'JPEG', quality=60)
    im = load_images(folder(tmp_path/'s', files))
    found = [r.file for r in im.report.rows if r.reason == 'near duplicate: of 3.png']
    found += [r.file for r in im.report.rows if r.reason == 'near duplicate: of again.jpg']
    assert len(im) == 13 and found in (['again.jpg'], ['3.png'])
    assert len(load_images(tmp_path/'s', near='drop')) == 12


def test_near_duplicates_of_a_chain_lead_to_pictures_that_stay():
    r = np.random.default_rng(0)
    t = r.integers(0, 255, (300, 9, 9, 3)).astype(np.uint8)
    t[200:] = t[:100]
    first = near_duplicates(t, chunk=64)
    assert (first[:200] == -1).all() and (first[200:] == np.arange(100)).all()
    t[:] = t[0]
    assert (near_duplicates(t, chunk=64) == np.r_[-1, np.zeros(299)]).all()


@pytest.mark.parametrize('pngs', [range(20), range(7)])
def test_kaggles_twins(tmp_path, pngs):
    "As in kvpratama/pokemon-images-dataset: each picture once as RGBA PNG, once as JPEG on white."
    files = {f'pokemon_jpg/pokemon_jpg/{i}.jpg': data(picture(i, 96, alpha=False), 'JPEG', quality=90)
             for i in range(20)}
    files |= {f'pokemon/pokemon/{i}.png': data(picture(i, 96)) for i in pngs}
    im = load_images(folder(tmp_path/'s', files), background='black')   # found on any background
    # the fuller folder; at a tie the one without JPEG
    kept = 'pokemon/' if len(pngs) == 20 else 'pokemon_jpg/'
    assert len(im) == 20 and all(f.startswith(kept) for f in im.files) and im.labels == {}
    assert im.report.counts()['skip', 'twin'] == len(pngs)


def test_folders_of_different_pictures_with_the_same_names_are_no_twins(tmp_path):
    files = {f'{k}/{i}.png': data(picture(100*j+i)) for j, k in enumerate('abc') for i in range(5)}
    assert len(load_images(folder(tmp_path/'s', files))) == 15
    flat = np.zeros((10, 9, 9, 3), np.uint8)
    names = [f'a/{i}.png' for i in range(4)] + [f'b/{i}.jpg' for i in range(6)]
    assert twin_trees(names, flat) == {0: 4, 1: 5, 2: 6, 3: 7}
    assert twin_trees(names[1:], flat[1:]) == {}   # three are too few to tell


# ---- labels

def test_labels_from_a_csv_beside_or_by_path(tmp_path, eight):
    rows = {'file': [f'{i}.png' for i in range(7)], 'type': list('abcdefg'), 'hp': list(range(7)),
            'code': ['007']*7}
    write_csv(rows, eight/'labels.csv')
    im = load_images(eight)
    # picture 7 has no line
    assert im.labels == {'type': [*'abcdefg', ''], 'hp': [*map(str, range(7)), ''], 'code': ['007']*7 + ['']}
    other = tmp_path/'other.csv'
    write_csv({'who': list(range(8)), 'kind': ['x']*4 + ['y']*4}, other)   # names without ending, as numbers
    assert load_images(eight, labels=other).labels == {'who': list(range(8)), 'kind': ['x']*4 + ['y']*4}
    some = load_images(eight, labels=other, where='kind=y')
    assert some.files == ['4.png', '5.png', '6.png', '7.png']
    assert load_images(eight, labels=other, where=dict(kind='y', who=5)).files == ['5.png']
    write_csv({'file': ['nobody.png'], 'x': ['y']}, tmp_path/'wrong.csv')
    with pytest.raises(ValueError, match='no line names a picture'):
        load_images(eight, labels=tmp_path/'wrong.csv')
    with pytest.raises(ValueError, match='CSV'): read_csv(b'')


def test_matching_prefers_the_column_that_names_files():
    files = ['set/images/a/1.png', 'set/images/b/1.png']
    columns = {'gen': [1, 1], 'file': ['images/b/1.png', 'images/a/1.png'], 'v': [10, 20]}
    table, hits = match_labels(files, columns, 'set/')
    assert hits == 2 and table['v'] == [20, 10] and folder_labels(files) == {'folder': ['a', 'b']}


def test_csv_columns_survive(tmp_path):
    columns = {'i': [1, -2], 'f': [.5, 2.], 'b': [True, False], 's': ['007', 'a,"b"\nc'], 'e': ['', 'ü']}
    write_csv(columns, tmp_path/'a.csv')
    assert read_csv(tmp_path/'a.csv') == columns


# ---- prepared sets

def test_save_and_reopen(tmp_path, eight):
    im = load_images(eight, size=32)
    im.labels = {'kind': [*'abcdefg', ''], 'n': list(range(8))}
    again = load_images(im.save(tmp_path/'out'/'prepared'), size=32)
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['prepared']
    kept = sorted(p.name for p in (tmp_path/'out'/'prepared').iterdir())
    assert kept == ['labels.csv', 'prepared.json', 'report.csv', 'x.npy']
    assert (again.x == im.x).all() and again.fingerprint == im.fingerprint
    assert again.labels == im.labels and again.files == im.files and again.report == im.report
    again.x[0] = 0   # copy on write: the file is not touched
    assert (Images.open(tmp_path/'out'/'prepared').x == im.x).all()
    load_images(eight, size=48).save(tmp_path/'out'/'prepared')
    assert Images.open(tmp_path/'out'/'prepared').size == 48
    with pytest.raises(ValueError, match='prepared at 48 px'): load_images(tmp_path/'out'/'prepared', size=64)


def test_save_replaces_nothing_but_prepared_sets(eight):
    with pytest.raises(ValueError, match='holds something else'): load_images(eight).save(eight)
    assert len(list(eight.iterdir())) == 8


@pytest.mark.parametrize('spoil', [
    lambda p: (p/'x.npy').unlink(),
    lambda p: (p/'x.npy').write_bytes((p/'x.npy').read_bytes()[:500]),
    lambda p: (p/'report.csv').unlink(),
    lambda p: (p/'prepared.json').write_text('{', encoding='utf-8'),
    lambda p: (p/'labels.csv').write_text('file\n1\n', encoding='utf-8')])
def test_a_spoilt_prepared_set_is_noticed(tmp_path, eight, spoil):
    spoil(load_images(eight).save(tmp_path/'p'))
    with pytest.raises(ValueError, match='no complete prepared set') as e: load_images(tmp_path/'p')
    assert '\n' not in str(e.value)


def test_a_failed_save_leaves_the_old_set(tmp_path, eight, monkeypatch):
    load_images(eight, size=32).save(tmp_path/'p')
    monkeypatch.setattr(Report, 'to_csv', lambda *a: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError): load_images(eight, size=48).save(tmp_path/'p')
    assert Images.open(tmp_path/'p').size == 32
    assert sorted(p.name for p in tmp_path.iterdir()) == ['eight', 'p']


@pytest.mark.parametrize('refused', [1, 2])
def test_a_set_that_is_open_elsewhere_stays_whole(tmp_path, eight, monkeypatch, refused):
    """As on Windows, where a folder with a mapped file cannot be renamed:
    the first or the second rename is refused."""
    old = load_images(eight, size=32)
    old.save(tmp_path/'p')
    calls, replace = [], os.replace
    def refuse(a, b):
        calls.append(a)
        if len(calls) == refused: raise PermissionError(13, 'Access is denied', str(a))
        replace(a, b)
    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(PermissionError, match='another program') as e:
        load_images(eight, size=48).save(tmp_path/'p')
    assert '\n' not in str(e.value) and str(tmp_path/'p') in str(e.value)
    again = Images.open(tmp_path/'p')
    assert again.size == 32 and (again.x == old.x).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['eight', 'p']


def test_every_text_is_utf8_whatever_the_system_prefers(tmp_path):
    files = {f'gr\xfcn/{i}.png': data(picture(i)) for i in range(2)}
    files |= {f'rot/{i}.png': data(picture(i+2)) for i in range(2)}
    folder(tmp_path/'ü', files)
    code = ('import sys; from pathlib import Path; '
            'from pokegan.data import Images, load_images; from pokegan.data.download import scrub; '
            'im = load_images(sys.argv[1], 32, progress=False); im.save(sys.argv[2]); '
            'assert load_images(sys.argv[2], 32).labels == im.labels '
            'and Images.open(sys.argv[2]).source == sys.argv[1]; print(scrub("fine"))')
    (tmp_path/'.kaggle').mkdir()
    (tmp_path/'.kaggle'/'access_token').write_text('not a token', encoding='utf-8')
    options = '-X', 'warn_default_encoding', '-W', 'error::EncodingWarning'
    r = subprocess.run([sys.executable, *options, '-c', code, str(tmp_path/'ü'), str(tmp_path/'p')],
                       capture_output=True, text=True,
                       env={**os.environ, 'KAGGLE_CONFIG_DIR': str(tmp_path/'.kaggle')})
    assert r.returncode == 0 and r.stdout == 'fine\n', r.stderr


def test_the_store(tmp_path, eight):
    im = load_images(eight, size=32)
    mapped = load_images(eight, size=32, memory=0)   # as if it did not fit
    assert mapped.fingerprint == im.fingerprint and (mapped.x == im.x).all() and mapped.x.is_contiguous()
    b = mapped.batch(torch.tensor([3, 3, 0]), 'cpu')
    assert b.shape == (3, 3, 32, 32) and b.dtype == torch.uint8
    assert (b[0] == im.x[3]).all() and (b[2] == im.x[0]).all()
    assert im.to('cpu').fingerprint == im.fingerprint
    assert len(im) == 8 and im.size == 32 and len(im.fingerprint) == 16
    assert Images(im.x.flip(0)).fingerprint != im.fingerprint
    assert len(audit(im).axes) == 5


def test_walk_reads_nothing_by_itself(eight):
    assert [f.name for f in walk(eight)] == [f'{i}.png' for i in range(8)]


# ---- real sets, where they are

@real
def test_the_real_set_in_kaggles_layout(tmp_path):
    t = time.time()
    im = load_images(REAL/'kaggle819.zip')
    assert len(im) == 819 and im.report.counts()['skip', 'twin'] == 60 and time.time() - t < 10
    assert np.allclose(im.x.float().mean((0, 2, 3))/255, [.838, .826, .812], atol=.004)
    labelled = load_images(REAL/'kaggle819.zip', labels=REAL/'kaggle819_index.csv', where='generation=1')
    assert set(labelled.labels['generation']) == {1} and 'Bulbasaur' in labelled.labels['name']


@real
def test_the_real_links():
    im = load_images(REAL/'dirty_links.tar')
    assert [r.action for r in im.report.rows].count('load') == 1 and len(im.report.rows) == 10


@real
def test_sixteen_thousand_sprites_in_a_minute_and_half_a_gibibyte():
    "Beside PyTorch itself, whose libraries alone are 300 to 730 MB, by how it was built."
    code = ('import sys, json, torch; from pokegan.data import load_images; '
            # of this process: ru_maxrss counts its parent's as well
            'status = lambda: open("/proc/self/status", encoding="utf-8").read(); '
            'peak = lambda: int(status().split("VmHWM:")[1].split()[0]); '
            'before = peak(); '
            'im = load_images(sys.argv[1], where="big14k=1", progress=False); '
            'print(json.dumps([len(im), len(set(im.labels["species_id"])), '
            'peak()-before]))')
    t = time.time()
    r = subprocess.run([sys.executable, '-c', code, str(REAL/'species.zip')],
                       capture_output=True, text=True, check=True)
    n, species, kib = json.loads(r.stdout)
    seconds = time.time() - t
    assert n > 14_000 and species == 809, (n, species, kib, seconds)
    assert seconds < 60 and kib < 1 << 19, (n, species, kib, seconds)


# ---- files that lie ----

def broken_archives(root, files):
    "By name: a copy of each archive that was cut, or has other bytes where it matters."
    z, t, gz = (p.read_bytes() for p in archives(root, files))
    def bent(b, at, n=20): return b[:at] + bytes(255 - v for v in b[at:at+n]) + b[at+n:]
    cuts = {'cut.tar': t[:len(t)//2], 'cut at a header.tar': t[:t.index(b'c.png')],
            'cut.tar.gz': gz[:len(gz)//2], 'bent.tar.gz': bent(gz, len(gz)//2),
            'header.tar': bent(t, t.index(b'c.png')),
            'directory.zip': bent(z, z.index(b'PK\1\2'), 4), 'cut.zip': z[:len(z)//2]}
    import bz2, lzma
    for ext, pack in (('xz', lzma.compress), ('bz2', bz2.compress)):
        small = pack(t)
        cuts |= {f'cut.tar.{ext}': small[:len(small)//2], f'bent.tar.{ext}': bent(small, len(small)//2)}
    return {name: (root.parent/name, b) for name, b in cuts.items()}


@pytest.mark.parametrize('name', ['cut.tar', 'cut at a header.tar', 'cut.tar.gz', 'header.tar', 'bent.tar.gz',
    'directory.zip', 'cut.zip', 'cut.tar.xz', 'bent.tar.xz', 'cut.tar.bz2', 'bent.tar.bz2'])
def test_a_damaged_archive_is_refused_in_a_line_and_loses_nothing_silently(tmp_path, name):
    "tarfile stops at what it cannot read as if that were the end."
    files = {f'{c}.png': data(picture(i)) for i, c in enumerate('abcdef')}
    path, content = broken_archives(tmp_path/'a', files)[name]
    path.write_bytes(content)
    with pytest.raises(ValueError, match='damaged, or was cut off|cut off while copying') as e: [*walk(path)]
    assert '\n' not in str(e.value)


def test_the_runs_in_a_folder_of_pictures_are_no_pictures(tmp_path):
    "Training with --data . puts its grids beside the pictures."
    files = {f'{i}.png': data(picture(i)) for i in range(3)}
    grids = {'runs/a-1/run.json': b'{}', 'runs/a-1/samples/0000001.png': data(picture(9)),
             'runs/a-1/progress.gif': data(picture(8), 'GIF')}
    im = load_images(folder(tmp_path, files | grids), 32)
    assert im.files == ['0.png', '1.png', '2.png']
    assert [r.reason for r in im.report.rows if r.file == 'runs/a-1/'] == \
        ['a run of pokegan: not pictures to learn from']
    assert len(load_images(tmp_path/'runs/a-1', 32)) == 2, 'who names a run itself gets its pictures'


def prepared(at, n=12, size=16): return load_images(f'creatures:{n}', size).save(at)


def test_changed_pixels_are_not_those_of_their_fingerprint(tmp_path):
    at = prepared(tmp_path/'p')
    x = np.load(at/'x.npy')
    x[3, 0, 5, 5] ^= 1
    np.save(at/'x.npy', x)
    with pytest.raises(ValueError, match='pixels were changed'): Images.open(at)
    from pokegan.data.images import open_images
    whole = load_images('creatures:12', 16).fingerprint
    assert open_images(at, memory=0).fingerprint != whole, 'a mapped set is asked when it is used'


def other_arrays(x):
    "By name: what stands in x.npy instead."
    def saved(v, **kw):
        b = io.BytesIO()
        np.save(b, v, **kw)
        return b.getvalue()
    good, many = saved(x), io.BytesIO()
    np.savez(many, x=x)
    return dict(npz=many.getvalue(), empty=b'', cut=good[:3000], header=good[:10] + b'\xff'*118 + good[128:],
                longer=good + b'x', floats=saved(x.astype(np.float32)), wide=saved(x.astype('>i2')),
                columns=saved(np.asfortranarray(x)), fewer=saved(x[:5]), none=saved(x[:0]),
                objects=saved(np.array([{}], dtype=object), allow_pickle=True))


@pytest.mark.parametrize('name', 'npz empty cut header longer floats wide columns fewer none objects'.split())
@pytest.mark.parametrize('memory', [0, 1 << 28], ids=['mapped', 'read'])
def test_another_array_is_no_prepared_set(tmp_path, name, memory):
    from pokegan.data.images import open_images
    at = prepared(tmp_path/'p')
    (at/'x.npy').write_bytes(other_arrays(np.load(at/'x.npy'))[name])
    with pytest.raises(ValueError, match='no complete prepared set') as e: open_images(at, memory)
    assert '\n' not in str(e.value) and ('column by column' in str(e.value)) == (name == 'columns')


def test_a_set_that_is_cut_while_it_is_mapped_gets_a_line(tmp_path):
    "Without a look at the file the system ends the process (SIGBUS)."
    from pokegan.data.images import open_images
    at = prepared(tmp_path/'p')
    im = open_images(at, memory=0)
    assert im.batch(torch.arange(3)).shape == (3, 3, 16, 16)
    os.truncate(at/'x.npy', 500)
    with pytest.raises(ValueError, match='cut while it was in use'): im.batch(torch.arange(3))


def test_a_report_is_shown_escaped_and_its_table_is_no_formula(tmp_path):
    names = ['=cmd|calc.png', '-rf.png', '\x1b[2Jred.png', 'a\nb.png', '\u202egnp.exe', "'q.png", 'é.png']
    im = load_images(folder(tmp_path/'in', {n: data(picture(i)) for i, n in enumerate(names)}), 32)
    assert sorted(im.files) == sorted(n for n in names if n.endswith('png'))
    r = Report()
    for n in names: r.add(n, 'skip', f'kind {n!r}')
    assert all(c.isprintable() or c == '\n' for c in str(r)) and '\\u202e' in str(r)
    r.to_csv(tmp_path/'r.csv')
    lines = (tmp_path/'r.csv').read_text(encoding='utf-8').splitlines()
    cells = [line.split(',')[0].strip('"') for line in lines]
    assert not [c for c in cells if c[:1] in ('=', '-', '+', '@')]
    assert [row.file for row in Report.from_csv(tmp_path/'r.csv').rows] == names
    (tmp_path/'r.csv').write_text('a,b\n1,2\n', encoding='utf-8')
    with pytest.raises(ValueError, match='is no report'): Report.from_csv(tmp_path/'r.csv')


NAMED = {f'p{i}.png': data(picture(i)) for i in range(6)}
KINDS = ['fire', 'water']*3


def table_of(between=',', head='file,species', name=lambda n: n):
    lines = [name(n) + between + k for n, k in zip(NAMED, KINDS)]
    return '\n'.join([head.replace(',', between), *lines]) + '\n'


TABLES = {'semicolons': table_of(';').encode(), 'tabs': table_of('\t').encode(),
          'UTF-16': table_of().encode('utf-16'), 'UTF-8 with a mark': table_of().encode('utf-8-sig'),
          'paths of Windows': table_of(name=lambda n: f'C:\\pics\\{n}').encode(),
          'another folder': table_of(name=lambda n: f'old/{n}').encode()}


@pytest.mark.parametrize('how', TABLES)
def test_labels_as_people_save_them_are_read(tmp_path, how):
    im = load_images(folder(tmp_path, NAMED | {'labels.csv': TABLES[how]}), 32)
    assert im.labels['species'] == KINDS
    assert [r.reason for r in im.report.rows if r.file == 'labels.csv'] == ['labels of 6 of 6 pictures']


def test_labels_beside_a_folder_are_no_file_of_it(tmp_path):
    (tmp_path/'labels.csv').write_bytes(TABLES['semicolons'])
    im = load_images(folder(tmp_path/'in', NAMED), 32)
    assert im.labels['species'] == KINDS and not im.report.left_out()


def test_a_spreadsheet_makes_7_of_007(tmp_path):
    files = {f'{i:03}.png': v for i, v in enumerate(NAMED.values())}
    csv = 'id,species\n' + ''.join(f'{i},{k}\n' for i, k in enumerate(KINDS))
    assert load_images(folder(tmp_path, files | {'labels.csv': csv.encode()}), 32).labels['species'] == KINDS


def test_labels_that_are_not_used_are_said(tmp_path):
    csv = 'file,species\n' + ''.join(f'q{i}.png,fire\n' for i in range(5)) + 'p0.png,fire\n'
    im = load_images(folder(tmp_path, NAMED | {'labels.csv': csv.encode()}), 32)
    assert im.labels == {}
    assert '  not an image extension; labels of 1 of 6 pictures, not used  (labels.csv)' in str(im.report)


@pytest.mark.parametrize('csv, words', [
    (table_of(head='p9.png,fire').partition('\n')[2].encode(), 'no header line'),
    (table_of().replace('fire', 'fi\0re').encode(), 'bytes of 0'),
    (table_of().replace('fire', '"fire', 1).encode(), 'cannot be read as a CSV')])
def test_labels_that_cannot_be_right_are_refused(tmp_path, csv, words):
    at = folder(tmp_path, NAMED | {'labels.csv': csv})
    with pytest.raises(ValueError, match=words) as e: load_images(at, 32)
    assert '\n' not in str(e.value)


def test_names_in_a_zip_without_the_mark_of_utf8(tmp_path):
    "As macOS and others write them: UTF-8, and no bit that says so."
    class Unmarked(zipfile.ZipInfo):
        def _encodeFilenameFlags(self): return self.filename.encode('utf-8'), self.flag_bits & ~0x800
    at = tmp_path/'mac.zip'
    with zipfile.ZipFile(at, 'w') as z:
        for i, name in enumerate(('Flabébé.png', 'Evée.png')): z.writestr(Unmarked(name), data(picture(i)))
        z.writestr('labels.csv', 'file,species\nFlabébé.png,a\nEvée.png,b\n')
    im = load_images(at, 32)
    assert dict(zip(im.files, im.labels['species'])) == {'Flabébé.png': 'a', 'Evée.png': 'b'}
