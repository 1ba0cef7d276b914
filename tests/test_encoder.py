"""One picture has one embedding; the body is torchvision's; a stopped run ends as one that never stopped."""
import json
from dataclasses import asdict, replace
from urllib.error import URLError

import pytest
import torch

from pokegan.data import Images, to_float
from pokegan.training.callbacks import read_log
from pokegan.training.checkpoint import read_tensors
from pokegan.training.trainer import Callback
from pokegan.metrics.coverage import labelled_creatures
from pokegan.models.classifier import rows_together
from pokegan.models.recipe import to_plain
from pokegan.runs import pretrained
from pokegan.models.encoder import (
    embeddings, Encoder, ENCODER_RECIPES, encoder_sets, EncoderRecipe, load_encoder, resnet,
    STEMS, train_encoder)

TINY = dict(size=32, stem_kind='imagenet', batch=8)
RECIPES = {r.task: replace(r, **TINY) for r in ENCODER_RECIPES}


@pytest.fixture(scope='module')
def creatures(): return labelled_creatures(50, [3, 8, 5], 32)


@pytest.fixture(scope='module')
def x(): return to_float(labelled_creatures(6, 3, 32).x)


def read_info(folder): return json.loads((folder/'run.json').read_text(encoding='utf-8'))
def n_params(net): return sum(p.numel() for p in net.parameters())
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_one_image_has_one_embedding_alone_or_in_a_batch(x):
    E = Encoder(3, 'imagenet').eval()
    for i in range(3):
        alone = E.embed(x[i:i+1])[0]
        assert torch.allclose(alone, E.embed(x)[i], atol=1e-4)
        assert torch.allclose(E.embed(x[:3])[i], E.embed(x)[i], atol=1e-4)


def test_a_faithful_one_has_not(x):
    E = Encoder(3, 'imagenet', faithful=True).eval()
    assert E.norm.running_mean is None
    assert (E.embed(x[:3])[0] - E.embed(x)[0]).abs().mean() > .05
    with pytest.raises(ValueError): E.embed(x[:1])


def torchvisions(E, x): # its own answer, with our head
    from torchvision.models import resnet34
    torch.manual_seed(0)
    m = resnet34().eval()
    m.fc.load_state_dict(E.head.state_dict())
    mean = torch.tensor([.485, .456, .406]).view(3, 1, 1)
    std = torch.tensor([.229, .224, .225]).view(3, 1, 1)
    return m, m(((x + 1)/2 - mean)/std)


@pytest.mark.parametrize('norm', ['batch', 'none'])
def test_body_is_torchvisions(x, norm):
    torch.manual_seed(0)
    E = Encoder(1000, 'imagenet', norm).eval()
    m, want = torchvisions(E, x)
    if norm == 'none': assert torch.allclose(E(x), want, atol=1e-4)
    E.norm.running_mean = torch.zeros(512)
    E.norm.running_var = torch.ones(512)
    E.norm.eps = 0.
    assert torch.allclose(E(x), want, atol=1e-4)
    assert n_params(E) == n_params(m) == 21_797_672


