"""A stick that installs a seat; and what comes back of a class, written by strangers (lessons 15d3, 15d4)."""
import errno, json, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from pokegan.course import cards, workshop
from pokegan.course.cards import called, card_id, collect, gallery, leaders, report, stuck
from pokegan.course.exercises import Progress
from pokegan.course.workshop import gather, markers, needs, pack, seat_lines
from pokegan.data.records import to_json
from test_cli import pokegan, refused

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))
import sync  # noqa: E402

WHEN = '2026-12-01T09:00:00+00:00'


def test_the_minutes_of_a_seat_are_those_of_the_table():
    assert workshop.RUN == {k: sync.NEEDS[k]['run'] for k in workshop.RUN}


# ---- the stick ----

def wheel(folder: Path, name: str, version: str, *wanted: str, tag: str = 'py3-none-any') -> Path:
    info, p = f'{name}-{version}.dist-info', folder/f'{name}-{version}-{tag}.whl'
    head = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: all\n'
    texts = dict(METADATA=head + ''.join(f'Requires-Dist: {w}\n' for w in wanted), RECORD='',
                 WHEEL=f'Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: {tag}\n')
    with zipfile.ZipFile(p, 'w') as z:
        for k, text in texts.items(): z.writestr(f'{info}/{k}', text)
        z.writestr(f'{name}.py', f'version = {version!r}\n')
    return p


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "A folder of wheels, the only one that pip knows; and a package of our own in place of pokegan."
    at = tmp_path/'shelf'
    at.mkdir()
    own = wheel(tmp_path, 'ours', '1.0', 'net>=2', 'colours; sys_platform == "win32"', 'lab; extra == "all"')
    wheel(at, 'net', '2.1', 'cuda; platform_system == "Linux"', 'both<3')
    for v in '2.5', '3.0': wheel(at, 'both', v)
    for name in 'colours', 'cuda': wheel(at, name, '1.0')
    wheel(at, 'lab', '1.0', 'both')
    monkeypatch.setattr(workshop, 'own_wheel', lambda to: Path(shutil.copy(own, to)))
    for k, v in dict(PIP_NO_INDEX='1', PIP_FIND_LINKS=at.as_uri(), PIP_CONFIG_FILE=os.devnull).items():
        monkeypatch.setenv(k, v)
    return at


def there(stick: Path) -> set: return {p.name.split('-')[0] for p in (stick/'wheels').iterdir()}


def test_each_kind_of_seat_gets_what_it_asks_for(shelf, tmp_path):
    "A wish that comes late (both<3) sends an earlier choice (3.0) back."
    said = []
    assert pack(tmp_path/'usb', ('linux', 'windows'), ('3.11',), roots=('ours[all]',), say=said.append) == []
    seats = json.loads((tmp_path/'usb/pack.json').read_text(encoding='utf-8'))['seats']
    names = {k: {w.split('-')[0] for w in wheels} for k, wheels in seats.items()}
    shared = {'ours', 'net', 'both', 'lab'}
    assert names == {'linux-3.11': shared | {'cuda'}, 'windows-3.11': shared | {'colours'}}
    assert 'both-2.5-py3-none-any.whl' in seats['linux-3.11']
    assert there(tmp_path/'usb') == shared | {'cuda', 'colours'}
    assert re.match(r'linux-3.11: 5 wheels, 0 MB, \d+ s', said[0])


@pytest.mark.skipif(os.name == 'nt', reason='a shell script')
def test_the_script_installs_without_an_index(shelf, tmp_path, monkeypatch):
    here = f'{sys.version_info[0]}.{sys.version_info[1]}'
    pack(tmp_path/'usb stick', ('linux',), (here,), roots=('ours[all]',), say=str)
    for k in 'PIP_NO_INDEX', 'PIP_FIND_LINKS': monkeypatch.delenv(k)
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = os.environ | dict(PIP_INDEX_URL='http://127.0.0.1:9', PATH=path)
    command = ['sh', tmp_path/'usb stick/install.sh', tmp_path/'a seat']
    p = subprocess.run(command, capture_output=True, text=True, env=env)
    assert 'No module named pokegan' in p.stderr # which our toy is not; all before went well
    code = 'import ours, net, both, lab; print(ours.version, both.version)'
    command = [tmp_path/'a seat/.venv/bin/python', '-c', code]
    assert subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout == '1.0 2.5\n'


