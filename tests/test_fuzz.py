"""Anything that can stand in a file or a word: a value comes out, or one line. A minute here;
FUZZ=60 python -m pytest tests/test_fuzz.py takes sixty times as many examples."""
import io, json, os, tarfile, zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, HealthCheck, settings, strategies as st
from PIL import Image

from pokegan import cli, load_run, recipe, train
from pokegan.core import holder
from pokegan.data import Images
from pokegan.data.cleaning import clean, Report, Skip
from pokegan.data.files import match_labels, read_csv, walk
from pokegan.data.prepare import prepare
from pokegan.data.records import parse, PreparedInfo, RunInfo, SavedState
from pokegan.recipes import RECIPES, variant

TIMES = int(os.environ.get('FUZZ', 1))
HOW = dict(deadline=None, derandomize=TIMES == 1, database=None,
           suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def fuzz(n): return settings(max_examples=n*TIMES, **HOW)


def one_line(call, *args):
    "What it returns; None where the command would say one line. Anything else is a failure."
    try: return call(*args)
    except (ValueError, OSError) as e: assert cli.one_line(e).isprintable() and cli.one_line(e)


odd = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
                   lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3),
                   max_leaves=6)


def places(value, at=()): # every place in plain values
    yield at
    if isinstance(value, dict): parts = value.items()
    else: parts = enumerate(value) if isinstance(value, list) else ()
    for k, v in parts: yield from places(v, (*at, k))


def changed(value, at, new):
    if not at: return new
    other = value.copy()
    other[at[0]] = changed(value[at[0]], at[1:], new)
    return other


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    x = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    at = tmp_path_factory.mktemp('fuzz')/'r'
    return train('dcgan-quick', Images(x), at, steps=1, size=16, ngf=4, ndf=4, nz=4, batch=4,
                 device='cpu', progress=False)


@fuzz(400)
@given(st.sampled_from([RunInfo, PreparedInfo, SavedState]), odd | st.text(max_size=40) | st.binary())
def test_records(model, value):
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    found = one_line(parse, text, model)
    assert found is None or isinstance(found, dict)


@fuzz(60)
@given(data=st.data())
def test_run_json_with_one_thing_wrong(data, run):
    "It opens and draws, or says one line."
    good = (run.folder/'run.json').read_text(encoding='utf-8')
    info = json.loads(good)
    at = data.draw(st.sampled_from([*places(info)][1:]))
    try:
        text = json.dumps(changed(info, at, data.draw(odd)))
        (run.folder/'run.json').write_text(text, encoding='utf-8')
        opened = one_line(load_run, run.folder)
        if opened: one_line(opened.sample, 2)
    finally: (run.folder/'run.json').write_text(good, encoding='utf-8')


@fuzz(60)
@given(data=st.data())
def test_weights_with_some_bytes_wrong(data, run):
    path = run.folder/'last.safetensors'
    good = path.read_bytes()
    spoilt = bytearray(good)
    most = len(good) - 1 if data.draw(st.booleans()) else 600 # mostly the header
    for at in data.draw(st.lists(st.integers(0, most), min_size=1, max_size=4)):
        spoilt[at] = data.draw(st.integers(0, 255))
    try:
        path.write_bytes(spoilt[:data.draw(st.integers(0, len(good)) | st.just(len(good)))])
        opened = one_line(load_run, run.folder)
        if opened: assert opened.sample(2).shape == (2, 3, 16, 16)
    finally: path.write_bytes(good)


FIELDS = 'lr nz ngf size batch betas loss norm penalty ema diffaug latent start los'.split()
WORDS = ['', '0', '-1', '1e9', 'nan', 'inf', 'hinge', 'gp', 'yes', '0.5+0.9', '2+x', '٣', '8']
fields, words = st.sampled_from(FIELDS), st.sampled_from(WORDS)


@fuzz(300)
@given(st.sampled_from(sorted(RECIPES)) | st.text(max_size=8), st.lists(st.tuples(fields, words), max_size=3),
       st.text(max_size=6))
