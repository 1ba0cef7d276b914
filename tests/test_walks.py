"""Walks pass their stops, close without a repeat, and become films, as do trainings;
what cannot be written is said in one line."""
import math, os, stat, sys

import pytest
import torch
from PIL import Image

import pokegan.latents.walks as walks
from pokegan.latents.walks import film as training_film, lerp, path, slerp, write_film
from pokegan.training.callbacks import save_png

STOPS = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('how', [slerp, lerp])
def test_ends_and_rows(how):
    a, b = STOPS[:2], STOPS[2:]
    for t, end in ((0., a), (1., b)):
        torch.testing.assert_close(how(a, b, torch.full((2,), t)), end, rtol=1e-4, atol=1e-4)
    t = torch.tensor([.2, .7])
    rows = torch.stack([how(a[i], b[i], t[i:i+1])[0] for i in range(2)])
    torch.testing.assert_close(how(a, b, t), rows)


def test_slerp_agrees_with_its_formula():
    a, b = torch.tensor([2., 0.]), torch.tensor([0., 3.])
    t = torch.linspace(0, 1, 5)
    want = torch.stack([(2 + t)*(t*math.pi/2).cos(), (2 + t)*(t*math.pi/2).sin()], 1)
    torch.testing.assert_close(slerp(a, b, t), want)
    torch.testing.assert_close(lerp(a, b, t), torch.stack([2 - 2*t, 3*t], 1))


def test_open_walk():
    z = path(STOPS, 31)
    torch.testing.assert_close(z[[0, 10, 20, 30]], STOPS, rtol=1e-3, atol=1e-3)
    assert torch.equal(path(STOPS, 4, how=lerp), STOPS)


@pytest.mark.parametrize('frames', [4, 30, 61])
def test_closed_walk_has_no_repeat_and_no_gap(frames):
    z = path(STOPS/STOPS.norm(dim=1, keepdim=True), frames, loop=True)
    assert z.shape == (frames, 64) and torch.pdist(z).min() > 1e-3
    step = (z.roll(-1, 0) - z).norm(dim=1)
    assert step[-1] < 1.3*step[:-1].max(), 'the last frame leads to the first as others lead to their next'
    torch.testing.assert_close(path(STOPS, 40, loop=True)[::10], STOPS, rtol=1e-3, atol=1e-3)


def test_many_frame_counts_stay_in_range():
    for k in (2, 3, 7):
        s = torch.randn(k, 8, generator=torch.Generator().manual_seed(k))
        for n in range(k, 50):
            for loop in (False, True): assert torch.isfinite(path(s, n, loop)).all()
            torch.testing.assert_close(path(s, n)[-1], s[-1], rtol=1e-3, atol=1e-3)


def test_wrong_walks():
    calls = {
        'stops is 1': lambda: path(STOPS[:1]),
        '4 or more': lambda: path(STOPS, 3),
        'neither .gif nor .mp4': lambda: write_film(torch.zeros(2, 3, 8, 8), 'a.webm'),
        'fps is 0': lambda: write_film(torch.zeros(2, 3, 8, 8), 'a.gif', fps=0),
        'from 0.01 to 50': lambda: write_film(torch.zeros(2, 3, 8, 8), 'a.gif', fps=60),
        'fps is nan': lambda: write_film(torch.zeros(2, 3, 8, 8), 'a.gif', fps=math.nan)}
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words) as e: call()
        assert '\n' not in str(e.value)


@pytest.fixture
def film(): return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))*2 - 1


def test_gif_rests_on_its_last_frame_unless_it_loops(film, tmp_path):
    for loop, last in ((False, 1000), (True, 100)):
        write_film(film, tmp_path/'a.gif', fps=10, loop=loop)
        with Image.open(tmp_path/'a.gif') as gif:
            assert gif.n_frames == 6 and gif.info.get('loop') == 0
            ms = [gif.seek(i) or gif.info['duration'] for i in range(6)]
        assert ms == [100]*5 + [last]


