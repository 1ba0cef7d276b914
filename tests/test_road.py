"What an encoder sees, what comes back, and the way from one picture to another."
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pokegan.data import load_images, to_float
from pokegan.training.callbacks import stages
from pokegan.training.trainer import adam, Phase, Trainer
from pokegan.core import run_eval
from pokegan.latents.walks import path, slerp
from pokegan.models.autoencoder import (
    conv_encoder, interleaved, read_picture, reconstruction_error, reconstruction_figure,
    ReconstructionCB, there_and_back)
from pokegan.models.dcgan import conv_generator


@pytest.fixture(scope='module')
def nets():
    torch.manual_seed(0)
    return dict(G=conv_generator(16, 8, 8), E=conv_encoder(16, 8, 8, whole=True))


@pytest.fixture(scope='module')
def x(): return to_float(load_images('creatures:20', 16, progress=False).x)


def test_published_encoder():
    for whole in (False, True):
        assert sum(p.numel() for p in conv_encoder(whole=whole).parameters()) == 2_924_560
    convs = [m for m in conv_encoder().modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0]) for c in convs] == \
        [(3, 64, 4, 2, 1), (64, 128, 4, 2, 1), (128, 256, 4, 2, 1), (256, 512, 4, 5, 0)]


@pytest.mark.parametrize('size', [16, 32, 64, 128])
@pytest.mark.parametrize('whole', [False, True])
def test_shapes_and_what_is_seen(size, whole):
    E = conv_encoder(size, 4, 4, whole).eval()
    v = torch.randn(2, 3, size, size, requires_grad=True)
    E(v).square().sum().backward()
    side = int((v.grad.abs().sum((0, 1, 2)) > 0).sum())
    assert side == size-1 if whole else side <= .65*size
    with pytest.raises(ValueError, match='this encoder takes'): E(v[..., 1:])