def test_words_for_recipes(name, changes, rest):
    spelt = f"{name}:{','.join(f'{k}={v}' for k, v in changes)}{rest}"
    found = one_line(variant, spelt)
    if found: one_line(lambda: recipe(found[0], **found[1]))


def saved(im, kind):
    f = io.BytesIO()
    im.save(f, kind)
    return f.getvalue()


def noise(mode):
    im = Image.effect_noise((24, 20), 80)
    return im.convert(mode) if mode != 'I;16' else im.convert('I').convert('I;16')


KINDS = dict(PNG='RGB L P RGBA I;16 1', JPEG='RGB L CMYK', GIF='P L', BMP='RGB L', WEBP='RGB RGBA',
             TIFF='RGB L I;16 CMYK', ICO='RGBA', PPM='RGB', TGA='RGB')
files = [saved(noise(m), k) for k, modes in KINDS.items() for m in modes.split()]


@fuzz(300)
@given(data=st.data())
def test_pictures(data):
    spoilt = bytearray(data.draw(st.sampled_from(files)))
    for at in data.draw(st.lists(st.integers(0, len(spoilt) - 1), max_size=6)):
        spoilt[at] = data.draw(st.integers(0, 255))
    try: found = clean(bytes(spoilt[:data.draw(st.integers(0, len(spoilt)) | st.just(len(spoilt)))]), 16)
    except Skip as e: assert str(e) and '\n' not in str(e)
    else: assert found.pixels.shape == (16, 16, 3)


def archive(kind) -> bytes:
    f = io.BytesIO()
    if kind == 'zip':
        with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
            for i in range(3): z.writestr(f'a/{i}.png', files[0])
            z.writestr('a/labels.csv', 'file,type\n0.png,x\n1.png,y\n2.png,x\n')
    else:
        with tarfile.open(fileobj=f, mode=f'w:{kind}') as t:
            for i in range(3):
                member = tarfile.TarInfo(f'a/{i}.png')
                member.size = len(files[0])
                t.addfile(member, io.BytesIO(files[0]))
    return f.getvalue()


archives = [archive(k) for k in ('zip', '', 'gz', 'xz', 'bz2')]


@pytest.mark.filterwarnings('ignore::UserWarning')
@fuzz(150)
@given(data=st.data())
def test_archives(data, tmp_path):
    spoilt = bytearray(data.draw(st.sampled_from(archives)))
    for at in data.draw(st.lists(st.integers(0, len(spoilt) - 1), max_size=5)):
        spoilt[at] = data.draw(st.integers(0, 255))
    path = tmp_path/'a'
    path.write_bytes(spoilt[:data.draw(st.integers(1, len(spoilt)) | st.just(len(spoilt)))])
    before = sorted(tmp_path.rglob('*'))
    one_line(lambda: [f.name for f in walk(path)])
    one_line(lambda: prepare(path, 16, progress=False))
    assert sorted(tmp_path.rglob('*')) == before


@fuzz(300)
@given(st.binary(max_size=80) | st.text(alphabet='a,;\t\n"\r0=é\0', max_size=60).map(str.encode))
def test_tables(data):
    columns = one_line(read_csv, data)
    if columns: match_labels(['a/0.png', 'b.png'], columns)
    one_line(lambda: str(columns))


@fuzz(200)
@given(st.text(max_size=12), st.text(max_size=12))
def test_names_in_reports(name, reason):
    "What is printed holds no control characters; what is written is read again."
    r = Report()
    r.add(name, 'skip', reason or 'ok')
    assert all(l.isprintable() for l in str(r).splitlines())


@fuzz(100)
@given(data=st.binary(max_size=60))
def test_claims(data, tmp_path):
    (tmp_path/'.in-use').write_bytes(data)
    assert holder(tmp_path).isprintable()


def test_the_numbers_of_examples_follow_the_environment():
    assert fuzz(7).max_examples == 7*TIMES and Path(__file__).name in (__doc__ or '')
