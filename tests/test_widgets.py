"""The panel without a browser: state -> latent -> picture, files of all sorts,
both generations of ipywidgets, and no widgets at all."""
import ast, io, sys, time
from dataclasses import replace
from pathlib import Path

import pytest, torch
from PIL import Image

from pokegan.data import to_float, to_image
from pokegan.metrics.coverage import labelled_creatures
from pokegan.latents.priors import sample
from pokegan.latents.walks import slerp
from pokegan.models.aegan import AEGANRecipe
from pokegan.models.dcgan import GANRecipe
from pokegan.runs import load_run, Run
from pokegan.widgets import (
    explore, Explorer, no_widgets, overview, Panel, png, save_liked, State, static_figure,
    uploaded)


def a_run(recipe):
    nets = {k: m.eval() for k, m in recipe.networks(0).items()}
    return Run(Path(recipe.name), dict(step=0), recipe, nets)


@pytest.fixture(scope='module')
def plain():
    run = a_run(GANRecipe('plain', '', size=32, nz=12, ngf=8, ndf=8))
    return Explorer(run, k=3, images=labelled_creatures(80, size=32, seed=1), n=512)


@pytest.fixture(scope='module')
def two_way(): return Explorer(a_run(AEGANRecipe('two-way', '', size=32, nz=8, ngf=4, ndf=4)), k=2, n=256)


def picture_bytes(size=32, kind='PNG', seed=0):
    to_image(labelled_creatures(1, size=size, seed=seed).x[0]).save(f := io.BytesIO(), kind)
    return f.getvalue()


def test_a_state_can_be_read_again():
    states = [State(), State(seed=4, truncation=.5), State(kind='ember', mix=.25, other=9, steps=(0., -1.5)),
              State(code=(.5, -.25))]
    for s in states:
        assert eval(repr(s), dict(State=State)) == s
        ast.parse(repr(s), mode='eval')
    assert repr(State()) == 'State()' and repr(State(mix=.5)) == 'State(mix=0.5)'


def test_seed_and_truncation_are_those_of_sample(plain):
    for seed, t in ((0, 4.), (7, 1.5), (7, .3)):
        s = State(seed=seed, truncation=t)
        torch.testing.assert_close(plain.picture(s), plain.run.sample(1, seed, t)[0])
        assert plain.latent(s).abs().max() <= t


def test_breeding_begins_and_ends_with_the_parents(plain):
    a, b = plain.latent(State(seed=1)), plain.latent(State(seed=2))
    s = State(seed=1, other=2)
    torch.testing.assert_close(plain.latent(replace(s, mix=1.)), b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.latent(replace(s, mix=.37)), slerp(a, b, torch.tensor([.37]))[0])
    assert torch.equal(plain.latent(s), a)


def test_steps_go_along_the_directions(plain):
    z, d = plain.latent(State(seed=1)), plain.directions
    torch.testing.assert_close(plain.latent(State(seed=1, steps=(2., 0., -1.))), z + 2*d[0] - d[2])
    fewer = State(seed=1, steps=(0., 1.))  # than directions
    torch.testing.assert_close(plain.latent(fewer), z + d[1])


def test_kinds_are_places_in_the_pool(plain):
    kind = next(iter(plain.kinds))
    z = plain.latent(State(kind=kind, seed=1))
    assert torch.equal(z, plain.draw(1024)[plain.kinds[kind][1]])
    assert torch.equal(z, plain.latent(State(kind=kind, seed=1 + len(plain.kinds[kind]))))
    assert plain.latent(State(kind=kind, truncation=.5)).abs().max() <= .5
    with pytest.raises(ValueError, match="kind is 'dragon'; it must be one of"):
        plain.picture(State(kind='dragon'))


def test_a_code_is_where_to_start(two_way):
    code = two_way.encode('a.png', picture_bytes())
    assert len(code) == 8 and torch.equal(two_way.latent(State(code=code, seed=5)), torch.tensor(code))
    drawn = sample(two_way.run.G, torch.tensor([code]))[0]
    torch.testing.assert_close(two_way.picture(State(code=code)), drawn)
    assert eval(repr(State(code=code))) == State(code=code)
    with pytest.raises(ValueError, match='latents have shape'): two_way.picture(State(code=(1., 2.)))


