"""One picture has one embedding; the body is torchvision's; a stopped run ends where one that was never stopped does."""
import json
from dataclasses import asdict, replace
from urllib.error import URLError

import pytest
import torch

from pokegan.callbacks import read_log
from pokegan.checkpoint import read_tensors
from pokegan.coverage import herd
from pokegan.data import Images, to_float
from pokegan.encoder import ENCODER_RECIPES, STEMS, Encoder, EncoderRecipe, embeddings, encoder_sets, load_encoder, resnet, train_encoder
from pokegan.train import Callback

TINY = dict(size=32, stem_kind='imagenet', batch=8)
RECIPES = {r.task: replace(r, **TINY) for r in ENCODER_RECIPES}


@pytest.fixture(scope='module')
def creatures(): return herd(50, [3, 8, 5], 32)


@pytest.fixture(scope='module')
def x(): return to_float(herd(6, 3, 32).x)


def test_one_image_has_one_embedding_alone_or_in_a_batch(x):
    E = Encoder(3, 'imagenet').eval()
    for i in range(3):
        assert torch.allclose(E.embed(x[i:i+1])[0], E.embed(x)[i], atol=1e-4)
        assert torch.allclose(E.embed(x[:3])[i], E.embed(x)[i], atol=1e-4)


def test_a_faithful_one_has_not(x):
    E = Encoder(3, 'imagenet', faithful=True).eval()
    assert E.norm.running_mean is None
    assert (E.embed(x[:3])[0] - E.embed(x)[0]).abs().mean() > .05
    with pytest.raises(ValueError): E.embed(x[:1])


@pytest.mark.parametrize('norm', ['batch', 'none'])
def test_body_is_torchvisions(x, norm):
    from torchvision.models import resnet34
    torch.manual_seed(0)
    E = Encoder(1000, 'imagenet', norm).eval()
    torch.manual_seed(0)
    m = resnet34().eval()
    m.fc.load_state_dict(E.head.state_dict())
    mean, std = torch.tensor([.485, .456, .406]).view(3, 1, 1), torch.tensor([.229, .224, .225]).view(3, 1, 1)
    want = m(((x + 1)/2 - mean)/std)
    if norm == 'none': assert torch.allclose(E(x), want, atol=1e-4)
    E.norm.running_mean, E.norm.running_var, E.norm.eps = torch.zeros(512), torch.ones(512), 0.
    assert torch.allclose(E(x), want, atol=1e-4)
    assert sum(p.numel() for p in E.parameters()) == sum(p.numel() for p in m.parameters()) == 21_797_672


