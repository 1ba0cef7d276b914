"""Lesson 06d: a training that shows itself, cells that ask first, exercises that answer in one line."""
import math, time

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from pokegan.data import load_images
from pokegan.models.dcgan import toy_game
from pokegan.training.health import HealthCB
from pokegan.training.live import advice, in_notebook, LiveCB, Seldom


@pytest.fixture(scope='module')
def images(): return load_images('creatures:64', 32, progress=False)


def test_without_a_notebook_it_is_silent(images):
    t = toy_game(images)
    t.callbacks = [LiveCB(t.nets['G'], t.prior)]
    t.fit(3)
    assert not in_notebook() and t.callbacks[0].rows == [] and t.callbacks[0].sums == {}


def test_points_are_means_over_the_steps_since_the_last(images):
    seen, losses = [], []
    class Note(LiveCB):
        def after_step(self, t):
            losses.append(float(t.logs['G/loss']))
            super().after_step(t)
    t = toy_game(images)
    health = HealthCB(t.nets['G'], t.prior, every=2)
    t.callbacks = [health, Note(t.nets['G'], t.prior, seconds=1e9, show=seen.append)]
    t.fit(5)
    view = t.callbacks[1]
    assert [r['step'] for r in view.rows] == [1, 5] and len(seen) == 2
    assert view.rows[0]['G/loss'] == pytest.approx(losses[0])
    assert view.rows[1]['G/loss'] == pytest.approx(sum(losses[1:])/4) and 0 < view.rows[1]['diversity'] < 2
    words = [x.get_text() for x in seen[1].findobj(lambda o: hasattr(o, 'get_text'))]
    assert any(w.startswith('step 5 of 5, ') for w in words) and {'G/loss', 'D/acc', 'diversity'} <= {*words}


def test_looking_takes_no_more_than_its_share(images):
    t = toy_game(images)
    def slow(fig): time.sleep(.2)
    t.callbacks = [LiveCB(t.nets['G'], t.prior, seconds=0., share=.1, show=slow)]
    t.fit(minutes=5/60)
    assert 1 < len(t.callbacks[0].rows) <= 4 # each costs 0.2 s and more, so 2 s pass between two; and the end


def test_looking_changes_nothing(images):
    def weights(callbacks):
        t = toy_game(images, callbacks=callbacks)
        for cb in callbacks: cb.G = t.nets['G']
        return t.fit(4).nets['G'].state_dict()
    prior = toy_game(images).prior
    a, b = weights([]), weights([LiveCB(None, prior, seconds=0., show=lambda fig: None)])
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---- advice ----

def test_a_question_is_asked_seldom_and_raises_nothing():
    asked = []
    def ask():
        asked.append(1)
        time.sleep(.02)
        if len(asked) == 3: raise OSError('\x1b[2Jgone')
        return str(len(asked))
    s = Seldom(ask, seconds=5., share=.001) # 0.02 s are a thousandth of 20 s
    assert [s(now) for now in (0, 1, 6, 19)] == ['1']*4 and s.next >= 20
    assert s(1000) == '2' and s(math.inf) == 'no advice: OSError: \\x1b[2Jgone'
    quick = Seldom(lambda: str(asked.append(1)), seconds=5.)
    n = len(asked)
    for now in range(11): quick(now)
    assert len(asked) - n == 3


def test_advice_of_all_is_joined(monkeypatch):
    monkeypatch.setattr('pokegan.training.live.ADVISERS', {'a': lambda *w: '', 'b': lambda *w: f'{w}'})
    assert advice('folder', 'images') == "('folder', 'images')"


def test_advice_is_asked_at_the_first_look_and_at_the_end(images):
    t, asked = toy_game(images), []
    def advise(): return str(asked.append(1) or len(asked))
    t.callbacks = [LiveCB(t.nets['G'], t.prior, seconds=0., show=lambda fig: None, advise=advise)]
    t.fit(5)
    assert t.callbacks[0].said == '2' == str(len(asked))
    t.callbacks = [LiveCB(t.nets['G'], t.prior, advise=lambda: 1/0)] # nobody sees it
    assert t.fit(7).callbacks[0].said == ''


WATCHED = """
import torch, IPython
from pokegan import load_images, train
from pokegan.training import live
from pokegan import doctor

doctor.EARLY, images = 40, load_images('creatures:160', 32, progress=False)
def go(name, **kw):
    print(name)
    train('dcgan-quick', images, name, steps=100, device='cpu', size=32, nz=16, ngf=8, ndf=8, batch=8, **kw)
""", "go('wild', lr=.5)", "go('healthy', lr=2e-3, ema=.98)", """
live.ADVISERS['doctor'] = lambda folder, images: 1/0
go('faulty')
"""


def test_in_a_kernel_the_doctors_words_stand_under_the_picture(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in WATCHED])
    NotebookClient(book, timeout=300, kernel_name='python3',
                   resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    shown = [[o['data'] for o in c.outputs if o.output_type == 'display_data'] for c in book.cells[1:]]
    assert all('image/png' in s[0] for s in shown)
    wild, healthy, faulty = ([d['text/plain'] for d in s if 'image/png' not in d] for s in shown)
    assert len(wild) == 1 and wild[0].startswith('learning rate too high (') and '\nlesson 05' in wild[0]
    assert healthy == [] and faulty == ['no advice: ZeroDivisionError: division by zero']


CELLS = {
    'set-up': 'from pokegan.training.live import lesson_cells\nRUN_LONG = lesson_cells()',
    'fault': "assert 1 == 2, 'a real one'",
    'slow': '#| slow\nprint("ran")',
    'again': 'RUN_LONG = lesson_cells()\nRUN_LONG = True',
    'asked': '#| kaggle\nprint("ran")',
}


def test_in_a_kernel_long_cells_ask_and_errors_are_shown():
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS.values()])
    NotebookClient(book, timeout=120, kernel_name='python3', allow_errors=True).execute()
    said = {k: [o.get('text') or o['evalue'] for o in c.outputs] for k, c in zip(CELLS, book.cells)}
    assert said['fault'] == ['a real one'] and book.cells[1].outputs[0].output_type == 'error'
    assert said['slow'][0].startswith('This cell takes minutes') and said['asked'] == ['ran\n']
