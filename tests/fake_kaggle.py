"""A small stand-in for Kaggle on 127.0.0.1, for the real clients to talk to.

The owner in a handle names the scene that the server plays (see SCENES); the data set's name is free.
Two routes exist: the RPC calls that both clients POST, and the storage that a download is redirected to.
"""
import base64, hashlib, io, json, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

SIGNATURE = 'X-Goog-Signature=c0ffee5ecre7'   # Kaggle's storage addresses are signed; they must not be shown


def archive(names=('images/a.png', 'images/b.png', 'images/c.png'), filler=0):
    "A zip with a small picture under each name, and `filler` bytes that do not compress."
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for i, name in enumerate(names):
            png = io.BytesIO()
            Image.linear_gradient('L').rotate(90*i).resize((32, 32)).save(png, 'PNG')
            z.writestr(name, png.getvalue())
        if filler:
            noise = b''.join(hashlib.sha256(b'%d' % i).digest() for i in range(filler//32))
            z.writestr('filler.bin', noise)
    return out.getvalue()


SETS = [dict(ref='ash/pallet', title='Creatures from Pallet', totalBytes=81_000_000),
        dict(ref='misty/cerulean', title='Creatures from Cerulean')]   # what a search finds
GOOD, LARGE = archive(), archive(filler=3 << 20)
SCENES = {
    'fine': {}, 'kvpratama': {}, 'djilax': {},
    'private': dict(token=True),                             # 403 unless the visitor shows a token
    **{f'status{c}': dict(status=c) for c in (401, 403, 404, 429, 500)},
    'echo': dict(status=500, echo=True),                     # an error that repeats the visitor's token
    'cut': dict(body=LARGE, cut=1), 'cutcut': dict(body=LARGE, cut=2),   # drops the line so many times
    'stall': dict(stall=True),                               # starts an answer and never goes on
    'badsum': dict(md5=b'of something else', times=1),       # once
    'half': dict(body=LARGE[:len(LARGE)//2], times=1),
    'page': dict(body=b'<html>come back later</html>', times=1),
    'slip': dict(body=archive(['ok.png', '../../escaped.png'])),
    'absolute': dict(body=archive(['ok.png', '/tmp/escaped.png'])),
}


class Visit(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def reply(self, status, body=b'', **headers):
        self.send_response(status)
        headers = {'Content-Type': 'application/json', 'Content-Length': str(len(body)), **headers}
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get('Content-Length', 0))) or '{}')
        call, owner = self.path.rsplit('/', 1)[1], asked.get('ownerSlug', '')
        scene, auth = SCENES.get(owner, dict(status=404)), self.headers.get('Authorization', '')
        if call == 'ListDatasets': scene = SCENES.get(asked.get('search'), {})   # the words name the scene
        self.server.visits.append(dict(call=call, owner=owner, auth=auth))
        if call == 'IntrospectToken':
            return self.reply(200, json.dumps(dict(active=True, username='ash')).encode())
        status = 403 if scene.get('token') and not auth else scene.get('status')
        if status:
            message = f'visitor sent {auth}' if scene.get('echo') else f'status {status}'
            body = json.dumps(dict(code=status, message=message)).encode()
            return self.reply(status, body, **({'Retry-After': '7'} if status == 429 else {}))
        if call == 'ListDatasets': return self.reply(200, json.dumps(dict(datasets=SETS)).encode())
        if call == 'DownloadDataset': return self.reply(302, Location=f'/store/{owner}.zip?{SIGNATURE}')
        return self.reply(200, json.dumps(dict(currentVersionNumber=3, title='stand-in')).encode())

    def do_GET(self):
        owner = self.path.split('/')[-1].split('.zip')[0]
        asked, scene = self.headers.get('Range', ''), SCENES[owner]
        self.server.visits.append(dict(call='GET', owner=owner, range=asked))
        self.server.fetched[owner] = n = self.server.fetched.get(owner, 0) + 1
        if n > scene.get('times', n): scene = {}
        body = scene.get('body', GOOD)
        digest = base64.b64encode(hashlib.md5(scene.get('md5', body)).digest()).decode()
        start = int(asked[6:-1]) if asked else 0
        self.send_response(206 if asked else 200)
        headers = {'Content-Type': 'application/zip', 'Content-Length': str(len(body)-start),
                   'Accept-Ranges': 'bytes', 'ETag': f'"{len(body)}"',
                   'Last-Modified': 'Thu, 01 Jan 2026 00:00:00 GMT', 'x-goog-hash': f'md5={digest}'}
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()
        cuts = self.server.cuts
        if scene.get('stall'):
            self.wfile.write(body[:8])
            self.wfile.flush()
            self.server.over.wait(60)
        elif cuts.get(owner, 0) < scene.get('cut', 0):
            # a client that resumes asks twice, first for all:
            # it hangs up on that answer, which is no cut of ours
            try: self.wfile.write(body[start:start + (len(body)-start)//2])
            except OSError: return
            if asked or n == 1: cuts[owner] = cuts.get(owner, 0) + 1
            self.close_connection = True
        else:
            try: self.wfile.write(body[start:])
            except OSError: pass   # the visitor hung up


class FakeKaggle:
    "with FakeKaggle() as k: ... k.url, k.visits"
    def __enter__(self):
        self.server = s = ThreadingHTTPServer(('127.0.0.1', 0), Visit)
        s.handle_error = lambda *args: None   # a visitor that hangs up is nothing to report
        s.daemon_threads, s.visits, s.fetched, s.cuts, s.over = True, [], {}, {}, threading.Event()
        self.url, self.visits = f'http://127.0.0.1:{s.server_port}', s.visits
        threading.Thread(target=s.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.over.set()
        self.server.shutdown()
        self.server.server_close()


def point_clients_at(url):
    "In the child process, before the clients are imported: their servers are ours."
    import kagglesdk.kaggle_env as env
    for place in (env.KaggleEnv.LOCAL, env.KaggleEnv.PROD): env._env_to_endpoint[place] = url
