"""The repository keeps its own rules: one owner, one version, imports that go down, lessons that are small
and can be read."""
import ast, base64, configparser, json, re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import house, sync  # noqa: E402, E401

LESSONS = sync.lessons()
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT/'settings.ini', encoding='utf-8')
S = SETTINGS['DEFAULT']
WIDTH, WIDE, WIDE_SHARE = 110, 100, .02  # columns; only this share of a lesson's lines is wider than WIDE
EXPORTED, EXPORTED_CELL = 200, 40        # logical lines that a lesson exports, and one cell of it
ALLOW = {'02a_cleaning': 268,            # one picture of any kind, and the report of all
         '02b_download': 226,            # what a network may do, and an archive
         '02c_gather': 238,              # files wherever they lie, and their labels
         '02e_data': 212,                # one store for every picture
         '06a_callbacks': 240,           # whole files, and all that is shown of a training
         '09c_recipe': 207,              # all questions that a game answers
         '15a2_runs': 228,               # train, resume, and what both ask before they begin
         '01a_shapes': 360,              # drawing by formulas: one file of arithmetic,
         '01c_bodies': 460,              # and eight body plans with four builds each
         '15e_doctor': 235,              # fifteen signs, what they mean in one table, and advice on the way
         '15d3_workshop': 271,           # wheels for another computer, the stick, and the test of a seat
         '17_cli': 330,                  # a function for each command
         '05_training': 292}             # the trainer, to be read on one page, and its two games
TALL = {'05_training'}                   # its cell is that page
ROOMS, FLOORS, ARROWS = 19, 10, 72       # the library from above: python tools/house.py
LIBRARY = house.Library()
every_lesson = pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)


def cells(path: Path, kind: str) -> list:
    return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]


def figures(cell: dict) -> int:
    return sum('image/png' in o.get('data', {}) for o in cell['outputs'])


def table(name: str) -> dict:
    "The plain key = \"value\" lines of one table of pyproject.toml (Python 3.10 has no TOML reader)."
    body = (ROOT/'pyproject.toml').read_text(encoding='utf-8').split(f'[{name}]')[1].split('\n[')[0]
    return dict(re.findall(r'^(\w+) = "(.*)"$', body, re.M))


# ---- one place for each thing ----

def test_both_settings_agree():
    both = table('tool.nbdev')
    assert both == {k: S[k] for k in both} and {'lib_path', 'nbs_path', 'tst_flags'} <= both.keys()
    import pokegan
    assert pokegan.__version__ == S['version']
    assert S['min_python'] in (ROOT/'pyproject.toml').read_text(encoding='utf-8')


def test_owner_version_table_and_links_are_in_step():
    p = subprocess.run([sys.executable, ROOT/'tools/sync.py', '--check'], capture_output=True, text=True)
    assert p.returncode == 0, p.stdout + p.stderr


def test_every_lesson_stands_in_the_table():
    text = (ROOT/'nbs/README.md').read_text(encoding='utf-8')
    assert [l.name for l in LESSONS if text.count(f'/nbs/{l.name})') != 1] == []


def test_every_picture_is_linked():
    text = ''.join(p.read_text(encoding='utf-8') for p in sync.pages())
    assert [p.name for p in sorted((ROOT/'docs').glob('*.png')) if f'{p.name})' not in text] == []


def test_readme_is_short():
    assert len((ROOT/'README.md').read_text(encoding='utf-8').split()) <= 1200


def test_wheel_holds_every_room():
    "What is not named is not in the wheel."
    folders = {f.parent for f in (ROOT/'pokegan').rglob('*.py')}
    assert [f.name for f in folders if not (f/'__init__.py').exists()] == []
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8').split('packages = [')[1].split(']')[0]
    there = {'.'.join(f.relative_to(ROOT).parts) for f in folders}
    assert {*re.findall(r'"(.+?)"', text)} == there | {'pokegan.lessons'}
    assert (ROOT/'pokegan/py.typed').exists()


def test_no_token():
    token = re.compile(r'"key"\s*:\s*"[0-9a-f]{32}"|KGAT_[0-9A-Za-z]{16}|hf_[0-9A-Za-z]{30}')
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
    for f in files:
        if Path(f).suffix in ('.py', '.md', '.ipynb', '.toml', '.ini', '.yml') and (ROOT/f).exists():
            assert not token.search((ROOT/f).read_text(encoding='utf-8')), f


# ---- lessons ----

