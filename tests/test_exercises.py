"Every exercise of every lesson goes through `check`, away from its answer; and what `check` itself does."
import json, re, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pokegan.course import exercises
from pokegan.course.exercises import assess, check, choice, EXERCISES, exercise, expect, hint, NotYet, number
from pokegan.course.exercises import numbers, predict, PROGRESS, read_progress, reveal, sign, truth, whole

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import sync  # noqa: E402


def parts(path: Path) -> tuple: # (text of all, code cells) from the heading Exercises on
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    texts = [(c['cell_type'], ''.join(c['source'])) for c in cells]
    begin = next(i for i, (_, t) in enumerate(texts) if re.search(r'^## Exercises$', t, re.M))
    return texts[begin:]


@pytest.mark.parametrize('path', sync.lessons(), ids=lambda p: p.stem)
def test_an_exercise_is_asked_checked_and_tried_and_its_answer_is_not_in_its_cell(path):
    "One name each, in the same order; the folded cells come first and last."
    n, after = sync.number(path), parts(path)
    prose = '\n'.join(t for kind, t in after if kind == 'markdown').split('## Exercises')[1]
    code = [t for kind, t in after if kind == 'code']
    asked = [f'{n}.{k}' for k in re.findall(r'^\*\*(\d+)\.', prose, re.M)]
    assert asked and code[0].startswith('#@title Checks of the answers\n')
    assert code[-1].startswith('#@title Answers, for the tests\n')
    assert re.findall(r"^@exercise\('([^']+)'", code[0], re.M) == asked
    assert re.findall(r"^ *(?:try_out\(\{)?'([^']+)':", code[-1], re.M) == asked
    called = [re.findall(r"^check\('([^']+)', \w+\)$", t, re.M) for t in code[1:-1]]
    assert [k for names in called for k in names] == asked
    for t in code[1:-1]:
        if 'check(' in t: assert 'assert' not in t and 'is not None' not in t and len(t.split('\n')) <= 9, t


@pytest.mark.parametrize('path', sync.of(sync.PATHS['The core']), ids=lambda p: p.stem)
def test_a_core_lesson_lets_predict_twice_and_asks_quick_questions(path):
    n, code = sync.number(path), '\n'.join(sync.sources(path, 'code'))
    stops = re.findall(r"^predict\('([^']+)', None", code, re.M)
    assert stops == [f'{n}.{c}' for c in 'abcdef'[:len(stops)]] and len(stops) >= 2
    for s in stops: assert code.index(f"predict('{s}'") < code.index(f"reveal('{s}'")
    asked, = [t for t in sync.sources(path, 'markdown') if t.startswith('## Quick questions\n')]
    questions = re.split(r'^\*\*\d\.\*\* ', asked, flags=re.M)[1:]
    assert len(questions) == 3
    for q in questions:
        folds = re.findall(r'^<details><summary>(.+?)</summary>(Yes|No)[:.] .+</details>$', q, re.M)
        assert 2 <= len(folds) <= 4 and [said for _, said in folds].count('Yes') == 1, q


# ---- predicting, and what `check` does ----

@pytest.mark.parametrize('given, words, came, said', [
    (None, (), .27, 'put a number in the place of None|it is 0.27'),
    (.3, (), torch.tensor(.27), 'you expect 0.3|you expected 0.3, and it is 0.27. Well predicted'),
    (3, (), .27, 'you expect 3|you expected 3, and it is 0.27'),
    ('UP', ('up', 'down'), 'up', 'you expect up|you expected up, and it is up. Well predicted'),
    ('\x1b[2J', ('up', 'down'), 'up', "choose one of 'up', 'down'|it is up"),
    ('many', (), 3, 'one number is asked for, and this is a str|it is 3')])