@pytest.mark.parametrize('size,kind', [(32, 'PNG'), (100, 'JPEG'), (64, 'GIF'), (48, 'BMP')])
def test_any_picture_can_be_encoded(two_way, size, kind):
    assert len(two_way.encode(f'x.{kind.lower()}', picture_bytes(size, kind))) == 8


BAD = b'', b'dear diary', picture_bytes()[:300], b'<svg></svg>', picture_bytes()[:8]


@pytest.mark.parametrize('data', BAD)
def test_a_bad_file_gives_one_line(two_way, data):
    with pytest.raises(ValueError, match='mine.png cannot be used: .*; give a picture') as e:
        two_way.encode('mine.png', data)
    assert '\n' not in str(e.value) and len(str(e.value)) < 160


def test_no_way_back_without_an_encoder(plain):
    with pytest.raises(ValueError, match='plain cannot read pictures.*creatures-projected can'):
        plain.encode('a.png', picture_bytes())


def test_a_picture_is_uploaded_where_pictures_have_codes():
    "Its code, and random numbers before it, are the start of the panel's next picture."
    pytest.importorskip('efficientnet_lite_pytorch')
    run = load_run('creatures-projected')
    e = Explorer(run, k=2, n=256)
    data = picture_bytes(64, seed=3)
    code = e.encode('mine.png', data)
    assert len(code) == run.recipe.nz + run.recipe.nc and code == e.encode('mine.png', data)
    own = run.encode(to_float(labelled_creatures(1, size=64, seed=3).x))[0]
    torch.testing.assert_close(torch.tensor(code), own, atol=2e-3, rtol=0)
    pytest.importorskip('ipywidgets')
    panel = Panel(e)
    assert panel.upload in panel.box.children[0].children[1].children
    panel.take(dict(new=({'name': 'mine.png', 'content': memoryview(data)},)))
    assert panel.state.code == code


