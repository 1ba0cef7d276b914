"""How do several judges see the same finished runs, and what does a bound on their latents change?

    python benchmarks/judges.py compare/*-0 --data data/kaggle819-64 \\
        --features effnet-lite0 runs/encoder-species-1 [--truncation 1] [--step 2082] [--n 1024] [--out OUT]

A judge is an extractor of lesson 08a, or the folder of a trained encoder. Each run is scored as `pokegan
evaluate` does it, but nothing is stored in its folder. With --truncation every run is drawn a second time
with that bound (lesson 14a). Rows go to OUT.csv as they are measured, and what is there already is not
measured again; OUT.md is the table, floor and ceiling of each judge below.
"""
import argparse
from pathlib import Path

from pokegan.compare import row_unit, show_value
from pokegan.core import replacing
from pokegan.data import load_images, to_uint8
from pokegan.metrics import METRICS, real_reference, score_images
from pokegan.models.encoder import named_features
from pokegan.runs import load_run
from truncation import read, write

KEYS = ['run', 'step', 'data', 'judge', 'n', 'truncation']
SCORES = ['kid', 'fid', 'precision', 'recall', 'memorised']
COLUMNS = [*KEYS, 'kid_se', *SCORES, *(f'{k}_{e}' for e in ('floor', 'ceiling') for k in SCORES)]


def measure(run, bound: float|None, n: int, ref) -> dict:
    "One row: KID is times 1000, shares are from 0 to 1."
    s = score_images(to_uint8(run.sample(n, truncation=bound)), ref)
    row = dict(kid_se=row_unit('kid')*s['kid'].se) | {k: row_unit(k)*s[k].value for k in SCORES}
    ends = ('floor', 'ceiling')
    return row | {f'{k}_{e}': row_unit(k)*getattr(s[k], e) for e in ends for k in SCORES}


def line(cells: list, r: dict, end: str = '') -> str:
    "One line of the table; `end` chooses '', '_floor' or '_ceiling'."
    kid, *others = (show_value(k, float(r[k + end])) for k in SCORES)
    if not end: kid += f" ± {show_value('kid', float(r['kid_se']))}"
    return '| ' + ' | '.join([*cells, kid, *others]) + ' |'


def table(rows: list) -> str:
    "Markdown: for each judge its runs, best KID first, then its floor and ceiling."
    heads = ['judge', 'run', 'bound', 'step', *(METRICS[k].title for k in SCORES)]
    lines = ['| ' + ' | '.join(heads) + ' |', '|---'*len(heads) + '|']
    ends = dict(floor='real against real', ceiling='noise')
    for judge in dict.fromkeys(r['judge'] for r in rows):
        own = [r for r in rows if r['judge'] == judge]
        own.sort(key=lambda r: METRICS['kid'].order(float(r['kid'])))
        for r in own:
            lines.append(line([judge, r['run'], r['truncation'] or 'none', f"{int(r['step']):,}"], r))
        for end, what in ends.items():
            lines.append(line([judge, f'{end}: {what}', '', ''], own[0], f'_{end}'))
    return '\n'.join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('runs', nargs='+', help='run folders')
    p.add_argument('--data', required=True, help='the real images')
    p.add_argument('--features', nargs='+', default=['effnet-lite0'], help='judges')
    p.add_argument('--truncation', type=float, help='score each run with this bound as well')
    p.add_argument('--step', type=int, help='a checkpoint that was kept; default the last')
    p.add_argument('--n', type=int, default=1024)
    p.add_argument('--out', default='judges')
    a = p.parse_args()
    runs = [load_run(r, step=a.step) for r in a.runs]
    sizes = {r.recipe.size for r in runs}
    if len(sizes) > 1: p.error(f'the runs draw pictures of {sorted(sizes)} px; compare those of one size')
    images, path = load_images(a.data, sizes.pop()), Path(f'{a.out}.csv')
    rows = read(path)
    for judge in a.features:
        ref = None
        for run in runs:
            for bound in (None, a.truncation) if a.truncation else (None,):
                key = dict(run=run.folder.name, step=str(run.info['step']), data=images.fingerprint)
                key |= dict(judge=Path(judge).name, n=str(a.n))
                key['truncation'] = '' if bound is None else f'{bound:g}'
                if any(r.items() >= key.items() for r in rows): continue
                ref = ref or real_reference(images, named_features(judge))
                rows.append(key | {k: f'{v:.6g}' for k, v in measure(run, bound, a.n, ref).items()})
                write(path, rows, COLUMNS)
    with replacing(Path(f'{a.out}.md')) as t: t.write_text(table(rows) + '\n', encoding='utf-8')
    print(table(rows))


if __name__ == '__main__': main()
