"""Images per second: the tutorial loop that people copy, and pokegan's trainer, on the same networks.

    python benchmarks/throughput.py [--threads 2] [--minutes 2] [--no-bf16] [--parts] [--recipe dcgan-quick]

(a) torchvision's ImageFolder of JPEGs + DataLoader, Sigmoid + BCELoss, three backward passes, float32.
(b) `pokegan.train.Trainer` on the image store, as `pokegan train` runs it: in bfloat16 if the machine has it.
The loops take turns of equal length, so that a busy machine disturbs all alike. Printed are medians over the
rounds, by the clock and by processor time (which other work disturbs less); ratios, taken within a round; and
(b)'s share of the speed at which this machine multiplies matrices, measured between the turns.
--no-bf16: as on a machine without bfloat16. --parts: from (a) to (b) in steps; whence comes the factor?
--recipe: networks and game of a recipe of the DCGAN family at 64 px; otherwise those of the DCGAN paper.
"""
import argparse, json, os, platform, statistics, tempfile, time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pokegan.core import has_bf16
from pokegan.creatures import draw
from pokegan.data import Images, load_images, to_float
from pokegan.models.dcgan import GANRecipe
from pokegan.models.recipe import make_trainer
from pokegan.recipes import recipe

ROUNDS = 5


def processor() -> str:
    "The processor's name, as Linux gives it, or what Python knows."
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.exists() else []
    fields = dict(l.split(':', 1) for l in reversed(lines) if ':' in l)
    names = {k.strip(): v.strip() for k, v in fields.items()}
    if 'model name' not in names: return platform.processor() or platform.machine()
    return f"{names['model name']} (family {names.get('cpu family', '?')}, model {names.get('model', '?')})"


def photos(folder: Path, n: int, side: int):
    "A folder of JPEGs as photographs come: creatures on white, side x side px."
    from PIL import Image
    (folder/'all').mkdir(parents=True)
    for i, a in enumerate(draw(n, side, seed=0).rgba):
        im = Image.fromarray(a)
        white = Image.new('RGBA', im.size, 'white')
        Image.alpha_composite(white, im).convert('RGB').save(folder/'all'/f'{i:05d}.jpg', quality=90)


def from_files(folder: Path, batch: int) -> Iterator:
    "Batches (b,3,64,64) as tutorials read them: every JPEG is opened and resized again in every epoch."
    from torchvision import datasets, transforms as T
    tfm = T.Compose([T.Resize(64), T.CenterCrop(64), T.ToTensor(), T.Normalize([.5]*3, [.5]*3)])
    files = datasets.ImageFolder(folder, tfm)
    loader = torch.utils.data.DataLoader(files, batch, shuffle=True, drop_last=True, num_workers=0)
    while True: yield from (x for x, _ in loader)


def from_memory(images: Images, batch: int, memory_format=torch.contiguous_format) -> Iterator:
    "The same from the store, where pictures are decoded once."
    while True:
        x = images.x[torch.randint(len(images), (batch,))]
        yield to_float(x).contiguous(memory_format=memory_format)


def tutorial(batches: Iterator[Tensor], G: nn.Module, D: nn.Module):
    "The loop as it is copied from page to page; yields after each step."
    D, criterion = nn.Sequential(D, nn.Sigmoid()), nn.BCELoss()
    opt_G, opt_D = (torch.optim.Adam(m.parameters(), 2e-4, (.5, .999)) for m in (G, D))
    for x in batches:
        ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
        D.zero_grad()
        criterion(D(x), ones).backward()
        fake = G(torch.randn(len(x), G.nz))
        criterion(D(fake.detach()), zeros).backward()
        opt_D.step()
        G.zero_grad()
        criterion(D(fake), ones).backward()
        opt_G.step()
        yield


def ours(images: Images, r: GANRecipe):
    "pokegan's trainer; yields after each step."
    t = make_trainer(r, images, device='cpu')
    while True:
        t.one_step()
        yield t


def loops(folder: Path, r: GANRecipe, parts: bool) -> dict:
    "Name -> loop, the tutorial's first and ours last; with `parts` those between, one change after another."
    images, last = load_images(str(folder), r.size), torch.channels_last
    steps = {'tutorial loop': tutorial(from_files(folder, r.batch), *r.networks(0).values())}
    if parts:
        steps['pictures from memory'] = tutorial(from_memory(images, r.batch), *r.networks(0).values())
        nets = [m.to(memory_format=last) for m in r.networks(0).values()]
        steps['and channels last'] = tutorial(from_memory(images, r.batch, last), *nets)
        if r.amp: steps['pokegan in float32'] = ours(images, replace(r, amp=False))
    return steps | {'pokegan': ours(images, r)}


