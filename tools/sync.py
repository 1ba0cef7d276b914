"""What is written in one place and stands in many: owner, version, set-up cells, the table of the lessons.

    python tools/sync.py            write
    python tools/sync.py --check    exit 1 and name files that are not in step, and links that lead nowhere

Owner, repository and version go from settings.ini into the lessons' badges and set-up cells and both READMEs;
the table in nbs/README.md comes from the lessons' titles, subtitles and `#| export` marks, and from
nbs/course.toml, which says what each lesson needs. The set-up cell of all lessons stands below.
"""
import configparser, json, math, re, sys
from fnmatch import fnmatch
from pathlib import Path

try: import tomllib
except ModuleNotFoundError: import tomli as tomllib # Python 3.10

ROOT = Path(__file__).resolve().parent.parent
COURSE = ROOT/'nbs/course.toml'
_course = tomllib.loads(COURSE.read_text(encoding='utf-8'))
PARTS, PATHS = _course['parts'], _course['paths'] # words -> numbers, as in 06*
NEEDS = _course['lessons'] # number -> seconds to run, extra, gpu
COLAB = 'colab.research.google.com/github'
MARKS = '<!-- lessons: written by tools/sync.py -->', '<!-- end of lessons -->'

SETUP = '''import importlib.util, subprocess, sys
def installed():  # a folder of that name beside the notebook is not the package
    importlib.invalidate_caches()
    if not sys.modules.get("pokegan", sys).__spec__.origin: del sys.modules["pokegan"]
    try: return bool(importlib.util.find_spec("pokegan.data").origin)
    except (ModuleNotFoundError, AttributeError): return False
git = "{git}"
for place in "", f" @ {{git}}@v{version}", f" @ {{git}}@{branch}":
    if installed(): break  # everywhere but in a fresh Colab
    print(f"installing pokegan{extras}{{place}} …")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"pokegan{extras}{{place}}"])
installed()
import torch
print("device:", torch.cuda.get_device_name() if torch.cuda.is_available()
      else f"CPU, {{torch.get_num_threads()}} threads")
from pokegan.course.exercises import check, hint, predict, reveal
from pokegan.training.live import lesson_cells
RUN_LONG = lesson_cells()  # True: cells that take minutes, or a network, run too'''


def settings() -> configparser.SectionProxy:
    c = configparser.ConfigParser()
    c.read(ROOT/'settings.ini', encoding='utf-8')
    return c['DEFAULT']


def in_step(text: str, s) -> str:
    "The text with every mention of the repository and its tag as settings.ini has them."
    home = f"github.com/{s['user']}/{s['repo']}"
    text = re.sub(r'github\.com/[\w.-]+/pokegan\b', home, text)
    text = re.sub(rf'https://{re.escape(COLAB)}/[\w.-]+/pokegan/blob/[\w.-]+/', blob(s, COLAB), text)
    return re.sub(rf'({re.escape(home)})@v[\d.]+\d', rf"\1@v{s['version']}", text)


def setup_cell(lesson: Path|str, s) -> str:
    "Installs the package where there is none: from the package index, else this version, else the newest."
    extra = needs(lesson).get('extra', '')
    git = f"git+https://github.com/{s['user']}/{s['repo']}"
    extras = f'[{extra}]' if extra else ''
    return SETUP.format(git=git, version=s['version'], branch=s['branch'], extras=extras)


def lesson_in_step(lesson: Path, text: str, s) -> str:
    "The same for a lesson, its set-up cell, and the machine that Colab gives it."
    book = json.loads(in_step(text, s))
    for k in ('accelerator', 'colab'): book['metadata'].pop(k, None)
    gpu = dict(accelerator='GPU', colab=dict(gpuType='T4'))
    if needs(lesson).get('gpu'): book['metadata'] |= gpu
    head = TIMES.sub('', ''.join(book['cells'][0]['source']))
    below = rf'\1\n\n*{minutes(lesson)}*'
    head = re.sub(r'^(\[!\[Open in Colab\].*)$', below, head, count=1, flags=re.M)
    book['cells'][0]['source'] = head.splitlines(True)
    for c in book['cells']:
        if c['cell_type'] == 'code' and 'print("device:"' in ''.join(c['source']):
            c['source'] = setup_cell(lesson, s).splitlines(True)
        if c['cell_type'] == 'code' and ''.join(c['source']).startswith('#@title'): # folded, in Colab as well
            c['metadata'] |= dict(cellView='form', jupyter=dict(source_hidden=True))
    return json.dumps(book, ensure_ascii=False, indent=1, sort_keys=True) + '\n'


def is_plumbing(cell: str) -> bool: # its text
    "Is it the set-up cell, or folded? Only a kernel and the tests need those."
    return 'print("device:"' in cell or cell.startswith('#@title')


def number(lesson: Path|str) -> str:
    "'15a2' of 15a2_recipes.ipynb; lessons in order are lessons sorted by it."
    return Path(lesson).name.split('_')[0]


def needs(lesson: Path|str) -> dict: return NEEDS.get(number(lesson), {}) # of a new one nothing is known


def lessons() -> list: return sorted((ROOT/'nbs').glob('[0-9]*.ipynb'), key=number)


def of(numbers: str) -> list: # '00 06*' -> those lessons
    return [l for l in lessons() if any(fnmatch(number(l), n) for n in numbers.split())]


def sources(lesson: Path, kind: str) -> list:
    "The text of each cell of one kind."
    cells = json.loads(lesson.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == kind]


