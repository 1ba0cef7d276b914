"""Lesson 16c outside of Python: a page, in a real browser without a network, draws what Python draws.

The browser is found, or the test skipped, as in test_browser.py.
"""
import base64, gzip, hashlib, http.server, json, os, re, sys, threading
from functools import cache, partial

import fresh
import numpy as np
import pytest
import torch
from PIL import Image

from pokegan.core import generator
from pokegan.data import load_images, to_uint8
from pokegan.data.images import to_image
from pokegan.latents.mixture import Mixture
from pokegan.latents.priors import prior, sample
from pokegan.models.pretraining import DilatedGenerator
from pokegan.playground import folded, page_facts, page_parts, page_text, play, prior_parts, to_onnx, WEB
from pokegan.recipes import recipe
from pokegan.runs import load_run, train
from test_browser import chrome, FLAGS
from test_conditional import HOW, INSTANCE, labelled

pytest.importorskip('onnx', reason='needs onnx and onnxscript: pip install -e ".[dev]"')
pytest.importorskip('onnxscript')


# ---- the network ----

SMALL = dict(size=16, nz=8, ngf=4, ndf=4, batch=8)
FAMILIES = {
    'dcgan-quick': {}, 'dcgan-keras': {}, 'dcgan-fc-32': dict(size=32), 'wgan-clip': {},
    'dcgan-types': dict(label='animal'), 'projected': INSTANCE | dict(nc=None),
    'projected-instance': INSTANCE | dict(label='animal'), 'aegan-quick': dict(size=32),
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run of each family, of a step or two, trained once."
    @cache
    def folder(name):
        changes = {k: v for k, v in (SMALL | FAMILIES[name]).items() if v is not None}
        names = {f for f in vars(recipe(name))}
        images, at = labelled(size=changes['size']), tmp_path_factory.mktemp('page')/name
        train(name, images, at, steps=2, **HOW, **{k: v for k, v in changes.items() if k in names})
        return at
    return lambda name: load_run(folder(name))


def by_onnx(model:bytes, x):
    import onnxruntime
    return onnxruntime.InferenceSession(model).run(None, {'input': x.numpy()})[0]


def levels(a, b) -> int: # the largest difference of two sets of pictures in [-1, 1], in levels of 255
    return int((to_uint8(torch.as_tensor(a)).int() - to_uint8(torch.as_tensor(b)).int()).abs().max())


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_draws_the_same_outside_of_pytorch(trained, name):
    run = trained(name)
    z = run.latents(5, seed=3)
    assert levels(by_onnx(to_onnx(run.G, z[:2]), z), sample(run.G, z)) <= 2
    x = torch.rand(3, 3, run.recipe.size, run.recipe.size, generator=generator(0))*2 - 1
    reader = run.recipe.reader(run.nets)
    assert (reader is None) == (run.recipe.encoder(run.nets) is None)
    if reader is None: return
    told = run.encode(x)[:, -run.recipe.nc - len(run.kinds):] if 'codes' in run.nets else run.encode(x)
    read = by_onnx(to_onnx(reader, x[:2]), x)
    off = np.abs(read - told[:, :read.shape[1]].numpy()).max()
    assert off < .01*float(told.abs().max())


def test_the_fifth_systems_generator_too():
    G = DilatedGenerator(32, 40, 4, True, 'batch')
    z = torch.randn(5, 40, generator=generator(0))
    with torch.no_grad(): G.train()(z) # so that its statistics are not those of the start
    assert levels(by_onnx(to_onnx(G.eval(), z[:2]), z), sample(G, z)) <= 2


def test_folding_leaves_the_original_whole():
    run = load_run('creatures-projected')
    before, z = sample(run.G, run.latents(2)), run.latents(2)
    plain = folded(run.G)
    assert len(plain.state_dict()) < len(run.G.state_dict())
    torch.testing.assert_close(sample(plain, z), before, atol=1e-5, rtol=0)
    assert torch.equal(sample(run.G, z), before)


def test_a_mixture_chooses_by_weight_and_by_one_number_alone():
    m = Mixture(3, 4)
    m.weights[:], m.means[:] = torch.tensor([.2, .5, .3]), torch.tensor([[0.], [10.], [20.]])
    m.factors[:] = .01
    which = (m(4000, generator(0))[:, 0]/10).round()
    share = torch.stack([(which == i).float().mean() for i in range(3)])
    torch.testing.assert_close(share, m.weights, atol=.03, rtol=0)
    u = torch.rand(1, generator=generator(7), dtype=torch.float64) # the page draws it likewise
    assert round(m(1, generator(7))[0, 0].item()/10) == int(u > .2) + int(u > .7)
    theirs = torch.multinomial(m.weights, 4000, replacement=True, generator=generator(0))
    assert torch.equal(which.long(), theirs) # but for one alone, where PyTorch has another way


# ---- the page, in a browser ----

@pytest.fixture(scope='module')
def browser(tmp_path_factory): # makes profiles of a browser: browser(offline=True)
    path = chrome()
    from playwright.sync_api import sync_playwright
    how = dict(executable_path=path, args=FLAGS, headless=True, viewport=dict(width=1000, height=800))
    def profile(**more):
        return p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp('profile')), **how | more)
    with sync_playwright() as p: yield profile


