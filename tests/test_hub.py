"""A run goes to the Hugging Face Hub and comes back: the real client against a local server, each command in
a process and a home of its own."""
import json, os, re
from pathlib import Path

import fresh
import pytest
import torch
from safetensors.torch import load_file

from fake_hub import FakeHub, Repo, SIGNATURE
from pokegan.data.download import scrub
from pokegan.hub import hub_name
from pokegan.publish import hub_card, hub_folder, model_card, publish, PUBLISHED, push
from pokegan.runs import load_run, train

pytest.importorskip('huggingface_hub', reason='needs huggingface_hub: pip install -e ".[dev]"')
yaml = pytest.importorskip('yaml')
WRITER, READER, STRANGER = ('hf_' + c*34 for c in 'wrs')  # made up
SMALL = dict(size=32, ngf=8, ndf=8, batch=8, progress=False, device='cpu')
BITS = '''
import sys, torch
from pokegan.runs import load_run
torch.save([load_run(name).sample(6, seed=3) for name in sys.argv[2:]], sys.argv[1])
'''
AWAY = 'http://127.0.0.1:9' # nobody is there
MANY = '''
import json, os, sys
from pokegan.cli import main
for token, words, _ in json.loads(sys.argv[1]):
    os.environ['HF_TOKEN'] = token
    try: main(words)
    except SystemExit as e: assert e.code == 2
'''
ODD = 'слово' # cannot stand in a header
BARE = '''
import sys
sys.modules['huggingface_hub'] = None
from pokegan.cli import main
main(sys.argv[1:])
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train('dcgan-quick', 'creatures:40', tmp_path_factory.mktemp('hub')/'run', steps=2, **SMALL)


@pytest.fixture
def hub():
    with FakeHub() as h:
        h.tokens = {WRITER: 'write', READER: 'read'}
        yield h


@pytest.fixture
def call(hub, tmp_path):
    "call('push', …, token=…) runs a command against the server; every word that it says is looked through."
    def run_it(*words, token='', home='home', code='', **env):
        clean = {k: v for k, v in os.environ.items()
                 if not k.startswith(('HF_', 'HUGGING')) and 'proxy' not in k.lower()}
        (tmp_path/home).mkdir(exist_ok=True)
        own = dict(HOME=tmp_path/home, USERPROFILE=tmp_path/home, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET=1,
                   OMP_NUM_THREADS=1) | (dict(HF_TOKEN=token) if token else {}) | env
        if code: (tmp_path/'code.py').write_text(code, encoding='utf-8')
        p = fresh.run(words, tmp_path, clean | {k: str(v) for k, v in own.items()}, script=code and 'code.py')
        for secret in (WRITER, READER, STRANGER, SIGNATURE): assert secret not in p.stdout + p.stderr
        return p
    return run_it


@pytest.fixture
def refused(call):
    def line(*words, **kw): # the one line on stderr
        p = call(*words, **kw)
        assert p.returncode == 2 and p.stdout == '' and 'Traceback' not in p.stderr, p.stdout + p.stderr
        assert p.stderr.startswith('pokegan: ') and p.stderr.count('\n') == 1, p.stderr
        return p.stderr
    return line


def of(hub, name) -> dict: return hub.repos[name].commits[-1][1] # its files


def head(card:str) -> dict: return yaml.safe_load(card.split('---\n')[1]) # what the Hub reads


@pytest.fixture
def there(hub, run, tmp_path): # ann/small is on the Hub, without a client; -> what was published
    given = publish(run.folder, tmp_path/'small')
    hub.repos['ann/small'] = Repo()
    hub.repos['ann/small'].commit({p.name: p.read_bytes() for p in given.folder.iterdir()})
    return given


def test_it_goes_up_and_comes_back_bit_for_bit(run, hub, call, tmp_path):
    p = call('push', run.folder, '--to', 'ann/small', '--limits', 'Not *good*.', token=WRITER)
    assert p.returncode == 0 and f'{hub.url}/ann/small' in p.stdout, p.stderr
    assert 'pokegan sample hf:ann/small' in p.stdout and p.stderr == ''
    assert len(hub.repos['ann/small'].commits) == 2, 'made, and one commit'
    assert set(of(hub, 'ann/small')) == {*PUBLISHED, '.gitattributes'}
    assert 'Not *good*.' in of(hub, 'ann/small')['README.md'].decode()
    here = publish(run.folder, tmp_path/'here')
    again = call(tmp_path/'x.pt', 'hf:ann/small', 'hf:ann/small@main', home='friend', code=BITS)
    assert again.returncode == 0 and again.stderr == '', again.stderr
    for x in torch.load(tmp_path/'x.pt', weights_only=True): assert torch.equal(x, here.sample(6, seed=3))
    words = 'sample', 'walk --frames 5', 'evaluate --features random --n 32'
    plan = [('', [*w.split(), 'hf:ann/small'], '') for w in words]
    p = call(json.dumps(plan), home='friend', code=MANY)
    assert p.returncode == 0 and p.stderr == '' and 'grid.png' in p.stdout and 'floor' in p.stdout, p.stderr


def test_only_what_a_user_needs_leaves(run, hub, call, tmp_path):
    call('push', run.folder, '--to', 'hf:ann/small', token=WRITER)
    (tmp_path/'w.safetensors').write_bytes(of(hub, 'ann/small')['last.safetensors'])
    assert {k.split('.')[0] for k in load_file(tmp_path/'w.safetensors')} == {'G'}
    sent = b''.join(body for *_, body, _ in hub.visits)
    D, state = load_file(run.folder/'last.safetensors'), load_file(run.folder/'state.safetensors')
    ours = [v for k, v in {**D, **state}.items() if v.numel() > 64 and not k.startswith(('G', 'net/G'))]
    assert len(ours) > 10 and not [v for v in ours if v.numpy().tobytes() in sent]
    assert b'state.safetensors' not in sent and b'log.csv' not in sent
    elsewhere = [auth for _, path, _, auth in hub.visits if path.startswith('/store/')]
    assert elsewhere and not any(elsewhere), 'the token went to another host'


def test_what_was_published_goes_up_as_it_is(run, hub, call, refused, tmp_path):
    given = publish(run.folder, tmp_path/'given', licence='MIT').folder
    (given/'secrets.txt').write_text('mine', encoding='utf-8')
    assert call('push', given, '--to', 'ann/small', token=WRITER).returncode == 0
    files = of(hub, 'ann/small')
    assert set(files) == {*PUBLISHED, '.gitattributes'}
    for f in ('run.json', 'last.safetensors', 'samples.png'): assert files[f] == (given/f).read_bytes()
    assert "load_run('hf:ann/small')" in files['README.md'].decode(), 'nobody changed the card'
    (given/'README.md').write_text('# Mine\n\nwith my words', encoding='utf-8')
    assert call('push', given, '--to', 'ann/small', token=WRITER).returncode == 0
    card = of(hub, 'ann/small')['README.md'].decode()
    assert card.endswith('# Mine\n\nwith my words') and head(card)['license'] == 'mit'
    assert 'leave out licence' in refused('push', given, '--to', 'ann/b', '--licence', 'CC0', token=WRITER)
    assert 'ann/b' not in hub.repos


def test_weights_that_hold_more_than_they_say_stay(run, tmp_path):
    given = publish(run.folder, tmp_path/'given', trainable=True).folder
    assert 'D' in hub_folder(given, 'ann/small', tmp_path/'a')['published']['networks'], 'asked for'
    info = json.loads((given/'run.json').read_text(encoding='utf-8'))
    del info['published']['networks']['D']
    (given/'run.json').write_text(json.dumps(info), encoding='utf-8')
    with pytest.raises(ValueError, match='holds D too'): hub_folder(given, 'ann/small', tmp_path/'b')
    assert not (tmp_path/'b').exists()


@pytest.mark.parametrize('licence,short', [
    ('Apache-2.0', 'apache-2.0'), ('MIT', 'mit'), ('CC BY 4.0', 'cc-by-4.0'), ('', None), ('Mine', 'other'),
    ('許可', 'other'), ('mit\nlicense: cc0-1.0', 'other'), ('---\n# x', 'other'), ('"}, !!python/x', 'other'),
    ('mit # x', 'other'), ('&a *a', 'other'), ('\x85\u2028\x7f\ud800', 'other'), ("'", 'other')])
def test_names_and_licences_stay_data(run, tmp_path, licence, short):
    info = publish(run.folder, tmp_path/'given', licence='x').info
    info['published']['licence'], info['recipe']['name'] = licence, f'{licence}: [x]\n---\n'
    card = hub_card('ann/small', info)
    facts = head(card)
    assert facts.get('license') == short and {'license', 'license_name'} >= {k for k in facts if 'cen' in k}
    if short == 'other': assert re.fullmatch(r'[a-z0-9.+-]+', facts['license_name'])
    assert facts['library_name'] == 'pokegan' and facts['pipeline_tag'] == 'unconditional-image-generation'
    assert facts['tags'][:2] == ['gan', 'pokegan'] and len(facts['tags']) == 3
    assert facts['widget'][0]['output']['url'] == 'samples.png'
    assert facts['thumbnail'].endswith('/ann/small/resolve/main/samples.png')
    assert card.split('---\n', 2)[2].startswith('\n# small\n') and card.startswith('---\n')


def test_the_default_licence_stands_in_the_block(run, tmp_path):
    hub_folder(run.folder, 'ann/small', tmp_path/'small')
    text = (tmp_path/'small/README.md').read_text(encoding='utf-8')
    assert head(text)['license'] == 'apache-2.0' and 'Apache-2.0' in text.split('## Rights')[1]
    assert text.endswith(model_card('hf:ann/small', load_run(tmp_path/'small').info))
    assert hub_card('ann/b', {}, text) == text, 'a block that is there stays'


def test_a_pickle_is_never_fetched(hub, there, call):
    others = 'pytorch_model.bin model.pkl run.py sub/last.safetensors state.safetensors ../run.json'.split()
    hub.repos['ann/small'].commit({k: b'not even looked at' for k in others})
    assert call('sample', 'hf:ann/small', '--n', 4).returncode == 0
    asked = {v[1].split('/', 5)[-1] for v in hub.visits if '/resolve/' in v[1]}
    assert asked == {'run.json', 'last.safetensors', 'samples.png', 'README.md'}


def test_a_revision(hub, there, run, call, refused, tmp_path):
    repo = hub.repos['ann/small']
    repo.tags['v1'] = first = repo.commits[0][0]
    repo.commit({'last.safetensors': b'broken'})
    plan = [('', ('sample', name), '') for name in ('hf:ann/small@v1', f'hf:ann/small@{first}')]
    p = call(json.dumps(plan), code=MANY)
    assert p.returncode == 0 and p.stdout.count('grid.png') == 2, p.stderr
    assert 'not this revision' in refused('sample', 'hf:ann/small@v2')
    assert 'not a whole safetensors file' in refused('sample', 'hf:ann/small')


def test_files_that_lie(hub, there, refused):
    repo, good = hub.repos['ann/small'], (there.folder/'last.safetensors').read_bytes()
    info = json.loads((there.folder/'run.json').read_text(encoding='utf-8'))
    for files, says in [
            ({'last.safetensors': good[:-100]}, 'not a whole safetensors file'),
            ({'last.safetensors': good, 'run.json': b'[' * 10**5}, 'run.json'),
            ({'run.json': json.dumps(info | dict(recipe=dict(family='rm -rf'))).encode()}, 'rm -rf')]:
        repo.commit(files)
        assert says in refused('sample', 'hf:ann/small')
    hub.scenes['ann/small'] = 'huge'
    assert 'are allowed' in refused('sample', 'hf:ann/small')
    hub.repos['ann/other'] = Repo()
    hub.repos['ann/other'].commit({'model.safetensors': good})
    assert 'is no run of pokegan' in refused('sample', 'hf:ann/other')


def test_the_way_to_the_hub(hub, there, call, refused, run):
    hub.scenes['ann/small'] = 'cut'
    assert 'was cut; call again' in refused('sample', 'hf:ann/small', home='cut')
    del hub.scenes['ann/small']
    assert call('sample', 'hf:ann/small', '--n', 4).returncode == 0
    p = call('sample', 'hf:ann/small', '--n', 4, HF_ENDPOINT=AWAY)
    assert p.returncode == 0 and 'taking ann/small from the cache' in p.stdout and p.stderr == '', p.stderr
    for words in (('sample', 'hf:ann/other'), ('push', run.folder, '--to', 'ann/small')):
        assert 'cannot be reached' in refused(*words, token=WRITER, HF_ENDPOINT=AWAY)
    assert 'cannot be reached' in refused('sample', 'hf:ann/small', HF_HUB_OFFLINE=1, home='new')


def test_one_line_for_each_mistake(hub, there, call, refused, run, tmp_path):
    hub.repos['bob/secret'] = Repo(private=True)
    hub.repos['bob/secret'].commit({'run.json': b'{}'})
    hub.scenes |= {'ann/busy': '429', 'ann/down': '500', 'ann/terms': 'gated'}
    for name in ('ann/busy', 'ann/down', 'ann/terms'): hub.repos[name] = Repo()
    push = 'push', str(run.folder), '--to'
    plan = [
        ('', ('sample', 'hf:ann/none'), 'no model ann/none'),
        (READER, ('sample', 'hf:ann/none'), 'no model ann/none, or it is private (404)'),
        ('', ('sample', 'hf:bob/secret'), 'for a private one make a token'),
        (STRANGER, ('sample', 'hf:ann/small'), 'does not accept this token (401); make a token on'),
        (ODD, ('sample', 'hf:ann/small'), 'signs that no token has'),
        ('', ('sample', 'hf:ann/busy'), 'wait a few minutes'),
        (READER, ('sample', 'hf:ann/down'), 'trouble of its own'),
        (READER, ('sample', 'hf:ann/terms'), 'accept its terms'),
        ('', ('sample', 'hf:small'), 'write hf:owner/name'),
        ('', ('train', '--start', 'hf:ann/none', '--recipe', 'finetune', '--steps', '1'), 'no model'),
        (WRITER, (*push, 'small'), 'write hf:owner/name'),
        (WRITER, (*push, 'ann/small@v1'), 'names a revision'),
        ('', (*push, 'ann/small'), 'HF_TOKEN or in a Colab secret'),
        (STRANGER, (*push, 'ann/small'), 'does not accept this token (401)'),
        (ODD, (*push, 'ann/small'), 'signs that no token has'),
        (READER, (*push, 'ann/small'), 'must be one that may write there'),
        (WRITER, ('push', str(tmp_path/'none'), '--to', 'ann/new'), 'not a run folder'),
        (WRITER, (*push, 'ann/small', '--private'), 'there already and public')]
    p = call(json.dumps(plan), code=MANY)
    said = p.stderr.splitlines()
    assert p.returncode == 0 and p.stdout == '' and len(said) == len(plan), p.stdout + p.stderr
    for (_, words, says), line in zip(plan, said): assert says in line and line.startswith('pokegan: '), words
    assert ODD not in p.stderr
    for words in (('sample', 'hf:ann/small'), ('push', run.folder, '--to', 'ann/small')):
        assert 'pip install "pokegan[hub]"' in refused(*words, code=BARE)
    assert 'ann/new' not in hub.repos and len(hub.repos['ann/small'].commits) == 1


def test_a_private_page_and_one_that_holds_something_else(hub, call, refused, run):
    assert call('push', run.folder, '--to', 'ann/mine', '--private', token=WRITER).returncode == 0
    assert hub.repos['ann/mine'].private
    assert call('sample', 'hf:ann/mine', '--n', 4, token=READER).returncode == 0
    hub.repos['ann/work'] = Repo()
    hub.repos['ann/work'].commit({'README.md': b'my project', 'model.py': b'print()'})
    assert 'holds something else' in refused('push', run.folder, '--to', 'ann/work', token=WRITER)
    assert of(hub, 'ann/work')['README.md'] == b'my project'


def test_a_run_that_begins_from_one_on_the_hub_says_so(hub, call, run, tmp_path):
    call('push', run.folder, '--to', 'ann/whole', '--trainable', token=WRITER)
    words = '--recipe dcgan-quick:ngf=8,ndf=8,batch=8 --size 32 --data creatures:40 --steps 1 --device cpu'
    p = call('train', *words.split(), '--start', 'hf:ann/whole', '--run', 'next')
    assert p.returncode == 0, p.stderr
    assert load_run(tmp_path/'next').info['start']['name'] == 'hf:ann/whole'


def test_names():
    for text, got in {'hf:ann/small': ('ann/small', None), 'hf://ann/small@v1.0': ('ann/small', 'v1.0'),
                      'hf:a/b@refs/pr/1': ('a/b', 'refs/pr/1'), 'runs/small': None, 'hfx:a/b': None}.items():
        assert hub_name(text) == hub_name(Path(text)) == got
    for bad in (
            'hf:', 'hf:a', 'hf:a/b/c', 'hf:../b', 'hf:a/..', 'hf:a--b/c', 'hf:a/b.git', 'hf:a/b.', 'hf:a/é',
            'hf:a/b@../../x', 'hf:a/b@', 'hf:a/b@/etc', 'hf:a/b\n', 'hf:-a/b', f'hf:a/{"b"*97}', 'hf:a b/c'):
        with pytest.raises(ValueError, match='hf:owner/name') as e: hub_name(bad)
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='hf:owner/name'): push('runs/x', 'x')


def test_scrub_knows_the_hubs_tokens(monkeypatch, tmp_path):
    for k in ('HF_TOKEN', 'HF_HOME', 'HF_TOKEN_PATH'): monkeypatch.delenv(k, raising=False)
    assert scrub(f'sent {WRITER} by hf_hub_download') == 'sent *** by hf_hub_download'
    assert scrub('hf_oauth_eyJh.bGci-x!') == '***!'
    monkeypatch.setenv('HF_TOKEN', 'of another kind')
    (tmp_path/'token').write_text('kept in a file\n', encoding='utf-8')
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    assert scrub('it is of another kind, or kept in a file') == 'it is ***, or ***'