def test_it_goes_on_and_begins_anew_only_where_something_is_missing(shelf, tmp_path):
    out, said = tmp_path/'usb', []
    for k in range(3):
        pack(out, ('windows', 'mac'), ('3.11',), roots=('ours',), say=said.append)
        if k == 1: (out/'wheels/colours-1.0-py3-none-any.whl').write_bytes(b'half')
    assert [s.split(',')[0] for s in said if 'begin with' not in s] == [
        'windows-3.11: 4 wheels', 'mac-3.11: 3 wheels',
        'windows-3.11 is there already', 'mac-3.11 is there already',
        'windows-3.11: 4 wheels', 'mac-3.11 is there already']


def test_what_cannot_be_had_is_one_line_and_leaves_nothing(shelf, tmp_path):
    (shelf/'cuda-1.0-py3-none-any.whl').unlink()
    out = tmp_path/'usb'
    failed = pack(out, ('linux', 'windows'), ('3.11',), roots=('ours',), say=str)
    assert len(failed) == 1 and re.fullmatch('linux-3.11: pip: .*cuda.*', failed[0])
    assert there(out) == {'ours', 'net', 'both', 'colours'}
    assert 'cuda' not in (out/'pack.json').read_text(encoding='utf-8')


def test_a_pack_that_was_killed_uses_what_it_had(shelf, tmp_path, monkeypatch):
    true, calls = workshop._pip, []
    def killed(*words, **env):
        calls.append(words)
        if len(calls) == 2: raise KeyboardInterrupt
        true(*words, **env)
    monkeypatch.setattr(workshop, '_pip', killed)
    with pytest.raises(KeyboardInterrupt): pack(tmp_path/'usb', ('mac',), ('3.11',), roots=('ours',), say=str)
    assert json.loads((tmp_path/'usb/pack.json').read_text(encoding='utf-8'))['seats'] == {}
    assert pack(tmp_path/'usb', ('mac',), ('3.11',), roots=('ours',), say=str) == []
    assert len(calls) == 3 # the third asked only for what was missing
    assert there(tmp_path/'usb') == {'ours', 'net', 'both'}


def test_a_full_disk_is_one_line(shelf, tmp_path, monkeypatch):
    def full(*words, **env): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(workshop, '_pip', full)
    with pytest.raises(OSError, match='disk full') as e:
        pack(tmp_path/'usb', ('mac',), ('3.11',), roots=('ours',), say=str)
    assert '\n' not in str(e.value)


def test_folders_of_others_and_wrong_words_are_refused(shelf, tmp_path):
    with pytest.raises(ValueError, match='holds other things'): pack(shelf)
    with pytest.raises(ValueError, match='seats is'): pack(tmp_path/'a', ('amiga',))
    with pytest.raises(ValueError, match='say 3.11'): pack(tmp_path/'a', ('mac',), ('3.11; rm',))
    assert not (tmp_path/'a').exists()
    (tmp_path/'a').mkdir()
    (tmp_path/'a/pack.json').write_text('{"schema": 1, "seats": {"x": {"../../x.whl": 1}}}', encoding='utf-8')
    with pytest.raises(ValueError, match='name another folder'): pack(tmp_path/'a')


def test_pytorch_for_processors_comes_from_its_own_place(shelf, tmp_path, monkeypatch):
    "The usual place has a newer one, which is for cards."
    cpu, tag = tmp_path/'cpu place', 'cp311-cp311-manylinux_2_28_x86_64'
    cpu.mkdir()
    wheel(shelf, 'torch', '2.9', 'cuda', tag=tag)
    wheel(cpu, 'torch', '2.8+cpu', tag=tag)
    assert pack(tmp_path/'usb', ('linux',), ('3.11',), str(cpu), ('ours', 'torch>=2'), str) == []
    assert f'torch-2.8+cpu-{tag}.whl' in {p.name for p in (tmp_path/'usb/wheels').iterdir()}
    failed = pack(tmp_path/'two', ('linux',), ('3.11',), str(shelf), ('ours', 'torch>=2'), str)
    assert 'which is not for processors' in failed[0]
    failed = pack(tmp_path/'three', ('linux',), ('3.11',), str(tmp_path), ('ours', 'torch'), str)
    assert 'say with --cpu-index' in failed[0]
    assert pack(tmp_path/'four', ('linux',), ('3.11',), workshop.PLAIN, ('ours', 'torch'), str) == []