@every_lesson
def test_lesson(path):
    code, prose = cells(path, 'code'), cells(path, 'markdown')
    first = ''.join(prose[0]['source'])
    assert re.match(r'# .+\n\n> .+', first), 'a title, and a subtitle of one line'
    assert f'nbs/{path.name}' in first and 'colab.research.google.com' in first
    setup = ''.join(next(c for c in code if not ''.join(c['source']).startswith('#| default_exp'))['source'])
    assert setup == sync.setup_cell(path, S)
    outputs = [o for c in code for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error'], 'an error is stored'
    assert 'site-packages' not in json.dumps(outputs), 'a traceback with paths of one machine is stored'
    assert any(figures(c) for c in code), 'no figure is stored: run the lesson'
    for c in code:
        told = c['metadata'].get('alt', [])
        assert len(told) == figures(c), f"{c['id']}: a text a figure goes into 'alt' of its cell's metadata"
        assert all(60 <= len(t) <= 400 and t.isprintable() for t in told), c['id']
    assert path.stat().st_size <= 300*1024, f'{path.stat().st_size//1024} KB'
    assert len(prose) >= len(code)/2
    assert all(''.join(c['source']).strip() for c in code + prose), 'an empty cell'
    text = path.read_text(encoding='utf-8')
    assert 'Exercises' in text and '](https://' in text.split('References')[-1], 'references without a link'


PIP = '''import os, sys
print(sys.argv[-1])
if '@main' in sys.argv[-1]:
    for f in ('data', 'training', 'course'): os.makedirs(f'there/pokegan/{f}')
    for f in ('', 'data/', 'training/', 'course/'): open(f'there/pokegan/{f}__init__.py', 'w').close()
    with open('there/pokegan/training/live.py', 'w') as f: f.write('lesson_cells = bool')
    names = 'check = hint = predict = reveal = bool'
    with open('there/pokegan/course/exercises.py', 'w') as f: f.write(names)
'''


def test_the_set_up_cell_tries_three_places_and_believes_no_folder(tmp_path):
    "With a pip that says what it is asked for, and installs at the third time."
    (tmp_path/'pokegan/data').mkdir(parents=True) # beside the notebook, and not the package
    (tmp_path/'pip').mkdir()
    torch = 'cuda = type("", (), dict(is_available=lambda: 0)); get_num_threads = int'
    for f, text in {'torch.py': torch, 'pip/__init__.py': '', 'pip/__main__.py': PIP}.items():
        (tmp_path/f).write_text(text, encoding='utf-8')
    code = 'import sys; sys.path.insert(0, "there")\n' + sync.setup_cell('16b_x.ipynb', S)
    def asked():
        p = subprocess.run([sys.executable, '-S', '-c', code], cwd=tmp_path, capture_output=True, text=True,
                           env=dict(PYTHONPATH=str(tmp_path), PYTHONIOENCODING='utf-8'))
        assert p.returncode == 0, p.stderr
        return [l for l in p.stdout.split('\n') if l.startswith('pokegan')]
    name, git = 'pokegan[explore]', f'git+{S["git_url"]}'
    assert asked() == [name, f'{name} @ {git}@v{S["version"]}', f'{name} @ {git}@main']
    assert asked() == []


def test_the_packages_page_has_no_relative_link():
    import readme
    text = readme.absolute((ROOT/'README.md').read_text(encoding='utf-8'), S)
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links) > 30 and [l for l in links if not l.startswith(('https://', '#'))] == []
    for l in links: # to files that the tag will have
        for kind in ('blob', 'raw'):
            mine = f'{S["git_url"]}/{kind}/v{S["version"]}/'
            if l.startswith(mine): assert (ROOT/l.removeprefix(mine).partition('#')[0]).exists(), l
    assert f'{S["git_url"]}/raw/v{S["version"]}/docs/creatures-projected.png' in links


def test_extras_that_lessons_ask_for_are_those_of_the_package():
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    extras = {n['extra'] for n in sync.NEEDS.values() if 'extra' in n}
    assert 'kaggle' in extras and all(f'\n{e} = [' in text for e in extras)


def test_the_course_names_each_lesson_and_its_measured_seconds():
    assert [*sync.NEEDS] == [sync.number(l) for l in LESSONS]
    assert all(n['run'] > 0 and not n.keys() - {'run', 'extra', 'gpu'} for n in sync.NEEDS.values())


@every_lesson
def test_no_live_widget_is_stored(path):
    "Clear the outputs of cells that show some."
    outputs = [o for c in cells(path, 'code') for o in c['outputs']]
    assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs)
    assert 'widgets' not in json.loads(path.read_text(encoding='utf-8'))['metadata']


