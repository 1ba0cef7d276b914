"""Files that lie: run.json, prepared.json and weights are input, and each wrong one gets a line."""
import json, struct

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load, save

from pokegan.data import load_images
from pokegan.data.records import from_json, parse, read_record, Room, RunInfo, to_json
from pokegan.models.recipe import read_info
from pokegan.publish import publish
from pokegan.runs import load_run, resume, train

HOW = dict(progress=False, device='cpu')
DEEP = '['*100_000 + ']'*100_000


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train('dcgan-quick', load_images('creatures:32', 16), tmp_path_factory.mktemp('r')/'run',
                 steps=3, size=16, nz=8, ngf=4, ndf=4, batch=8, save_every=1, **HOW)


@pytest.fixture
def spoiled(run, tmp_path):
    "Makes a copy of a good run with another run.json or other weights."
    def make(info=None, text=None, weights=None):
        good = {p.name: p.read_bytes() for p in run.folder.iterdir() if p.is_file()}
        if info is not None: good['run.json'] = json.dumps(info).encode()
        if text is not None: good['run.json'] = text if isinstance(text, bytes) else text.encode()
        if weights is not None: good['last.safetensors'] = weights
        for name, data in good.items(): (tmp_path/name).write_bytes(data)
        return tmp_path
    return make


def line(e):
    text = str(e.value)
    assert '\n' not in text and 'Traceback' not in text and len(text) < 500
    return text


NO_OBJECTS = ['[]', 'null', '"x"', '', b'\xff\xfe\x00\x80', DEEP, '\ufeff{}', '{"a": NaN}', '{"a": 1e999}']


@pytest.mark.parametrize('text', NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_a_run_json_that_is_no_object_gets_a_line(spoiled, text):
    with pytest.raises(ValueError) as e: load_run(spoiled(text=text))
    assert 'run.json is not what it should be' in line(e)


WRONG = {
    'schema': [0, 2, '1', None], 'step': [-1, 1.5, '3', None, [1]],
    'images': ['x', -1], 'seconds': ['x', -1, None],
    'notes': ['abc', None, [1]], 'versions': [[1], 'x', {'pokegan': 1}], 'recipe': [[1], 'dcgan', None],
    'data': [None, [], {}, {'source': 1}],
    'budget': [None, 'x', {'steps': 'x'}, {'save_every': 'x'}, {'minutes': -1}],
    'seed': ['x', 10**30, 1.5, None], 'stopped': [[], 1], 'names': ['x', [None]]}


@pytest.mark.parametrize('key', WRONG)
def test_a_value_of_another_kind_gets_a_line_that_names_it(spoiled, run, key):
    for v in WRONG[key]:
        with pytest.raises(ValueError) as e: read_info(spoiled(info=run.info | {key: v}))
        text = line(e)
        assert f' at {key}' in text or 'out of range' in text, (v, text)


@pytest.mark.parametrize('key', 'recipe data budget seed step images seconds notes stopped'.split())
def test_a_missing_value_gets_a_line_from_every_reader(spoiled, run, tmp_path, key):
    folder = spoiled(info={k: v for k, v in run.info.items() if k != key})
    for read in (load_run, resume, lambda f: publish(f, tmp_path/'out')):
        with pytest.raises(ValueError, match=f'missing required field {key}') as e: read(folder)
        line(e)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('field, v', [
    ('family', []), ('family', {}), ('size', 10**9), ('ngf', 10**30), ('nz', 10**12),
    ('nz', -5), ('nz', 6.5), ('batch', 10**12), ('betas', 'ab'), ('betas', None), ('betas', {'a': 1}),
    ('betas', ['a', 'b']), ('ema', -1), ('evil', 1), ('name', None)])
def test_a_recipe_that_cannot_be_gets_a_line(spoiled, run, field, v):
    with pytest.raises(ValueError, match='run.json') as e:
        load_run(spoiled(info=run.info | dict(recipe=run.info['recipe'] | {field: v})))
    line(e)


def test_widths_that_the_weights_cannot_have_make_no_room(spoiled, run):
    "100,000 wide would be five terabytes."
    folder = spoiled(info=run.info | dict(recipe=run.info['recipe'] | dict(ngf=100_000)))
    with pytest.raises(ValueError, match='larger than what was saved'): load_run(folder)


def test_room_counts_what_is_made():
    with Room(4*(12 + 4)): torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match='larger'), Room(4*(12 + 3)): torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match='larger'), Room(1000): torch.empty(16, 16)
    assert torch.nn.Linear(30, 40).weight.shape == (40, 30) # outside there is no limit


