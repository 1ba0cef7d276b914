"""Slides for the room, made from the lessons' stored content: nothing is run, and nothing is fetched.

    python tools/slides.py [OUT]     default: _slides; needs pip install -e ".[site]"

A deck for each lesson of the plans in teach/README.md. A slide holds the first sentences of a section, its
formula, figure or short code; the whole text is in the speaker notes. A stop of `predict` is a question, and
what came stands on the next slide. Exercises are named, not solved; quick questions have no answers.
Where the rules choose badly, cell metadata `slideshow: {"slide_type": …}` helps: "skip" leaves a cell out,
"slide" shows its code, "notes" keeps a text for the speaker.
"""
import ast, html, json, math, re, shutil, sys
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx_revealjs.utils import get_revealjs_path

sys.path.insert(0, str(Path(__file__).parent))
import sync

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/'docs/site'
PLANS = {'Ninety minutes': '00', 'Half a day': '00 02 03 06c 09',
         'Two days': '00 03 04 05 06a 06b 06c 06d 07 09 08b 13b 13c 13d 14a'}
REVEAL = 'LICENSE', 'dist/reset.css', 'dist/reveal.css', 'dist/reveal.js', 'plugin/notes/notes.js'


def formula(text, options): return convert(text, display='block' if options['display_mode'] else 'inline')


MD = MarkdownIt().enable('table').use(dollarmath_plugin, renderer=formula)
HELD = r'\$[^$]*\$|`[^`]*`|\([^()]*\)|\b(?:et al|e\.g|i\.e|vs)\.'  # no sentence ends in here


def sentences(text: str) -> list: # without long asides
    held = []
    text = re.sub(HELD, lambda m: held.append(m[0]) or f'\0{len(held)-1}\0', ' '.join(text.split()))
    def back(m):
        was = held[int(m[2])]
        return '' if was[0] == '(' and len(was) > 20 else m[1] + was
    found = re.split(r'(?<=[.!?])\s+|(?<=[.!?]\*\*)\s+', text)
    return [s for s in (re.sub('( ?)\0(\\d+)\0', back, s).strip() for s in found) if len(s) > 2]


def key(text: str, size: int) -> str: # the first sentences, one at least
    out = ''
    for s in sentences(text):
        if len(out) > 24 and len(out) + len(s) > size: break
        out += f' {s}'
    return out.strip()


def shown(text: str, python=False): # -> (HTML, height) of code or what it printed; None: too much for a slide
    text = re.sub(r'^#\|.*\n?|^(import|from) .*\n?|^\d\w+\.\w: .*\n?', '', text, flags=re.M).strip('\n')
    lines = text.split('\n')
    if len(text) < 20 or len(lines) > 12 or max(map(len, lines)) > 76: return None
    page = highlight(text, PythonLexer(), HtmlFormatter()) if python else f'<pre>{html.escape(text)}</pre>'
    return page, 45 + 32*len(lines)


def picture(output) -> str: return ''.join(output.get('data', {}).get('image/png', '')).replace('\n', '')


def pictures(cell): # -> (HTML, height) of each figure, which takes what room is left, too
    told = iter(cell['metadata'].get('alt', []))
    for data in filter(None, map(picture, cell['outputs'])):
        image = f'<img alt="{html.escape(next(told, ""))}" src="data:image/png;base64,{data}">'
        yield f'<div class="figure">{image}</div>', 320


def printed(cell) -> str:
    own = [o for o in cell['outputs'] if not picture(o)]
    return '\n'.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')).rstrip() for o in own)