def test_look_is_one_pass_with_five_maps(x):
    for stem, first in dict(sprite=16, imagenet=8).items():
        E, calls = Encoder(3, stem).eval(), []
        E.stem.register_forward_hook(lambda *a: calls.append(1))
        maps, e = E.look(x)
        assert [tuple(m.shape[1:]) for m in maps] == [(64, first, first), (64, first, first), (128, first//2, first//2), (256, first//4, first//4), (512, first//8, first//8)]
        assert len(calls) == 1 and e.shape == (6, 512) and torch.equal(E.embed(x), e) and torch.equal(E(x), E.head(e))


def test_embedding_is_centred_on_the_training_batches_and_has_no_gain(creatures):
    E = Encoder(3, 'imagenet').train()
    e = E.embed(to_float(creatures.x))
    assert e.mean(0).abs().max() < 1e-4 and (e.var(0, unbiased=False) - 1).abs().median() < .02
    assert not list(E.norm.parameters())


def test_gradients_reach_the_pixels_of_a_frozen_encoder(x):
    E = Encoder(3, 'imagenet').eval().requires_grad_(False)
    y = x.clone().requires_grad_(True)
    maps, e = E.look(y)
    (sum(m.square().mean() for m in maps) + e.square().mean()).backward()
    assert torch.isfinite(y.grad).all() and (y.grad.flatten(1).abs().sum(1) > 0).all()


def test_embeddings_of_a_set(creatures):
    E = Encoder(3, 'imagenet').train()
    e = embeddings(E, creatures, batch=7)
    assert E.training and e.shape == (50, 512) and not e.requires_grad
    assert torch.allclose(e, E.eval().embed(to_float(creatures.x)), atol=1e-4)


def test_pretrained_weights_are_used_or_one_line_says_what_to_do(monkeypatch):
    import torchvision.models as models
    real, asked = models.resnet34, []
    def offline(weights=None):
        asked.append(weights)
        raise URLError('no route to host')
    monkeypatch.setattr(models, 'resnet34', offline)
    with pytest.raises(OSError) as e: Encoder(3, pretrained=True)
    assert asked == [models.ResNet34_Weights.IMAGENET1K_V1] and '\n' not in str(e.value) and 'resnet34-b627a593.pth' in str(e.value) and 'pretrained=False' in str(e.value)
    fixed = real()
    monkeypatch.setattr(models, 'resnet34', lambda weights=None: fixed)
    E = Encoder(3, 'sprite', pretrained=True)
    assert torch.equal(E.stem[0].weight, fixed.conv1.weight[:, :, 2:5, 2:5]) and E.stages[0] is fixed.layer1


class StopCB(Callback):
    def __init__(self, at): self.at = at
    def after_step(self, t):
        if t.step in self.at: t.stop = 'stopped by the test'


@pytest.mark.parametrize('task', RECIPES)
def test_stopped_and_resumed_is_bit_equal(task, creatures, tmp_path):
    images = Images(creatures.x, creatures.labels if task == 'species' else {})
    train_encoder(RECIPES[task], images, tmp_path/'whole', steps=12, save_every=4)
    for i in range(3): train_encoder(RECIPES[task], images, tmp_path/'parts', steps=12, save_every=4, resume=i > 0, callbacks=(StopCB((3, 8)),))
    (a, ma), (b, mb) = (read_tensors(tmp_path/n/'state.safetensors') for n in ('whole', 'parts'))
    assert ma['step'] == mb['step'] == 12 and a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
    assert ma['groups'] == mb['groups'], 'the learning rate too'
    one, two = (json.loads((tmp_path/n/'run.json').read_text()) for n in ('whole', 'parts'))
    assert one['test'] == two['test'] and one['names'] == two['names'] and two['stopped'] == ''
    assert 'val/top1' in read_log(tmp_path/'parts/log.csv')[-1]


def test_run_folder_and_what_is_loaded_from_it(creatures, tmp_path):
    E = train_encoder(replace(RECIPES['species'], faithful=True), creatures, tmp_path/'run', steps=2, seed=3)
    info = json.loads((tmp_path/'run/run.json').read_text())
    assert info['recipe']['classes'] == 3 and info['names'] == [3, 5, 8] and info['data']['rows'] == dict(train=40, val=5, test=5)
    assert info['data']['fingerprint'] == creatures.fingerprint and set(info['test']) == {'top1', 'top5', 'loss'}
    L = load_encoder(tmp_path/'run')
    assert L.names == E.names == (3, 5, 8) and not L.training and not any(p.requires_grad for p in L.parameters()) and L.norm.running_mean is None
    assert torch.equal(L.head.weight, E.head.weight)
    with pytest.raises(ValueError, match='already holds a run'): train_encoder(RECIPES['species'], creatures, tmp_path/'run', steps=2)
    with pytest.raises(ValueError, match='seed 3'): train_encoder(replace(RECIPES['species'], faithful=True), creatures, tmp_path/'run', steps=4, resume=True)
    with pytest.raises(ValueError, match='not a run folder'): load_encoder(tmp_path)
    (tmp_path/'run.json').write_text('{"recipe": {}}')
    with pytest.raises(ValueError, match='another family'): load_encoder(tmp_path)


def test_rotation_reads_no_labels_and_examines_all_four_directions(creatures):
    names, sets = encoder_sets(RECIPES['rotation'], Images(creatures.x))
    assert names == (0, 90, 180, 270) and {k: len(s) for k, s in sets.items()} == dict(train=40, val=20, test=20) and sets['train'].labels == {}


@pytest.mark.parametrize('wrong', [dict(task='names'), dict(stem_kind='x'), dict(norm='group'), dict(nz=100), dict(shift=.6), dict(smoothing=1.), dict(betas=(.9, 1.)), dict(lr=-1.), dict(batch=0), dict(size=16)])
def test_wrong_values_are_one_line(wrong):
    with pytest.raises(ValueError) as e: EncoderRecipe('x', 'y', **wrong)
    assert '\n' not in str(e.value) and next(iter(wrong)) in str(e.value)


def test_recipes_are_plain_and_complete(creatures, tmp_path):
    assert len({r.name for r in ENCODER_RECIPES}) == len(ENCODER_RECIPES) and all(r.source and r.family == 'encoder' for r in ENCODER_RECIPES)
    for r in ENCODER_RECIPES: assert EncoderRecipe(**json.loads(json.dumps(asdict(r)))) == r
    state = torch.random.get_rng_state()
    a, b = (RECIPES['rotation'].networks(seed=0)['E'].state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match='classes'): RECIPES['species'].networks()
    with pytest.raises(ValueError, match='32 px'): train_encoder(ENCODER_RECIPES[0], creatures, tmp_path/'x', steps=1)
    with pytest.raises(ValueError, match='label'): train_encoder(RECIPES['species'], Images(creatures.x), tmp_path/'x', steps=1)
    with pytest.raises(ValueError, match='budget'): train_encoder(RECIPES['species'], creatures, tmp_path/'x')
    assert not (tmp_path/'x').exists()


def test_changes_keep_the_picture(creatures):
    g, x = torch.Generator().manual_seed(0), to_float(creatures.x)
    r = replace(RECIPES['species'], shift=.125, colour=.5)
    y = r.augment(x, g)
    assert y.shape == x.shape and y.abs().max() <= 1 and not torch.equal(x, y)
    assert torch.equal(y, r.augment(x, torch.Generator().manual_seed(0)))
    assert torch.equal(replace(r, hflip=False, shift=0., colour=0.).augment(x, g), x)


def test_without_torchvision_the_extra_is_named(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torchvision.models', None)
    with pytest.raises(ImportError, match='encoder'): resnet()
    assert set(STEMS) == {'sprite', 'imagenet'}


def test_resume_names_the_extra_before_it_loads_anything(tmp_path, monkeypatch):
    from pokegan import recipes
    (tmp_path/'run.json').write_text(json.dumps(dict(schema=1, recipe=recipes.to_plain(ENCODER_RECIPES[0]), budget={}, data=dict(source='nothing/here'))))
    monkeypatch.setattr(recipes.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install'): recipes.resume(tmp_path, device='cpu')