def test_mp4_holds_every_frame(film, tmp_path):
    imageio_ffmpeg = pytest.importorskip('imageio_ffmpeg')
    smooth = torch.linspace(-.8, .8, 6)[:, None, None, None].expand(6, 3, 16, 16)
    write_film(smooth, tmp_path/'a.mp4', fps=5)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path/'a.mp4'))
    assert frames == 6 and abs(seconds - 1.2) < .05
    reader = imageio_ffmpeg.read_frames(str(tmp_path/'a.mp4'))
    assert next(reader)['size'] == (256, 256)
    seen = [torch.frombuffer(bytearray(f), dtype=torch.uint8).float().mean() for f in reader]
    assert all(abs(a - (b+1)*127.5) < 6 for a, b in zip(seen, smooth[:, 0, 0, 0]))
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']


@pytest.fixture
def run(tmp_path): # a folder with seven grids; their grey grows with the step
    (tmp_path/'run/samples').mkdir(parents=True)
    for i in range(7):
        x = torch.full((4, 3, 16, 16), 30*i, dtype=torch.uint8)
        save_png(x, tmp_path/'run/samples'/(f'{10*i:07d}' + (f'-epoch{i:04d}' if i % 2 else '') + '.png'))
    return tmp_path/'run'


def test_film_of_a_training_as_gif(run, tmp_path):
    assert training_film(run, tmp_path/'a.gif', fps=4) == 7
    with Image.open(tmp_path/'a.gif') as gif:
        assert gif.n_frames == 7
        ms = [gif.seek(i) or gif.info['duration'] for i in range(7)]
    assert ms == [250]*6 + [1000], 'four a second, and it rests on the last one'


@pytest.mark.parametrize('ending, codec', [('mp4', 'h264'), ('avi', 'mpeg4')])
def test_film_of_a_training_by_ffmpeg(run, tmp_path, ending, codec):
    imageio_ffmpeg = pytest.importorskip('imageio_ffmpeg')
    film = tmp_path/f'a.{ending}'
    assert training_film(run, film, fps=2.5) == 7
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(film))
    assert frames == 7 and abs(seconds - 7/2.5) < .05
    reader = imageio_ffmpeg.read_frames(str(film))
    meta = next(reader)
    assert meta['fps'] == 2.5 and meta['codec'].startswith(codec)
    w, h = meta['size']
    seen = [f[3*(w*(h//2) + w//8)] for f in reader] # inside the first tile
    assert all(abs(v - 30*i) < 8 for i, v in enumerate(seen)), seen


def test_wrong_films(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='no samples'): training_film(tmp_path, tmp_path/'a.gif')
    with pytest.raises(ValueError, match='neither'): training_film(run, tmp_path/'a.mov')
    with pytest.raises(ValueError, match='fps is -1'): training_film(run, tmp_path/'a.gif', fps=-1)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    with pytest.raises(ImportError, match='imageio-ffmpeg'): training_film(run, tmp_path/'a.avi')
    assert [p.name for p in tmp_path.iterdir()] == ['run']


def test_mp4_without_a_codec_or_with_one_that_fails(film, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    with pytest.raises(ImportError, match='pip install imageio-ffmpeg') as e:
        write_film(film, tmp_path/'a.mp4')
    assert '\n' not in str(e.value)
    broken = tmp_path/'ffmpeg'
    broken.write_text(f'#!{sys.executable}\nimport sys; sys.stdin.buffer.read(); '
                      'print("no such encoder", file=sys.stderr); sys.exit(1)\n', encoding='utf-8')
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    assert walks.ffmpeg('a.mp4') == str(broken) and walks.ffmpeg('a.GIF') is None
    with pytest.raises(OSError, match='a.mp4 was not written: no such encoder'):
        write_film(film, tmp_path/'a.mp4')
    assert os.listdir(tmp_path) == ['ffmpeg']
