"""The lessons come along, once, and never over a learner's work (lesson 15d)."""
import os, sys

import pytest

from pokegan.course import lessons as course
from pokegan.course.lessons import find_lesson, learn, lessons, open_jupyter
from test_cli import pokegan, refused


def test_all_lessons_in_their_order():
    names = [p.stem.split('_')[0] for p in lessons()]
    assert names == sorted(names) and names[0] == '00' and {'02c', '02c2', '17'} <= {*names}


def test_a_lesson_by_number_word_or_name():
    assert {find_lesson(w).name for w in ('14a', 'truncation', 'Truncation', '14a_truncation.ipynb')} == {
        '14a_truncation.ipynb'}
    said = {'08': 'more than one lesson; choose of 08a_features, 08b', '../03': 'no lesson; choose of 00'}
    for words, said in said.items():
        with pytest.raises(ValueError, match=said): find_lesson(words)


def test_what_is_there_stays(tmp_path):
    mine = learn('03', tmp_path/'a/b')
    assert len([*mine.parent.iterdir()]) == len(lessons())
    mine.write_text('answers', encoding='utf-8')
    (mine.parent/'04_losses.ipynb').unlink()
    learn('04', mine.parent)
    assert mine.read_text(encoding='utf-8') == 'answers'
    assert (mine.parent/'04_losses.ipynb').read_bytes() == find_lesson('04').read_bytes()


def test_on_the_command_line(tmp_path):
    (tmp_path/'file').write_text('', encoding='utf-8')
    assert 'is a file; name a folder' in refused('learn', '--to', 'file', cwd=tmp_path)
    p = pokegan('learn', 'walks', '--no-open', cwd=tmp_path)
    assert p.stdout == f'{os.path.join("lessons", "14b_walks.ipynb")} is yours to change\n'


def test_without_jupyterlab_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(course, 'find_spec', lambda name: None)
    how = r'pip install "pokegan\[course\]"'
    with pytest.raises(ImportError, match=how): open_jupyter(tmp_path/'x.ipynb')


def test_jupyterlab_is_started_beside_the_lesson(tmp_path, monkeypatch):
    "With another program in its place, which says where it was started and with what."
    (tmp_path/'jupyterlab.py').write_text(
        "import os, sys; print(os.path.basename(os.getcwd()), sys.argv[1:]); sys.exit(3)", encoding='utf-8')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    (tmp_path/'mine').mkdir()
    assert open_jupyter(tmp_path/'mine/03_dcgan.ipynb') == 3
