"""The face of the package: light to import, complete to look at, known to type checkers."""
import subprocess, sys

import pytest

import pokegan

USER = '''
from pathlib import Path

from pokegan import RECIPES, evaluate, load_images, load_run, pretrained, recipe, resume, train

r = recipe('dcgan-quick', size=32, ngf=16)
images = load_images('creatures:100', 32)
run = train(r, images, Path('runs/mine'), steps=10, seed=1)
print(run.info['step'], run.recipe.nz, len(RECIPES), sorted(pretrained()))
again = resume(run.folder, minutes=.5)
x = load_run(again.folder).sample(8, seed=3, truncation=1.5)
print(x.shape, x.min().item())
scores = evaluate(run.folder, n=64, features='random')
value: float = scores['kid'].value
print(f'{value:.3f}', scores)
'''


def run(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout


def test_importing_does_no_work():
    seen = run('import sys, time\nt0 = time.perf_counter()\nimport pokegan\nprint(time.perf_counter() - t0, '
               "any(m in sys.modules for m in ('torch', 'numpy', 'PIL', 'typer')))")
    seconds, heavy = seen.split()
    assert float(seconds) < .2 and heavy == 'False'


def test_dir_and_help_say_what_there_is():
    names = set('train resume load_run pretrained recipe RECIPES load_images evaluate examine '
                'explore'.split())
    assert names <= set(dir(pokegan))
    for n in names: assert getattr(pokegan, n) is not None and n in pokegan.__doc__
    with pytest.raises(AttributeError, match='no attribute'): pokegan.nothing
    from pokegan import data, metrics
    assert 'load_images' in dir(data) and callable(data.load_images) and 'METRICS' in dir(metrics)


def test_a_users_script_passes_mypy(tmp_path):
    pytest.importorskip('mypy')
    (tmp_path/'user.py').write_text(USER, encoding='utf-8')
    words = [sys.executable, '-m', 'mypy', '--ignore-missing-imports', '--follow-imports=silent', 'user.py']
    p = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout
