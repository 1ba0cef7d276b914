"""Awkward files made on the spot, what each must become, and the report."""
import io, os, struct, zipfile, zlib
from csv import DictReader
from pathlib import Path

import numpy as np
import pytest
from PIL import __version__, features, Image

from pokegan.data.cleaning import (
    clean, colour, compose, decode, fit_square, name_reason, open_header, Report, sheet_cells, Skip)

REAL = Path(__file__).parent.parent/os.environ.get('POKEGAN_REAL_DATA', '../shared/data')
RED, GREEN, HALF = (200, 40, 40), (0, 255, 0), (200, 40, 40, 128)


def disc(mode='RGBA', size=48, inside=RED, outside=GREEN):
    "A red disc on nothing; the hidden colour outside is green."
    yy, xx = np.mgrid[:size, :size] - (size-1)/2
    a = np.zeros((size, size, 4), np.uint8)
    a[...] = (*outside, 0)
    a[yy**2 + xx**2 < (size/3)**2] = (*inside, 255)
    im = Image.fromarray(a)
    return im if mode == 'RGBA' else compose(im).convert(mode)


def save(im, fmt, **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e


def palette(per_entry=False):
    "The disc with a palette; entry 0 is magenta and transparent, and entry 2 half so if asked."
    im = Image.new('P', (48, 48), 0)
    im.putpalette([255, 0, 255, *RED, *RED])
    im.paste(1, (8, 8, 40, 40))
    if per_entry: im.paste(2, (8, 8, 24, 40))
    return save(im, 'PNG', transparency=bytes([0, 255, 128]) if per_entry else 0)


def png_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb(side):
    "A PNG whose header promises side x side pixels."
    head = png_chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + png_chunk(b'IDAT', zlib.compress(b'')) + png_chunk(b'IEND', b'')


def wide_grey():
    a = np.full((48, 48), 65535, np.uint16)
    a[8:40, 8:40] = 128*257
    return Image.fromarray(a)


def rgb_key():
    "RGB with one colour declared transparent."
    im = Image.new('RGB', (48, 48), GREEN)
    im.paste(RED, (8, 8, 40, 40))
    return save(im, 'PNG', transparency=GREEN)


def frames(fmt):
    more = [Image.new('RGBA', (48, 48), (0, 0, 255, 255))]
    own = dict(lossless=True) if fmt == 'WEBP' else {}
    return save(disc(), fmt, save_all=True, append_images=more, **own)


WHITE, FULL = (255, 255, 255), dict(corner=(255, 255, 255), centre=RED)
PIL_MAJOR = int(__version__.split('.')[0])
LOADS = {  # file -> (bytes, what must be seen at the corner and in the centre, tolerance)
    'rgba.png': (save(disc(), 'PNG'), FULL, 0),
    'rgb.png': (save(disc('RGB'), 'PNG'), FULL, 0),
    'rgb.jpg': (save(disc('RGB'), 'JPEG', quality=95), FULL, 4),
    'progressive.jpg': (save(disc('RGB'), 'JPEG', quality=95, progressive=True), FULL, 4),
    'cmyk.jpg': (save(disc('RGB').convert('CMYK'), 'JPEG', quality=95), FULL, 4),
    'grey.jpg': (save(disc('L'), 'JPEG', quality=95), dict(corner=WHITE, centre=(88,)*3), 3),
    'grey_alpha.png': (save(disc().convert('LA'), 'PNG'), dict(corner=WHITE, centre=(88,)*3), 1),
    'grey16.png': (save(wide_grey(), 'PNG'), dict(corner=WHITE, centre=(128,)*3), 0),
    'one_bit.png': (save(disc('1'), 'PNG'), dict(corner=WHITE), 0),
    'float.tif': (save(Image.fromarray(np.asarray(disc('L'), np.float32)/255), 'TIFF'),
                  dict(corner=WHITE, centre=(88,)*3), 1),
    'ycbcr.tif': (save(disc('YCbCr'), 'TIFF'), FULL, 3),
    'palette_key.png': (palette(), FULL, 0),
    'palette_table.png': (palette(True), dict(corner=WHITE, centre=RED), 0),
    'rgb_key.png': (rgb_key(), FULL, 0),
    'half.png': (save(Image.composite(Image.new('RGBA', (48, 48), HALF), disc(),
                                      disc().getchannel('A')), 'PNG'),
                 dict(corner=WHITE, centre=(227, 147, 147)), 1),
    'animated.gif': (frames('GIF'), FULL, 0),
    'animated.png': (frames('PNG'), FULL, 0),
    'pages.tif': (save(disc('RGB'), 'TIFF', save_all=True, append_images=[Image.new('RGB', (48, 48))]),
                  FULL, 0),
    'icon.ico': (save(disc(), 'ICO', sizes=[(16, 16), (48, 48)]), FULL, 0),
    'bitmap.bmp': (save(disc('RGB'), 'BMP'), FULL, 0),
    'gif_inside.png': (save(disc('RGB'), 'GIF'), FULL, 4),
    'jpeg_inside.png': (save(disc('RGB'), 'JPEG', quality=95), FULL, 4),
    'UPPER.PNG': (save(disc(), 'PNG'), FULL, 0),
    'trailing.jpg': (save(disc('RGB'), 'JPEG', quality=95) + b'\0garbage'*9, FULL, 4),
    **({'animated.webp': (frames('WEBP'), FULL, 0)} if features.check('webp') else {}),
}
if PIL_MAJOR < 12: del LOADS['ycbcr.tif']  # such a Pillow cannot read what it has written
noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8))
JPEG, PNG = save(noise, 'JPEG'), save(noise, 'PNG')
SKIPS = {  # file -> (bytes, the kind of reason)
    'empty.png': (b'', 'empty file'),
    'one_byte.jpg': (b'\xff', 'not an image'),
    'text.jpg': (b'no picture at all'*9, 'not an image'),
    'page.jpg': (b'<!DOCTYPE html><html>404</html>', 'not an image: a web page'),
    'lfs.png': (b'version https://git-lfs.github.com/spec/v1\noid sha256:00',
                'not an image: a Git LFS pointer'),
    'cut.jpg': (JPEG[:len(JPEG)//2], 'truncated or corrupt data'),
    'cut.png': (PNG[:len(PNG)//2], 'truncated or corrupt data'),
    'cut_header.png': (PNG[:20], 'corrupt: broken header'),
    'flipped.png': (PNG[:5000] + bytes([PNG[5000] ^ 255]) + PNG[5001:], 'truncated or corrupt data'),
    'bomb.png': (bomb(20000), 'too many pixels: a decompression bomb'),
    'big.png': (bomb(10000), 'too many pixels: 10000x10000'),
    'tiny.png': (save(noise.crop((0, 0, 8, 8)), 'PNG'), 'too small: 8x8'),
    'dot.png': (save(noise.crop((0, 0, 1, 1)), 'PNG'), 'too small: 1x1'),
    'strip.png': (save(Image.new('RGB', (900, 20)), 'PNG'), 'extreme aspect ratio: 900x20'),
    'white.png': (save(Image.new('RGB', (48, 48), WHITE), 'PNG'), 'blank: one colour'),
    'nothing.png': (save(Image.merge('RGBA', [*noise.resize((48, 48)).split(),
                                              Image.new('L', (48, 48))]), 'PNG'),
                    'blank: nothing but transparency'),
    'phone.png': (b'\0\0\0\x18ftypheic' + bytes(99), 'unsupported format: HEIC'),
    'drawing.png': (b'<?xml version="1.0"?><svg xmlns="x"></svg>', 'unsupported format: SVG'),
    'program.png': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n', 'not an image'),
}
NAMES = {
    '._a.png': 'macOS AppleDouble file', '__MACOSX/a.png': 'macOS AppleDouble file',
    '.DS_Store': 'hidden file', '.hidden.png': 'hidden file', 'a/.ipynb_checkpoints/b.png': 'hidden folder',
    'Thumbs.db': 'not an image extension', 'notes.txt': 'not an image extension',
    'README': 'no image extension', 'a.jpg.crdownload': 'partial download', 'a.png.part': 'partial download',
    'a.svg': 'unsupported format: SVG', 'a.HEIC': 'unsupported format: HEIC', 'a/b/c.JPEG': '',
    'double.png.jpg': '', 'ピカチュウ.png': '', '-dash.webp': '', '..png': 'hidden file'}


@pytest.mark.parametrize('name', LOADS)
def test_loads(name):
    data, want, tol = LOADS[name]
    c = clean(data, size=48)
    assert c.pixels.shape == (48, 48, 3) and c.pixels.dtype == np.uint8 and name_reason(name) == ''
    for place, at in dict(corner=(0, 0), centre=(24, 24)).items():
        if place not in want: continue
        assert np.abs(c.pixels[at].astype(int) - want[place]).max() <= tol, (place, c.pixels[at])


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('name', SKIPS)
def test_skips(name):
    with pytest.raises(Skip) as e: clean(SKIPS[name][0])
    assert str(e.value) == SKIPS[name][1]


@pytest.mark.parametrize('name', NAMES)
def test_names(name): assert name_reason(name) == NAMES[name]


@pytest.mark.parametrize('background', ['white', 'black', '#4080c0', (1, 2, 3)])
def test_background_shows_through_before_anything_else(background):
    c = clean(LOADS['rgba.png'][0], size=24, background=background, fit='pad')
    want = np.array(colour(background))
    assert (c.pixels[0, 0] == want).all() and c.paper == 'transparent'
    green = c.pixels[..., 1].astype(int) - np.maximum(c.pixels[..., 0], c.pixels[..., 2])
    assert green.max() <= max(0, want[1] - max(want[0], want[2])) + 1   # nothing of the hidden green
    assert (clean(LOADS['rgba.png'][0], size=24).thumb == c.thumb).all()   # thumbnails always on white


def test_composing_first_equals_premultiplying():
    im = disc(size=96)
    a = np.asarray(compose(im).resize((32, 32), Image.BOX)).astype(float)
    small = np.asarray(im.resize((32, 32), Image.BOX)).astype(float)   # Pillow premultiplies inside
    alpha = small[..., 3:]/255
    # rounding only (Lanczos adds the clipping of its overshoot)
    assert np.abs(a - small[..., :3]*alpha - 255*(1-alpha)).max() < 2


def test_exif_turns_the_picture():
    im = Image.new('RGB', (96, 48), RED)
    im.paste((0, 0, 255), (0, 0, 48, 48))   # blue on the left
    for orientation, shape, corner in ((6, (48, 96), 'top'), (8, (48, 96), 'bottom'),
                                       (3, (96, 48), 'right'), (1, (96, 48), 'left')):
        for fmt in ('JPEG', 'PNG'):
            got = decode(open_header(save(im, fmt, exif=exif(orientation))))
            assert got.size == shape
            at = dict(top=(.5, .1), bottom=(.5, .9), right=(.9, .5), left=(.1, .5))[corner]
            assert got.getpixel((int(at[0]*shape[0]), int(at[1]*shape[1])))[2] > 200
    assert 'turned upright' in clean(save(im, 'JPEG', exif=exif(6))).note


def test_fits():
    im = Image.new('RGB', (96, 48), RED)
    im.paste((0, 0, 255), (0, 0, 24, 48))
    pad, crop, stretch = (np.asarray(fit_square(im, 48, f, 'black')) for f in ('pad', 'crop', 'stretch'))
    assert (pad[0] == 0).all() and (pad[24, 40] == RED).all() and (pad[24, 2] == (0, 0, 255)).all()
    assert (crop == RED).all()
    assert (stretch[0, 40] == RED).all() and (stretch[47, 2] == (0, 0, 255)).all()
    with pytest.raises(ValueError, match='pad, crop, stretch'): fit_square(im, 48, 'squash')
    # five columns more than rows
    odd = Image.fromarray(np.arange(21*16*3).reshape(16, 21, 3).astype(np.uint8))
    assert (np.asarray(fit_square(odd, 16, 'crop')) == np.asarray(odd)[:, 2:18]).all()
    assert (np.asarray(fit_square(odd, 21, 'pad', 'black'))[2:18] == np.asarray(odd)).all()
    upright = np.asarray(fit_square(odd.transpose(Image.TRANSPOSE), 16, 'crop'))
    assert (upright.swapaxes(0, 1) == np.asarray(odd)[:, 2:18]).all()


def test_sprites_grow_without_new_colours_and_photographs_shrink_smoothly():
    small = disc('RGB', 24)
    assert {c for _, c in fit_square(small, 64).getcolors()} == {c for _, c in small.getcolors()}
    assert len(fit_square(disc('RGB', 200), 64).getcolors()) > 20
    checks = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)).convert('RGB')
    assert np.asarray(fit_square(checks, 64)).std() < 8   # a fine pattern becomes grey, not another pattern


def test_background_errors_say_what_would_be_right():
    for bad in ('whitish', (1, 2), (0, 0, 300), None, 'rgb(,)'):
        with pytest.raises(ValueError, match='write a name') as e: colour(bad)
        assert '\n' not in str(e.value)


def test_the_paper_is_that_of_the_original_not_of_the_padding():
    im = Image.new('RGB', (96, 48))
    im.paste(RED, (30, 10, 60, 40))
    assert clean(save(im, 'PNG')).paper == 'dark'
    assert clean(save(disc('RGB'), 'PNG')).paper == 'white'
    assert clean(save(disc(), 'PNG')).paper == 'transparent'
    assert clean(save(noise, 'PNG')).paper == 'other'


def sheet(rows, columns, side=32, gap=0, paper='white', blank=()):
    "A creature of its own in each cell."
    from pokegan.creatures import draw
    im = Image.new('RGBA', (columns*(side+gap), rows*(side+gap)), paper)
    for i, p in enumerate(draw(rows*columns, size=side, start=40).rgba):
        if i in blank: continue
        p, at = Image.fromarray(p), (i % columns*(side+gap) + gap//2, i//columns*(side+gap) + gap//2)
        im.paste(p, at, p)
    return im


@pytest.mark.parametrize('rows, columns, how', [
    (4, 4, {}), (2, 2, {}), (1, 4, {}), (6, 1, {}), (3, 5, dict(gap=4)), (16, 16, {}), (5, 3, dict(side=200)),
    (4, 4, dict(blank=(12, 13, 14))), (2, 3, dict(paper='#80a0c0')), (4, 4, dict(paper=(0, 0, 0, 0)))])
def test_a_sheet_is_told_by_its_cells(rows, columns, how):
    assert sheet_cells(compose(sheet(rows, columns, **how))) == (rows, columns)
    with pytest.raises(Skip, match=f'a sheet, to be cut into files first: {columns} x {rows}'):
        clean(save(sheet(rows, columns, **how), 'PNG'))


def test_what_is_no_sheet():
    from pokegan.creatures import draw
    for p in draw(200, size=64, start=0).rgba: assert sheet_cells(compose(Image.fromarray(p))) == (1, 1)
    assert sheet_cells(compose(sheet(1, 3))) == sheet_cells(compose(sheet(1, 2))) == (1, 1) # a family
    assert sheet_cells(compose(sheet(4, 4, blank=range(1, 14)))) == (1, 1)                  # nearly empty
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 4::8] = 255
    assert sheet_cells(Image.fromarray(stripes)) == (1, 1)


def test_report(tmp_path):
    r = Report()
    r.add('a.png', 'load', width=3, height=4, mode='P', paper='white')
    r.add('ü,"b\n.png', 'skip', 'too small: 3x4')
    r.add('c.png', 'skip', 'too small: 5x4')
    assert r.counts() == {('load', 'ok'): 1, ('skip', 'too small'): 2}
    assert str(r).splitlines()[0] == '1 of 3 files loaded, 2 skipped' and 'too small' in str(r)
    r.to_csv(tmp_path/'r.csv')
    assert Report.from_csv(tmp_path/'r.csv') == r


# ---- the same on a real collection of awkward files, where there is one

KINDS = {  # words of the specification -> how our reasons begin
    'unsupported': 'unsupported format', 'vector': 'unsupported format',
    'truncated header': 'corrupt', 'truncated': 'truncated', 'corrupt data': 'truncated or corrupt',
    'bad checksum': 'corrupt', 'empty': 'empty', 'not an image extension': 'not an image extension',
    'not an image': 'not an image', 'Git LFS': 'not an image: a Git', 'partial': 'partial',
    'too small': 'too small', 'extreme': 'extreme', 'decompression': 'too many pixels',
    'too many': 'too many pixels', 'blank': 'blank', 'hidden folder': 'hidden folder',
    'hidden file': 'hidden file', 'macOS': 'macOS', 'no image ext': 'no image ext',
    'exact dup': 'exact duplicate'}


@pytest.mark.skipif(PIL_MAJOR < 12, reason='an older Pillow reads fewer of these')
@pytest.mark.skipif(not (REAL/'dirty.zip').exists(), reason='the real collection is not here')
@pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::PIL.Image.DecompressionBombWarning')
def test_every_row_of_the_specification():
    from pokegan.data import load_images
    spec = list(DictReader((REAL/'dirty_expected.csv').read_text(encoding='utf-8').splitlines()))
    report = {r.file: r for r in load_images(REAL/'dirty.zip').report.rows}
    near = [r.file + r.reason for r in report.values() if r.reason.startswith('near duplicate')]
    wrong = []
    with zipfile.ZipFile(REAL/'dirty.zip') as z:
        for s in spec:
            row = report[f'dirty/{s["file"]}']
            unseen = s['strict'] == '0' and row.reason.startswith('blank on this background')
            if unseen: continue  # a matter of policy: what cannot be seen is not learned from
            if row.action != s['expect']: wrong.append((s['file'], s['expect'], row))
            elif s['expect'] == 'load':
                im = compose(decode(open_header(z.read(row.file))))
                off = np.abs(np.asarray(im).mean((0, 1)) - [int(v) for v in s['right_mean'].split()]).max()
                if '{}x{}'.format(*im.size) != s['right_size'] or off > 1.01:
                    wrong.append((s['file'], im.size, off))
                if s['reason'].startswith('near') and not any('good_rgb' in n for n in near):
                    wrong.append((s['file'], 'near duplicate not reported'))
            else:
                begin = next(v for k, v in KINDS.items() if s['reason'].startswith(k))
                if not row.reason.startswith(begin): wrong.append((s['file'], s['reason'], row.reason))
    assert len(spec) == 80 and not wrong, wrong
