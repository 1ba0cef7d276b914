"""Where does truncation pay? KID, precision and recall against the bound t, and psi at the same spread.

    python benchmarks/truncation.py runs/dcgan-819-1 runs/projected-1 --data data/kaggle819-64 \\
        [--n 512] [--out truncation]

Each t is paired with the psi that leaves latents the same standard deviation: what differs is whether tails
are cut or everything is shrunk. For uniform latents both are the same thing. Besides, the pictures half-way
between pairs of latents, by slerp and by lerp (lesson 14b). Rows go to OUT.csv as they are measured, and
what is there already is not measured again, so runs on other data can join with a second call; OUT.png
draws all of them, OUT.md is the table.
"""
import argparse, csv, math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pokegan.compare import row_unit, show_value
from pokegan.core import replacing
from pokegan.data import load_images
from pokegan.metrics import METRICS, real_reference, score_images
from pokegan.metrics.features import extractor
from pokegan.latents.priors import sample
from pokegan.latents.walks import lerp, slerp
from pokegan.runs import load_run

BOUNDS = (2., 1.5, 1., .5)
KEYS = ['run', 'step', 'data', 'features', 'n', 'seed', 'knob', 'value']
VALUES = ['spread', 'kid', 'kid_se', 'kid_floor', 'precision', 'precision_floor',
          'recall', 'recall_floor', 'memorised']


def spread(t: float) -> float:
    "Standard deviation of a standard normal truncated to (-t, t)."
    return math.sqrt(1 - 2*t*math.exp(-t*t/2)/math.sqrt(2*math.pi)/math.erf(t/math.sqrt(2)))


def settings(uniform: bool) -> list:
    "(knob, value, spread), the untouched prior first."
    ways = [('none', '', 1.), ('half-way', 'slerp', 1.), ('half-way', 'lerp', .5**.5)]
    if uniform: return ways + [('t', f'{spread(t):.2f}', spread(t)) for t in BOUNDS]
    for t in BOUNDS: ways += [('t', f'{t:g}', spread(t)), ('psi', f'{spread(t):.2f}', spread(t))]
    return ways


def latents(run, n: int, seed: int, knob: str, value: str) -> torch.Tensor:
    "(n,nz) with one setting."
    if knob == 'none': return run.latents(n, seed)
    if knob == 't': return run.latents(n, seed, truncation=float(value))
    if knob == 'psi': return run.latents(n, seed, psi=float(value))
    return dict(slerp=slerp, lerp=lerp)[value](*run.latents(2*n, seed).chunk(2), torch.full((n,), .5))


def measure(run, ref, n: int, seed: int, knob: str, value: str) -> dict:
    "One row: new pictures with one setting, scored."
    s = score_images(sample(run.G, latents(run, n, seed, knob, value)), ref)
    row = dict(kid_se=row_unit('kid')*s['kid'].se, memorised=s['memorised'].value)
    for k in ('kid', 'precision', 'recall'):
        row |= {k: row_unit(k)*s[k].value, f'{k}_floor': row_unit(k)*s[k].floor}
    return row


def read(path: Path) -> list:
    if not path.exists(): return []
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))


def write(path: Path, rows: list, columns: list):
    with replacing(path) as p, open(p, 'w', newline='', encoding='utf-8') as f:
        w = csv.DictWriter(f, columns)
        w.writeheader()
        w.writerows(rows)


def by_run(rows: list) -> dict: # (run, step) -> its rows
    out = {}
    for r in rows: out.setdefault((r['run'], r['step']), []).append(r)
    return out


