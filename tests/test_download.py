"""The real kagglehub and kaggle clients against a local server, in a child process with a fresh home;
and unpacking."""
import io, json, os, subprocess, sys, tarfile, zipfile
from pathlib import Path

import pytest

from fake_kaggle import FakeKaggle, archive
from pokegan.data.download import BadArchive, DownloadError, explain, parse_handle, scrub, unpack

pytest.importorskip('kagglehub')
pytest.importorskip('kaggle')
HERE = Path(__file__).parent
TOKEN = 'KGAT_' + '0123456789abcdef'*2   # made up

CHILD = '''
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fake_kaggle
fake_kaggle.point_clients_at(sys.argv[2])
from pokegan.data.download import download
for label, handle, opts in json.loads(sys.argv[4]):
    t = time.time()
    try:
        place = download(handle, cache=Path(sys.argv[5])/label.split("#")[0], backend=sys.argv[3], **opts)
        out = dict(path=str(place))
    except (OSError, ValueError) as e: out = dict(error=str(e), kind=type(e).__name__)
    print('RESULT', json.dumps(dict(out, label=label, seconds=time.time()-t)), flush=True)
'''


SEARCH = CHILD.replace('import download', 'import find_sets').replace(
    'download(handle, cache=Path(sys.argv[5])/label.split("#")[0], backend=sys.argv[3], **opts)',
    'find_sets(handle, **opts)').replace('path=str(place)', 'found=place')


def visit(url, backend, plan, tmp, program=CHILD, **env):
    "Run a plan of (label, handle, options) in a child; returns {label: result} and all its output."
    home = tmp/'home'
    home.mkdir(parents=True, exist_ok=True)
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith(('KAGGLE', 'COLAB')) and 'proxy' not in k.lower()}
    words = [str(HERE), url, backend, json.dumps(plan), str(tmp/'cache')]
    own = {'HOME': str(home), 'USERPROFILE': str(home), 'KAGGLE_API_ENVIRONMENT': 'LOCALHOST'}
    r = subprocess.run([sys.executable, '-c', program, *words], capture_output=True, text=True,
                       timeout=120, cwd=tmp, env={**clean, **own, **env})
    found = [json.loads(line[7:]) for line in r.stdout.splitlines() if line.startswith('RESULT')]
    assert r.returncode == 0 and len(found) == len(plan), r.stdout + r.stderr
    return {f['label']: f for f in found}, r.stdout + r.stderr


PLAN = [('fine', 'fine/set', {}), ('fine#again', 'fine/set', {}),
        ('three', 'fine/set/versions/3', {}), ('three#again', 'fine/set/versions/3', {}),
        ('kv', 'kvpratama/pokemon-images-dataset', {}), ('dj', 'kaggle:djilax/pkmn-image-dataset', {}),
        ('cut', 'cut/set', dict(tries=1)), ('cut#again', 'cut/set', dict(tries=1)),
        ('cutcut', 'cutcut/set', {}),
        *[(f'status{c}', f'status{c}/set', {}) for c in (401, 403, 404, 429, 500)],
        ('private', 'private/set', {}), ('stall', 'stall/set', dict(timeout=1)),
        *[(s, f'{s}/set', {}) for s in ('badsum', 'half', 'page', 'slip', 'absolute')],
        *[(f'{s}#again', f'{s}/set', {}) for s in ('badsum', 'half', 'page')]]


@pytest.fixture(scope='module', params=['kagglehub', 'kaggle'])
def tour(request, tmp_path_factory):
    "Every scene, without a token."
    tmp = tmp_path_factory.mktemp(request.param)
    with FakeKaggle() as k: results, output = visit(k.url, request.param, PLAN, tmp)
    return request.param, results, output, k.visits, tmp/'cache'


def pictures(path): return sorted(p.name for p in Path(path).rglob('*.png'))


def test_success_without_a_token(tour):
    _, got, _, visits, _ = tour
    for label in ('fine', 'fine#again', 'three', 'three#again', 'kv', 'dj'):
        assert pictures(got[label]['path']) == ['a.png', 'b.png', 'c.png']
    assert not any(v.get('auth') for v in visits)
    # the second calls found the cache
    assert sum(v['call'] == 'GET' and v['owner'] == 'fine' for v in visits) == 2


def test_a_cut_download_goes_on_where_it_stopped(tour):
    _, got, _, visits, _ = tour
    assert 'was cut; call again' in got['cut']['error']
    assert pictures(got['cut#again']['path']) == ['a.png', 'b.png', 'c.png']
    ranges = [v['range'] for v in visits if v['call'] == 'GET' and v['owner'] == 'cut']
    assert any(r.startswith('bytes=') and r != 'bytes=0-' for r in ranges)
    # cut twice, mended inside one call
    assert pictures(got['cutcut']['path']) == ['a.png', 'b.png', 'c.png']


