"""How the house stands: rooms, floors and arrows of the library, and how its lines and the lessons' read.

    python tools/house.py [FOLDER]     a checkout; this one when left out

A room is a folder of pokegan/, or a module beside them. An arrow is a pair of rooms of which the first
imports from the second, inside functions too. Floors: the rooms in the longest chain of arrows.
"""
import ast, io, json, re, statistics, sys, tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEVELS = ['core', 'creatures data', 'training', 'metrics latents', 'models', 'recipes runs hub',
          'compare publish playground doctor widgets course',
          'cli', '__main__']  # arrows go left, or stay


def modules(root: Path = ROOT) -> dict: # dotted name -> file
    "All modules of the library but its faces (`__init__.py`)."
    files = sorted((root/'pokegan').rglob('*.py'))
    names = {'.'.join(f.relative_to(root/'pokegan').with_suffix('').parts): f for f in files}
    return {k: f for k, f in names.items() if f.name not in ('__init__.py', '_modidx.py')}


def room(name: str) -> str: return name.split('.')[0]


def imports(tree: ast.AST, module: str) -> list: # (module, name) pairs; the name is '' for `import pokegan.x`
    "What a piece of `module` takes from the library, as it is written: ('data', 'Images'), ('', 'train')."
    out, inside = [], module.split('.')
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            out += [(a.name.partition('.')[2], '') for a in n.names if room(a.name) == 'pokegan' != a.name]
        elif isinstance(n, ast.ImportFrom):
            path = (n.module or '').split('.') if n.module else []
            if n.level: path = inside[:len(inside) - n.level] + path
            elif path[0] == 'pokegan': path = path[1:]
            else: continue
            out += [('.'.join(path), a.name) for a in n.names]
    return out


def cells(text: str) -> list: # (lesson, code) pairs
    "The cells of an exported module and the lessons that they stand in."
    parts = re.split(r'^# %% \S*nbs/(\S+)\.ipynb .*\n', text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2]))


def defined(code: str) -> set:
    "The names that a cell binds at its top level."
    out = set()
    for n in ast.parse(code).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): out.add(n.name)
        elif isinstance(n, (ast.Import, ast.ImportFrom)): out |= {room(a.asname or a.name) for a in n.names}
        else: out |= {m.id for m in ast.walk(n) if isinstance(m, ast.Name) and isinstance(m.ctx, ast.Store)}
    return out


class Library:
    "Who defines what, and in which lesson."
    def __init__(self, root: Path = ROOT):
        self.files = modules(root)
        self.text = {k: f.read_text(encoding='utf-8') for k, f in self.files.items()}
        self.cells = {k: cells(t) for k, t in self.text.items()}
        self.lesson = {(k, name): lesson for k, own in self.cells.items() for lesson, code in reversed(own)
                       for name in defined(code)}

    def find(self, module: str, name: str) -> tuple: # (module, name) as defined; name '' is the module
        "Looks behind the faces: ('data', 'Images') is ('data.images', 'Images')."
        if module in self.files: return module, name
        full = f'{module}.{name}'.strip('.')
        if full in self.files: return full, ''
        inside = [k for k in self.files if not module or k.startswith(module + '.')]
        behind = [k for k in inside if (k, name) in self.lesson and name in self.own(k)]
        return (behind[0], name) if behind else ('', name)

    def own(self, module: str) -> set:
        "What a module defines and does not import."
        tree = ast.parse(self.text[module]).body
        taken = {a.asname or a.name for n in tree if isinstance(n, ast.ImportFrom) for a in n.names}
        return {n for k, n in self.lesson if k == module} - taken

    def taught(self, module: str, name: str) -> str|None:
        "The lesson that teaches a name, or the first of a whole module."
        if name: return self.lesson.get((module, name))
        return self.cells[module][0][0] if self.cells.get(module) else None

    def arrows(self) -> set: # (room, room) pairs
        "Which room takes from which other."
        out = set()
        for k, text in self.text.items():
            for m, name in imports(ast.parse(text), k):
                to = self.find(m, name)[0]
                if to and room(to) != room(k): out.add((room(k), room(to)))
        return out


