"""In a real browser: JupyterLab in headless Chromium runs lesson 16b, a slider is moved, and the picture
changes; a training shows itself, and ■ stops it.

Skipped, with the reason, where something is missing; with BROWSER=required in the environment
that is an error instead (.ci/run sets it).
The screenshot is kept in screenshots/, which git ignores and CI uploads.
"""
import importlib.util, json, os, shutil, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT/'screenshots'
CHROMES = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
FLAGS = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync'''.split()


def chrome() -> str:
    "Path of a browser, or a skip (an error where it is required) that names what is missing."
    missing = [p for p in ('jupyterlab', 'ipywidgets', 'playwright') if not importlib.util.find_spec(p)]
    path = next(filter(None, map(shutil.which, CHROMES)), '')
    why = '' if path else 'needs Chromium: apt-get install --no-install-recommends chromium fonts-dejavu-core'
    if missing: why = f'needs {", ".join(missing)}: pip install -e ".[dev]"'
    if why and os.environ.get('BROWSER') == 'required': pytest.fail(why)
    if why: pytest.skip(why)
    return path


SETTINGS = {  # all cells stay in the page; no questions
    'notebook-extension/tracker': '{"windowingMode": "none"}',
    'apputils-extension/notification': '{"fetchNews": "false"}'}


def lesson() -> dict: # without its outputs, so that what is seen was made now
    nb = json.loads((ROOT/'nbs/16b_explore.ipynb').read_text(encoding='utf-8'))
    for c in nb['cells']:
        if c['cell_type'] == 'code': c.update(outputs=[], execution_count=None)
    return nb


WATCHED = """from pokegan import train
run = train('dcgan-quick', 'creatures:256', minutes=5, size=32, ngf=8, ndf=8, batch=16)
print('stopped:', run.info['stopped'], 'saved:', (run.folder/'state.safetensors').exists())"""


def watched() -> dict:
    cell = dict(cell_type='code', id='a', source=WATCHED, outputs=[], execution_count=None, metadata={})
    kernel = dict(name='python3', display_name='python3', language='python')
    return dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


def furnish(folder, book):
    "A notebook, and the settings of JupyterLab."
    (folder/'work').mkdir()
    (folder/'work/lesson.ipynb').write_text(json.dumps(book), encoding='utf-8')
    for name, text in SETTINGS.items():
        path = folder/'settings/@jupyterlab'/f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding='utf-8')


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path, request):
    "Address of a JupyterLab that knows nothing of this machine's settings; it serves a notebook."
    chrome()
    furnish(tmp_path, getattr(request, 'param', lesson)())
    port, log = free_port(), tmp_path/'lab.log'
    own = 'HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR'
    env = os.environ | {k: str(tmp_path/k.lower()) for k in own}
    env |= dict(JUPYTERLAB_SETTINGS_DIR=str(tmp_path/'settings'), JUPYTER_TOKEN='test')
    env |= dict(IN_TEST='1', PYTHONPATH=str(ROOT))
    command = [
        sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}',
        f'--ServerApp.root_dir={tmp_path/"work"}', '--LabApp.news_url=None',
        '--LabApp.extension_manager=readonly']
    with open(log, 'w', encoding='utf-8') as f:
        server = subprocess.Popen(command, env=env, stdout=f, stderr=f)
    def listens(): return urlopen(f'http://127.0.0.1:{port}/api?token=test', timeout=5).status == 200
    def last_words(): return log.read_text(encoding='utf-8')[-2000:]
    try:
        wait(listens, 60, last_words)
        yield f'http://127.0.0.1:{port}/lab/tree/lesson.ipynb?token=test&reset'
    finally:
        server.terminate()  # ends its kernels, too
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


def wait(ready, seconds, tell):
    "Until ready() is true; errors of a server that does not listen yet count as no."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ready(): return
        except OSError: pass
        time.sleep(.2)
    pytest.fail(f'nothing after {seconds} s: {tell()}')


def ran(page) -> bool:
    """Run All Cells is over: the last code cell that is not folded has a number.
    Where JupyterLab asks which kernel, its proposal is taken."""
    accept = page.locator('.jp-Dialog .jp-mod-accept')
    if accept.count(): accept.first.click()
    prompts = [t for t in page.locator('.jp-CodeCell .jp-InputPrompt').all_inner_texts() if t.strip()]
    wrong = page.locator('.jp-RenderedText', has_text='Traceback (most recent call last)')
    if wrong.count(): pytest.fail(wrong.first.inner_text())
    return bool(prompts) and prompts[-1].strip('[]: \n').isdigit()


@contextmanager
def running(lab, tmp_path): # yields a page of which all cells have been started, and what it says
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        look = dict(headless=True, args=FLAGS, viewport=dict(width=1100, height=720))
        profile = str(tmp_path/'profile')
        with p.chromium.launch_persistent_context(profile, executable_path=chrome(), **look) as context:
            page = context.new_page()
            page.goto(lab)
            page.locator('.jp-CodeCell').first.wait_for(timeout=120_000)
            def text():
                shown = page.locator('.jp-OutputArea-output').all_inner_texts()
                return page.locator('#jp-main-statusbar').inner_text() + '\n' + '\n'.join(shown)[-1500:]
            wait(lambda: 'Idle' in text() or page.locator('.jp-Dialog').count(), 60, text)
            page.keyboard.press('Control+b')  # no file browser: room for the panel
            page.get_by_role('menuitem', name='Run', exact=True).click()
            page.get_by_text('Run All Cells', exact=True).click()
            yield page, text


def test_a_slider_changes_the_picture(lab, tmp_path):
    with running(lab, tmp_path) as (page, text):
        try: wait(lambda: ran(page), 300, text)
        finally: picture(page, 'lesson')
        panel = page.locator('.jp-OutputArea-output:has(.widget-image)').first
        image, handles = panel.locator('img.widget-image'), panel.locator('.noUi-handle')
        image.scroll_into_view_if_needed()
        seen, said = image.get_attribute('src'), panel.locator('code').inner_text()
        assert image.evaluate('e => e.naturalWidth') == 256 and handles.count() == 8 and said == 'State()'
        for _ in range(12): handles.nth(2).press('ArrowRight')   # direction 1
        def moved():
            return 'steps=' in panel.locator('code').inner_text() and image.get_attribute('src') != seen
        wait(moved, 20, text)
        picture(page, 'explore', panel.locator('.widget-hbox').first)
        other = page.locator('.jp-OutputArea-output:has(.widget-image)').nth(1)
        def upload(**file):
            with page.expect_file_chooser() as chooser: other.get_by_role('button', name='picture').click()
            chooser.value.set_files(dict(file))
        upload(name='notes.txt', mimeType='text/plain', buffer=b'dear diary')
        wait(lambda: 'not an image' in other.locator('code').inner_text(), 20, text)
        upload(name='seen.png', mimeType='image/png', buffer=page.screenshot())
        wait(lambda: 'code=' in other.locator('code').inner_text(), 20, text)
        other.get_by_role('button', name='save PNG').click()
        wait(lambda: (tmp_path/'work/liked/0001.png').exists(), 20, text)


def picture(page, name, element=None):
    SHOTS.mkdir(exist_ok=True)
    (element or page).screenshot(path=SHOTS/f'{name}.png')


@pytest.mark.parametrize('lab', [watched], indirect=True)
def test_a_training_shows_itself_and_the_stop_button_saves(lab, tmp_path):
    with running(lab, tmp_path) as (page, text):
        view = page.locator('.jp-OutputArea-output img')
        def shown():
            accept = page.locator('.jp-Dialog .jp-mod-accept')
            if accept.count(): accept.first.click()
            return view.count() and view.first.get_attribute('src')
        wait(shown, 120, text)
        first = shown()
        wait(lambda: shown() != first, 60, text)  # drawn again, in the same place
        assert view.count() == 1 and not page.locator('.jp-RenderedText', has_text='%|').count()
        picture(page, 'live')
        page.locator('[data-jp-item-name="interrupt"] jp-button').first.click()
        wait(lambda: 'stopped:' in text(), 60, text)
        assert 'stopped: interrupted saved: True' in text() and 'Traceback' not in text()