class Deck:
    "Slides, one after the other; what does not fit on one begins the next, under the same heading."
    def __init__(self): self.slides = []

    def new(self, head, kind=''): self.slides.append(dict(head=head, kind=kind, parts=[], notes=[], left=570))

    def put(self, part, height):
        if self.slides[-1]['left'] < height: self.new(self.slides[-1]['head'])
        self.slides[-1]['parts'].append(part)
        self.slides[-1]['left'] -= height

    def say(self, text, size=140):
        text = key(text, size)
        self.put(MD.render(text), 18 + 42*math.ceil(len(text)/60))

    def points(self, text): # a list, the first sentence of each
        points = [key(p, 0) for p in re.split(r'^[-*] ', text, flags=re.M)[1:]]
        height = sum(12 + 39*math.ceil(len(p)/62) for p in points)
        if height <= 570: self.put(MD.render('\n'.join(f'- {p}' for p in points)), height)

    def question(self, head, text, words): # words: to choose from; none: a number is asked for
        self.new(head, 'question')
        choices = '\n'.join(f'{i}. {w}' for i, w in enumerate(words, 1)) or 'Write down a number.'
        self.put(MD.render(f'{key(text, 300)}\n\n{choices}'), 0)

    def html(self) -> str:
        def one(s):
            head, notes = MD.renderInline(s['head']), MD.render('\n\n'.join(s['notes']))
            parts = ''.join([f'<h2>{head}</h2>', *s['parts'], f'<aside class="notes">{notes}</aside>'])
            return f'<section class="{s["kind"]}">{parts}</section>'
        return '\n'.join(one(s) for s in self.slides if s['parts'])


class Section:
    "What is told under one heading, piece by piece: a method for each kind of them."
    def __init__(self, deck, head, pieces):
        self.deck, self.head, self.before, self.question = deck, head, '', ''
        self.asked, self.seen, self.why = [], None, False # stops, their outcome; the next text explains it
        self.coded = False # some code was shown
        self.figures = any(picture(o) for k, c in pieces if k == 'cell' for o in c['outputs'])
        deck.new(head)
        for kind, what in pieces: getattr(self, kind, self.note)(what)

    def note(self, text): self.deck.slides[-1]['notes'].append(text)

    def place(self, part, height): # with the text before it, where that was not shown
        slide = self.deck.slides[-1]
        if slide['left'] < height:
            self.deck.new(self.head)
            if self.before: self.deck.say(self.before)
        self.deck.put(part, height)
        self.before = ''

    def paragraph(self, text):
        self.note(text)
        text, *question = re.split(r'\**\bPredict\b[\s*:,]*', text, maxsplit=1)
        if text: self.before = text
        self.question = (question or [text])[0]
        if self.asked or not text: return
        bold = [s for s in sentences(text) if re.search(r'\*\*[^*]{24,}\*\*', s)]
        first = not self.deck.slides[-1]['parts']
        if self.why or first: self.deck.say(text, 170 if self.why else 220)
        elif bold: self.deck.say(bold[0])
        if self.why or first or bold: self.before = ''
        self.why = False

    def math_block(self, text):
        for line in [] if self.asked else text.strip('$ \n').split(r'\qquad'):
            self.place(MD.render(f'$$\n{line.strip()}\n$$'), 95)

    def fence(self, text):
        code = shown('\n'.join(text.split('\n')[1:-1]))
        if code and not self.asked: self.place(*code)

    def bullet_list(self, text):
        if not self.asked: self.deck.points(text)
        self.note(text)

    def cell(self, cell):
        code, told, figures = ''.join(cell['source']), shown(printed(cell)), [*pictures(cell)]
        for call in calls(code, 'predict'): self.ask(call.args[0].value, [a.value for a in call.args[2:]])
        if self.asked: self.seen = figures[-1] if figures else self.seen or told
        elif not calls(code, 'predict'):
            wanted = kind(cell) == 'slide' or code.startswith('#| export') and not self.coded
            lines = shown(code, True) if wanted else None
            self.coded = self.coded or bool(lines)
            for part in filter(None, [lines, *figures, None if self.figures else told]): self.place(*part)
        for came in re.findall(r'^(\d\w+\.\w): it is (.+)', printed(cell), re.M): self.answer(*came)

    def ask(self, name, words):
        text = ' '.join(s for s in sentences(self.question) if 'None' not in s)
        text = text[:1].upper() + text[1:]
        if len(text) < 110 and self.before != self.question: text = f'{key(self.before, 150)} {text}'
        self.asked.append(name)
        self.deck.question('Predict', text.strip(), words)

    def answer(self, name, came):
        if name in self.asked: self.asked.remove(name)
        self.deck.new(self.head, 'outcome')
        self.deck.put(f'<p>It is <strong>{html.escape(came)}</strong></p>', 60)
        if self.seen: self.deck.put(*self.seen)
        self.seen, self.why = None, True