@pytest.mark.parametrize('label,words', [
    ('status401', 'does not accept this token (401)'), ('status403', '(403)'),
    ('status404', 'no data set status404/set'), ('status429', 'wait 7 s and call again'),
    ('status500', 'error 500'), ('private', 'KAGGLE_API_TOKEN'),
    ('stall', 'no answer from Kaggle for 1 s'), ('half', 'half'), ('page', 'no complete .zip'),
    ('slip', "unsafe name '../../escaped.png'"), ('absolute', 'unsafe name')])
def test_one_line_for_each_failure(tour, label, words):
    r = tour[1][label]
    assert words in r['error'] and '\n' not in r['error'] and len(r['error']) < 400, r
    assert r['kind'] in ('DownloadError', 'BadArchive') and r['seconds'] < 10


def test_wrong_checksum(tour):
    backend, got, *_ = tour
    # kaggle compares sizes only; the CRCs inside the zip were right
    if backend == 'kaggle': assert 'path' in got['badsum']
    else: assert 'wrong checksum' in got['badsum']['error']


def test_nothing_half_written_stays(tour):
    backend, got, _, _, cache = tour
    for label in ('half', 'page', 'badsum'):   # the bad archive was gone
        assert pictures(got[f'{label}#again']['path']) == ['a.png', 'b.png', 'c.png']
    for label in ('status404', 'stall', 'slip', 'absolute'):
        assert not pictures(cache/label) and not list((cache/label).rglob('*.complete'))
    assert not list(cache.parent.rglob('escaped.png')) and not Path('/tmp/escaped.png').exists()
    assert not [p for p in cache.rglob('.*') if p.is_dir()]   # no folder aside was left


@pytest.mark.parametrize('backend', ['kagglehub', 'kaggle'])
@pytest.mark.parametrize('place', ['environment', 'file'])
def test_the_token_is_used_and_never_shown(backend, place, tmp_path):
    env = dict(KAGGLE_API_TOKEN=TOKEN) if place == 'environment' else {}
    if place == 'file':
        (tmp_path/'home'/'.kaggle').mkdir(parents=True)
        (tmp_path/'home'/'.kaggle'/'access_token').write_text(TOKEN, encoding='utf-8')
    plan = [('private', 'private/set', {}), ('echo', 'echo/set', {}), ('status401', 'status401/set', {}),
            ('cut', 'cut/set', dict(tries=1))]
    with FakeKaggle() as k: got, output = visit(k.url, backend, plan, tmp_path, **env)
    assert pictures(got['private']['path']) and any(TOKEN in v.get('auth', '') for v in k.visits)
    assert 'error' in got['echo'] and 'error' in got['status401'] and 'error' in got['cut']
    assert TOKEN not in output and TOKEN[5:] not in output and 'c0ffee5ecre7' not in output


def test_find_sets(tmp_path):
    plan = [('all', 'creatures', {}), ('one', 'creatures', dict(n=1)), ('limit', 'status429', {}),
            ('echo', 'echo', {}), ('refused', 'private', {})]
    with FakeKaggle() as k:
        got, output = visit(k.url, 'kaggle', plan[:4], tmp_path, SEARCH, KAGGLE_API_TOKEN=TOKEN)
        without, _ = visit(k.url, 'kaggle', plan[4:], tmp_path, SEARCH)
    assert got['all']['found'] == [['ash/pallet', 'Creatures from Pallet', 81.0],
                                   ['misty/cerulean', 'Creatures from Cerulean', 0.0]]
    assert got['one']['found'] == got['all']['found'][:1]
    assert 'wait 7 s' in got['limit']['error'] and 'error 500' in got['echo']['error']
    assert TOKEN not in output and TOKEN[5:] not in output
    assert 'with a token' in without['refused']['error'] and without['refused']['kind'] == 'DownloadError'


def test_without_a_network_the_cache_serves(tmp_path):
    with FakeKaggle() as k: visit(k.url, 'kagglehub', [('fine', 'fine/set', {})], tmp_path)
    plan = [('fine', 'fine/set', {}), ('fine#other', 'djilax/set', {})]
    got, output = visit(k.url, 'kagglehub', plan, tmp_path)
    assert pictures(got['fine']['path']) == ['a.png', 'b.png', 'c.png'] and 'taking version 3' in output
    assert 'cannot be reached' in got['fine#other']['error']


def test_private_names_that_we_lean_on():
    import kagglehub.http_resolver
    import kagglesdk.kaggle_env
    assert callable(kagglehub.http_resolver._extract_archive)
    assert isinstance(kagglesdk.kaggle_env._env_to_endpoint, dict)