@pytest.mark.parametrize('stem, first', [('sprite', 16), ('imagenet', 8)])
def test_look_is_one_pass_with_five_maps(x, stem, first):
    E, calls = Encoder(3, stem).eval(), []
    E.stem.register_forward_hook(lambda *a: calls.append(1))
    maps, e = E.look(x)
    shapes = [tuple(m.shape[1:]) for m in maps]
    sides = [first, first, first//2, first//4, first//8]
    assert shapes == [(nf, s, s) for nf, s in zip([64, 64, 128, 256, 512], sides)]
    assert len(calls) == 1
    assert e.shape == (6, 512)
    assert torch.equal(E.embed(x), e)
    assert torch.equal(E(x), E.head(e))


def test_embedding_is_centred_on_the_training_batches_and_has_no_gain(creatures):
    E = Encoder(3, 'imagenet').train()
    e = E.embed(to_float(creatures.x))
    assert e.mean(0).abs().max() < 1e-4
    assert (e.var(0, unbiased=False) - 1).abs().median() < .02
    assert not list(E.norm.parameters())


def test_gradients_reach_the_pixels_of_a_frozen_encoder(x):
    E = Encoder(3, 'imagenet').eval().requires_grad_(False)
    y = x.clone().requires_grad_(True)
    maps, e = E.look(y)
    loss = sum(m.square().mean() for m in maps) + e.square().mean()
    loss.backward()
    assert torch.isfinite(y.grad).all()
    assert (y.grad.flatten(1).abs().sum(1) > 0).all()


def test_embeddings_of_a_set(creatures):
    E = Encoder(3, 'imagenet').train()
    e = embeddings(E, creatures, batch=7)
    assert E.training and e.shape == (50, 512)
    assert not e.requires_grad
    assert torch.allclose(e, E.eval().embed(to_float(creatures.x)), atol=1e-4)


def test_embeddings_of_a_faithful_one_come_from_mixed_batches(creatures):
    "Neighbours are often of one species; and none of 50 is left alone when 49 go together."
    E, x = Encoder(3, 'imagenet', faithful=True).eval(), to_float(creatures.x)
    e, want = embeddings(E, creatures, batch=49), torch.empty(50, 512)
    mixed = rows_together(E, 50, 49)
    assert [len(r) for r in mixed] == [25, 25] and mixed[0].tolist() != list(range(25))
    with torch.no_grad():
        for r in mixed: want[r] = E.embed(x[r])
    assert torch.allclose(e, want, atol=1e-4)
    few = labelled_creatures(12, [3, 8], 32)
    with pytest.raises(ValueError, match='12 pictures are too few'):
        replace(RECIPES['species'], faithful=True).sets(few)


def test_pretrained_weights_are_used_or_one_line_says_what_to_do(monkeypatch):
    import torchvision.models as models
    real, asked = models.resnet34, []
    def offline(weights=None):
        asked.append(weights)
        raise URLError('no route to host')
    monkeypatch.setattr(models, 'resnet34', offline)
    with pytest.raises(OSError) as e: Encoder(3, pretrained=True)
    said = str(e.value)
    assert asked == [models.ResNet34_Weights.IMAGENET1K_V1]
    assert '\n' not in said
    assert 'resnet34-b627a593.pth' in said and 'pretrained=False' in said
    fixed = real()
    monkeypatch.setattr(models, 'resnet34', lambda weights=None: fixed)
    E = Encoder(3, 'sprite', pretrained=True)
    assert torch.equal(E.stem[0].weight, fixed.conv1.weight[:, :, 2:5, 2:5])
    assert E.stages[0] is fixed.layer1


class StopCB(Callback):
    def __init__(self, at): self.at = at
    def after_step(self, t):
        if t.step in self.at: t.stop = 'stopped by the test'


@pytest.mark.parametrize('task', RECIPES)
def test_stopped_and_resumed_is_bit_equal(task, creatures, tmp_path):
    images = Images(creatures.x, creatures.labels if task == 'species' else {})
    whole, parts = tmp_path/'whole', tmp_path/'parts'
    kw = dict(steps=12, save_every=4)
    train_encoder(RECIPES[task], images, whole, **kw)
    for i in range(3):
        stop = (StopCB((3, 8)),)
        train_encoder(RECIPES[task], images, parts, resume=i > 0, callbacks=stop, **kw)
    a, ma = read_tensors(whole/'state.safetensors')
    b, mb = read_tensors(parts/'state.safetensors')
    assert ma['step'] == mb['step'] == 12
    assert same(a, b)
    assert ma['groups'] == mb['groups'], 'the learning rate too'
    one, two = read_info(whole), read_info(parts)
    assert one['test'] == two['test']
    assert one['names'] == two['names']
    assert two['stopped'] == ''
    assert 'val/top1' in read_log(parts/'log.csv')[-1]


def test_run_folder_and_what_is_loaded_from_it(creatures, tmp_path):
    run, faithful = tmp_path/'run', replace(RECIPES['species'], faithful=True)
    E = train_encoder(faithful, creatures, run, steps=2, seed=3)
    info = read_info(run)
    assert info['recipe']['classes'] == 3 and info['names'] == [3, 5, 8]
    assert info['data']['rows'] == dict(train=40, val=5, test=5)
    assert info['data']['fingerprint'] == creatures.fingerprint
    assert set(info['test']) == {'top1', 'top5', 'loss'}
    L = load_encoder(run)
    assert L.names == E.names == (3, 5, 8)
    assert not L.training and not any(p.requires_grad for p in L.parameters())
    assert L.norm.running_mean is None
    assert torch.equal(L.head.weight, E.head.weight)
    with pytest.raises(ValueError, match='already holds a run'):
        train_encoder(RECIPES['species'], creatures, run, steps=2)
    with pytest.raises(ValueError, match='seed 3'):
        train_encoder(faithful, creatures, run, steps=4, resume=True)


def test_what_is_no_encoder_is_not_loaded(tmp_path):
    with pytest.raises(ValueError, match='not a run folder'): load_encoder(tmp_path)
    (tmp_path/'run.json').write_text('{"recipe": {}}', encoding='utf-8')
    with pytest.raises(ValueError, match='not what it should be'): load_encoder(tmp_path)
    with pytest.raises(ValueError, match='another family'): load_encoder(pretrained()['creatures-dcgan'])


def test_rotation_reads_no_labels_and_examines_all_four_directions(creatures):
    names, sets = encoder_sets(RECIPES['rotation'], Images(creatures.x))
    assert names == (0, 90, 180, 270)
    assert {k: len(s) for k, s in sets.items()} == dict(train=40, val=20, test=20)
    assert sets['train'].labels == {}


@pytest.mark.parametrize('wrong', [
    dict(task='names'), dict(stem_kind='x'), dict(norm='group'), dict(nz=100), dict(shift=.6),
    dict(smoothing=1.), dict(betas=(.9, 1.)), dict(lr=-1.), dict(batch=0), dict(size=16)])
def test_wrong_values_are_one_line(wrong):
    with pytest.raises(ValueError) as e: EncoderRecipe('x', 'y', **wrong)
    assert '\n' not in str(e.value)
    assert next(iter(wrong)) in str(e.value)


def test_recipes_are_plain_and_complete():
    assert len({r.name for r in ENCODER_RECIPES}) == len(ENCODER_RECIPES)
    for r in ENCODER_RECIPES:
        assert r.source and r.family == 'encoder'
        assert EncoderRecipe(**json.loads(json.dumps(asdict(r)))) == r
    state = torch.random.get_rng_state()
    a, b = (RECIPES['rotation'].networks(seed=0)['E'].state_dict() for _ in range(2))
    assert same(a, b)
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_cannot_be_trained_leaves_no_folder(creatures, tmp_path):
    r, at = RECIPES['species'], tmp_path/'x'
    with pytest.raises(ValueError, match='classes'): r.networks()
    with pytest.raises(ValueError, match='32 px'): train_encoder(ENCODER_RECIPES[0], creatures, at, steps=1)
    with pytest.raises(ValueError, match='label'): train_encoder(r, Images(creatures.x), at, steps=1)
    with pytest.raises(ValueError, match='budget'): train_encoder(r, creatures, at)
    assert not at.exists()


def test_changes_keep_the_picture(creatures):
    g, x = torch.Generator().manual_seed(0), to_float(creatures.x)
    r = replace(RECIPES['species'], shift=.125, colour=.5)
    y = r.augment(x, g)
    assert y.shape == x.shape and y.abs().max() <= 1
    assert not torch.equal(x, y)
    assert torch.equal(y, r.augment(x, torch.Generator().manual_seed(0)))
    unchanged = replace(r, hflip=False, shift=0., colour=0.)
    assert torch.equal(unchanged.augment(x, g), x)


def test_without_torchvision_the_extra_is_named(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torchvision.models', None)
    with pytest.raises(ImportError, match='encoder'): resnet()
    assert set(STEMS) == {'sprite', 'imagenet'}


def test_resume_names_the_extra_before_it_loads_anything(tmp_path, monkeypatch):
    from pokegan import runs
    from pokegan.models import recipe
    plain = to_plain(ENCODER_RECIPES[0])
    data = dict(source='nothing/here', size=64, n=10, fingerprint='0')
    facts = dict(schema=1, step=1, images=1, seconds=1., seed=0, notes=[], stopped='')
    info = dict(recipe=plain, budget=dict(steps=1), data=data, **facts)
    (tmp_path/'run.json').write_text(json.dumps(info), encoding='utf-8')
    monkeypatch.setattr(recipe, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install'): runs.resume(tmp_path, device='cpu')
