"""The course as a website: lessons with their stored outputs, the measured pages, every public name.

    python tools/site.py [OUT]     default: _site; needs pip install -e ".[site]"

The pages keep the places that they have in the repository (nbs/, docs/), so that links between them hold;
links to other files lead to the repository. Nothing is run, and nothing is fetched.
"""
import ast, json, re, shutil, subprocess, sys, tempfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import house, slides, sync

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/'docs/site'
PAGES, KINDS = ('nbs', 'docs', 'teach'), ('.md', '.ipynb', '.png', '.csv')  # which files the site has


def inside(text: str, at: str, s) -> str: # at: the folder of a page, as 'nbs'
    "The text with links to what is no page of the site leading to the repository; badges become words."
    text = re.sub(r'\[!\[([^]]*)\]\([^)]*\)\]\(([^)]*)\)', r'[\1](\2)', text)
    text = text.replace(sync.blob(s).replace('/blob/', '/raw/') + 'docs/', '../docs/')
    def lead(m):
        path = (ROOT/at/m[2]).resolve()
        known = path.exists() and path.is_relative_to(ROOT)
        place = path.relative_to(ROOT).as_posix() if known else ''
        page = place.startswith(tuple(f'{p}/' for p in PAGES)) and path.suffix in KINDS
        return m[0] if page or not known else f'{m[1]}({sync.blob(s)}{place}{m[3]})'
    link = r'(\])\(((?!https?:|#|mailto:)[^)#\s]+)(#[^)\s]*)?\)'
    return re.sub(link, lambda m: lead([m[0], m[1], m[2], m[3] or '']), text)


def terms() -> dict: # word, in small letters -> anchor in the glossary
    heads = re.findall(r'^### (.+)$', (ROOT/'docs/glossary.md').read_text(encoding='utf-8'), re.M)
    everyday = {'run', 'step', 'walk', 'z', 'g', 'd', 'is'} # more often not the term
    return {w: sync.anchor(h) for h in heads for w in h.lower().split(', ') if w not in everyday}


# What stays as it is: code, formulas, links, headings, tables, HTML.
AS_IT_IS = r'```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|!?\[[^]]*\]\([^)]*\)|^[#|].*?$|<[^>]*>'


def linked(texts: list) -> list: # the prose of a lesson, cell by cell
    "Each term of the glossary is a link where it is first used."
    known = terms()
    words = '|'.join(sorted(map(re.escape, known), key=len, reverse=True))
    def link(m):
        anchor = known.pop((m[2] or '').lower(), '')
        if not anchor: return m[0]
        for other in [w for w, a in known.items() if a == anchor]: del known[other]
        return f'[{m[0]}](../docs/glossary.md#{anchor})'
    each = re.compile(rf'({AS_IT_IS})|\b({words})(?=s?\b)', re.M | re.S | re.I)
    return [each.sub(link, t) for t in texts]


def built_here(lesson: Path) -> str: # Markdown, or '' where nothing is
    "The public names that a lesson builds, each a link to its signature."
    out = []
    for module, file in house.modules().items():
        of = [n for n, where in public_names(file) if where == lesson.stem]
        names = ' · '.join(f'[`{n}`](../api/{module}.md#{n.lower()})' for n in of)
        if names: out.append(f'pokegan.{module}: {names}')
    return '## Built here\n\n' + '\n\n'.join(out) if out else ''


def with_words(cell: dict) -> list: # of cells
    "The cell with the texts of its figures: myst-nb knows one a cell, so each further figure gets a cell."
    told = cell['metadata'].get('alt', [])
    if not told: return [cell]
    parts = [cell | dict(outputs=[], metadata=dict(mystnb=dict(image=dict(alt=told[0]))))]
    for o in cell['outputs']:
        figure = any('image/png' in p.get('data', {}) for p in parts[-1]['outputs'])
        if figure and 'image/png' in o.get('data', {}):
            meta = dict(tags=['remove-input'], mystnb=dict(image=dict(alt=told[len(parts)])))
            parts.append(cell | dict(id=f"{cell['id']}-{len(parts)}", source='#', outputs=[], metadata=meta))
        parts[-1]['outputs'].append(o)
    return parts


def copy_lesson(path: Path, to: Path, s):
    "A lesson for readers: its number in the title, without what only nbdev and a kernel need."
    book = json.loads(path.read_text(encoding='utf-8'))
    for c in book['cells']:
        text = ''.join(c['source'])
        if c['cell_type'] == 'markdown': text = inside(text, 'nbs', s)
        else: text = re.sub(r'^#\| *\w.*\n?', '', text, flags=re.M)
        c['source'] = text
    book['cells'] = [c for c in book['cells'] if c['source'].strip() and not sync.is_plumbing(c['source'])]
    book['cells'] = [p for c in book['cells'] for p in (with_words(c) if c['cell_type'] == 'code' else [c])]
    book['metadata']['language_info'] = dict(name='python', pygments_lexer='ipython3') # knows !commands
    prose = [c for c in book['cells'] if c['cell_type'] == 'markdown']
    for c, text in zip(prose[1:], linked([c['source'] for c in prose[1:]])): c['source'] = text
    if names := built_here(path): book['cells'].append(dict(prose[-1], id='built-here', source=names))
    first = book['cells'][0]
    first['source'] = first['source'].replace('# ', f'# {sync.number(path)} · ', 1)
    to.write_text(json.dumps(book), encoding='utf-8')