def test_an_installed_package_becomes_its_wheel_again(tmp_path, monkeypatch):
    from importlib.metadata import PathDistribution
    made = wheel(tmp_path, 'toy_made', '1.0')
    site = tmp_path/'site'
    def install(p, to): workshop._pip('install', '--no-index', '--no-deps', '--target', to, p)
    install(made, site)
    own = PathDistribution(site/'toy_made-1.0.dist-info')
    monkeypatch.setattr(workshop, 'distribution', lambda name: own)
    (tmp_path/'out').mkdir()
    install(workshop._remake('toy-made', tmp_path/'out'), tmp_path/'b')
    assert (tmp_path/'b/toy_made.py').read_text(encoding='utf-8') == "version = '1.0'\n"


def test_a_broken_wheel_is_named(tmp_path):
    (tmp_path/'net-1.0-py3-none-any.whl').write_bytes(b'no')
    with pytest.raises(ValueError, match='no whole wheel'): needs(tmp_path/'net-1.0-py3-none-any.whl')
    def nothing(missing): pass
    with pytest.raises(ValueError, match='no end'):
        gather(['gone'], tmp_path/'empty', markers('mac', '3.12'), nothing)


# ---- a seat ----

def test_a_seat_says_what_to_do(monkeypatch):
    def bad(): raise ValueError('two\nlines\x1b[2J')
    monkeypatch.setattr(workshop, 'CHECKS', dict(one=lambda: 'fine', two=bad, three=lambda: 1/0))
    assert [*seat_lines()] == [(True, 'ok  one: fine'), (False, 'NO  two: two lines\\x1b[2J'),
                               (False, 'NO  three: division by zero')]


def test_memory_and_disk_are_asked_for(monkeypatch):
    for room, names in ((1e15, 1e15), ('memory', 'disk')), ((0, 0), ()):
        monkeypatch.setattr(workshop, 'ROOM', room)
        monkeypatch.setattr(workshop, 'CHECKS', {k: workshop.CHECKS[k] for k in ('memory', 'disk')})
        assert [line.split()[1][:-1] for well, line in seat_lines() if not well] == [*names]


# ---- what comes back ----

def progress(name='Ada', **tried): # tries of exercises a_1; below 0: not passed
    of = {'0' + k.replace('_', '.'): dict(tries=abs(n), hints=0, first=WHEN, passed=WHEN if n > 0 else None)
          for k, n in {k[1:]: n for k, n in tried.items()}.items()}
    return dict(schema=1, name=name, exercises=of)


def hand_in(folder: Path, values, name: str = 'progress.json') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder/name).write_text(text, encoding='utf-8')
    return folder/name


def card(folder: Path, kid=.02, copies=.1, data='ab'*8, **changes) -> Path:
    im = Image.new('RGB', (70, 40), (200, 30, 30))
    im.putpixel((3, 3), (0, 0, 0)) # one colour alone is refused as blank
    measured = dict(se=None, floor=.001, ceiling=1.)
    how = dict(extractor='effnet-lite0', weights='w', size=224, resize='area', image_size=32, data=data,
               n_real=64, n_fake=64, n=32, split='by picture', seed=0)
    scores = dict(kid=dict(value=kid, **measured), memorised=dict(value=copies, **measured))
    values = dict(schema=1, kind='pokegan card', name='Ada', recipe='dcgan-quick', values=dict(lr=.001),
                  seed=0, step=9, data=dict(n=64, size=32, fingerprint=data), versions=dict(torch='2'),
                  picture=cards._pixels(im), protocol=how, scores=scores) | changes
    hand_in(folder, dict(id=card_id(values)) | values, 'card.json')
    im.save(folder/'card.png')
    return folder/'card.json'