def matmul(dtype: torch.dtype, seconds: float = .6, n: int = 2048) -> float:
    "FLOP per second of processor time of n x n matrix products."
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    a @ b
    k, t0, c0 = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - t0 < seconds:
        a @ b
        k += 1
    return k*2*n**3/(time.process_time() - c0)


def turn(loop, seconds: float, batch: int) -> tuple: # images per second, by the clock and by processor time
    "Steps until the time is up, at least two."
    t0, c0, n = time.perf_counter(), time.process_time(), 0
    while n < 2 or time.perf_counter() - t0 < seconds:
        next(loop)
        n += 1
    return n*batch/(time.perf_counter() - t0), n*batch/(time.process_time() - c0)


def measure(steps: dict, batch: int, seconds: float, dtypes: list) -> tuple: # {name: rates}, {type: FLOP/s}
    "All loops take turns, `ROUNDS` times, for `seconds` in all; a list of what each round gave."
    each = seconds/ROUNDS/len(steps)
    rates, speed = {k: [] for k in steps}, {str(k).removeprefix('torch.'): [] for k in dtypes}
    for _ in range(ROUNDS):
        for k, loop in steps.items(): rates[k].append(turn(loop, each, batch))
        for k, dtype in zip(speed, dtypes): speed[k].append(matmul(dtype))
    return rates, speed


def summary(rates: dict) -> dict: # name -> images/s and ratio to the first loop
    "Medians, by the clock and by processor time; a ratio within a round, whose sides saw the same machine."
    first, out = next(iter(rates.values())), {}
    for name, own in rates.items():
        for i, by in enumerate(('clock', 'processor')):
            ratio = statistics.median(o[i]/f[i] for o, f in zip(own, first))
            row = dict(images_per_s=round(statistics.median(o[i] for o in own), 1), ratio=round(ratio, 2))
            out.setdefault(name, {})[by] = row
    return out


def report(out: dict) -> str:
    "The same for people."
    machine = [f'{v} {k}' for k, v in out.items() if k in ('cores', 'threads')]
    bf16 = 'bfloat16' if out['bfloat16'] else 'no bfloat16'
    lines = [', '.join([out['processor'], *machine, f"torch {out['torch']}", bf16]),
             f"{'images/s':20}{'by the clock':>18}{'by processor time':>22}"]
    for name, row in out['loops'].items():
        clock, cpu = (f"{row[k]['images_per_s']} × {row[k]['ratio']:.2f}" for k in ('clock', 'processor'))
        lines.append(f'{name:20}{clock:>18}{cpu:>22}')
    shares = [f"{out['gflops']/v:.0%} of {k} matrix products ({v})" for k, v in out['matrix_gflops'].items()]
    lines.append(f"GFLOP per second of processor time: pokegan {out['gflops']}, {' and '.join(shares)}")
    return '\n'.join(lines)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--minutes', type=float, default=2, help='for all of it')
    p.add_argument('--no-bf16', action='store_true', help='as on a machine without bfloat16')
    p.add_argument('--parts', action='store_true', help='the steps between the two loops as well')
    p.add_argument('--recipe', help='one of the DCGAN family, of 64 px')
    p.add_argument('--photo', type=int, default=256, help='side of the JPEGs, px')
    p.add_argument('--json', action='store_true')
    return p.parse_args()


def main():
    a, start = arguments(), time.perf_counter()
    torch.set_num_threads(a.threads)
    bf16 = has_bf16(torch.device('cpu')) and not a.no_bf16  # emulated, its matrix products would take minutes
    dtypes = [torch.float32, torch.bfloat16] if bf16 else [torch.float32]
    r = recipe(a.recipe) if a.recipe else GANRecipe('dcgan', 'Radford 2015', head='conv')
    r = replace(r, amp=bf16)  # the paper's: z 100, 64 base filters, 64 px, batch 64
    with tempfile.TemporaryDirectory() as tmp:
        photos(Path(tmp)/'jpg', 512, a.photo)
        steps = loops(Path(tmp)/'jpg', r, a.parts)
        for loop in steps.values(): turn(loop, 0, r.batch)  # warm up
        with FlopCounterMode(display=False) as count: next(steps['pokegan'])
        left = 60*a.minutes - (time.perf_counter() - start) - ROUNDS*len(dtypes)
        rates, speed = measure(steps, r.batch, max(left, 20), dtypes)
    flop, rows = count.get_total_flops()/r.batch, summary(rates)
    out = dict(processor=processor(), cores=os.cpu_count(), threads=a.threads, torch=torch.__version__)
    out |= dict(bfloat16=bf16, loops=rows, gflop_per_image=round(flop/1e9, 2))
    out['gflops'] = round(flop*rows['pokegan']['processor']['images_per_s']/1e9, 1)
    out['matrix_gflops'] = {k: round(statistics.median(v)/1e9, 1) for k, v in speed.items()}
    print(json.dumps(out) if a.json else report(out))


if __name__ == '__main__': main()
