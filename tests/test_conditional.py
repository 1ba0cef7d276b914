"""Kinds: the prior that draws them, D that is told, runs that are asked, and the count of what they obey."""
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pokegan.compare import evaluate_kinds
from pokegan.core import run_eval
from pokegan.data import Images, load_images
from pokegan.metrics.coverage import Classifier, Confusion, confusion
from pokegan.models.conditional import CONDITIONAL_RECIPES, Kinds, ProjectionDiscriminator
from pokegan.models.dcgan import conv_discriminator
from pokegan.models.instance import Codes
from pokegan.models.recipe import make_trainer, read_info
from pokegan.publish import publish
from pokegan.recipes import recipe
from pokegan.runs import load_run, open_start, resume, train
from pokegan.training.checkpoint import flatten
from pokegan.training.trainer import Batch
from pokegan.widgets import Explorer, State
from test_cli import refused
from test_projected import SMALL as PROJECTED

TINY = dict(size=16, nz=8, ngf=4, ndf=4, batch=8, diffaug='translation')
INSTANCE = PROJECTED | dict(lr_decay=0., zoom_share=0., nc=5, size=32)
HOW = dict(progress=False, device='cpu')
NAMES = ['bird', 'cat', 'dog']


def rng(seed=0): return torch.Generator().manual_seed(seed)


def labelled(n=30, size=16, names=NAMES): # dark, medium and light pictures of little noise
    y = [i % len(names) for i in range(n)]
    x = torch.randint(0, 40, (n, 3, size, size), dtype=torch.uint8, generator=rng())
    x += 70*torch.tensor(y, dtype=torch.uint8)[:, None, None, None]
    return Images(x, {'animal': [names[i] for i in y]}, source='labelled')


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kinds')/'run'
    return train('dcgan-types', labelled(), folder, steps=6, label='animal', **HOW, **TINY)


def test_the_prior_draws_kinds_as_often_as_the_data_have_them():
    kinds = Kinds(5, 3, 'uniform')
    with pytest.raises(ValueError, match='no training pictures yet'): kinds(4, rng())
    kinds.kinds = torch.tensor([0, 2, 2, 2])
    z = kinds(4000, rng())
    assert z.shape == (4000, 8) and z[:, :5].abs().max() <= 1
    torch.testing.assert_close(z[:, 5:].square().mean(1), torch.ones(4000)) # one-hot times sqrt(3)
    share = (z[:, 5:] > 0).float().mean(0)
    torch.testing.assert_close(share, torch.tensor([.25, 0., .75]), atol=.03, rtol=0)
    assert (kinds(50, rng(), kind=0)[:, 5:].argmax(1) == 0).all()
    with pytest.raises(ValueError, match='no training pictures'): kinds(4, rng(), kind=1)
    again = Kinds(5, 3, 'uniform')
    again.load_state_dict(kinds.state_dict())
    assert torch.equal(again(9, rng()), kinds(9, rng()))


def test_D_adds_the_product_of_features_and_kind():
    D = conv_discriminator(16, 4)
    P = ProjectionDiscriminator(D, 3, weight=2.).eval()
    x, told = torch.rand(2, 3, 16, 16)*2 - 1, F.one_hot(torch.tensor([0, 2]), 3)*3**.5
    with torch.no_grad():
        h = D.blocks[:-1](x).sum((2, 3))
        want = D(x) + 2*(h*P.wish.weight.T[[0, 2]]*3**.5).sum(1)
        torch.testing.assert_close(P(x, told), want)
        assert torch.equal(P(x, 0*told), D(x))


def test_D_is_told_the_kind_of_each_real_and_what_each_fake_was_asked_for():
    images = labelled()
    r = recipe('dcgan-types', label='animal', **TINY).sets(images)[0]
    t = make_trainer(r, images, device='cpu')
    t.batch = Batch(t)
    (of_reals,), (of_fakes,) = t.nets['kinds'].condition(t.batch)
    names = [NAMES[i] for i in of_reals.argmax(1)]
    assert names == [images.labels['animal'][i] for i in t.batch.idx]
    assert torch.equal(of_fakes, t.batch.z[:, 8:])


def test_labels_name_the_classes_and_wrong_values_are_refused_in_a_line():
    r, sets, facts = recipe('dcgan-types', label='animal', **TINY).sets(labelled())
    assert r.classes == 3 and facts == dict(names=NAMES) and len(sets['train']) == 30
    assert r.networks(0)['G'].nz == 11
    for wrong, words in ((dict(label=''), 'label is empty'), (dict(penalty='r1', d_norm='none'), 'penalty'),
                         (dict(split_d=True, diffaug='', ada=0.), 'split_d')):
        with pytest.raises(ValueError, match=words): replace(r, **wrong)
    with pytest.raises(ValueError, match="no label 'type'; these pictures have animal"):
        recipe('dcgan-types', **TINY).sets(labelled())
    some = labelled()
    some.labels['animal'][3:5] = ['', '']
    with pytest.raises(ValueError, match='2 of 30 pictures have no animal'):
        recipe('dcgan-types', label='animal', **TINY).sets(some)
    with pytest.raises(ValueError, match='classes is 0'): recipe('dcgan-types').networks(0)


