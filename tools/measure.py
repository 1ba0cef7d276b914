"""How long each lesson takes: runs it and writes its processor seconds into nbs/course.toml.

    OMP_NUM_THREADS=1 python tools/measure.py [LESSON.ipynb …]     default: all, half an hour on one core

Cells marked slow, gpu or kaggle wait to be asked for (lesson 06d), as they do for a learner.
Processor seconds are the kernel's own, whatever else runs.
"""
import re, resource, sys, tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parent))
import sync


def used() -> float: # processor seconds of all processes that have ended
    r = resource.getrusage(resource.RUSAGE_CHILDREN)
    return r.ru_utime + r.ru_stime


def seconds(lesson: Path) -> float:
    "Raises nbclient's CellExecutionError where a cell fails."
    book = nbformat.read(lesson, 4)
    before = used()
    with tempfile.TemporaryDirectory() as d:
        how = dict(timeout=3600, kernel_name='python3', resources=dict(metadata=dict(path=d)))
        NotebookClient(book, **how).execute()
    return used() - before


def main():
    for lesson in [*map(Path, sys.argv[1:])] or sync.lessons():
        n, took = sync.number(lesson), seconds(lesson)
        text = sync.COURSE.read_text(encoding='utf-8')
        text = re.sub(rf'^{n} = {{ run = \d+', f'{n} = {{ run = {took:.0f}', text, flags=re.M)
        sync.COURSE.write_text(text, encoding='utf-8')
        print(f'{lesson.name}: {took:.0f} s', flush=True)


if __name__ == '__main__': main()