def test_handles():
    assert parse_handle('kvpratama/pokemon-images-dataset') == ('kvpratama/pokemon-images-dataset', None)
    assert parse_handle('kaggle:a/b/versions/12') == ('a/b', 12)
    address = 'https://www.kaggle.com/datasets/djilax/pkmn-image-dataset'
    assert parse_handle(address) == ('djilax/pkmn-image-dataset', None)
    for bad in ('pokemon', 'a/b/c', '../x', 'a/b/versions/x', '', 'a /b'):
        with pytest.raises(ValueError, match='owner/name'): parse_handle(bad)


def test_scrub(monkeypatch):
    monkeypatch.setenv('KAGGLE_KEY', 'deadbeef'*4)
    text = scrub('Authorization: Basic YXNoOmtleQ== \n key ' + 'deadbeef'*4
                 + ' https://x/y?sig=abc KGAT_zzz9')
    assert text == 'Authorization: Basic *** key *** https://x/y?*** ***'
    assert explain(ConnectionError('refused'), 'a/b', 3)[0].startswith('Kaggle cannot be reached')
    assert issubclass(DownloadError, OSError) and issubclass(BadArchive, ValueError)


# ---- unpacking

def tar(path, *members, mode='w:gz'):
    with tarfile.open(path, mode) as t:
        for name, kind, target in members:
            m = tarfile.TarInfo(name)
            m.type, m.linkname, m.size = kind, target, 5 if kind == tarfile.REGTYPE else 0
            t.addfile(m, io.BytesIO(b'hello'))
    return path


def test_unpack_zip_and_tar(tmp_path):
    (tmp_path/'a.zip').write_bytes(archive(['x.png', 'deep/er/y.png', 'ピカチュウ.png']))
    to = unpack(tmp_path/'a.zip', tmp_path/'out')
    found = sorted(p.relative_to(to).as_posix() for p in to.rglob('*.png'))
    assert found == ['deep/er/y.png', 'x.png', 'ピカチュウ.png']
    with pytest.raises(ValueError, match='exists already'): unpack(tmp_path/'a.zip', to)
    for mode in ('w', 'w:gz', 'w:bz2', 'w:xz'):
        p = tar(tmp_path/'t.tar', ('./a/b.txt', tarfile.REGTYPE, ''), mode=mode)
        assert (unpack(p, to, replace=True)/'a'/'b.txt').read_bytes() == b'hello'
    assert not (to/'x.png').exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.zip', 'out', 't.tar']


@pytest.mark.parametrize('make,words', [
    (lambda p: p.write_bytes(archive(['ok.png', '../evil.png'])), 'unsafe name'),
    (lambda p: p.write_bytes(archive(['/evil.png'])), 'unsafe name'),
    (lambda p: p.write_bytes(archive(['a/../../evil.png'])), 'unsafe name'),
    (lambda p: p.write_bytes(archive(['C:\\evil.png'])), 'unsafe name'),
    (lambda p: p.write_bytes(archive(['..\\evil.png'])), 'unsafe name'),
    (lambda p: tar(p, ('../evil.txt', tarfile.REGTYPE, '')), 'unsafe name'),
    (lambda p: tar(p, ('a', tarfile.SYMTYPE, '/etc')), 'link'),
    (lambda p: tar(p, ('a', tarfile.LNKTYPE, '../b')), 'link'),
    (lambda p: tar(p, ('a', tarfile.FIFOTYPE, '')), 'device'),
    (lambda p: p.write_bytes(archive()[:200]), 'no complete'),
    (lambda p: p.write_bytes(b'PK not really'), 'no complete'),
    (lambda p: p.write_bytes(b''), 'no complete'),
    (lambda p: p.write_bytes(archive().replace(b'IDAT', b'IDAX')), 'damaged'),
    (lambda p: p.write_bytes(archive([f'{i}.png' for i in range(60)])), 'more than 50 files'),
    (lambda p: p.write_bytes(archive(filler=1 << 20)), 'unpacks to more than'),
])
def test_unpack_refuses_and_leaves_nothing(tmp_path, make, words):
    inside = tmp_path/'inside'
    inside.mkdir()
    p = inside/'bad.bin'
    make(p)
    with pytest.raises(ValueError, match=words) as e:
        unpack(p, inside/'out', max_bytes=1_000_000, max_files=50)
    assert '\n' not in str(e.value)
    assert [f.name for f in tmp_path.rglob('*')] == ['inside', 'bad.bin']


def test_a_bomb_is_stopped_by_what_comes_out_not_by_its_header(tmp_path):
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('zeros.png', bytes(20 << 20))
    with pytest.raises(BadArchive, match='more than'):
        unpack(tmp_path/'bomb.zip', tmp_path/'out', max_bytes=1 << 20)
    assert not (tmp_path/'out').exists()