def test_files_named_anything_wherever_they_lie(tmp_path):
    hand_in(tmp_path/'a/deep/er', progress('Ada', L1_1=1))
    hand_in(tmp_path, progress('Bob', L1_1=-2), 'from bob (2).json')
    hand_in(tmp_path/'again', progress('Ada', L1_1=1)) # handed in twice
    hand_in(tmp_path/'run', dict(schema=1, step=3), 'run.json') # not ours to judge
    us = collect(tmp_path)
    assert {p['name'] for p in us.progress} == {'Ada', 'Bob'} and us.broken == []


def test_where_it_is_hard():
    class_ = [progress('A', L1_1=1, L2_1=5), progress('B', L1_1=2, L2_1=-9), progress('C', L1_1=1)]
    assert stuck(class_) == [('02.1', 2, .5, 7.), ('01.1', 3, 1., 4/3)]
    told = report(cards.Class(class_))
    assert 'A: 2 passed: 01.1 02.1' in told and re.search(r'02.1 +2 +50% +7.0', told)
    strange = progress('D') | dict(exercises={'<b>': dict(tries=9, hints=0, first='', passed=None)})
    assert stuck([strange]) == []


def test_names_are_as_typed_and_never_mixed_up():
    names = [dict(name=n) for n in ('Ada', '', 'Ada', ' ', 'Bob')]
    assert called(names) == ['Ada 1', 'unsigned 1', 'Ada 2', 'unsigned 2', 'Bob']


@pytest.mark.parametrize('text', [
    '', '[', '[]', '3', '{"exercises": 3}', '[' * 100_000, '{"schema": 2, "name": "", "exercises": {}}',
    json.dumps(progress('x' * 61)), '\x00', '{"schema":1,"name":"","exercises":{"a":{"tries":-1}}}'])
def test_a_wrong_file_is_one_line_and_the_others_count(tmp_path, text):
    hand_in(tmp_path/'a', progress('Ada', L1_1=1))
    hand_in(tmp_path/'b\x1b[2J' if os.name != 'nt' else tmp_path/'b', text)
    us = collect(tmp_path)
    assert len(us.progress) == 1 and len(us.broken) == 1
    assert us.broken[0].isprintable() and len(us.broken[0]) <= 200 and us.broken[0].startswith('b')


@pytest.mark.skipif(os.name == 'nt', reason='links need rights there')
def test_links_long_and_deep_files_are_left_alone(tmp_path, monkeypatch):
    room = tmp_path/'room'
    outside = hand_in(tmp_path/'outside', progress('secret', L1_1=1))
    room.mkdir()
    (room/'progress.json').symlink_to(outside)
    (room/'folder').symlink_to(outside.parent)
    hand_in(room/'1/2/3/4/5/6/7', progress('deep', L1_1=1))
    hand_in(room/'long', ' ' * (cards.LONGEST + 1))
    os.mkfifo(room/'card.json') # which would be read for ever
    one = card(room/'linked')
    one.with_suffix('.png').rename(tmp_path/'real.png')
    one.with_suffix('.png').symlink_to(tmp_path/'real.png')
    us = collect(room)
    assert us.progress == us.cards == []
    assert [b.split(':')[0] for b in us.broken] == ['card.json', 'linked/card.json', 'long/progress.json']
    monkeypatch.setattr(cards, 'MOST', 3)
    with pytest.raises(ValueError, match='more than 3 files'): collect(room)
    with pytest.raises(ValueError, match='is no folder'): collect(tmp_path/'nowhere')


def test_a_card_fits_its_picture_or_is_left_out(tmp_path):
    card(tmp_path/'good')
    card(tmp_path/'id', id='0' * 16)
    card(tmp_path/'other', picture='0' * 64)
    card(tmp_path/'nan', kid='x')
    card(tmp_path/'gone').with_suffix('.png').unlink()
    Image.new('RGB', (2000, 2000)).save(card(tmp_path/'large', step=1).with_suffix('.png'))
    card(tmp_path/'text', step=2).with_suffix('.png').write_text('<svg onload="alert(1)">', encoding='utf-8')
    us = collect(tmp_path)
    assert len(us.cards) == 1 and len(us.broken) == 6
    assert 'its id does not fit' in ' '.join(us.broken) and 'too many pixels' in ' '.join(us.broken)