def test_a_run_is_asked_for_a_kind_and_says_which_it_knows(asked):
    assert asked.kinds == NAMES and read_info(asked.folder)['names'] == NAMES
    z = asked.latents(20, kind='cat')
    assert (z[:, 8:].argmax(1) == 1).all()
    assert torch.equal(asked.sample(3, seed=2, kind='cat'), asked.sample(3, seed=2, kind='cat'))
    assert asked.latents(5, truncation=.5, kind='dog')[:, :8].abs().max() <= .5
    with pytest.raises(ValueError, match="kind is 'cow'.*bird"): asked.sample(1, kind='cow')
    with pytest.raises(ValueError, match='trained without labels'):
        load_run('creatures-projected').sample(1, kind='cat')


def test_it_resumes_bit_for_bit(asked, tmp_path):
    train('dcgan-types', labelled(), tmp_path/'a', steps=3, label='animal', **HOW, **TINY)
    a = resume(tmp_path/'a', steps=6, data=labelled(), **HOW)
    for k, v in flatten(asked.nets).items(): assert torch.equal(v, flatten(a.nets)[k]), k
    other = labelled()
    other.labels['animal'][0] = 'ant'
    with pytest.raises(ValueError, match='animal has 4 kinds here; the run has 3'):
        resume(tmp_path/'a', steps=7, data=other, **HOW)


def test_a_published_run_can_still_be_asked(asked, tmp_path):
    out = publish(asked.folder, tmp_path/'out')
    assert set(load_run(tmp_path/'out').nets) == {'G', 'kinds'} and out.kinds == NAMES
    assert load_run(tmp_path/'out').latents(2, kind='dog').shape == (2, 11)


def test_the_panel_offers_the_kinds_of_the_run(asked):
    e = Explorer(asked, k=2, n=128)
    assert list(e.kinds) == NAMES and e.label == 'animal'
    z = e.latent(State(seed=3, kind='dog'))
    assert torch.equal(z, asked.latents(1, 3, 4., kind='dog')[0])


def test_a_confusion_counts_what_is_seen(asked):
    class Bright(torch.nn.Module): # sees dark, medium or light
        def __init__(self):
            super().__init__()
            self.at = torch.nn.Parameter(torch.tensor([-.85, -.3, .25]))
        def forward(self, f): return -50*(f[:, :1] - self.at).abs()
    net, im = Classifier(NAMES, size=16, d=1), labelled()
    net.net, net.head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), Bright()
    y = torch.arange(30) % 3
    right = confusion(net, im.x, y)
    assert right.counts == ((10, 0, 0), (0, 10, 0), (0, 0, 10)) and right.share == 1
    wrong = confusion(net, im.x, torch.zeros(30, dtype=torch.int64))
    assert wrong.counts == ((10, 10, 10), (0, 0, 0), (0, 0, 0)) and wrong.share == pytest.approx(1/3)
    assert '33% are seen as what was asked for; chance 33%' in str(wrong)
    assert Confusion(('a', 'b'), ((3, 1), (0, 4)), .9).share == 7/8


def test_evaluate_counts_kinds_and_refuses_other_labels(asked):
    c = evaluate_kinds(asked.folder, labelled(300), n=30)
    assert sum(map(sum, c.counts)) == 30 and c.real > .9 # of these plain pictures
    with pytest.raises(ValueError, match='other kinds there'):
        evaluate_kinds(asked.folder, labelled(300, names=['ant', 'bee', 'fly']), n=30)


