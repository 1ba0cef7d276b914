"""Comparisons as a user runs them: stopped by a kill and continued, called again, called wrongly;
scores that carry their card."""
import csv, json, os, time

import fresh
import pytest
import torch

from pokegan.data import Images
from pokegan.recipes import read_value, recipe, variant
from pokegan.runs import train
from pokegan.compare import compare, evaluate

SMALL = 'size=32,ngf=8,ndf=8,batch=16'
MINUTES = .02
KW = dict(minutes=MINUTES, n=64, features='random', progress=False)


def noise(seed=0, n=96):
    g = torch.Generator().manual_seed(seed)
    return Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), source='noise')


def read_json(path): return json.loads(path.read_text(encoding='utf-8'))


def change_json(path, change):
    info = read_json(path)
    change(info)
    path.write_text(json.dumps(info), encoding='utf-8')


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "Two variants, two seeds, finished."
    out = tmp_path_factory.mktemp('compare')
    names = [f'dcgan-quick:{SMALL}', f'dcgan-819:{SMALL},flip=0']
    return names, out, compare(names, noise(), seeds=2, out=out, **KW)


def test_variants_are_recipes_with_changes():
    assert variant('dcgan-819') == ('dcgan-819', {})
    name, changes = variant('dcgan-819:real_target=0.9,betas=0/0.9,sn=no,norm=group,d_rounds=2')
    assert recipe(name, **changes).betas == (0., .9)
    assert changes == dict(real_target=.9, betas=(0., .9), sn=False, norm='group', d_rounds=2)


@pytest.mark.parametrize('words, says', [
    ('dcgan-918', 'no recipe'), ('dcgan-819:colour=red', 'colour'), ('dcgan-819:flip=often', 'float'),
    ('dcgan-819:flip', 'field=value'), ('dcgan-819:sn=perhaps', 'bool'), ('dcgan-819:norm=layer', 'norm')])
def test_wrong_variants(words, says):
    with pytest.raises(ValueError, match=says) as e: variant(words)
    assert '\n' not in str(e.value)


def test_values_from_text():
    assert read_value(bool, 'yes') is True and read_value(bool, 'False') is False
    assert read_value(int, '3') == 3


def test_table_has_a_row_for_each_run(done):
    names, out, text = done
    with open(out/'table.csv', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    assert [(r['recipe'], r['seed']) for r in rows] == [(w, s) for w in names for s in '01']
    for r in rows:
        assert float(r['images_per_s']) > 0 and float(r['seconds']) >= 60*MINUTES and int(r['images']) > 0
        assert all(0 <= float(r[k]) <= 1 for k in ('precision', 'recall', 'memorised'))
    table = (out/'table.md').read_text(encoding='utf-8')
    assert all(w in table for w in names) and 'floor' in table and 'ceiling' in table and 'random' in table
    assert table.strip() in str(text) or str(text).strip() in table
    assert (out/'grids.png').stat().st_size > 1000


def test_again_it_trains_nothing(done):
    names, out, text = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob('last.safetensors')}
    assert len(before) == 4
    assert compare(names, noise(), seeds=2, out=out, **KW) == text
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob('last.safetensors')}
    assert names[1] in compare(names[1:], noise(), seeds=1, out=out, **KW)  # part of it


@pytest.mark.parametrize('change', [dict(data=noise(1)), dict(minutes=2*MINUTES)])
def test_another_comparison_needs_another_folder(done, change):
    names, out, _ = done
    kw = dict(data=noise(), out=out, seeds=1) | KW | change
    with pytest.raises(ValueError, match='another'): compare(names, **kw)


def test_wrong_words_cost_nothing(tmp_path):
    wrong = [
        (['dcgan-918'], {}), (['dcgan-819', 'dcgan-819'], {}), ([], {}),
        (['dcgan-819'], dict(seeds=0)), (['dcgan-819'], dict(minutes=0)),
        (['dcgan-819'], dict(features='resnet')),
        (['dcgan-819', 'dcgan-quick:size=64'], {}), (['dcgan-819:' + SMALL], dict(n=2))]
    for names, kw in wrong:
        with pytest.raises(ValueError) as e: compare(names, noise(), out=tmp_path/'none', **KW | kw)
        assert '\n' not in str(e.value) and not (tmp_path/'none').exists()


def test_scores_are_stored_with_their_card(tmp_path):
    train('dcgan-quick', noise(), tmp_path/'run', steps=2, progress=False, size=32, ngf=8, ndf=8, batch=16)
    scores = evaluate(tmp_path/'run', noise(), n=64, features='random')
    stored = read_json(tmp_path/'run/scores.json')
    assert stored['step'] == 2 and stored['card']['n_fake'] == 64
    assert stored['card']['extractor'].startswith('random')
    assert evaluate(tmp_path/'run', noise(), n=64, features='random').to_dict() == scores.to_dict()


def test_other_images_than_those_of_the_run_are_not_scored_silently(tmp_path):
    small = dict(size=32, ngf=8, ndf=8, batch=16)
    train('dcgan-quick', 'creatures:40', tmp_path/'run', steps=1, progress=False, **small)
    evaluate(tmp_path/'run', n=32, features='random')
    change_json(tmp_path/'run/run.json', lambda info: info['data'].update(source='creatures:41'))
    with pytest.raises(ValueError, match='other images'): evaluate(tmp_path/'run', n=32, features='random')


def test_a_run_that_breaks_is_marked_and_not_repeated(tmp_path):
    names = [f'dcgan-quick:{SMALL},lr=1e30']
    table = compare(names, noise(), out=tmp_path/'c', **KW)
    assert '(broken off)' in table
    run = next((tmp_path/'c').glob('*/run.json'))
    before = run.stat().st_mtime_ns
    assert 'NaN' in read_json(run)['stopped']
    assert compare(names, noise(), out=tmp_path/'c', **KW) == table and run.stat().st_mtime_ns == before


def test_an_evaluated_half_is_finished_not_taken_for_whole(tmp_path):
    w = f'dcgan-quick:{SMALL}'
    changes = variant(w)[1]
    folder = tmp_path/'c'/f"{w.replace(':', '+')}-0"
    train('dcgan-quick', noise(), folder, minutes=MINUTES/4, progress=False, **changes)
    half = next((tmp_path/'c').glob('*/run.json'))
    # as if it had been killed on the way
    change_json(half, lambda info: info['budget'].update(minutes=MINUTES))
    evaluate(half.parent, noise(), n=64, features='random')
    compare([w], noise(), out=tmp_path/'c', **KW)
    assert read_json(half)['seconds'] >= 60*MINUTES


def test_killed_and_continued(tmp_path):
    names = [f'dcgan-quick:{SMALL}', f'dcgan-quick:{SMALL},lr=0.0002']
    words = ['compare', *names]
    words += '--data creatures:96 --minutes .05 --n 64 --features random --out c'.split()
    def run(): return fresh.Command(words, tmp_path, os.environ)
    p, t0 = run(), time.time()
    while not list(tmp_path.glob('c/*/run.json')) and time.time() - t0 < 60: time.sleep(.05)
    time.sleep(1)  # in the middle of the first of two
    p.kill()
    assert p.end().returncode < 0 or os.name == 'nt'
    assert not (tmp_path/'c/table.md').exists()
    p = run().end()
    assert p.returncode == 0, p.stderr
    assert 'lr=0.0002' in p.stdout and (tmp_path/'c/table.md').exists()
    assert len(list(tmp_path.glob('c/*/scores.json'))) == 2