def calls(code, name) -> list:
    if f'{name}(' not in code: return []
    found = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
    return [n for n in found if getattr(n.func, 'id', '') == name and isinstance(n.args[0], ast.Constant)]


def kind(cell) -> str: return cell['metadata'].get('slideshow', {}).get('slide_type', '')


def pieces(book): # -> (kind, text or cell)
    for c in book['cells']:
        text = re.sub(r'\[([^]]*)\]\([^)\s]*\)', r'\1', ''.join(c['source'])) # without links
        if kind(c) == 'skip' or sync.is_plumbing(text): continue
        if c['cell_type'] == 'code': yield 'cell', c
        else:
            lines = text.split('\n')
            for t in [t for t in MD.parse(text) if t.level == 0 and t.map]:
                name = 'note' if kind(c) == 'notes' and t.tag != 'h2' else t.type.removesuffix('_open')
                yield (t.tag if t.tag == 'h2' else name), '\n'.join(lines[slice(*t.map)])


def quick_questions(deck, text): # what is right is left to the room
    for n, rest in re.findall(r'^\*\*(\d+)\.\*\* (.*?)(?=^\*\*\d|\Z)', text, re.M | re.S):
        answers = re.findall(r'<summary>(.*?)</summary>', rest, re.S)
        deck.question(f'Quick question {n}', rest.split('<details>')[0], answers)


def exercises(deck, text): # their names
    names = [f'{n}. {name}' for n, name in re.findall(r'^\*\*(\d+)\. (.+?)\.?\*\*', text, re.M)]
    deck.new('Exercises')
    names += ['', 'They are at the end of the lesson; `check` says whether you are right.']
    deck.put(MD.render('\n'.join(names)), 0)


OWN = {'Quick questions': quick_questions, 'Exercises': exercises, 'References': lambda *_: None}


def make(lesson: Path) -> str: # the slides of a deck, HTML
    groups, number = [['', []]], sync.number(lesson)
    for k, what in pieces(json.loads(lesson.read_text(encoding='utf-8'))):
        if k == 'h2': groups.append([what[3:], []])
        else: groups[-1][1].append((k, what))
    start, deck = groups[0][1], Deck()
    title, promise = (re.sub(r'^\W+', '', t) for _, t in start[:2])
    aims = next(i for i, (k, _) in enumerate(start) if k == 'bullet_list')
    deck.new(f'{number} · {title}', 'title')
    deck.put(MD.render(f'{promise}.\n\nAfter this lesson you will be able to'), 0)
    deck.points(start[aims][1])
    plans = (ROOT/'teach/README.md').read_text(encoding='utf-8')
    rows = re.findall(rf'^\| (.*esson {number}\b.*) \|$', plans, re.M)
    deck.slides[0]['notes'] += [r.replace(' | ', ': ') for r in rows]
    groups[0] = [title, start[aims+1:]]
    for head, what in groups:
        if head in OWN: OWN[head](deck, '\n'.join(t for k, t in what if k != 'cell'))
        else: Section(deck, head, what)
    return deck.html()


def build(out: Path):
    (out/'reveal').mkdir(parents=True, exist_ok=True)
    for f in REVEAL: shutil.copy(get_revealjs_path()/f, out/'reveal')
    css, page = ((SITE/f'slides.{k}').read_text(encoding='utf-8') for k in ('css', 'html'))
    colours = HtmlFormatter(style='friendly').get_style_defs('.highlight')
    (out/'slides.css').write_text(css + colours, encoding='utf-8')
    def entry(l): return f'- [{sync.number(l)} · {title(l)}]({sync.number(l)}.html)'
    def title(l): return re.match(r'# (.+)', sync.sources(l, 'markdown')[0])[1]
    def write(name, title, body):
        text = page.replace('TITLE', title).replace('SLIDES', body)
        (out/f'{name}.html').write_text(text, encoding='utf-8')
    for l in sync.of(' '.join(PLANS.values())): write(sync.number(l), title(l), make(l))
    plans = [MD.render(f'## {name}\n\n' + '\n'.join(map(entry, sync.of(of)))) for name, of in PLANS.items()]
    write('index', 'Slides', ''.join(f'<section class="plan">{p}</section>' for p in plans))


if __name__ == '__main__': build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'_slides'))