def test_the_command_line_takes_a_label_and_a_kind(tmp_path, monkeypatch, capsys):
    from pokegan.cli import main
    monkeypatch.chdir(tmp_path)
    for name, level in (('blue', 200), ('red', 90)):
        (tmp_path/'set'/name).mkdir(parents=True)
        from PIL import Image
        for i in range(8):
            im = Image.new('RGB', (16, 16), 'white')
            im.paste((level+i, i, 255-level), (2, 2, 8+i//2, 12))
            im.save(tmp_path/'set'/name/f'{i}.png')
    words = 'dcgan-types:nz=8,ngf=4,ndf=4,batch=4,ada=0,diffaug='
    begin = ['train', '--recipe', words, '--data', 'set', '--size', '16']
    main([*begin, '--label', 'folder', '--steps', '2', '--run', 'r'])
    main(['sample', 'r', '--kind', 'red', '--n', '4'])
    assert '4 images of red are in grid.png' in capsys.readouterr().out
    red = ['sample', 'r', '--kind', 'red']
    for args, said in (([*red[:3], 'green'], 'blue'), ([*red, '--like', 'set'], '--kind'),
                       (['train', '--resume', '--run', 'r', '--label', 'folder'], 'leave out --label'),
                       (begin, "no label 'type'")):
        assert said in refused(*args, cwd=tmp_path)


def test_codes_tell_the_kind_as_well_where_there_is_a_label(tmp_path):
    images = load_images('creatures:40', 32, progress=False)
    r = recipe('projected-instance', **INSTANCE, label='plan')
    r = r.sets(images)[0]
    t = make_trainer(r, images, device='cpu')
    codes = t.nets['codes']
    told = codes.told(torch.arange(40))
    assert torch.equal(told[:, :5], codes.codes)
    assert told.shape[1] == 5 + r.classes == t.nets['G'].nz - r.nz
    z = codes(30, rng(), kind=1)
    assert (z[:, -r.classes:].argmax(1) == 1).all()
    assert torch.equal(codes.near(codes.codes + 1e-4)[:, 5:], told[:, 5:]) # the kind of the nearest
    t.one_step()


def test_a_start_without_kinds_begins_as_if_they_said_nothing(tmp_path):
    images = load_images('creatures:40', 32, progress=False)
    first = train('projected-instance', images, tmp_path/'first', steps=1, **HOW, **INSTANCE)
    r = recipe('projected-instance', start=str(first.folder), **INSTANCE, label='plan')
    start = open_start(r)
    t = make_trainer(r.sets(images)[0], images, device='cpu', start=start)
    k, z = t.nets['codes'].classes, first.latents(4)
    z = z/z.square().mean(1, keepdim=True).sqrt() # G brings latents to one length: let both have it
    wide = torch.cat([z, torch.eye(k)[:4]*k**.5], 1)
    torch.testing.assert_close(run_eval(t.nets['G'], wide), run_eval(first.G, z), atol=1e-4, rtol=0)
    labelled_run = train('projected-instance', images, tmp_path/'b', steps=1, start=str(first.folder),
                         label='plan', **HOW, **INSTANCE)
    assert len(labelled_run.kinds) == k
    back = recipe('projected-instance', start=str(labelled_run.folder), **INSTANCE)
    assert make_trainer(back, images, device='cpu', start=open_start(back)).nets['G'].nz == first.G.nz


def test_codes_of_runs_before_there_were_kinds_still_load():
    codes = Codes(4, 3)
    codes.codes = torch.rand(6, 3)
    old = {k: v for k, v in codes.state_dict().items() if k == 'codes'}
    again = Codes(4, 3)
    again.load_state_dict(old)
    assert torch.equal(again(5, rng()), codes(5, rng()))


def test_the_recipe_of_types_differs_from_its_base_in_what_it_says():
    base, r = recipe('dcgan-small-data'), CONDITIONAL_RECIPES[0]
    same = {f for f in base.__dataclass_fields__ if getattr(base, f) == getattr(r, f)}
    assert set(base.__dataclass_fields__) - same == {'name', 'source', 'differs', 'diffaug'}
    assert json.dumps(r.differs)


# ---- an auxiliary classifier ----

def test_d_names_what_it_sees_with_the_vectors_of_the_fit():
    "The loss is the cross entropy of a softmax over all kinds, each one's fit its logit."
    torch.manual_seed(0)
    D = ProjectionDiscriminator(conv_discriminator(16, 4), 3, weight=1., naming=.5)
    torch.nn.init.normal_(D.wish.weight)
    x, kinds = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 2, 1, 0])
    told = F.one_hot(kinds, 3)*3**.5
    logits, loss = D.eval()(x, told)
    D.naming, D.weight = 0., 1.
    D.D.blocks[-1].requires_grad_(False)
    real = D.D.blocks[-1](D.D.blocks[:-1](x))
    fits = torch.stack([D(x, F.one_hot(torch.full((6,), k), 3)*3**.5) - real for k in range(3)], 1)
    torch.testing.assert_close(loss, .5*F.cross_entropy(fits, kinds))
    torch.testing.assert_close(logits, D(x, told))


def test_what_d_answers_besides_counts_for_reals_with_d_and_for_fakes_with_g():
    r, sets, _ = recipe('dcgan-types', label='animal', **TINY | dict(diffaug='', ada=0.)).sets(labelled())
    def losses(naming):
        t = make_trainer(r, sets['train'], 0, 'cpu')
        t.nets['D'].naming, t.batch = naming, Batch(t)
        return t, [float(p.loss(t.batch)[0]) for p in t.phases]
    (t, (d, g)), (_, (d0, g0)) = losses(.5), losses(0.)
    (of_reals,), (of_fakes,) = t.nets['kinds'].condition(t.batch)
    D, fake = t.nets['D'], t.nets['G'](t.batch.z)
    assert d - d0 == pytest.approx(D(t.batch.x, of_reals)[1].item(), abs=1e-4)
    assert g - g0 == pytest.approx(D(fake, of_fakes)[1].item(), abs=1e-4)
    assert D(t.batch.x, of_reals)[1] != D(fake, of_fakes)[1] > .3, 'it knows no kind yet'