def test_a_run_without_generator():
    from pokegan.models.encoder import ENCODER_RECIPES
    run = Run(Path('e'), {}, ENCODER_RECIPES[0], dict(E=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match='holds no generator'): explore(run)
    with pytest.raises(ValueError, match='not a run folder'): explore('nowhere')


def test_uniform_latents():
    e = Explorer(a_run(GANRecipe('u', '', size=16, nz=6, ngf=4, ndf=4, latent='uniform')), k=2, n=128)
    assert e.latent(State(truncation=.5)).abs().max() <= .5 and e.picture(State()).shape == (3, 16, 16)


@pytest.mark.parametrize('name', ['dcgan-quick', 'dcgan-819', 'aegan'])
def test_an_answer_takes_less_than_a_tenth_of_a_second_at_64_px(name):
    from pokegan.recipes import recipe
    r = recipe(name)
    e = Explorer(a_run(r), k=6, n=256)
    e.kinds = {'any': list(range(8))}   # the longest way: a kind is looked up, then bred, then moved
    took = []
    for i in range(11):
        began = time.process_time()
        png(e.picture(State(seed=i, kind='any', truncation=2., mix=i/10, steps=(1.,)*6)))
        took.append(time.process_time() - began)
    assert r.size == 64 and sorted(took)[5] < .1, f'median {1000*sorted(took)[5]:.0f} ms'


def test_png(plain):
    x = plain.picture(State())
    im = Image.open(io.BytesIO(png(x, 256, note='hello')))
    assert im.size == (256, 256) and im.text == dict(note='hello')
    assert im.resize((32, 32), 0).tobytes() == to_image(x).tobytes()
    for side, size in ((0, 32), (100, 96)): assert Image.open(io.BytesIO(png(x, side))).size == (size, size)


def test_what_is_liked_can_be_drawn_again(plain, tmp_path):
    s = State(seed=3, mix=.5, steps=(1., -2.))
    first, second = (save_liked(plain, s, tmp_path/'liked') for _ in range(2))
    assert [p.name for p in (first, second)] == ['0001.png', '0002.png']
    im = Image.open(first)
    name, said = im.text['pokegan'].split(' ', 1)
    assert name == 'plain' and im.tobytes() == to_image(plain.picture(eval(said))).tobytes()


def test_uploads_of_both_generations():
    files = {'a.png': b'1', 'b.png': b'2'}
    seven = {k: dict(metadata=dict(name=k), content=v) for k, v in files.items()}
    eight = tuple(dict(name=k, type='image/png', content=memoryview(v)) for k, v in files.items())
    assert uploaded(seven) == uploaded(eight) == ('b.png', b'2')
    assert uploaded({}) is uploaded(()) is None


def test_the_panel_on_paper(plain, two_way):
    rows = overview(plain)
    assert len(rows) == 1 + 3 + 1 + 2 and all(1 <= len(v) <= 7 for v in rows.values())
    assert [s.steps for s in rows['direction 2, -3 to 3']][0] == (0., -3., 0.)
    assert [s.steps for s in overview(plain, State(steps=(1.,)))['direction 2, -3 to 3']][0] == (1., -3., 0.)
    static_figure(two_way, State(code=(0.1,)*8)).savefig(f := io.BytesIO(), format='png')
    assert Image.open(f).width > 300


def test_without_widgets_there_is_a_line_and_a_figure(plain, monkeypatch, capsys):
    figure = explore(plain)      # pytest is no notebook
    assert 'this is no notebook' in capsys.readouterr().out and hasattr(figure, 'savefig')
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    figure = explore(plain)
    out = capsys.readouterr().out
    assert 'pip install "pokegan[explore]"' in out and out.count('\n') == 1 and hasattr(figure, 'savefig')


def test_the_module_needs_no_widgets():
    import subprocess
    code = 'import sys; sys.modules["ipywidgets"] = None; import pokegan.widgets; print("ok")'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'ok'


@pytest.fixture
def panel(plain, tmp_path):
    pytest.importorskip('ipywidgets')
    return Panel(plain, tmp_path/'liked')


def test_a_control_changes_state_and_picture(panel, plain):
    assert panel.state == State() and panel.said.value.count('State()') == 1
    for name, value in dict(seed=5, truncation=1., other=3, mix=.5, kind=next(iter(plain.kinds))).items():
        before = panel.image.value
        panel.controls[name].value = value
        assert getattr(panel.state, name) == value and (panel.image.value != before or name == 'other')
    panel.steps[1].value = -2.
    assert panel.state.steps == (0., -2.) and panel.image.value == png(plain.picture(panel.state))


def test_the_panel_saves(panel):
    panel.controls['seed'].value = 8
    panel.keep.click()
    assert '0001.png' in panel.said.value and (panel.folder/'0001.png').exists()


def test_an_upload_starts_there_until_another_start_is_chosen(two_way, tmp_path):
    w = pytest.importorskip('ipywidgets')
    panel = Panel(two_way, tmp_path)
    def give(name, data):
        eight = int(w.__version__.split('.')[0]) >= 8
        new = (dict(name=name, content=memoryview(data)),) if eight else {name: dict(content=data)}
        panel.take(dict(new=new))
    before = panel.image.value
    give('bad<b>.png', b'no picture')
    assert panel.image.value == before and panel.state == State()
    assert 'bad&lt;b&gt;.png cannot be used' in panel.said.value
    give('good.png', picture_bytes())
    assert panel.state.code == two_way.encode('good.png', picture_bytes()) and panel.image.value != before
    panel.steps[0].value = 1.
    assert panel.state.code
    panel.controls['seed'].value = 1
    assert not panel.state.code and panel.image.value == png(two_way.picture(State(seed=1, steps=(1.,))))


def test_a_notebook_gets_the_box(plain, monkeypatch):
    w = pytest.importorskip('ipywidgets')
    monkeypatch.setattr('pokegan.widgets.no_widgets', lambda: '')
    assert isinstance(explore(plain), w.HBox)
    assert no_widgets() == 'this is no notebook'