def header(h, data=b''):
    text = h if isinstance(h, bytes) else json.dumps(h).encode()
    return struct.pack('<Q', len(text)) + text + data


def bad_weights(run):
    "By name: bytes of last.safetensors, and words of the line."
    good = load((run.folder/'last.safetensors').read_bytes())
    def with_step(step): return save(good, dict(step=step))
    def changed(f): return save({k: f(v).contiguous() for k, v in good.items()}, dict(step='3'))
    large = dict(dtype='F32', shape=[10**12], data_offsets=[0, 8])
    def floats(f): return changed(lambda v: f(v) if v.is_floating_point() else v)
    return dict(
        empty=(b'', 'whole'), short=(b'\x01', 'whole'), text=(b'hello'*100, 'whole'),
        long=(struct.pack('<Q', 100 << 30) + b'{}', 'whole'), deep=(header(b'['*100_000), 'whole'),
        cut=(with_step('3')[:5000], 'whole'), no_step=(save(good, {}), 'missing required field step'),
        step_list=(with_step('[1]'), 'at step'), step_nan=(with_step('NaN'), 'whole'),
        step_word=(with_step('"abc"'), 'at step'), step_negative=(with_step('-5'), 'at step'),
        step_deep=(with_step(DEEP), 'nested too deep'), no_json=(with_step('hello'), 'whole'),
        others=(save({'G.x': torch.zeros(1)}, dict(step='3')), 'another G'),
        shapes=(changed(lambda v: v[:1] if v.ndim else v), 'another'),
        whole_numbers=(floats(lambda v: v.to(torch.int8)), 'another'),
        nan=(floats(lambda v: v*float('nan')), 'NaN or infinity'),
        lie=(header({'__metadata__': {'step': '1'}, 'G.a': large}, bytes(8)), 'whole'))


BAD_WEIGHTS = ('empty short text long deep cut no_step step_list step_nan step_word step_negative step_deep '
               'no_json others shapes whole_numbers nan lie').split()


@pytest.mark.parametrize('name', BAD_WEIGHTS)
def test_weights_that_lie_get_a_line(spoiled, run, name):
    data, words = bad_weights(run)[name]
    with pytest.raises(ValueError, match=words) as e: load_run(spoiled(weights=data))
    assert 'last.safetensors' in line(e)


def test_double_precision_is_no_lie(spoiled, run):
    good = load((run.folder/'last.safetensors').read_bytes())
    double = save({k: v.double() if v.is_floating_point() else v for k, v in good.items()}, dict(step='3'))
    assert torch.equal(load_run(spoiled(weights=double)).sample(2), run.sample(2))


def test_a_state_without_its_optimiser_gets_a_line(spoiled, run):
    folder = spoiled()
    state = load((folder/'state.safetensors').read_bytes())
    meta = dict(step='3', seconds='1.0', seed='0', notes='[]')
    (folder/'state.safetensors').write_bytes(save(state, meta | dict(groups='{"D": [], "G": []}')))
    with pytest.raises(ValueError, match='no state of the optimiser of [DG]') as e:
        resume(folder, steps=4, **HOW)
    line(e)
    (folder/'state.safetensors').write_bytes(save(state, meta))
    with pytest.raises(ValueError, match='missing required field groups'): resume(folder, steps=4, **HOW)


def test_what_is_no_file_is_not_read(tmp_path):
    (tmp_path/'run.json').mkdir()
    with pytest.raises(ValueError, match='is no file'): read_info(tmp_path)


def test_a_record_of_ours_is_refused_before_it_is_written():
    with pytest.raises(ValueError): to_json(dict(a=float('nan')), RunInfo)
    with pytest.raises(ValueError, match='missing required field'): to_json(dict(schema=1), RunInfo)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
                    max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(st.binary() | st.text() | JSON.map(json.dumps))
def test_any_text_is_a_value_or_one_line(text):
    for read in (from_json, lambda t: parse(t, RunInfo)):
        try: read(text)
        except ValueError as e: assert '\n' not in str(e)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from('schema recipe data budget seed step images seconds notes'.split()), v=JSON)
def test_any_value_in_a_record_is_taken_or_gets_one_line(tmp_path_factory, run, key, v):
    folder = tmp_path_factory.mktemp('any')
    (folder/'run.json').write_text(json.dumps(run.info | {key: v}), encoding='utf-8')
    try: read_info(folder)
    except ValueError as e: assert '\n' not in str(e)


def test_a_record_has_a_longest(tmp_path):
    (tmp_path/'run.json').write_bytes(b' '*(17 << 20))
    with pytest.raises(ValueError, match='longer than 16 MB'):
        read_record(tmp_path/'run.json', RunInfo, 'train anew')
