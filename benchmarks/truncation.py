"""Where does truncation pay? KID, precision and recall of finished runs against the bound t, and against psi at the same spread.

    python benchmarks/truncation.py runs/dcgan-819-1 runs/projected-1 --data data/kaggle819-64 [--n 512] [--out truncation]

Each t is paired with the psi that leaves latents the same standard deviation: what differs is whether tails are cut or everything is shrunk.
For uniform latents both are the same thing. Besides, the pictures half-way between pairs of latents, by slerp and by lerp (lesson 14b). Rows go to OUT.csv as they are measured, and what is there already is not measured again, so runs
on other data can join with a second call; OUT.png draws all of them, OUT.md is the table.
"""
import argparse, csv, math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pokegan.callbacks import replacing
from pokegan.data import load_images
from pokegan.features import extractor
from pokegan.metrics import real_reference, score_images
from pokegan.recipes import load_run
from pokegan.road import slerp
from pokegan.sampling import sample
from pokegan.walks import lerp

BOUNDS = (2., 1.5, 1., .5)
KEYS, VALUES = ['run', 'step', 'data', 'features', 'n', 'seed', 'knob', 'value'], ['spread', 'kid', 'kid_se', 'kid_floor', 'precision', 'precision_floor', 'recall', 'recall_floor', 'memorised']


def spread(t: float) -> float:
    "Standard deviation of a standard normal truncated to (-t, t)."
    return math.sqrt(1 - 2*t*math.exp(-t*t/2)/math.sqrt(2*math.pi)/math.erf(t/math.sqrt(2)))


def settings(uniform: bool) -> list:
    "(knob, value, spread), the untouched prior first."
    ways = [('none', '', 1.), ('half-way', 'slerp', 1.), ('half-way', 'lerp', .5**.5)]
    if uniform: return ways + [('t', f'{spread(t):.2f}', spread(t)) for t in BOUNDS]
    return ways + [(k, v, spread(t)) for t in BOUNDS for k, v in (('t', f'{t:g}'), ('psi', f'{spread(t):.2f}'))]


def latents(run, n: int, seed: int, knob: str, value: str) -> torch.Tensor:
    "(n,nz) with one setting."
    if knob != 'half-way': return run.latents(n, seed, truncation=float(value) if knob == 't' else None, psi=float(value) if knob == 'psi' else 1.)
    return dict(slerp=slerp, lerp=lerp)[value](*run.latents(2*n, seed).chunk(2), torch.full((n,), .5))


def measure(run, ref, n: int, seed: int, knob: str, value: str) -> dict:
    "One row: new pictures with one setting, scored."
    s = score_images(sample(run.G, latents(run, n, seed, knob, value)), ref)
    return dict(kid=1000*s['kid'].value, kid_se=1000*s['kid'].se, kid_floor=1000*s['kid'].floor, memorised=s['memorised'].value,
                **{f'{k}{e}': getattr(s[k], v) for k in ('precision', 'recall') for e, v in (('', 'value'), ('_floor', 'floor'))})


def read(path: Path) -> list:
    if not path.exists(): return []
    with open(path, newline='') as f: return list(csv.DictReader(f))


def write(path: Path, rows: list, columns: list):
    with replacing(path) as p, open(p, 'w', newline='') as f:
        w = csv.DictWriter(f, columns)
        w.writeheader()
        w.writerows(rows)


def by_run(rows: list) -> dict: return {k: [r for r in rows if (r['run'], r['step']) == k] for k in dict.fromkeys((r['run'], r['step']) for r in rows)}


def table(rows: list) -> str:
    "Markdown: a line for each run and setting."
    lines = ['| run | knob | spread kept | KID ×1000 | precision | recall | memorised |', '|---'*7 + '|']
    for (run, step), own in by_run(rows).items():
        for r in own:
            v = {k: float(r[k]) for k in VALUES}
            knob = r['knob'] if r['knob'] == 'none' else f"{r['knob']} {r['value']}"
            lines.append(f"| {run} | {knob} | {v['spread']:.2f} | {v['kid']:.1f} ± {v['kid_se']:.1f} | {v['precision']:.2f} | {v['recall']:.2f} | {v['memorised']:.1%} |")
    return '\n'.join(lines)


def draw(rows: list) -> Figure:
    "KID above, precision and recall below, for each run; cut tails solid, shrunk dashed; the floor dotted."
    runs, cols = by_run(rows), 3
    fig = Figure(figsize=(9, 4*-(-len(runs)//cols)), dpi=80, layout='constrained')
    axes = fig.subplots(2*-(-len(runs)//cols), cols, squeeze=False)
    for ax in axes.flat: ax.set_visible(False)
    for i, ((run, step), own) in enumerate(runs.items()):
        top, low = axes[2*(i//cols), i % cols], axes[2*(i//cols) + 1, i % cols]
        for ax, key, colour in ((top, 'kid', 'C3'), (low, 'precision', 'C0'), (low, 'recall', 'C1')):
            for knob, style in (('t', 'o-'), ('psi', 'x--')):
                line = [(float(r['spread']), float(r[key]), float(r['kid_se'])) for r in own if r['knob'] in (knob, 'none')]
                if len(line) < 2: continue
                x, y, se = zip(*line)
                name = key if key != 'kid' else {'t': 'truncated', 'psi': 'shrunk'}[knob]
                ax.errorbar(x, y, se if key == 'kid' else None, fmt=style, c=colour, ms=4, lw=1.2, label=name if knob == 't' or key == 'kid' else None)
            ax.axhline(float(own[0][f'{key}_floor']), c=colour, ls=':', lw=1)
        top.set_title(f'{run}, step {int(step):,}', fontsize=9)
        top.set_ylim(0)
        low.set_ylim(-.03, 1)
        for ax in (top, low):
            ax.set_visible(True)
            ax.grid(alpha=.3)
            ax.set_xlim(1.05, .22)
        low.set_xlabel('spread of the latents that is kept', fontsize=8)
        if i % cols == 0:
            top.set_ylabel('KID × 1000')
            low.set_ylabel('share')
        if i == 0:
            for ax in (top, low): ax.legend(fontsize=7)
    fig.suptitle('From left to right, more and more of the rare latents is left out. Dotted: real against real', fontsize=10)
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
    if runs: ref = real_reference(load_images(a.data, runs[0].recipe.size), extractor(a.features, a.device), limit=a.reals)
    for run in runs:
        for knob, value, kept in settings('mixture' not in run.nets and run.recipe.latent == 'uniform'):
            key = dict(zip(KEYS, map(str, (run.folder.name, run.info['step'], ref.card['data'], a.features, a.n, a.seed, knob, value))))
            if any(r.items() >= key.items() for r in rows): continue
            rows.append(key | {k: f'{v:.5g}' for k, v in (dict(spread=kept) | measure(run, ref, a.n, a.seed, knob, value)).items()})
            write(path, rows, KEYS + VALUES)
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    a.out.with_suffix('.md').write_text(table(rows) + '\n')
    with replacing(a.out.with_suffix('.png')) as q: draw(rows).savefig(q, format='png')
    print(f"{path}, {a.out.with_suffix('.md')}, {a.out.with_suffix('.png')}")


if __name__ == '__main__': main()