@every_lesson
def test_figures_are_small(path):
    for c in cells(path, 'code'):
        for o in c['outputs']:
            if png := o.get('data', {}).get('image/png'): assert len(base64.b64decode(png)) < 200*1024


@every_lesson
def test_lesson_can_be_read(path):
    "Lines that fit beside each other on a laptop; folded cells, full of hints, may be wider."
    cells = house.code_cells(path)
    lines = [l for c in cells for l in house.lines(c)]
    assert [l for l in lines if len(l) > WIDTH] == []
    wide = [l for c in cells if not c.startswith('#@title') for l in house.lines(c) if len(l) > WIDE]
    assert len(wide) <= WIDE_SHARE*len(lines), f'{len(wide)} of {len(lines)} lines over {WIDE} columns'


@every_lesson
def test_lesson_exports_little(path):
    "What is exported is taught, so it is short."
    sizes = [house.thoughts(c) for c in house.exported(house.code_cells(path))]
    assert sum(sizes) <= ALLOW.get(path.stem, EXPORTED)
    assert max(sizes, default=0) <= EXPORTED_CELL or path.stem in TALL


def test_allowed_are_needed():
    assert all(v > EXPORTED and any(l.stem == k for l in LESSONS) for k, v in ALLOW.items())


# ---- the library ----

def test_modules_and_lessons_belong_together():
    "Every module comes out of a lesson, and every exporting lesson has its module."
    by_hand = {k for k, cells in LIBRARY.cells.items() if not cells}
    assert by_hand == {'__main__'}
    assert {m for l in LESSONS for m in sync.modules(l)} == LIBRARY.files.keys() - by_hand


def test_modules_import_what_lower_lessons_export():
    "The order of the lessons is the order of dependence: '09' < '09b' < '10a', '15a' < '15a2' < '15b'."
    found = []
    for module, own in LIBRARY.cells.items():
        for lesson, code in own:
            for m, name in house.imports(ast.parse(code), module):
                taught = LIBRARY.taught(*LIBRARY.find(m, name)) or 'no lesson'
                if name == '__version__' or sync.number(taught) <= sync.number(lesson): continue
                found.append(f'{lesson} imports {name} of {m or "pokegan"}, taught in {taught}')
    assert found == []


def test_public_names_live_once():
    seen = {}
    for module, text in LIBRARY.text.items():
        for n in ast.parse(text).body:
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_'):
                seen.setdefault(n.name, []).append(module)
    assert {k: v for k, v in seen.items() if len(v) > 1} == {}


@pytest.mark.skipif(not (ROOT/'pokegan/core.py').exists(), reason='the library has no rooms yet')
def test_arrows_go_down():
    arrows = LIBRARY.arrows()
    assert house.upward(arrows) == []
    assert not [a for a, b in arrows if a == 'core']
    rooms = {house.room(k) for k in LIBRARY.files} | {'__init__'}
    assert len(rooms) <= ROOMS and len(arrows) <= ARROWS and house.floors(arrows) <= FLOORS


@pytest.mark.parametrize('folder', ['pokegan', 'tests', 'tools', 'benchmarks'])
def test_lines_fit(folder):
    "But for what nbdev writes itself: the index, and the lists of exported names."
    wide = []
    for f in sorted((ROOT/folder).rglob('*.py')):
        text = re.sub(r'^__all__ = \[.*?\]$', '', f.read_text(encoding='utf-8'), flags=re.S | re.M)
        if f.name != '_modidx.py': wide += [f'{f.name}: {l[:60]}' for l in text.split('\n') if len(l) > WIDTH]
    assert wide == []


# ---- pages ----

def test_the_lines_of_troubles_are_those_that_are_said():
    text = (ROOT/'docs/troubles.md').read_text(encoding='utf-8')
    source = ''.join(f.read_text(encoding='utf-8') for f in (ROOT/'pokegan').rglob('*.py'))
    said = re.sub(r"'\s*\n\s*f?'", '', source)  # a string over two lines is one
    lines = re.findall(r'^\| `([^`]+)` \|', text, re.M)
    parts = [p.strip() for l in lines for p in l.split('…') if len(p.strip()) > 3]
    assert len(lines) >= 9 and [p for p in parts if p not in said] == []


def test_the_glossary_is_in_order_and_each_word_names_its_lesson():
    text = (ROOT/'docs/glossary.md').read_text(encoding='utf-8')
    heads, *entries = text.split('\n### ')
    words = [e.split('\n')[0] for e in entries]
    assert words == sorted(words, key=lambda w: w.lower().split(',')[0]) and len(words) >= 40
    assert all('nbs/' in e for e in entries)