def modules(lesson: Path) -> list:
    "The modules that a lesson exports to, its own first: 'data.prepare', 'core'."
    text = '\n'.join(sources(lesson, 'code'))
    own = re.findall(r'^#\| *default_exp +([\w.]+)', text, re.M)
    return list(dict.fromkeys(own + re.findall(r'^#\| *exporti? +([\w.]+)', text, re.M)))


def blob(s, site: str = 'github.com') -> str:
    "Where the files of the repository are seen."
    return f"https://{site}/{s['user']}/{s['repo']}/blob/{s['branch']}/"


WORDS = 150 # a minute, of prose in a second language; code is not counted
TIMES = re.compile(r'\n\n\*\d+ minutes to read[^\n]*\*(?=\n|$)') # the line below the badges


def reading(lesson: Path) -> int: # minutes
    return math.ceil(sum(len(TIMES.sub('', t).split()) for t in sources(lesson, 'markdown'))/WORDS)


def minutes(lesson: Path) -> str:
    "How long it takes to read and to run, and what it needs."
    n = needs(lesson)
    runs = f"{math.ceil(n['run']/60)} to run" if n.get('run', 0) > 60 else 'less than one to run'
    extra = f", with pokegan[{n['extra']}]" if 'extra' in n else ''
    gpu = '; a GPU helps' if n.get('gpu') else ''
    return f'{reading(lesson)} minutes to read, {runs} on one core{extra}{gpu}.'


def row(lesson: Path, s) -> str:
    "A line of the table: number and badge, title, subtitle, minutes, modules."
    title, subtitle = re.match(r'# (.+)\n\n> (.+)', sources(lesson, 'markdown')[0]).groups()
    colab = 'https://colab.research.google.com/assets/colab-badge.svg'
    badge = f'[![Open in Colab]({colab})]({blob(s, COLAB)}nbs/{lesson.name})'
    names = ', '.join(f'`{m}`' for m in modules(lesson)) or '–'
    told = f'{subtitle}. *{minutes(lesson)}*'
    return f'| [{number(lesson)}]({lesson.name}) {badge} | {title} | {told} | {names} |'


def path_row(name: str, numbers: str) -> str:
    "A line of the paths: its lessons, and how long they take."
    own = of(numbers)
    read, run = sum(map(reading, own)), sum(needs(l).get('run', 0) for l in own)
    named = ' · '.join(f'[{number(l)}]({l.name})' for l in own) if len(own) < 25 else f'{len(own)} lessons'
    return f'| {name} | {named} | {read} | {math.ceil(run/60)} |'


def table(s) -> str:
    "The paths, then all lessons, under the headings of their parts."
    lines = ['## Paths, by the clock', '', 'Minutes to read, and to run on one core; exercises take about as '
             'long again.', '', '| path | lessons | to read | to run |', '|---|---|---|---|']
    lines += [*map(path_row, *zip(*PATHS.items())), '']
    for part, numbers in PARTS.items():
        lines += [f'## {part}', '', '| lesson | | what happens | module |', '|---|---|---|---|']
        lines += [row(l, s) for l in of(numbers)] + ['']
    return '\n'.join(lines)


def with_table(text: str, s) -> str:
    "The text with what stands between the marks written anew."
    before, rest = text.split(MARKS[0])
    return f'{before}{MARKS[0]}\n\n{table(s)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}'


def text_of(page: Path) -> str:
    "A page's text, or the prose of a lesson."
    if page.suffix == '.ipynb': return '\n\n'.join(sources(page, 'markdown'))
    return page.read_text(encoding='utf-8')


def dead_links(page: Path, s) -> list:
    "Links that lead to no file of this repository, or to no heading of a page."
    found = []
    for link in re.findall(r'\]\(([^)\s]+)\)', text_of(page)):
        path, _, heading = link.partition('#')
        ours = next((b for b in (blob(s), blob(s, COLAB)) if path.startswith(b)), None)
        if '://' in path and not ours: continue
        to = ROOT/path[len(ours):] if ours else page.parent/path if path else page
        missed = heading and to.suffix == '.md' and to.exists() and heading not in headings(to)
        if missed or not to.exists(): found.append(f'{page.name}: {link}')
    return found


def anchor(heading: str) -> str: return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def headings(page: Path) -> list:
    "The anchors that GitHub gives the headings of a page."
    return [anchor(h) for h in re.findall(r'^#+ (.+)$', text_of(page), re.M)]


def pages() -> list:
    ours = ROOT/'README.md', ROOT/'nbs/README.md', ROOT/'teach/README.md'
    return [*ours, *sorted((ROOT/'docs').glob('*.md'))]


def main():
    s, check, off = settings(), '--check' in sys.argv, []
    for f in [*lessons(), *pages()]:
        old = f.read_text(encoding='utf-8')
        if f.suffix == '.ipynb': new = lesson_in_step(f, old, s)
        else: new = in_step(with_table(old, s) if MARKS[0] in old else old, s)
        if new != old: off.append(str(f.relative_to(ROOT)))
        if new != old and not check: f.write_text(new, encoding='utf-8')
    dead = [d for f in [*lessons(), *pages()] for d in dead_links(f, s)]
    if off: print(('not in step: ' if check else 'brought into step: ') + ', '.join(off))
    if dead: print('links that lead nowhere:', *dead, sep='\n  ')
    sys.exit(check and bool(off or dead))


if __name__ == '__main__': main()
