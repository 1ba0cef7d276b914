"""The slides: every deck is built, gives no answer away, fetches nothing, and fits on its slides."""
import html, json, re, subprocess, sys
from pathlib import Path

import pytest
from test_browser import chrome, FLAGS
from test_site import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
pytest.importorskip('sphinx_revealjs', reason='needs what slides are made with: pip install -e ".[dev]"')
import slides, sync


@pytest.fixture(scope='module')
def decks(tmp_path_factory):
    out = tmp_path_factory.mktemp('slides')
    command = [sys.executable, '-W', 'error', 'tools/slides.py', str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    return out


def words(text: str) -> str: # of HTML or Markdown, without marks
    return re.sub(r'[\s`*$]+', ' ', html.unescape(re.sub(r'<[^>]+>', '', text)))


def test_each_lesson_of_the_plans_has_a_deck(decks):
    plans = (ROOT/'teach/README.md').read_text(encoding='utf-8')
    assert all(f'## {name}' in plans for name in slides.PLANS)
    numbers = {n for of in slides.PLANS.values() for n in of.split()}
    assert {f.stem for f in decks.glob('*.html')} == {'index', *numbers}
    told = plans.split('## Ninety minutes')[1].split('## Twelve weeks')[0]
    assert numbers >= set(re.findall(r'[Ll]esson (\d\d\w*)', told))


def test_no_answer_is_given_away(decks):
    "Neither the solution of an exercise nor what is right about a quick question, in notes either."
    for f in decks.glob('[0-9]*.html'):
        shown = words(f.read_text(encoding='utf-8'))
        text = '\n'.join(sync.sources(*sync.of(f.stem), 'markdown'))
        folded = re.findall(r'<details><summary>.*?</summary>(.*?)</details>', text, re.S)
        assert folded
        lines = [words(l).strip() for answer in folded for l in answer.split('\n')]
        assert [l for l in lines if len(l) > 12 and l in shown] == [], f.stem
        for hidden in ('Yes:', 'No:', 'Solution', '@exercise', 'find_spec', '#@title'):
            assert hidden not in shown, f.stem


def test_nothing_is_fetched_from_elsewhere(decks):
    for f in decks.glob('*.html'):
        page = Page(f)
        local = [l for l in page.loads if not l.startswith('data:image/png;base64,')]
        assert all((f.parent/l).is_file() for l in local + page.links), f.name
        assert page.silent == []
    styles = ''.join(f.read_text(encoding='utf-8') for f in decks.rglob('*.css'))
    assert not re.search(r'@import|url\(\W*(https?:)?//', styles)


TEXT = '''# A lesson

> What it is about

After this lesson you will be able to

- do all of what it says here. And more of it, with many words that fill a line and then one more.

## A section

First sentence. It has a [link](03_dcgan.ipynb) (and an aside that goes on for long).

$$x^2$$

Predict: is it more? Write your guess in the place of `None`, and run.'''
QUICK = '''## Quick questions

**1.** Why?

<details><summary>One</summary>No: of this.</details>

<details><summary>Two</summary>Yes: of that.</details>'''


def code(source, out='', **meta):
    printed = [dict(output_type='stream', name='stdout', text=[out])]
    return dict(cell_type='code', source=[source], outputs=printed, metadata=dict(slideshow=meta))


def deck(folder, *cells): # HTML of each slide
    told = [dict(cell_type='markdown', source=[c], metadata={}) if isinstance(c, str) else c for c in cells]
    (folder/'99_test.ipynb').write_text(json.dumps(dict(cells=told)), encoding='utf-8')
    return slides.make(folder/'99_test.ipynb').split('<section')[1:]


def test_what_came_stands_on_the_slide_after_the_question(tmp_path):
    ask = code("predict('99.a', None, 'more', 'fewer')", "99.a: put 'more' or 'fewer' in the place of None\n")
    tell = code("reveal('99.a', y)", '99.a: it is fewer\n')
    outcome, hidden = code('y = f(x)', '3 of 4 of them are gone\n'), code('#@title Checks', 'secret')
    text = 'Because it is so.'
    title, lead, question, after, quick = deck(tmp_path, TEXT, ask, outcome, tell, text, hidden, QUICK)
    assert '99 · A lesson' in title and 'What it is about.' in title and 'it says here.</li>' in title
    assert 'First sentence. It has a link.' in lead and '<math' in lead
    assert 'is it more' not in lead.split('<aside')[0]
    assert 'Is it more?' in question and 'None' not in question
    assert '<li>more</li>\n<li>fewer</li>' in question and '3 of 4' not in question
    assert '<strong>fewer</strong>' in after and '3 of 4 of them' in after and text in after
    assert '<li>One</li>\n<li>Two</li>' in quick and 'of that' not in quick and 'secret' not in after


def test_cell_metadata_helps_where_the_rules_choose_badly(tmp_path):
    said, ways = 'six of seven are there', ({}, dict(slide_type='slide'), dict(slide_type='skip'))
    cells = [code('five = [5, 6, 7, 8, 9]', said, **w) for w in ways]
    plain, slide, skip = (''.join(deck(tmp_path, TEXT, c)) for c in cells)
    assert said in plain and 'class="highlight"' not in plain
    assert said in slide and 'class="highlight"' in slide and said not in skip


FITS = '''() => {
    const slide = Reveal.getCurrentSlide(), edge = slide.getBoundingClientRect(), wrong = []
    if (slide.scrollHeight > slide.clientHeight) wrong.push('too high')
    for (const e of slide.querySelectorAll('*')) {
        if (e.closest('aside') || !e.getClientRects().length) continue
        const r = e.getBoundingClientRect(), size = parseFloat(getComputedStyle(e).fontSize)
        const text = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())
        if (r.bottom > edge.bottom + 1 || r.right > edge.right + 1) wrong.push(e.tagName + ' is cut off')
        if (e.tagName == 'PRE' && e.scrollWidth > e.clientWidth + 1) wrong.push('code is too wide')
        if (e.className == 'figure' && r.height < 250) wrong.push('a small figure')
        if (text && size < 24 && !e.closest('math')) wrong.push('small letters')
    }
    return wrong
}'''


def test_every_slide_fits(decks):
    from playwright.sync_api import sync_playwright
    wrong, far = [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chrome(), args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=720))
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('request', lambda r: far.append(r.url) if r.url.startswith('http') else None)
        for f in sorted(decks.glob('*.html')):
            page.goto(f.as_uri())
            page.wait_for_function('window.Reveal && Reveal.isReady()')
            for i in range(page.evaluate('Reveal.getTotalSlides()')):
                page.evaluate(f'Reveal.slide({i})')
                wrong += [(f.stem, i, w) for w in page.evaluate(FITS)]
        browser.close()
    assert (wrong, far) == ([], [])
