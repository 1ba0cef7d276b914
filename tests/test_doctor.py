"""The doctor: signs with known answers, rules, and what it says of runs, whole and damaged."""
import json, math, shlex, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch

from pokegan import doctor
from pokegan.cli import main
from pokegan.data import load_images
from pokegan.data.images import to_float
from pokegan.doctor import (advise, as_words, both_ways, checkerboard, closeness, Condition, CONDITIONS,
                            Evidence, examine, margin, matches, read_evidence, SIGNS, tint)
from pokegan.models.dcgan import conv_generator
from pokegan.recipes import recipe, variant
from pokegan.runs import train
from pokegan.training.callbacks import save_png

SMALL = dict(size=32, nz=16, ngf=8, ndf=8, batch=8)


@pytest.fixture(scope='module')
def images(): return load_images('creatures:40', 32, progress=False)


@pytest.fixture(scope='module')
def run(images, tmp_path_factory): # of a dozen steps
    at = tmp_path_factory.mktemp('doctor')/'first'
    return train('dcgan-quick', images, at, steps=40, progress=False, device='cpu', **SMALL).folder


@pytest.fixture
def copy(run, tmp_path): # one that a test may damage
    shutil.copytree(run, tmp_path/'run')
    return tmp_path/'run'


def reals(images): return to_float(images.batch(torch.arange(len(images))))
def look(key, **parts):
    nothing = dict(folder=None, info={}, recipe=None, log=[])
    return SIGNS[key](Evidence(**nothing | parts))


# ---- signs ----

@pytest.mark.parametrize('which', ['rows', 'columns', 'board'])
def test_a_pattern_is_measured_and_an_even_picture_has_none(which):
    i = (-1.)**torch.arange(16)
    wave = dict(rows=i[:, None].expand(16, 16), columns=i.expand(16, 16), board=i[:, None]*i)[which]
    x = torch.full((3, 3, 16, 16), .2)
    assert checkerboard(x) < 1e-6
    assert checkerboard(x + .3*wave) == pytest.approx(.3, abs=1e-5)


def test_a_tint_is_no_brightness():
    x = torch.rand(4, 3, 8, 8)
    assert tint(x + .4, x) < 1e-6
    red = torch.tensor([.3, 0., 0.])[:, None, None]
    assert tint(x + red, x) == pytest.approx(math.sqrt((.2**2 + 2*.1**2)/3), abs=1e-5)


def test_copies_are_near_and_the_unlike_is_far(images):
    x = reals(images)
    assert closeness(x[:5], x) == pytest.approx(0, abs=1e-3)
    assert closeness(x[20:], x[:20]) > .5
    assert closeness(torch.ones_like(x)*-1, x) > 1.5


def test_the_statistics_of_a_new_generator_are_off_and_nothing_is_changed():
    G = conv_generator(32, 16, 8).eval()
    before = {k: v.clone() for k, v in G.state_dict().items()}
    a, b = both_ways(G, torch.randn(8, 16))
    assert look('unlike', fakes=a, busy=b) > .5 and look('unlike', fakes=b, busy=b) == 0
    assert all(torch.equal(v, G.state_dict()[k]) for k, v in before.items()) and not G.training


def rows(*values): # of (step, acc, real, fake, loss)
    return [dict(zip(('step', 'D/acc', 'D/real', 'D/fake', 'D/loss'), v)) for v in values]


def test_the_second_half_of_a_log_counts():
    log = rows((20, 0, 99, 0, 9), (60, .9, 2, -1, 1), (80, .8, 4, 1, 1), (100, .7, 1, 0, 1))
    assert look('mistaken', log=log) == pytest.approx(.2)
    assert look('lead', log=log) == pytest.approx(7/3)
    assert look('swing', log=log) == pytest.approx((97 + 2 + 3)/3)


def test_what_d_says_is_judged_where_its_logits_are_odds():
    assert look('odds', recipe=recipe('dcgan-quick')) == 1
    assert [look('odds', recipe=recipe(k)) for k in ('wgan-gp', 'projected-quick', 'aegan')] == [0, 0, 0]
    apart = [{'step': 10, 'D_real/real': 1, 'D_fake/fake': 3, 'D_real/acc': 1.}]
    assert look('lead', log=apart) is None and look('mistaken', log=apart) == 0
    wild = dict(swing=9., steps=300, mistaken=0., lead=-1.)
    named = {c.name for c in CONDITIONS if matches(c, dict.fromkeys(SIGNS) | wild | dict(odds=1.))}
    assert named == {'learning rate too high', 'D has won', 'D too weak'}
    assert not [c for c in CONDITIONS if matches(c, dict.fromkeys(SIGNS) | wild | dict(odds=0.))]


