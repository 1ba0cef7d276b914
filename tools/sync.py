"""Carry owner, repository and version from settings.ini into the lessons' badges and set-up cells and the README.

    python tools/sync.py            write
    python tools/sync.py --check    exit 1 and name the files that are not in step
"""
import configparser, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def settings() -> configparser.SectionProxy:
    c = configparser.ConfigParser()
    c.read(ROOT/'settings.ini')
    return c['DEFAULT']


def in_step(text: str, s) -> str:
    "The text with every mention of the repository and its tag as settings.ini has them."
    home = f"github.com/{s['user']}/{s['repo']}"
    text = re.sub(r'github\.com/[\w.-]+/pokegan\b', home, text)
    text = re.sub(r'colab\.research\.google\.com/github/[\w.-]+/pokegan/blob/[\w.-]+', f"colab.research.google.com/github/{s['user']}/{s['repo']}/blob/{s['branch']}", text)
    return re.sub(rf'({re.escape(home)})@v[\d.]+\d', rf"\1@v{s['version']}", text)


def files() -> list:
    return [*sorted((ROOT/'nbs').glob('[0-9]*.ipynb')), ROOT/'README.md']


def main():
    s, off = settings(), []
    for f in files():
        old = f.read_text()
        new = in_step(old, s)
        if f.suffix == '.ipynb': json.loads(new)
        if new != old: off.append(f.name)
        if new != old and '--check' not in sys.argv: f.write_text(new)
    if off: print(('not in step with settings.ini: ' if '--check' in sys.argv else 'brought into step: ') + ', '.join(off))
    sys.exit(bool(off) and '--check' in sys.argv)


if __name__ == '__main__': main()
