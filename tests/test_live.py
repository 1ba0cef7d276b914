"""Lesson 06d: a training that shows itself, cells that ask first, exercises that answer in one line."""
import time

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from pokegan.data import load_images
from pokegan.models.dcgan import toy_game
from pokegan.training.health import HealthCB
from pokegan.training.live import in_notebook, LiveCB


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
