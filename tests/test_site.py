"""The website: it builds without a warning, every link leads somewhere, nothing is fetched from elsewhere."""
import subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_browser import chrome, FLAGS

ROOT = Path(__file__).resolve().parent.parent
KINDS_OF_PAGES = ('index.html', 'nbs/README.html', 'nbs/04_losses.html', 'nbs/13c_instances.html',
                  'api/runs.html', 'docs/parity.html', 'docs/glossary.html', 'docs/troubles.html',
                  'docs/install.html', 'docs/gallery.html', 'teach/README.html', 'CHANGELOG.html',
                  'search.html')
OURS = 'https://github.com/pokegan/pokegan/'
pytest.importorskip('myst_nb', reason='needs what the site is made with: pip install -e ".[dev]"')


class Page(HTMLParser):
    "What a page is called, points at, and loads."
    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loads, self.silent = set(), [], [], []
        self.feed(file.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {v for k in ('id', 'name') if (v := a.get(k))}
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag == 'img' and len(a.get('alt') or '') < 20: self.silent.append(a.get('src'))
        loads = a.get('src') if tag != 'a' else None
        if tag == 'link' and a.get('rel') in ('stylesheet', 'icon'): loads = a.get('href')
        if loads: self.loads.append(loads)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'out'
    command = [sys.executable, 'tools/site.py', str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_every_link_leads_somewhere(site):
    pages = {f: Page(f) for f in site.rglob('*.html')}
    assert len(pages) > 100
    lost = []
    for f, page in pages.items():
        for link in page.links + page.loads:
            if link.startswith(('http:', 'https:', 'data:', 'mailto:')): continue
            place, _, anchor = link.partition('#')
            target = (f.parent/unquote(place.split('?')[0])).resolve() if place else f
            if target.is_dir(): target = target/'index.html'
            known = target in pages and (not anchor or unquote(anchor) in pages[target].ids)
            if not (known or target.suffix != '.html' and target.exists()): lost.append((f.name, link))
    assert lost == []


def test_links_into_the_repository_lead_to_files_that_are_there(site):
    for f in site.rglob('*.html'):
        for link in Page(f).links:
            if not link.startswith(f'{OURS}blob/main/'): continue
            path = unquote(link.removeprefix(f'{OURS}blob/main/').partition('#')[0])
            assert (ROOT/path).exists(), (f.name, link)


def test_nothing_is_fetched_from_elsewhere(site):
    far = {l for f in site.rglob('*.html') for l in Page(f).loads if l.startswith(('http:', 'https:', '//'))}
    assert far == set()


def test_every_picture_says_what_one_sees(site):
    assert [p for f in site.rglob('*.html') for p in Page(f).silent] == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_everybody_can_read_it(site, scheme):
    "Contrast, headings, names and keyboard, by axe-core, at the width of a phone."
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright
    found = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chrome(), args=FLAGS)
        for name in KINDS_OF_PAGES:
            page = browser.new_page(color_scheme=scheme, viewport=dict(width=400, height=800))
            page.goto((site/name).as_uri())
            wrong = Axe().run(page).response['violations']
            found += [(name, v['id'], n['html'][:100]) for v in wrong for n in v['nodes']]
            wide = page.evaluate('document.documentElement.scrollWidth')
            if wide > 400: found.append((name, 'wider than a phone', wide))
            page.close()
        browser.close()
    assert found == []


def test_the_front_page_makes_creatures_from_a_disk(site):
    "Opened by a double-click, and without a network."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chrome(), args=FLAGS)
        page = browser.new_context(offline=True, viewport=dict(width=1000, height=1200)).new_page()
        page.goto((site/'index.html').as_uri())
        page.frame_locator('iframe').locator('body[data-drawn="1"]').wait_for(timeout=120_000)
        browser.close()


def test_lessons_and_public_names_are_there(site):
    lesson = (site/'nbs/04_losses.html').read_text(encoding='utf-8')
    assert '04 · Losses' in lesson and '<math' in lesson
    assert '#| export' not in lesson and 'default_exp' not in lesson
    assert '../docs/glossary.html#mode-collapse' in lesson and '../api/training.losses.html#' in lesson
    api = (site/'api/runs.html').read_text(encoding='utf-8')
    assert 'id="resume"' in api and '../nbs/15a2_runs.html' in api
    front = (site/'index.html').read_text(encoding='utf-8')
    assert (site/'play/index.html').exists() and 'play/index.html' in front
    assert 'walk_folder' in (site/'searchindex.js').read_text(encoding='utf-8')