def test_numbers_and_brackets_without_end_are_left_out(tmp_path):
    good = json.loads(card(tmp_path/'good').read_text(encoding='utf-8'))
    deep = json.loads('[' * 400 + ']' * 400)
    for k, v in dict(kid=10**400, lots=1e300).items():
        card(tmp_path/k, kid=v)
    card(tmp_path/'protocol', protocol=good['protocol'] | dict(n_real=10**100))
    card(tmp_path/'words', protocol=good['protocol'] | dict(resize='x' * 1000))
    card(tmp_path/'one', scores=dict(kid=good['scores']['kid']))
    card(tmp_path/'deep', values=dict(a=deep), step=8)
    many = json.dumps(good).replace('{"lr": 0.001}', '{"a": ' + '[' * 2000 + ']' * 2000 + '}')
    hand_in(tmp_path/'brackets', many, 'card.json')
    us = collect(tmp_path)
    gallery(us, tmp_path/'page.html')
    assert len(us.cards) == 2 and len(us.broken) == 6, us.broken


def test_the_page_runs_nothing_and_shows_letters_as_letters(tmp_path):
    evil = '"><script>alert(1)</script>'
    card(tmp_path/'class/a', name=evil, recipe=evil)
    gallery(collect(tmp_path/'class'), tmp_path/'page.html')
    page = (tmp_path/'page.html').read_text(encoding='utf-8')
    assert '<script' not in page and '&lt;script&gt;' in page and "default-src 'none'" in page
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', page)


def test_only_what_was_measured_alike_stands_in_one_table(tmp_path):
    card(tmp_path/'a', kid=.05, copies=.0, name='few copies')
    card(tmp_path/'b', kid=.01, copies=.9, name='near', step=10)
    card(tmp_path/'c', data='cd' * 8, name='alone')
    us = collect(tmp_path)
    assert [len(g) for _, g in leaders(us.cards)] == [2, 1]
    gallery(us, tmp_path/'page.html')
    page = (tmp_path/'page.html').read_text(encoding='utf-8')
    near, few = page.split('<h3>')[1:3]
    assert near.index('>near<') < near.index('>few copies<')
    assert few.index('>few copies<') < few.index('>near<')
    assert 'alone' not in near + few


def test_on_the_command_line(tmp_path):
    "A run becomes a card, the card a page; and the same run gives the same card."
    words = '--recipe dcgan-quick --data creatures:64 --steps 2 --size 32 --run one'.split()
    pokegan('train', *words, cwd=tmp_path)
    hand_in(tmp_path, to_json(progress('Ada', L0_1=1), Progress))
    for k in 'ab': pokegan('workshop', 'card', 'one', '--n', 16, '--out', f'class/{k}', cwd=tmp_path)
    a, b = ((tmp_path/'class'/k/'card.json').read_text(encoding='utf-8') for k in 'ab')
    assert a == b and json.loads(a)['name'] == 'Ada' and str(tmp_path) not in a
    out = pokegan('workshop', 'collect', '.', '--out', 'class.html', cwd=tmp_path).stdout
    assert '1 learners, 1 cards' in out and 'Ada: 1 passed: 00.1' in out and (tmp_path/'class.html').exists()
    assert 'is no folder' in refused('workshop', 'collect', 'nowhere', cwd=tmp_path)
    assert 'holds other things' in refused('workshop', 'pack', '--out', 'class', cwd=tmp_path)


def test_ten_steps_say_how_long_a_lesson_takes():
    torch.manual_seed(0)
    try: told = workshop._steps()
    except ValueError as e: told = str(e) # a slow machine
    assert re.match(r'\d+ images a second[:,] lesson 00 in [\d.]+ minutes, lesson 03 in [\d.]+ minutes', told)