def test_what_is_missing_is_none_and_no_rule_holds(images):
    e = Evidence(None, {'step': 300, 'data': dict(n=500)}, None, [])
    signs = {k: f(e) for k, f in SIGNS.items()}
    assert signs['near'] is signs['swing'] is signs['unlike'] is None
    assert [c.name for c in CONDITIONS if matches(c, signs)] == []


# ---- rules ----

@pytest.mark.parametrize('v, side, limit, is_', [
    (4, '>', 2, 2), (1, '>', 2, 0), (2, '>', 2, 0), (1, '<', 2, 2), (0, '<', 2, math.inf), (None, '<', 2, 0),
    (-1, '<', 2, math.inf)])
def test_margin(v, side, limit, is_): assert margin(v, side, limit) == is_


def test_a_rule_is_as_sure_as_its_weakest_clause():
    c = Condition('x', (('a', '>', 1), ('b', '<', 1)), '', '', '', '')
    assert matches(c, dict(a=5, b=.5)) == 2 and matches(c, dict(a=5, b=1)) == 0


def test_every_rule_asks_for_signs_that_are_there_and_names_a_lesson():
    nbs = Path(__file__).parent.parent/'nbs'
    for c in CONDITIONS:
        assert {k for k, _, _ in c.rule} <= SIGNS.keys() and (nbs/f'{c.lesson}.ipynb').exists()
        assert c.words.format(**{k: 1 for k, _, _ in c.rule} | dict(pictures=1))


def test_a_recipe_in_one_word_is_that_recipe():
    for r in (recipe('dcgan-819', size=32, betas=(0., .9), sn=False), recipe('aegan'), recipe('finetune')):
        name, changes = variant(as_words(r))
        assert recipe(name, **changes) == r
    assert as_words(recipe('dcgan-quick', lr=.01), (('lr', lambda v: v/10), ('no', 1))) == 'dcgan-quick'


@pytest.mark.parametrize('c', CONDITIONS, ids=lambda c: c.name)
def test_what_to_try_next_is_a_command_that_is_understood(c, run):
    from typer.main import get_command
    from pokegan.cli import app
    e, signs = read_evidence(run), {k: 1. for k in SIGNS}
    words = shlex.split(doctor._fill(c, e, signs, 2.).command)
    command = get_command(app).commands[words[0]]
    said = command.make_context(words[0], words[1:]).params
    if said.get('recipe'): recipe(*variant(said['recipe'])[:1], **variant(said['recipe'])[1])


# ---- runs ----

def test_a_run_of_forty_steps_is_unfinished(run):
    r = examine(run)
    assert r.name == 'unfinished' and r.findings[0].sure and not r.missing
    text = str(r)
    assert '05_training' in text and '--resume' in text and all(map(str.isprintable, text.split('\n')))
    names = [f.name for f in r.findings]
    assert len(names) == len(set(names))


def test_nothing_wrong_is_an_answer(run, monkeypatch):
    monkeypatch.setattr(doctor, 'CONDITIONS', ())
    r = examine(run)
    assert r.name == 'healthy' and 'nothing wrong was found' in str(r)


def test_weights_that_are_no_numbers_are_told(copy):
    from pokegan.training.checkpoint import read_tensors, write_tensors
    tensors, meta = read_tensors(copy/'last.safetensors')
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    tensors[name].fill_(math.nan)
    write_tensors(copy/'last.safetensors', tensors, **meta)
    r = examine(copy)
    assert r.name == 'learning rate too high' and any('NaN' in m for m in r.missing)


def test_a_loss_that_is_no_number_is_told(copy):
    with open(copy/'log.csv', 'a', encoding='utf-8') as f: f.write('60,480,9.5,,,nan' + chr(10))
    assert examine(copy).name == 'learning rate too high'