class Page:
    "A page that notes what it should not do."
    def __init__(self, context, url):
        self.faults, self.page = [], context.new_page()
        self.page.on('console', lambda m: self.heard(m.text))
        self.page.on('pageerror', lambda e: self.faults.append(str(e)))
        self.page.on('dialog', lambda d: (self.faults.append(d.message), d.dismiss()))
        self.page.on('request', lambda r: self.asked(r.url))
        self.page.goto(url)
        self.ready()

    def heard(self, text): # a hint that the test itself reads pixels is no fault
        if not text.startswith('Canvas2D'): self.faults.append(text)

    def asked(self, url):
        if not url.startswith(('file:', 'data:', 'blob:')): self.faults.append(url)

    def ready(self, grid=1): # until so many grids were drawn
        self.page.wait_for_selector(f'body[data-drawn="{grid}"]', timeout=120_000)

    def tile(self, i): return self.page.locator('#grid button').nth(i)

    def pixels(self, where='#grid canvas'): # (n,3,h,w) in 0..255
        script = '''where => [...document.querySelectorAll(where)].map(c => {
            const {data} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
            return btoa(Array.from(data, v => String.fromCharCode(v)).join(''));
        })'''
        told = self.page.evaluate(script, where) # as text: numbers would take seconds
        x = torch.stack([torch.tensor(list(base64.b64decode(t)), dtype=torch.uint8) for t in told])
        side = int((x.shape[1]//4)**.5)
        return x.view(len(x), side, side, 4).permute(0, 3, 1, 2)[:, :3]

    def latent(self, script): return torch.tensor(self.page.evaluate(f'() => [...{script}]'))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return play('creatures-projected', tmp_path_factory.mktemp('page')/'page.html')


@pytest.fixture(scope='module')
def context(browser):
    with browser(offline=True, accept_downloads=True) as c: yield c


@pytest.fixture(scope='module')
def open_page(made, context): return Page(context, made.as_uri()) # for what asks its scripts alone


def differ(a, b) -> int: return int((a.int() - b.int()).abs().max())


def test_the_page_draws_what_python_draws(made, context):
    p, run = Page(context, f'{made.as_uri()}#seed=11'), load_run('creatures-projected')
    ours = to_uint8(torch.cat([run.sample(1, seed=11+i) for i in range(24)]))
    assert differ(p.pixels(), ours) <= 2
    p.page.goto(f'{made.as_uri()}#seed=4&t=0.8')
    p.page.reload()
    p.ready()
    ours = to_uint8(torch.cat([run.sample(1, seed=4+i, truncation=.8) for i in range(24)]))
    assert differ(p.pixels(), ours) <= 2
    assert p.faults == []


def test_children_differ_breed_and_come_back_by_their_link(made, context, browser):
    p = Page(context, f'{made.as_uri()}#seed=0')
    wild = p.pixels()
    p.tile(3).click()
    p.ready(2)
    children = p.pixels()
    assert differ(p.pixels('#large')[0], wild[3]) == 0
    assert len({c.numpy().tobytes() for c in children}) == 24
    near = (children.float() - wild[3].float()).abs().mean()
    assert 1 < near < (children.float() - wild[5].float()).abs().mean() # like the parent, not like others
    p.page.locator('#breed').click()
    p.ready(3)
    p.tile(5).click()
    p.ready(4)
    p.tile(1).click()
    p.ready(5)
    assert p.page.locator('#family a').count() == 3
    link, bred = p.page.url, p.pixels('#large')
    assert link.endswith('#family=s3_s5_b0x1n1d30')
    with_slider = p.pixels()
    p.page.locator('#difference').fill('80')
    p.ready(6)
    wilder = p.pixels()
    def spread(x): return (x.float() - bred.float()).abs().mean()
    assert spread(wilder) > spread(with_slider)
    assert p.faults == []
    p.page.close()
    with browser(offline=True) as other: # another profile
        q = Page(other, link)
        assert differ(q.pixels('#large'), bred) == 0 and differ(q.pixels(), with_slider) == 0
        q.page.go_back()
        assert q.faults == []


def test_keys_and_back(made, context):
    p = Page(context, f'{made.as_uri()}#seed=0')
    wild = p.pixels()
    p.page.keyboard.press('Space')
    p.ready(2)
    assert differ(p.pixels(), wild) > 50
    p.tile(0).focus()
    p.page.keyboard.press('ArrowRight')
    p.page.keyboard.press('Enter')
    p.ready(3)
    assert p.page.locator('#stage').is_visible() and p.page.locator('#what').inner_text().startswith('seed ')
    p.page.keyboard.press('Escape')
    p.ready(4)
    assert p.page.locator('#stage').is_hidden()
    p.page.locator('#tab-creatures').focus()
    p.page.keyboard.press('ArrowRight')
    assert p.page.locator('#game canvas').first.is_visible() and p.page.locator('#creatures').is_hidden()
    p.page.keyboard.press('ArrowLeft')
    p.page.go_back()
    p.ready(5)
    assert p.page.locator('#stage').is_visible()
    assert p.faults == []


def test_png_and_gif_are_kept(made, context, tmp_path):
    p = Page(context, f'{made.as_uri()}#family=s3')
    with p.page.expect_download() as d: p.page.locator('#png').click()
    d.value.save_as(tmp_path/'one.png')
    im = Image.open(tmp_path/'one.png').convert('RGB')
    ours = to_image(load_run('creatures-projected').sample(1, seed=3)[0])
    off = np.asarray(im.resize(ours.size, Image.NEAREST)).astype(int) - np.asarray(ours)
    assert im.size == (256, 256) and np.abs(off).max() <= 2
    p.page.locator('#walk').click()
    p.page.locator('#gif').wait_for(timeout=120_000)
    with p.page.expect_download() as d: p.page.locator('#gif').click()
    d.value.save_as(tmp_path/'walk.gif')
    gif = Image.open(tmp_path/'walk.gif')
    assert gif.n_frames == 48 and gif.size == (256, 256) and gif.info['loop'] == 0
    first = np.asarray(gif.convert('RGB')).astype(int)
    assert np.abs(first - np.asarray(im)).mean() < 4 # 256 colours for 48 frames
    for i in range(48): gif.seek(i) and gif.load()
    assert p.faults == []


def test_everybody_can_play(made, context):
    "Contrast, names, roles and keyboard, by axe-core: the grid, a creature with its family, the game."
    from axe_playwright_python.sync_playwright import Axe
    p = Page(context, f'{made.as_uri()}#family=s3_s5_b0x1n1d30')
    def wrong(): return [(v['id'], n['html'][:80]) for v in Axe().run(p.page).response['violations']
                         for n in v['nodes']]
    assert wrong() == []
    p.page.locator('#tab-game').click()
    assert wrong() == []


def test_a_walk_that_is_stopped_leaves_the_creature_that_was_chosen(made, context):
    p = Page(context, f'{made.as_uri()}#family=s3')
    chosen = p.pixels('#large')
    p.page.locator('#walk').click()
    p.page.wait_for_function('walk && drawing && document.getElementById("walk").textContent === "Stop"')
    p.page.wait_for_timeout(200)
    p.page.locator('#walk').click()
    p.page.wait_for_timeout(500) # in which it would go on
    assert differ(p.pixels('#large'), chosen) == 0 and p.page.locator('#walk').inner_text() == 'Walk'
    assert p.page.locator('#gif').is_hidden() and p.faults == []


def test_a_picture_finds_its_likeness(made, context, tmp_path):
    run = load_run('creatures-projected')
    x = load_images('creatures:40', 64, progress=False).x[33:34]
    to_image(x[0]).save(tmp_path/'mine.png')
    p = Page(context, f'{made.as_uri()}#seed=0')
    p.page.locator('#own').set_input_files(tmp_path/'mine.png')
    p.ready(2)
    code = p.latent('chosen.z')[128:]
    theirs = run.encode(x.float()/127.5 - 1)[0, 128:]
    assert (code - theirs).abs().max() < .1 # codes are whitened: 0.1 of a standard deviation, from float16
    assert p.page.url.count('#family=p') == 1
    (tmp_path/'no.png').write_text('no picture', encoding='utf-8')
    p.page.locator('#own').set_input_files(tmp_path/'no.png')
    p.page.wait_for_selector('#say.wrong')
    assert 'cannot be used' in p.page.locator('#say').inner_text()
    assert [f for f in p.faults if 'blob:' not in f] == []


@pytest.mark.parametrize('link', [
    'family=s1_c5n0d30', 'family=%3Cscript%3E', 'seed=-1', 'seed=1e400', 'family=s99999999999',
    'family=pAAAA', 'family=s1k9', 'family=b0x0n1d30', 'family=' + '_'.join(['s1']*300),
    'family=s1&with=zz', 't=NaN&seed=x'])
def test_a_damaged_link_opens_with_others(made, context, link):
    p = Page(context, f'{made.as_uri()}#{link}')
    assert differ(p.pixels(), torch.full((24, 3, 64, 64), 255, dtype=torch.uint8)) > 100
    assert p.faults == []
    p.page.close()


def test_kinds_are_asked_for(trained, tmp_path, context):
    run = trained('projected-instance')
    p = Page(context, f'{play(run, tmp_path/"page.html", likeness=False).as_uri()}#seed=0&kind=1')
    ours = to_uint8(torch.cat([run.sample(1, seed=i, kind='cat') for i in range(24)]))
    assert differ(p.pixels(), ours) <= 2
    assert p.page.locator('#kind option').all_inner_texts() == ['any', 'bird', 'cat', 'dog']
    p.tile(0).click()
    p.ready(2)
    kinds = {tuple(p.latent(f'shown[{i}].z')[-3:].tolist()) for i in range(24)}
    assert len(kinds) == 1 # that of the parent
    assert p.faults == []


@pytest.mark.parametrize('latent', ['normal', 'uniform', 'uniform01', 'mixture', 'full mixture'])
def test_every_prior_is_the_same_in_both_languages(open_page, latent):
    p, nz = open_page, 20
    if 'mixture' in latent:
        own = Mixture(3, nz, 'full' if 'full' in latent else 'diag')
        own.weights[:] = torch.tensor([.2, .5, .3])
        own.means[:] = torch.randn(own.means.shape, generator=generator(1))
        if 'full' in latent: own.factors[:] = own.factors.normal_(generator=generator(2)).tril()
    else: own = recipe('dcgan-quick', nz=nz, latent=latent).prior({})
    buffers = dict(own.named_buffers()) if 'mixture' in latent else {}
    plain = {k: dict(shape=list(v.shape), data=v.flatten().tolist()) for k, v in buffers.items()}
    name = getattr(own, 'latent', 'normal')
    script = f'''(() => {{
        const buffers = {json.dumps(plain)};
        for (const b of Object.values(buffers)) b.data = Float32Array.from(b.data);
        const prior = new Latents.Prior({{nz: {nz}, latent: '{name}', told: 0, classes: 0}}, buffers);
        return [0, 7, 2**32-1].flatMap(s => [null, .7, 2.5].flatMap(t => [...prior.wild(s, t)]));
    }})()'''
    ours = [prior(own, nz, t)(1, generator(s)) for s in (0, 7, 2**32-1) for t in (None, .7, 2.5)]
    torch.testing.assert_close(p.latent(script), torch.cat(ours).flatten(), atol=1e-5, rtol=0)


TRICKS = ['</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><b>bold</b>',
          '${alert(1)}', '\u202e\u2028<!--', '[DATA]']


@pytest.fixture(scope='module')
def asked(trained): # a run that can be asked for a kind, and what its page is made of
    run = trained('dcgan-types')
    return run, page_parts(run)


@pytest.mark.parametrize('trick', TRICKS)
def test_what_others_wrote_is_text(asked, tmp_path, context, trick):
    run, parts = asked
    facts = page_facts(run, parts) | dict(name=trick, about=trick, label=trick, kinds=[trick, 'b', 'c'])
    (tmp_path/'page.html').write_text(page_text(facts, parts), encoding='utf-8')
    p = Page(context, (tmp_path/'page.html').as_uri())
    assert p.page.locator('#name').text_content() == trick == p.page.locator('#about').text_content()
    assert p.page.locator('#kind option').all_text_contents()[1] == trick
    assert p.page.locator('b, img').count() == 0
    assert p.faults == []
    p.page.close()


def test_a_folder_is_served(trained, browser, tmp_path):
    run = trained('aegan-quick')
    page = play(run, tmp_path/'site', folder=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(page.parent))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser() as c:
            own = f'http://127.0.0.1:{server.server_port}/'
            p = Page(c, own)
            ours = to_uint8(torch.cat([run.sample(1, seed=i) for i in range(24)]))
            assert differ(p.pixels(), ours) <= 2
            assert [f for f in p.faults if not f.startswith(own)] == []
        server.shutdown()
    with browser() as c: # and opened by a double-click it says what to do
        p = c.new_page()
        p.goto(page.as_uri())
        p.wait_for_selector('#say.wrong', timeout=120_000)
        assert p.text_content('#say').endswith('run in their folder: python -m http.server')
    assert (page.parent/'LICENSE-onnxruntime.txt').exists()
    play(run, tmp_path/'site', folder=True) # again: its own folder is replaced
    (tmp_path/'other').mkdir()
    (tmp_path/'other/mine.txt').write_text('mine', encoding='utf-8')
    with pytest.raises(ValueError, match='holds something else'): play(run, tmp_path/'other', folder=True)


# ---- the game in two dimensions ----

SLOPES = '''name => { // of both losses by hand and by finite differences -> largest relative errors
    const p = new Game.Play({loss: name, seed: 1});
    const L = Game.LOSSES[name], B = 32, H = 1e-6, off = {D: [], G: []};
    for (let i = 0; i < 40; i++) p.step();
    const z = Float64Array.from({length: 4*B}, p.rng.normal), batch = new Float64Array(4*B);
    batch.set(p.reals(B, p.rng));
    batch.set(p.G.forward(z, B).subarray(0, 2*B), 2*B);
    const loss = {
        D: s => p.price(p.D.forward(batch, 2*B), s, (l, k) => L.d(l, k < B ? 1 : 0)),
        G: s => p.price(p.D.forward(p.G.forward(z, B), B), s, L.g)};
    const slopes = {D: new Float64Array(2*B), G: new Float64Array(B)};
    for (const who of ['D', 'G']) {
        loss[who](slopes[who]);
        if (who === 'D') p.D.backward(slopes.D, 2*B);
        else p.G.backward(p.D.backward(slopes.G, B, false).subarray(0, 2*B), B);
        p[who].layers.forEach(layer => {
            for (let k = 0; k < layer.w.length; k += 1 + layer.w.length >> 5) {
                const w = layer.w[k], at = v => { layer.w[k] = v; return loss[who](new Float64Array(2*B)); };
                const found = (at(w+H) - at(w-H))/2/H;
                layer.w[k] = w;
                off[who].push(Math.abs(found - layer.g[k])/(1e-3 + Math.abs(found)));
            }
        });
    }
    return [off.D, off.G].map(e => e.sort((a, b) => a - b)).map(e => [e[e.length >> 1], e.at(-2)]);
}'''


@pytest.mark.parametrize('name', ['bce', 'minimax', 'hinge', 'squares'])
def test_the_games_gradients_are_right(open_page, name):
    for middle, high in open_page.page.evaluate(SLOPES, name):
        assert middle < 1e-6 and high < 1e-3 # the highest but one: a kink may lie within the difference


def test_the_game_repeats_by_its_seed_and_finds_modes(open_page):
    p = open_page
    play = '''([seed, steps]) => {
        const p = new Game.Play({seed});
        for (let i = 0; i < steps; i++) p.step();
        return [...p.made()];
    }'''
    first, again, other = (p.page.evaluate(play, [seed, 200]) for seed in (7, 7, 8))
    assert first == again != other
    angles = torch.arange(8)*torch.pi/4
    centres = 2*torch.stack([angles.cos(), angles.sin()], 1)
    covered = []
    for seed in range(4):
        points = torch.tensor(p.page.evaluate(play, [seed, 1500])).view(-1, 2)
        near, which = torch.cdist(points, centres).min(1)
        covered.append(len(set(which[near < .4].tolist())))
    assert sum(c >= 5 for c in covered) >= 3, covered


# ---- the rest ----

def test_the_runtime_is_what_its_makers_published():
    sums = {'ort.mjs': '11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90',
            'ort.wasm': '3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2'}
    for name, right in sums.items():
        assert hashlib.sha256(gzip.decompress((WEB/f'{name}.gz').read_bytes())).hexdigest() == right
    assert 'MIT License' in (WEB/'LICENSE-onnxruntime.txt').read_text(encoding='utf-8')


def test_nothing_of_the_page_is_fetched_from_elsewhere():
    for f in WEB.glob('*.*s'): # .js and .css
        assert not re.findall(r'https?://(?!www\.w3\.org)', f.read_text(encoding='utf-8')), f.name
        assert '</script' not in f.read_text(encoding='utf-8')


def test_a_run_without_a_generator_and_places_that_cannot_be(trained, tmp_path, monkeypatch):
    run = trained('dcgan-quick')
    with pytest.raises(ValueError, match='is a folder; name a file'): play(run, tmp_path)
    with pytest.raises(ValueError, match='no folder; make it first'): play(run, tmp_path/'no/page.html')
    with pytest.raises(ValueError, match='is not a run folder'): play(tmp_path/'no', tmp_path/'page.html')
    run.nets.pop('G')
    with pytest.raises(ValueError, match='holds no generator'): play(run, tmp_path/'page.html')
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match=r'needs onnx: pip install "pokegan\[play\]"'):
        play('creatures-aegan', tmp_path/'page.html')
    assert [*tmp_path.iterdir()] == []


def test_a_prior_of_ones_own_is_refused_in_a_line(trained, monkeypatch):
    run = trained('dcgan-quick')
    def mine(n, generator, noise=None): return torch.zeros(n, 8)
    monkeypatch.setattr(type(run.recipe), 'prior', lambda self, nets: mine)
    with pytest.raises(ValueError, match='in a way that a page does not know'): prior_parts(run)


def test_command(tmp_path):
    words = 'play', 'creatures-dcgan', '--out'
    p = fresh.run([*words, 'a.html'], tmp_path, os.environ)
    assert p.returncode == 0 and re.search(r'a\.html: \d+\.\d MB; open it', p.stdout), p.stderr
    assert 5e6 < (tmp_path/'a.html').stat().st_size < 8e6
    p = fresh.run([*words, '.'], tmp_path, os.environ)
    assert p.returncode == 2 and len(p.stderr.strip().split('\n')) == 1