def table(rows: list) -> str:
    "Markdown: a line for each run and setting."
    shown = ['precision', 'recall', 'memorised']
    heads = ['run', 'knob', 'spread kept', *(METRICS[k].title for k in ('kid', *shown))]
    lines = ['| ' + ' | '.join(heads) + ' |', '|---'*len(heads) + '|']
    for (run, step), own in by_run(rows).items():
        for r in own:
            knob = r['knob'] if r['knob'] == 'none' else f"{r['knob']} {r['value']}"
            kid = f"{show_value('kid', float(r['kid']))} ± {show_value('kid', float(r['kid_se']))}"
            cells = [run, knob, f"{float(r['spread']):.2f}", kid]
            cells += [show_value(k, float(r[k])) for k in shown]
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def curves(ax, own: list, key: str, colour: str):
    "One score of one run against the spread: cut tails solid, shrunk dashed, the floor dotted."
    for knob, style, name in (('t', 'o-', 'truncated'), ('psi', 'x--', 'shrunk')):
        line = [r for r in own if r['knob'] in (knob, 'none')]
        if len(line) < 2: continue
        x, y, se = ([float(r[k]) for r in line] for k in ('spread', key, 'kid_se'))
        label = name if key == 'kid' else key if knob == 't' else None
        ax.errorbar(x, y, se if key == 'kid' else None, fmt=style, c=colour, ms=4, lw=1.2, label=label)
    ax.axhline(float(own[0][f'{key}_floor']), c=colour, ls=':', lw=1)


def draw(rows: list) -> Figure:
    "KID above, precision and recall below, for each run."
    runs, cols = by_run(rows), 3
    fig = Figure(figsize=(9, 4*-(-len(runs)//cols)), dpi=80, layout='constrained')
    axes = fig.subplots(2*-(-len(runs)//cols), cols, squeeze=False)
    for ax in axes.flat: ax.set_visible(False)
    for i, ((run, step), own) in enumerate(runs.items()):
        top, low = axes[2*(i//cols), i % cols], axes[2*(i//cols) + 1, i % cols]
        curves(top, own, 'kid', 'C3')
        curves(low, own, 'precision', 'C0')
        curves(low, own, 'recall', 'C1')
        top.set_title(f'{run}, step {int(step):,}', fontsize=9)
        top.set_ylim(0)
        low.set_ylim(-.03, 1)
        for ax in (top, low):
            ax.set_visible(True)
            ax.grid(alpha=.3)
            ax.set_xlim(1.05, .22)
        low.set_xlabel('spread of the latents that is kept', fontsize=8)
        if i % cols == 0:
            top.set_ylabel(METRICS['kid'].title)
            low.set_ylabel('share')
        if i == 0:
            for ax in (top, low): ax.legend(fontsize=7)
    title = 'From left to right, more and more of the rare latents is left out. Dotted: real against real'
    fig.suptitle(title, fontsize=10)
    return fig


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('runs', nargs='*')
    p.add_argument('--data', help='the real pictures; default: only draw what is in OUT.csv')
    p.add_argument('--n', type=int, default=512, help='generated pictures for each setting')
    p.add_argument('--reals', type=int, default=4096, help='real pictures to compare with, at most')
    p.add_argument('--features', default='effnet-lite0')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--device')
    p.add_argument('--out', type=Path, default=Path('truncation'), help='path of OUT.csv, OUT.md and OUT.png')
    a = p.parse_args()
    path = a.out.with_suffix('.csv')
    rows, runs = read(path), [load_run(r) for r in a.runs]
    if runs:
        images = load_images(a.data, runs[0].recipe.size)
        ref = real_reference(images, extractor(a.features, a.device), limit=a.reals)
    for run in runs:
        uniform = 'mixture' not in run.nets and run.recipe.latent == 'uniform'
        for knob, value, kept in settings(uniform):
            card = (run.folder.name, run.info['step'], ref.card['data'], a.features, a.n, a.seed, knob, value)
            key = dict(zip(KEYS, map(str, card)))
            if any(r.items() >= key.items() for r in rows): continue
            row = dict(spread=kept) | measure(run, ref, a.n, a.seed, knob, value)
            rows.append(key | {k: f'{v:.5g}' for k, v in row.items()})
            write(path, rows, KEYS + VALUES)
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    a.out.with_suffix('.md').write_text(table(rows) + '\n', encoding='utf-8')
    with replacing(a.out.with_suffix('.png')) as q: draw(rows).savefig(q, format='png')
    print(f"{path}, {a.out.with_suffix('.md')}, {a.out.with_suffix('.png')}")


if __name__ == '__main__': main()