def test_there_and_back_leaves_modes(nets, x):
    G, E = nets['G'].train(), nets['E'].train()
    before = [v.clone() for m in (G, E) for v in m.state_dict().values()]
    z, x_tilde = there_and_back(G, E, x, batch=7)
    assert z.shape == (20, 8) and x_tilde.shape == x.shape and G.training and E.training
    alone = there_and_back(G, E, x[3:4])[1]
    torch.testing.assert_close(alone, x_tilde[3:4], rtol=1e-4, atol=1e-5)  # alone or in a batch
    after = [v for m in (G, E) for v in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert reconstruction_error(G, E, x) == pytest.approx((x_tilde - x).abs().mean().item())


def test_rows_stand_in_pairs():
    a, b = torch.zeros(6, 3, 4, 4), torch.ones(6, 3, 4, 4)
    assert interleaved(a, b, 4)[:, 0, 0, 0].tolist() == [0]*4 + [1]*4 + [0]*2 + [1]*2


@pytest.mark.parametrize('b', [(0., 3., 4.), (2., 0., 0.), (-1., 0., 0.)])
def test_slerp(b):  # at a right angle, in the same direction, in the opposite one
    a, b = torch.tensor([1., 0., 0.]), torch.tensor(b)
    path = slerp(a, b, torch.linspace(0, 1, 9))
    torch.testing.assert_close(path[0], a, atol=5e-3, rtol=0)
    torch.testing.assert_close(path[-1], b, atol=5e-3, rtol=0)
    assert torch.isfinite(path).all()
    if b[0] < 0: return
    torch.testing.assert_close(path.norm(dim=1), torch.linspace(1, b.norm(), 9), rtol=1e-3, atol=1e-3)


def test_walk(nets, x):
    z = there_and_back(nets['G'], nets['E'], x[:2])[0]
    walk = run_eval(nets['G'], path(z, 5))
    ends = there_and_back(nets['G'], nets['E'], x[:2])[1]
    assert walk.shape == (5, 3, 16, 16)
    torch.testing.assert_close(walk[[0, -1]], ends, rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match='this encoder takes'):
        there_and_back(nets['G'], nets['E'], x[:2, :, 1:])


def test_pictures_from_files(tmp_path):
    rgba = np.zeros((30, 50, 4), np.uint8)
    rgba[10:20, 20:30] = 200, 100, 0, 255
    Image.fromarray(rgba).save(tmp_path/'a.png')
    v = read_picture(tmp_path/'a.png', 16)
    assert v.shape == (1, 3, 16, 16) and v.dtype == torch.float32
    assert (v[0, :, 0, 0] == 1).all()  # white under transparency
    assert (read_picture(tmp_path/'a.png', 16, 'black')[0, :, 0, 0] == -1).all()
    (tmp_path/'b.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='b.png cannot be used') as e: read_picture(tmp_path/'b.png', 16)
    assert '\n' not in str(e.value)
    with pytest.raises(OSError): read_picture(tmp_path/'c.png', 16)
    for endless in ('pipe.png', '/dev/zero') if hasattr(os, 'mkfifo') else (): # not waited for
        if not endless.startswith('/'): os.mkfifo(tmp_path/endless)
        with pytest.raises(ValueError, match='is no file'): read_picture(tmp_path/endless, 16)
    with pytest.raises(ValueError, match='is no file'): read_picture(tmp_path, 16)


def test_pictures_on_the_way(nets, tmp_path):
    images = load_images('creatures:40', 16, progress=False)
    def prior(n, generator): return torch.randn(n, 8, generator=generator)
    G, E = nets['G'], nets['E']
    def trainer(callbacks):
        def loss(b): return (G(E(b.x)).float() - b.x).abs().mean(), {}
        phase = Phase('AE', (G, E), adam(G, E), loss)
        return Trainer(nets, [phase], images, prior, batch_size=8, callbacks=callbacks, device='cpu')
    cb = ReconstructionCB(tmp_path, G, E, images, prior, frames=2)
    trainer([cb]).fit(steps=4)
    folder = tmp_path/'reconstructions'
    assert sorted(p.name for p in folder.iterdir())[-1] == '0000004.png' and len(cb.x) == 24
    (folder/'0000099.png').write_bytes(b'')  # of a run that was killed later and is started again
    cb.before_fit(trainer([]))
    assert not (folder/'0000099.png').exists()
    assert len(reconstruction_figure(G, E, cb.x, cb.z).axes) == 2


def test_stages(tmp_path):
    with pytest.raises(ValueError, match='four stages need'): stages(tmp_path)
    (tmp_path/'samples').mkdir()
    for step in (10, 20, 30, 40, 50): Image.new('RGB', (20, 20)).save(tmp_path/'samples'/f'{step:07d}.png')
    assert stages(tmp_path) == tmp_path/'stages.png'
    with Image.open(tmp_path/'stages.png') as im: assert im.width > 500


def test_stages_of_chosen_epochs(tmp_path):
    names = '0000001', '0000010-epoch0050', '0000020-epoch0100', '0000030-epoch0150', '0000040-epoch0200'
    (tmp_path/'samples').mkdir()
    for i, name in enumerate(names): Image.new('L', (20, 20), 40*i).save(tmp_path/'samples'/f'{name}.png')
    four = stages(tmp_path, epochs=(50, 100, 150, 200), out=tmp_path/'four.png')
    by_steps = stages(tmp_path, steps=(10, 20, 30, 40), out=tmp_path/'steps.png')
    assert four == tmp_path/'four.png' and not (tmp_path/'stages.png').exists()
    assert four.read_bytes() == by_steps.read_bytes()
    assert stages(tmp_path, steps=(1, 20, 30, 40)).read_bytes() != four.read_bytes()
    wrong = {'epoch 105; it has 50, 100, 150, 200$': dict(epochs=(50, 100, 105, 200)),
             'step 2; it has 1, 10, 20, 30, 40$': dict(steps=(1, 10, 2, 40)),
             'here are 2 epochs': dict(epochs=(50, 100))}
    for words, kw in wrong.items():
        with pytest.raises(ValueError, match=words): stages(tmp_path, **kw)
    for p in (tmp_path/'samples').glob('*-epoch*'): p.unlink()
    with pytest.raises(ValueError, match='it has none; --grid-epochs'): stages(tmp_path, epochs=(1, 2, 3, 4))