def floors(arrows: set) -> int:
    "The longest chain of rooms; ValueError for a circle."
    below = {a: {t for f, t in arrows if f == a} for a in {x for pair in arrows for x in pair}}
    height = {}
    while len(height) < len(below):
        new = {a: 1 + max((height[t] for t in ts), default=0)
               for a, ts in below.items() if a not in height and ts <= height.keys()}
        if not new: raise ValueError(f'rooms in a circle: {sorted(below.keys() - height.keys())}')
        height |= new
    return max(height.values(), default=0)


def upward(arrows: set) -> list:
    "Arrows that go up, or to a room that is not on the plan."
    level = {r: i for i, names in enumerate(LEVELS) for r in names.split()}
    return sorted((a, b) for a, b in arrows if a not in level or b not in level or level[b] > level[a])


def code_cells(lesson: Path) -> list:
    "The text of a lesson's code cells."
    found = json.loads(lesson.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in found if c['cell_type'] == 'code']


def lines(text: str) -> list: return [l for l in text.split('\n') if l.strip()]


def tree(text: str) -> ast.AST:
    "Of a cell, its magics left out."
    return ast.parse(re.sub(r'^(\s*)[%!].*', r'\1pass', text, flags=re.M))


def thoughts(text: str) -> int:
    "Logical lines: a call or a signature that is broken over several lines counts once, comments do not."
    plain = re.sub(r'^(\s*)[%!].*', r'\1pass', text, flags=re.M)
    return sum(t.type == tokenize.NEWLINE for t in tokenize.generate_tokens(io.StringIO(plain).readline))


def exported(cells: list) -> list: return [c for c in cells if re.search(r'^#\| *exporti?\b', c, re.M)]


def by_position(f: ast.FunctionDef) -> int:
    "How many arguments a function takes by position, `self` aside."
    return sum(a.arg not in ('self', 'cls') for a in f.args.posonlyargs + f.args.args)


def reading(texts: list) -> str:
    "How code reads: lines, wide ones, thoughts a line, functions."
    own, trees = [l for t in texts for l in lines(t)], [tree(t) for t in texts]
    nodes = [n for t in trees for n in ast.walk(t)]
    exprs = sum(isinstance(n, ast.expr) for n in nodes)/len(own)
    defs = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    long = [n.end_lineno - n.lineno + 1 for n in defs]
    wide, many = sum(len(l) > 100 for l in own)/len(own), sum(by_position(n) >= 7 for n in defs)
    return (f'{len(own):,} lines, {wide:.1%} over 100 columns, {sum(len(l) > 110 for l in own)} over 110, '
            f'longest {max(map(len, own))}; {exprs:.2f} expressions a line; functions of '
            f'{statistics.median(long):g} lines, longest {max(long)}; {many} take 7 or more by position')


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    lib = Library(root)
    arrows = lib.arrows()
    rooms = {room(k) for k in lib.files} | {'__init__'}
    print(f'{len(lib.files)} modules in {len(rooms)} rooms, {len(arrows)} arrows, ', end='')
    try: print(f'{floors(arrows)} floors')
    except ValueError as e: print(e)
    up = [f'{a} -> {b}' for a, b in upward(arrows)]
    print(f'{len(up)} arrows go up or leave the plan', *up[:5], sep=', ')
    nbs = {f: code_cells(f) for f in sorted((root/'nbs').glob('[0-9]*.ipynb'))}
    print('lessons:', reading([c for cells in nbs.values() for c in cells]))
    print('library:', reading([re.sub(r'__all__ = \[.*?\]', '', t, flags=re.S) for t in lib.text.values()]))
    big = {f.stem: sum(map(thoughts, exported(cells))) for f, cells in nbs.items()}
    over = [f'{k} {v}' for k, v in big.items() if v > 200]
    print('logical lines exported, over 200:', ', '.join(over) or 'none')
    tall = {f.stem: max(map(thoughts, exported(cells)), default=0) for f, cells in nbs.items()}
    print('cells over 40:', ', '.join(f'{k} {v}' for k, v in tall.items() if v > 40) or 'none')


if __name__ == '__main__': main()