def test_what_is_not_there_is_said(copy):
    (copy/'log.csv').unlink()
    info = json.loads((copy/'run.json').read_text(encoding='utf-8'))
    info['data']['source'] = 'gone/away'
    (copy/'run.json').write_text(json.dumps(info), encoding='utf-8')
    r = examine(copy)
    assert len(r.missing) == 2 and str(r).count('not looked at') == 2
    assert r.signs['share'] is r.signs['mistaken'] is None


def test_the_randomness_of_others_is_left_alone(run):
    torch.manual_seed(5)
    examine(run)
    a = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(a, torch.rand(1))


def test_one_line_for_what_is_no_run(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir()
    for words in (['doctor', 'empty'], ['doctor', 'none'], ['doctor', str(run), '--data', 'creatures:8'],
                  ['doctor', str(run), '--data', 'none']):
        with pytest.raises(SystemExit) as e: main(words)
        said = capsys.readouterr().err
        assert e.value.code == 2 and said.startswith('pokegan: ') and said.count('\n') == 1, said
    main(['doctor', str(run)])
    assert 'unfinished' in capsys.readouterr().out


def test_a_ready_generator_has_no_log_but_pictures(images, capsys, monkeypatch):
    monkeypatch.setattr(doctor, 'images_of', lambda folder, info, data: load_images('creatures:64', 64))
    main(['doctor', 'creatures-projected'])
    said = capsys.readouterr().out
    assert said.startswith('nothing wrong was found') and 'not looked at: log.csv, which is not publ' in said
    assert examine('creatures-projected').folder.name == 'creatures-projected'


# ---- while a run trains ----

@pytest.fixture(scope='module')
def wild(images, tmp_path_factory): # its learning rate is far too high
    at = tmp_path_factory.mktemp('doctor')/'wild'
    how = dict(steps=100, progress=False, device='cpu', lr=.5)
    return train('dcgan-quick', images, at, **how, **SMALL).folder


def test_a_grid_is_cut_into_its_tiles(tmp_path):
    x = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    save_png(x, tmp_path/'0000001.png')
    assert torch.equal(doctor._tiles(tmp_path/'0000001.png', 16), to_float(x))


def test_who_begins_from_a_trained_network_is_not_sent_there_again(copy):
    def names(): return {f.name for f in examine(copy).findings}
    assert 'too few pictures' in names()
    info = json.loads((copy/'run.json').read_text(encoding='utf-8'))
    info['recipe']['start'] = 'creatures-projected'
    (copy/'run.json').write_text(json.dumps(info), encoding='utf-8')
    assert 'too few pictures' not in names()


def test_early_on_only_what_need_not_wait_is_told(wild, images, monkeypatch):
    few = 'too few pictures (sure): any D can learn 40 pictures by heart\nlesson 09_small_data; try: pokegan '
    assert advise(wild, images).startswith(few)
    monkeypatch.setattr(doctor, 'EARLY', 100)
    first, second = advise(wild, images).split('\n')
    assert first.startswith('learning rate too high (') and 'lr=0.05' in second


def test_no_advice_where_nothing_is_wrong_or_only_perhaps(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, 'EARLY', 0)
    said = []
    monkeypatch.setattr(doctor, 'load_run', said.append) # no network is opened
    for share, words in ((1e9, 'x (sure): pictures differ by '), (1e-9, '')):
        c = Condition('x', (('share', '<', share),), 'pictures differ by {share:.1f}', '', '', '')
        monkeypatch.setattr(doctor, 'CONDITIONS', (c,))
        assert advise(run, images).startswith(words) and bool(advise(run, images)) == bool(words)
    near = look('share', fakes=doctor._tiles(doctor.sample_grids(run)[-1], 32), reals=reals(images))
    monkeypatch.setattr(doctor, 'CONDITIONS', (Condition('x', (('share', '<', 1.2*near),), '', '', '', ''),))
    assert advise(run, images) == '' and not said


def test_a_run_that_has_just_begun_has_no_log(copy, images):
    (copy/'log.csv').unlink()
    assert advise(copy, images) == ''


def test_who_trains_through_the_face_has_the_doctor_as_adviser():
    code = 'from pokegan import train; from pokegan.training.live import ADVISERS; print(*ADVISERS)'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert p.stdout == 'doctor\n'