def test_what_is_expected_stands_beside_what_came(capsys, given, words, came, said):
    predict('t.a', .5)
    predict('t.a', given, *words) # anew: the first guess is forgotten
    reveal('t.a', came)
    assert capsys.readouterr().out.split('\n')[1:] == [f't.a: {s}' for s in said.split('|')] + ['']


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('IN_TEST', raising=False)
    @exercise('t.1', number, {.29: 'the variance'}, 'take the root')
    def _(v):
        expect(abs(v - .54) < .01, f'{v:g} is not it')
        return 'well seen'
    yield tmp_path
    EXERCISES.pop('t.1')


@pytest.mark.parametrize('form, given, is_', [
    (number, 3, 3.), (number, torch.tensor([.5], requires_grad=True), .5), (number, np.float32(.5), .5),
    (whole, 2., 2), (numbers(2), torch.tensor([1, 2]), (1., 2.)), (numbers(2), [1, np.int64(2)], (1., 2.)),
    (choice('a', 'B'), ' b', 'B'), (truth, np.bool_(True), True)])
def test_forms_take(form, given, is_):
    got = form(given)
    assert got == is_ and type(got) is type(is_)


@pytest.mark.parametrize('form, given', [
    (number, True), (number, '3'), (number, [3, 4]), (number, float('nan')), (number, torch.ones(2)),
    (number, torch.ones(0)), (whole, 2.5), (numbers(2), (1, 2, 3)), (numbers(2), 'ab'), (choice('a'), 'c'),
    (choice('a'), 1), (truth, 1), (truth, 'True'), (exercises.function, 3), (exercises.text, 3)])
def test_forms_refuse_in_one_line(form, given):
    with pytest.raises(NotYet) as e: form(given)
    assert '\n' not in str(e.value) and len(str(e.value)) < 120


def test_every_try_is_told_in_a_line_and_counted(here, capsys):
    for given, said in [(None, 't.1 is open.'), (.29, 'Not yet: the variance'),
                        ('\x1b[2J', 'Not yet: one number'), (.54, 'Right. well seen'),
                        (.6, 'Not yet: 0.6 is not it')]:
        check('t.1', given)
        out = capsys.readouterr().out
        assert out.startswith(said) and out.count('\n') == 1 and '\x1b' not in out
    hint('t.1')
    assert capsys.readouterr().out == 'take the root\n'
    sign('  A\x1bda  ')
    kept = read_progress(here)
    one = kept['exercises']['t.1']
    assert (one['tries'], one['hints']) == (4, 1) and one['passed'] and '\x1b' not in kept['name']
    check('t.2', 1)
    assert 'Run the folded cell' in capsys.readouterr().out and 't.2' not in read_progress(here)['exercises']


def test_whatever_is_given_is_judged(here):
    class Bad:
        def __getattr__(self, name): raise RuntimeError('no')
    for given in Bad(), float('inf'), {}, b'', lambda: 1, 10**400, torch.nn.Linear(1, 1):
        assert assess(EXERCISES['t.1'], given)[0] is False


def test_a_file_of_another_kind_is_left_alone(here, capsys):
    before = '{"schema": 1, "name": "", "exercises": {"t.1": {"tries": -1}}}'
    (here/PROGRESS).write_text(before, encoding='utf-8')
    check('t.1', .54)
    out = capsys.readouterr().out
    assert out.startswith('Right.') and '(not kept: ' in out
    assert (here/PROGRESS).read_text(encoding='utf-8') == before


def test_in_tests_right_answers_pass_and_wrong_ones_get_a_hint(here, monkeypatch):
    from pokegan.course.exercises import try_out
    try_out({'t.1': (1, 1, 1)})  # elsewhere nothing is tried
    monkeypatch.setenv('IN_TEST', '1')
    try_out({'t.1': (.54, .29, 'x')})
    for bad in {'t.1': (.29, .3, 'x')}, {'t.1': (.54, .54, 'x')}, {'t.1': (.54, .29)}, {'t.0': (1, 2, 3)}:
        with pytest.raises((AssertionError, KeyError)): try_out(bad)
