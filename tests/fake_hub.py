"""A server that speaks as much of the Hugging Face Hub's protocol as its real client needs: a repository is
made, asked about, written to in commits, and read file by file.

Small files travel inside the commit; *.safetensors go by Git LFS to another host, at signed addresses, and
come from there. What a scene names goes wrong: `hub.scenes['ann/small'] = 'cut'`, or the number of an answer.
"""
import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

SIGNATURE = 'X-Amz-Signature=c0ffee5ecre7'  # addresses of stored files are signed; they must not be shown


def sha(data: bytes) -> str: return hashlib.sha1(data).hexdigest()


class Repo:
    "Commits, each of which is all its files: name -> bytes."
    def __init__(self, private=False): self.private, self.commits, self.tags = private, [], {}
    def commit(self, files: dict):
        now = {**(self.commits[-1][1] if self.commits else {}), **files}
        self.commits.append((sha(repr([len(self.commits), sorted(now.items())]).encode()), now))
    def at(self, revision: str): # (sha, files), or None
        if revision == 'main' and self.commits: return self.commits[-1]
        found = [c for c in self.commits if c[0] == self.tags.get(revision, revision)]
        return found[0] if found else None


class Visit(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def reply(self, status=200, body=b'', **headers):
        if isinstance(body, (dict, list)): body = json.dumps(body).encode()
        self.send_response(status)
        kinds = {'Content-Type': 'application/json', 'Content-Length': str(len(body))}
        for k, v in {**kinds, **{k.replace('_', '-'): v for k, v in headers.items()}}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def refuse(self, status, reason='', message=''):
        why = dict(X_Error_Code=reason) if reason else {}
        if message: why['X_Error_Message'] = message
        self.reply(status, dict(error=message or reason or 'no'), **why)

    def wrong(self, name, write=False) -> bool: # whether the visitor was sent away
        "Who may see and write what. The Hub hides what somebody may not see."
        hub, scene = self.server.hub, self.server.hub.scenes.get(name, '')
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        known, repo = token in hub.tokens, hub.repos.get(name)
        if token and not known: self.refuse(401, '', f'Invalid credentials in Authorization header: {token}')
        elif scene.isdecimal(): self.refuse(int(scene), '', f'sorry, {token}')
        elif scene == 'gated': self.refuse(403, 'GatedRepo', 'Access to this model is restricted')
        elif not repo or repo.private and not known: # as if there were none
            self.refuse(404 if known else 401, 'RepoNotFound', 'Repository not found')
        elif write and hub.tokens.get(token) != 'write': self.refuse(403, '', f'Forbidden for {token}')
        else: return False
        return True

    def files(self, name, revision): # (sha, files), or None after a refusal
        if self.wrong(name): return None
        found = self.server.hub.repos[name].at(revision)
        if not found: self.refuse(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return found

    def visit(self):
        asked = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if 'chunked' in self.headers.get('Transfer-Encoding', ''): body = self.chunks()
        path = unquote(asked.path)
        self.server.hub.visits.append((self.command, path, body, self.headers.get('Authorization', '')))
        for method, pattern, answer in ROUTES:
            if self.command in method and (m := re.fullmatch(pattern, path)):
                return answer(self, *m.groups(), query=parse_qs(asked.query), body=body)
        self.refuse(404, '', f'no such address: {self.command} {path}')

    do_GET = do_HEAD = do_POST = do_PUT = visit

    def chunks(self) -> bytes:
        out = b''
        while n := int(self.rfile.readline(), 16):
            out += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return out

    # ---- writing

    def create(self, query, body):
        asked, hub = json.loads(body), self.server.hub
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get('private') or asked.get('visibility') == 'private'
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token not in hub.tokens:
            return self.refuse(401, '', f'Invalid credentials in Authorization header: {token}')
        if hub.tokens[token] != 'write': return self.refuse(403, '', 'Forbidden')
        there, hub.repos[name] = name in hub.repos, hub.repos.get(name) or Repo(bool(private))
        if not there: hub.repos[name].commit({'.gitattributes': b'*.safetensors filter=lfs'})
        page = f'{hub.url}/{name}'
        self.reply(409 if there else 200, dict(url=page, error='You already created this model repo'))

    def check_yaml(self, query, body): self.reply(body=dict(errors=[], warnings=[]))

    def preupload(self, name, revision, query, body):
        if self.wrong(name, write=True): return
        files = [dict(path=f['path'], uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular',
                      shouldIgnore=False) for f in json.loads(body)['files']]
        self.reply(body=dict(files=files))

    def lfs(self, name, query, body):
        if self.wrong(name, write=True): return
        objects = [dict(oid=o['oid'], size=o['size'], actions=dict(
            upload=dict(href=f"{self.server.hub.store}/store/{name}/{o['oid']}?{SIGNATURE}"),
            verify=dict(href=f'{self.server.hub.url}/{name}.git/info/lfs/verify')))
            for o in json.loads(body)['objects']]
        self.reply(body=dict(transfer='basic', objects=objects))

    def store(self, name, oid, query, body):
        self.server.hub.stored[oid] = body
        self.reply()

    def fetch(self, name, oid, query, body):
        data, cut = self.server.hub.stored[oid], self.server.hub.scenes.get(name) == 'cut'
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[:100] if cut else data)
        self.close_connection = self.close_connection or cut

    def verify(self, name, query, body):
        o = json.loads(body)
        data = self.server.hub.stored.get(o['oid'], b'')
        whole = len(data) == o['size'] and hashlib.sha256(data).hexdigest() == o['oid']
        self.reply(200 if whole else 422)

    def commit(self, name, revision, query, body):
        if self.wrong(name, write=True): return
        new, hub = {}, self.server.hub
        for line in map(json.loads, body.splitlines()):
            v = line['value']
            if line['key'] == 'file': new[v['path']] = base64.b64decode(v['content'])
            if line['key'] == 'lfsFile': new[v['path']] = hub.stored[v['oid']]
        hub.repos[name].commit(new)
        oid = hub.repos[name].commits[-1][0]
        self.reply(body=dict(success=True, commitOid=oid, commitUrl=f'{hub.url}/{name}/commit/{oid}'))

    # ---- reading

    def info(self, name, revision=None, *, query, body):
        if not (found := self.files(name, revision or 'main')): return
        scene, sizes = self.server.hub.scenes.get(name), {k: len(v) for k, v in found[1].items()}
        if scene == 'huge': sizes['last.safetensors'] = 5 << 30
        files = [dict(rfilename=k, size=n, blobId=sha(found[1][k])) for k, n in sizes.items()]
        self.reply(body=dict(_id=name, id=name, modelId=name, sha=found[0], siblings=files,
                             private=self.server.hub.repos[name].private, tags=[], downloads=0, likes=0))

    def tree(self, name, revision, query, body):
        if not (found := self.files(name, revision)): return
        self.reply(body=[dict(type='file', path=k, size=len(v), oid=sha(v)) for k, v in found[1].items()])

    def resolve(self, name, revision, path, query, body):
        if not (found := self.files(name, revision)): return
        if path not in found[1]: return self.refuse(404, 'EntryNotFound', 'Entry not found')
        data, hub = found[1][path], self.server.hub
        oid = hashlib.sha256(data).hexdigest()
        if not path.endswith('.safetensors'):
            return self.reply(body=data, ETag=f'"{sha(data)}"', X_Repo_Commit=found[0])
        hub.stored[oid] = data
        self.reply(302, Location=f'{hub.store}/store/{name}/{oid}?{SIGNATURE}', X_Repo_Commit=found[0],
                   X_Linked_Etag=f'"{oid}"', X_Linked_Size=str(len(data)))


NAME = r'([^/]+/[^/]+)'
ROUTES = [
    ('POST', '/api/repos/create', Visit.create),
    ('POST', '/api/validate-yaml', Visit.check_yaml),
    ('POST', f'/api/models/{NAME}/preupload/(.+)', Visit.preupload),
    ('POST', rf'/{NAME}\.git/info/lfs/objects/batch', Visit.lfs),
    ('PUT', f'/store/{NAME}/(.+)', Visit.store),
    ('GET', f'/store/{NAME}/(.+)', Visit.fetch),
    ('POST', rf'/{NAME}\.git/info/lfs/verify', Visit.verify),
    ('POST', f'/api/models/{NAME}/commit/(.+)', Visit.commit),
    ('GET', f'/api/models/{NAME}(?:/revision/(.+))?', Visit.info),
    ('GET', f'/api/models/{NAME}/tree/(.+)', Visit.tree),
    ('GET HEAD', f'/{NAME}/resolve/([^/]+)/(.+)', Visit.resolve)]


class FakeHub:
    "with FakeHub() as hub: ... hub.url, hub.repos, hub.visits"
    def __init__(self):
        self.repos, self.stored, self.scenes, self.visits = {}, {}, {}, []
        self.tokens = {}  # token -> 'write' or 'read'

    def __enter__(self):
        self.server = s = ThreadingHTTPServer(('127.0.0.1', 0), Visit)
        s.handle_error = lambda *args: None  # a visitor that hangs up is nothing to report
        s.daemon_threads, s.hub, self.url = True, self, f'http://127.0.0.1:{s.server_port}'
        self.store = f'http://localhost:{s.server_port}' # for the client another host
        threading.Thread(target=s.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()