def head(node, lines) -> str: # of a function or class: what stands before its body, comments and all
    first = node.body[0]
    doc = isinstance(first, ast.Expr) and isinstance(getattr(first, 'value', None), ast.Constant)
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    end = first.end_lineno if doc else first.lineno - 1
    return '\n'.join(lines[start-1:max(end, node.lineno)])


def members(node, lines) -> list: # of a class: its fields, and the heads of what it can do
    if not isinstance(node, ast.ClassDef): return []
    fields = [lines[n.lineno-1] for n in node.body if isinstance(n, ast.AnnAssign)]
    own = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    return fields + [head(n, lines) for n in own if n.name[0] != '_' or n.name == '__init__']


@cache
def read_module(file: Path) -> tuple: # (tree, lines, the lesson that each line comes from)
    text = file.read_text(encoding='utf-8')
    lessons, lines = [''], text.split('\n')
    for l in lines:
        m = re.match(r'# %% \S*nbs/(\S+)\.ipynb', l)
        lessons.append(m[1] if m else lessons[-1])
    return ast.parse(text), lines, lessons


def public_nodes(file: Path) -> list: # functions and classes, with the lesson that builds each
    tree, _, lessons = read_module(file)
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                   and getattr(n.targets[0], 'id', '') == '__all__'), [])
    return [(n, lessons[n.lineno]) for n in tree.body if getattr(n, 'name', None) in public]


def public_names(file: Path) -> list: return [(n.name, lesson) for n, lesson in public_nodes(file)]


def api_page(name: str, file: Path, s) -> str: # Markdown
    "Every public name of a module: its signature with what each value means, and the lesson that builds it."
    tree, lines, _ = read_module(file)
    out = [f'# pokegan.{name}', '', (ast.get_docstring(tree) or '').strip(), '']
    for n, lesson in public_nodes(file):
        where = f'[Built in lesson {sync.number(lesson)}](../nbs/{lesson}.ipynb)'
        parts = [head(n, lines), *members(n, lines)]
        out += [f'## {n.name}', '', where, '', '```python', *parts, '```', '']
    return '\n'.join(out)


def contents_of_lessons() -> str: # a table of contents for each part
    def tree(part, numbers):
        mine = [f'nbs/{l.stem}' for l in sync.of(numbers)]
        return '\n'.join(['```{toctree}', ':hidden:', f':caption: {part}', *mine, '```', ''])
    return '\n'.join(tree(*p) for p in sync.PARTS.items())


def gather(to: Path):
    "The tree that Sphinx reads."
    s = sync.settings()
    for f in ('nbs', 'docs', 'teach', 'api', '_static', 'extra'): (to/f).mkdir(parents=True)
    for l in sync.lessons(): copy_lesson(l, to/'nbs'/l.name, s)
    own = sync.pages()[1:] # the package's page is for those who are not here yet
    for f in [ROOT/'CHANGELOG.md', *own]:
        at = f.parent.relative_to(ROOT).as_posix()
        (to/at/f.name).write_text(inside(f.read_text(encoding='utf-8'), at, s), encoding='utf-8')
    for f in [*(ROOT/'docs').glob('*.png'), *(ROOT/'docs').glob('*.csv')]: shutil.copy(f, to/'docs')
    modules = {k: f for k, f in house.modules().items() if k != '__main__'}
    for k, f in modules.items(): (to/f'api/{k}.md').write_text(api_page(k, f, s), encoding='utf-8')
    contents = '\n'.join(modules)
    text = f'# Every public name\n\n```{{toctree}}\n{contents}\n```\n'
    (to/'api/index.md').write_text(text, encoding='utf-8')
    index = (SITE/'index.md').read_text(encoding='utf-8')
    (to/'index.md').write_text(index.replace('LESSONS', contents_of_lessons()), encoding='utf-8')
    shutil.copy(SITE/'conf.py', to)
    shutil.copy(SITE/'site.css', to/'_static')


FOR_ALL = {  # what screen readers and keyboards miss in the pages as Sphinx, furo and myst-nb write them
    'role="heading">': 'role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '<pre>': '<pre tabindex="0">', '<pre ': '<pre tabindex="0" ',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '<th class="head"><p></p></th>': '<td></td>',
    'display="block"><': 'display="block" tabindex="0"><',
    '<div id="search-results">': '<h1>Search</h1>\n<div id="search-results">'}


def for_all(out: Path):
    "Headings have levels, and what scrolls can be reached by keyboard."
    for page in out.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        for plain, better in FOR_ALL.items(): text = text.replace(plain, better)
        page.write_text(text, encoding='utf-8')


def build(out: Path):
    with tempfile.TemporaryDirectory() as d:
        source = Path(d)/'source'
        gather(source)
        from pokegan.playground import play
        (source/'extra/play').mkdir(parents=True)
        # in one file, so that the front page also works where the site is opened from a disk
        play('creatures-projected', source/'extra/play/index.html', likeness=False)
        slides.build(source/'extra/slides')
        shutil.rmtree(out, ignore_errors=True)
        words = '-m sphinx -q -W --keep-going -j 2 -b html'.split()
        subprocess.run([sys.executable, *words, str(source), str(out)], check=True)
        for_all(out)


if __name__ == '__main__': build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'_site'))
