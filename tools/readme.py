"""The README for the package's page: its pictures and links, relative to the repository, become addresses.

    python tools/readme.py     rewrites README.md in place, before a release is built and nowhere else
"""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import sync


def absolute(text: str, s) -> str: # s: settings.ini
    "Links lead to the repository at this version's tag, pictures to its raw files."
    at = sync.blob(s).replace(f"/blob/{s['branch']}/", f"/blob/v{s['version']}/")
    def address(m):
        mark, words, path = m.groups()
        base = at.replace('/blob/', '/raw/') if mark else at
        return f'{mark}[{words}]({base}{path})'
    return re.sub(r'(!?)\[([^][]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)', address, text)


if __name__ == '__main__':
    page = sync.ROOT/'README.md'
    page.write_text(absolute(page.read_text(encoding='utf-8'), sync.settings()), encoding='utf-8')
