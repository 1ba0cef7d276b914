"""The repository keeps its own rules: one owner, one version, lessons that import downwards, notebooks that are small and were run."""
import ast, base64, configparser, json, re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT/'settings.ini')
S = SETTINGS['DEFAULT']


def cells(path: Path, kind: str) -> list:
    return [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == kind]


def exported(path: Path) -> str|None:
    "The module that a lesson exports."
    m = re.search(r'#\| default_exp (\w+)', '\n'.join(''.join(c['source']) for c in cells(path, 'code')))
    return m and m[1]


def table(name: str) -> dict:
    "The plain key = \"value\" lines of one table of pyproject.toml (Python 3.10 has no TOML reader)."
    body = (ROOT/'pyproject.toml').read_text().split(f'[{name}]')[1].split('\n[')[0]
    return dict(re.findall(r'^(\w+) = "(.*)"$', body, re.M))


def test_both_settings_agree():
    assert table('tool.nbdev') == {k: S[k] for k in ('lib_path', 'nbs_path', 'tst_flags')}
    import pokegan
    assert pokegan.__version__ == S['version']
    assert S['min_python'] in (ROOT/'pyproject.toml').read_text()


def test_owner_and_version_stand_in_one_place():
    p = subprocess.run([sys.executable, ROOT/'tools/sync.py', '--check'], capture_output=True, text=True)
    assert p.returncode == 0, p.stdout


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_lesson(path):
    code, prose = cells(path, 'code'), cells(path, 'markdown')
    first = ''.join(prose[0]['source'])
    assert re.match(r'# .+\n\n> .+', first) and f'nbs/{path.name}' in first and 'colab.research.google.com' in first
    setup = ''.join(next(c for c in code if not ''.join(c['source']).startswith('#| default_exp'))['source'])
    assert f'git+{S["git_url"]}@v{S["version"]}' in setup and 'print("device:"' in setup
    outputs = [o for c in code for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error'], 'an error is stored'
    assert 'site-packages' not in json.dumps(outputs), 'a traceback with paths of one machine is stored'
    assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs) and 'widgets' not in json.loads(path.read_text())['metadata'], 'live widgets are stored; clear the outputs of cells that show some'
    assert any('image/png' in o.get('data', {}) for o in outputs), 'no figure is stored: run the lesson'
    assert path.stat().st_size <= 300*1024, f'{path.stat().st_size//1024} KB'
    assert len(prose) >= len(code)/2
    assert all(''.join(c['source']).strip() for c in code + prose), 'an empty cell'
    text = path.read_text()
    assert 'Exercises' in text and 'References' in text


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_figures_are_small(path):
    for c in cells(path, 'code'):
        for o in c['outputs']:
            if png := o.get('data', {}).get('image/png'): assert len(base64.b64decode(png)) < 200*1024


def test_modules_import_lower_lessons_only():
    order = {m: i for i, p in enumerate(LESSONS) if (m := exported(p))}
    assert len(order) >= 12 and len(set(order.values())) == len(order)
    for name, i in order.items():
        tree = ast.parse((ROOT/'pokegan'/f'{name}.py').read_text())
        for n in ast.walk(tree):
            if not isinstance(n, (ast.Import, ast.ImportFrom)): continue
            names = [n.module or ''] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
            for m in names:
                m = m.removeprefix('pokegan').lstrip('.') if (isinstance(n, ast.ImportFrom) and n.level) or m.startswith('pokegan') else ''
                assert m not in order or order[m] < i, f'{name} imports {m}, which is taught later'


def test_public_names_live_once():
    seen = {}
    for f in sorted((ROOT/'pokegan').glob('[a-z]*.py')):
        for n in ast.parse(f.read_text()).body:
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_'): seen.setdefault(n.name, []).append(f.stem)
    assert {k: v for k, v in seen.items() if len(v) > 1} == {}


def test_no_token():
    for f in subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n'):
        if Path(f).suffix in ('.py', '.md', '.ipynb', '.toml', '.ini', '.yml') and (ROOT/f).exists():
            assert not re.search(r'"key"\s*:\s*"[0-9a-f]{32}"|KGAT_[0-9A-Za-z]{16}|hf_[0-9A-Za-z]{30}', (ROOT/f).read_text()), f
