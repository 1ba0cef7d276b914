// The page: a generator, a grid of what it makes, and what one can do with each of them.
'use strict';

const at = id => document.getElementById(id);

function el(tag, props = {}, ...children) { // names that begin with aria- or data- are attributes
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props)) {
    if (k.includes('-') || k === 'role' || k === 'for') e.setAttribute(k, v);
    else if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else e[k] = v;
  }
  e.append(...children);
  return e;
}

// ---- the generator ----

async function bytes(name) { // what lies in the page, or beside it
  const here = at(`data-${name}`);
  const source = here ? `data:application/octet-stream;base64,${here.textContent}` : `${name}.bin`;
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`${name}.bin is missing`);
  here?.remove();
  return new Response(answer.body.pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
}

async function runtime() {
  const script = new Blob([await bytes('ort.mjs')], {type: 'text/javascript'});
  const ort = await import(URL.createObjectURL(script));
  Object.assign(ort.env.wasm, {wasmBinary: await bytes('ort.wasm'), numThreads: 1});
  ort.env.logLevel = 'error';
  return ort;
}

class Network { // one of the models of the page: rows of floats in, rows of floats out
  constructor(ort, session) { Object.assign(this, {ort, session}); }

  static async open(ort, name) {
    const options = {executionProviders: ['wasm'], graphOptimizationLevel: 'all'};
    return new Network(ort, await ort.InferenceSession.create(new Uint8Array(await bytes(name)), options));
  }

  async run(rows, shape = []) { // Float32Arrays -> Float32Arrays
    const data = new Float32Array(rows.length*rows[0].length);
    rows.forEach((r, i) => data.set(r, i*r.length));
    const dims = shape.length ? [rows.length, ...shape] : [rows.length, rows[0].length];
    const out = (await this.session.run({input: new this.ort.Tensor('float32', data, dims)})).output;
    const n = out.data.length/rows.length;
    return rows.map((_, i) => out.data.slice(i*n, (i+1)*n));
  }
}

function floats(facts, data) { // the buffers of the prior, as facts name and order them
  const out = {};
  let from = 0;
  for (const {name, shape} of facts.buffers) {
    const n = shape.reduce((a, b) => a*b, 1);
    out[name] = {shape, data: data.subarray(from, from+n)};
    from += n;
  }
  return out;
}

function pixels(x, size) { // (3·size·size) in [-1, 1] -> ImageData
  const out = new ImageData(size, size), n = size*size;
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) out.data[4*i+c] = Math.round(127.5*(Math.min(1, Math.max(-1, x[c*n+i])) + 1));
    out.data[4*i+3] = 255;
  }
  return out;
}

function values(image) { // ImageData -> (3·size·size) in [-1, 1]
  const n = image.width*image.height, out = new Float32Array(3*n);
  for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) out[c*n+i] = image.data[4*i+c]/127.5 - 1;
  return out;
}

// ---- what the page knows ----

const facts = JSON.parse(at('facts').textContent);
const TILES = 24, AT_ONCE = 4, WILD = 10; // one creature in so many is not truncated when surprises are wanted
let G, reader, prior, chosen = null, partner = null, breeding = false, round = 0, shown = [], walk = null;

function say(text, wrong = false) {
  at('say').textContent = text;
  at('say').classList.toggle('wrong', wrong);
}

function anySeed() { return crypto.getRandomValues(new Uint32Array(1))[0] % 1e6; }

function setting(id) { return at(id) ? +at(id).value : 0; }
function truncation() { return setting('truncation') >= 4 ? null : setting('truncation'); }
function kind() { return at('kind') && at('kind').value !== '' ? +at('kind').value : null; }

function wild(i) { // creature number i of the grid
  const free = at('surprise').checked && i % WILD === WILD-1;
  return {how: 'seed', seed: (setting('seed') + i) % 2**32, t: free ? null : truncation(), kind: kind()};
}

function offspring(i) {
  const n = round*TILES + i, d = setting('difference')/100;
  if (partner) return Latents.creature(prior, {how: 'bred', n, d}, [chosen, partner]);
  return Latents.creature(prior, {how: 'child', n, d}, [chosen]);
}

function describe(c) { // for people who hear the page, and for the line below the picture
  const {g, parents} = c, of = facts.kinds[g.kind] ? `, ${facts.kinds[g.kind]}` : '';
  if (g.how === 'seed') return `seed ${g.seed}${of}${g.t ? `, truncated at ${g.t}` : ''}`;
  if (g.how === 'picture') return 'in the likeness of your picture';
  if (g.how === 'bred') return `child ${g.n} of two`;
  return `child ${g.n} of ${parents[0].g.how === 'seed' ? describe(parents[0]) : 'a child'}`;
}

// ---- the grid ----

async function picture(c) { // -> ImageData, drawn once
  c.image ||= pixels((await G.run([c.z]))[0], facts.size);
  return c.image;
}

function paint(canvas, image) {
  canvas.width = canvas.height = facts.size;
  canvas.getContext('2d').putImageData(image, 0, 0);
}

let drawing = 0; // the number of the grid that is wanted; an older one stops
async function fill(make, first = 0) { // make: number of a tile -> creature
  const mine = ++drawing, tiles = [...at('grid').children];
  shown = tiles.map((_, i) => make(i + first));
  for (let i = 0; i < shown.length; i += AT_ONCE) {
    const part = shown.slice(i, i+AT_ONCE), out = await G.run(part.map(c => c.z));
    if (mine !== drawing) return;
    part.forEach((c, k) => {
      c.image = pixels(out[k], facts.size);
      paint(tiles[i+k].firstChild, c.image);
      tiles[i+k].setAttribute('aria-label', `creature, ${describe(c)}`);
      tiles[i+k].setAttribute('aria-pressed', 'false');
    });
    await new Promise(done => setTimeout(done)); // the page stays alive
  }
  document.body.dataset.drawn = mine; // for tests: the grid is whole
}

function refresh() { // the grid that belongs to what is chosen
  if (chosen) return fill(offspring);
  return fill(i => Latents.creature(prior, wild(i)));
}

function fresh() { // other ones of the same kind
  if (chosen) round++;
  else at('seed').value = anySeed();
  remember();
  return refresh();
}

// ---- one creature ----

async function choose(c) {
  if (breeding && chosen && c !== chosen) {
    partner = c;
    breeding = false;
    at('breed').setAttribute('aria-pressed', 'false');
    say('Their children. A click on one goes on with it.');
  } else {
    [chosen, partner] = [c, null];
    say('Its children. A click on one goes on with it.');
  }
  round = 0;
  await show();
  remember();
  return refresh();
}

async function show() { // the stage and the family
  stop();
  at('stage').hidden = !chosen;
  at('breed').disabled = !chosen;
  if (!chosen) return;
  paint(at('large'), await picture(chosen));
  at('large').setAttribute('aria-label', `creature, ${describe(chosen)}`);
  at('what').textContent = describe(chosen) + (partner ? `; with ${describe(partner)}` : '');
  at('family').replaceChildren(await tree(partner ? [chosen, partner] : [chosen]));
}

function leave() {
  [chosen, partner, breeding] = [null, null, false];
  at('breed').setAttribute('aria-pressed', 'false');
  say('');
  show();
  remember();
  return refresh();
}

async function tree(ends) { // the ancestors of some creatures, a row for each generation
  const all = new Map(), rows = [], side = 56, gap = 16, NS = 'http://www.w3.org/2000/svg';
  for (const c of ends) Latents.ancestry(c, all);
  const row = new Map();
  for (const c of all.keys()) {
    row.set(c, c.parents.length ? 1 + Math.max(...c.parents.map(p => row.get(p))) : 0);
    (rows[row.get(c)] ||= []).push(c);
  }
  const make = (tag, props, ...children) => {
    const e = document.createElementNS(NS, tag);
    for (const [k, v] of Object.entries(props)) e.setAttribute(k, v);
    e.append(...children);
    return e;
  };
  const x = c => rows[row.get(c)].indexOf(c)*(side+gap) + 4, y = c => row.get(c)*(side+gap) + 4;
  const width = Math.max(...rows.map(r => r.length))*(side+gap) + 8, height = rows.length*(side+gap) + 8;
  const svg = make('svg', {width, height, role: 'group', 'aria-label': 'family tree'});
  for (const c of all.keys()) for (const p of c.parents) {
    const ends = {x1: x(p)+side/2, y1: y(p)+side, x2: x(c)+side/2, y2: y(c)};
    svg.append(make('line', ends));
  }
  const canvas = el('canvas');
  for (const c of all.keys()) {
    paint(canvas, await picture(c));
    const box = {x: x(c), y: y(c), width: side, height: side};
    const link = make('a', {tabindex: 0, role: 'button', 'aria-label': describe(c)},
      make('rect', {...box, fill: '#fff', stroke: ends.includes(c) ? '#1d5fa8' : '#c9ced6', 'stroke-width': 2}),
      make('image', {...box, href: canvas.toDataURL()}));
    link.addEventListener('click', () => choose(c));
    link.addEventListener('keydown', e => { if (e.key === 'Enter') choose(c); });
    svg.append(link);
  }
  return svg;
}

// ---- to keep ----

function save(blob, name) {
  const link = el('a', {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1e4);
  say(`${name} is saved.`);
}

function enlarged(image) { // by a whole factor, to 256 px or so -> canvas
  const times = Math.max(1, Math.floor(256/facts.size)), small = el('canvas'), large = el('canvas');
  paint(small, image);
  large.width = large.height = times*facts.size;
  const pen = large.getContext('2d');
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, large.width, large.width);
  return large;
}

async function keepPng() { enlarged(await picture(chosen)).toBlob(b => save(b, 'creature.png')); }

async function copyLink() {
  const link = location.href;
  try { await navigator.clipboard.writeText(link); say('The link is copied.'); }
  catch { say(`The link is in the address line: ${link.slice(0, 60)} …`); }
}

// ---- a walk: from the chosen one past strangers and back ----

async function makeWalk(mine, stops = 4, frames = 12) { // mine: the walk of this click, which another may stop
  const seed = Latents.hash(chosen.key), zs = [chosen.z];
  for (let i = 1; i < stops; i++) zs.push(prior.keepKind(prior.wild((seed+i) >>> 0, truncation()), chosen.z));
  const images = [];
  for (let i = 0; i < stops; i++) for (let k = 0; k < frames; k++) {
    const z = prior.between(zs[i], zs[(i+1) % stops], k/frames);
    images.push(pixels((await G.run([z]))[0], facts.size));
    if (mine.stopped) return images;
    paint(at('large'), images.at(-1));
    await new Promise(done => setTimeout(done, 30));
  }
  return images;
}

function stop() {
  if (walk) { walk.stopped = true; clearInterval(walk.timer); }
  walk = null;
  if (at('walk')) { at('walk').textContent = 'Walk'; at('gif').hidden = true; }
}

async function toggleWalk() {
  if (walk) { stop(); return paint(at('large'), await picture(chosen)); }
  const mine = walk = {stopped: false, images: []};
  at('walk').textContent = 'Stop';
  mine.images = await makeWalk(mine);
  if (mine.stopped) return;
  at('gif').hidden = false;
  let i = 0;
  mine.timer = setInterval(() => paint(at('large'), mine.images[++i % mine.images.length]), 80);
}

function keepGif() {
  say('Writing the GIF …');
  const frames = walk.images.map(f => enlarged(f).getContext('2d'));
  const side = frames[0].canvas.width, data = frames.map(p => p.getImageData(0, 0, side, side).data);
  save(new Blob([Gif.encode(data, side, side)], {type: 'image/gif'}), 'walk.gif');
}

// ---- a picture of one's own ----

async function likeness(file) {
  if (!file) return;
  say('Looking at your picture …');
  try {
    reader ||= await Network.open(G.ort, 'reader');
    const image = await square(file), told = (await reader.run([image], [3, facts.size, facts.size]))[0];
    let z = told;
    if (told.length < prior.size) { // a code, and around it what the code leaves open
      z = prior.wild(Latents.hash(Latents.pack(told.slice(0, 8))));
      z.set(told, prior.nz);
      if (prior.classes) z.set(prior.about(nearest(told)).subarray(told.length), prior.nz + told.length);
    }
    await choose(Latents.creature(prior, {how: 'picture', code: Latents.pack(z)}));
    say('The likeness that it has found, and its children. Your picture stays on this machine.');
  } catch (e) { say(`This picture cannot be used: ${e.message}`, true); }
}

function nearest(code) { // the number of the training picture with the nearest code
  const {data} = prior.buffers.codes, nc = code.length;
  let best = 0, least = Infinity;
  for (let i = 0; i < data.length/nc; i++) {
    let d = 0;
    for (let k = 0; k < nc; k++) d += (data[i*nc+k] - code[k])**2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}

async function square(file) { // on white, padded, small -> (3·size·size) in [-1, 1]
  const image = await createImageBitmap(file).catch(() => { throw new Error('it is no PNG, JPEG, WebP or GIF'); });
  const side = Math.max(image.width, image.height), big = el('canvas'), small = el('canvas');
  big.width = big.height = Math.min(side, 2048);
  small.width = small.height = facts.size;
  const pen = big.getContext('2d'), k = big.width/side;
  pen.fillStyle = '#fff';
  pen.fillRect(0, 0, side, side);
  pen.imageSmoothingQuality = 'high';
  pen.drawImage(image, k*(side-image.width)/2, k*(side-image.height)/2, k*image.width, k*image.height);
  const fine = small.getContext('2d', {willReadFrequently: true});
  fine.imageSmoothingEnabled = big.width > facts.size;
  fine.imageSmoothingQuality = 'high';
  fine.drawImage(big, 0, 0, facts.size, facts.size);
  return values(fine.getImageData(0, 0, facts.size, facts.size));
}

// ---- the address: whoever has the link sees the same ----

function remember() {
  const words = new URLSearchParams();
  if (chosen) words.set('family', Latents.toText(chosen));
  if (partner) words.set('with', Latents.toText(partner));
  if (!chosen) {
    words.set('seed', at('seed').value);
    if (truncation()) words.set('t', truncation());
    if (kind() !== null) words.set('kind', kind());
    if (at('surprise').checked) words.set('surprise', 1);
  }
  const address = `#${words}`;
  if (address !== location.hash) history.pushState(null, '', address);
}

async function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  [chosen, partner, round] = [null, null, 0];
  try {
    if (words.has('family')) chosen = Latents.fromText(prior, words.get('family')).at(-1);
    if (words.has('with') && chosen) partner = Latents.fromText(prior, words.get('with')).at(-1);
  } catch (e) { [chosen, partner] = [null, null]; say(`${e.message}; here are others.`, true); }
  const seed = Number(words.get('seed') || 0);
  at('seed').value = Number.isInteger(seed) && seed >= 0 && seed < 2**32 ? seed : 0;
  if (words.has('t')) at('truncation').value = words.get('t');
  if (at('kind') && words.has('kind')) at('kind').value = words.get('kind');
  at('surprise').checked = words.has('surprise');
  tellTruncation();
  await show();
  return refresh();
}

// ---- controls ----

function tellTruncation() {
  const t = truncation();
  at('truncation-is').textContent = t ? t.toFixed(1) : 'off';
}

function slider(id, label, min, max, step, value, heard) {
  const input = el('input', {id, type: 'range', min, max, step, value, onchange: heard});
  return el('label', {}, label, input, el('output', {id: `${id}-is`, for: id}));
}

function build() {
  const again = () => { remember(); return refresh(); };
  const tiles = Array.from({length: TILES}, (_, i) => el('button', {
    'aria-pressed': 'false', 'aria-label': 'creature', onclick: () => shown[i] && choose(shown[i]),
  }, el('canvas', {width: facts.size, height: facts.size})));
  const seed = el('input', {id: 'seed', type: 'number', min: 0, max: 2**32-1, step: 1, value: 0, onchange: () => {
    at('seed').value = Math.min(2**32-1, Math.max(0, Math.floor(setting('seed')) || 0));
    return leave();
  }});
  const wildOnes = el('div', {className: 'bar'},
    el('button', {id: 'fresh', className: 'main', onclick: fresh, title: 'or press the space bar'}, 'New creatures'),
    el('label', {}, 'seed', seed));
  if (facts.kinds.length) {
    const all = [el('option', {value: ''}, 'any'), ...facts.kinds.map((k, i) => el('option', {value: i}, k))];
    wildOnes.append(el('label', {}, facts.label, el('select', {id: 'kind', onchange: leave}, ...all)));
  }
  wildOnes.append(slider('truncation', 'truncation', .3, 4, .1, 4, () => { tellTruncation(); return leave(); }),
    el('label', {}, el('input', {id: 'surprise', type: 'checkbox', onchange: leave}), 'surprise me'));
  at('truncation')?.addEventListener('input', tellTruncation);
  const stage = el('div', {id: 'stage', hidden: true},
    el('canvas', {id: 'large', role: 'img', width: facts.size, height: facts.size}),
    el('div', {},
      el('p', {id: 'what'}),
      el('div', {className: 'bar'}, slider('difference', 'how different', 5, 100, 5, 30, () => {
        tellDifference();
        return again();
      })),
      el('div', {className: 'bar'},
        el('button', {id: 'breed', 'aria-pressed': 'false', onclick: toggleBreed}, 'Breed with …'),
        el('button', {id: 'walk', onclick: toggleWalk}, 'Walk'),
        el('button', {id: 'gif', hidden: true, onclick: keepGif}, 'Keep GIF'),
        el('button', {id: 'png', onclick: keepPng}, 'Keep PNG'),
        el('button', {id: 'link', onclick: copyLink}, 'Copy link'),
        el('button', {id: 'back', onclick: leave}, 'Back to wild ones')),
      el('h2', {}, 'Family'), el('div', {id: 'family'})));
  const own = el('input', {id: 'own', type: 'file', accept: 'image/*', onchange: e => likeness(e.target.files[0])});
  const bars = [wildOnes];
  if (facts.reads) bars.push(el('div', {className: 'bar'}, el('label', {}, 'find the likeness of a picture', own)));
  at('creatures').append(...bars, stage, el('div', {id: 'grid', role: 'group', 'aria-label': 'creatures'}, ...tiles));
  tellDifference();
  tellTruncation();
}

function tellDifference() { at('difference-is').textContent = `${setting('difference')} %`; }

function toggleBreed() {
  breeding = !breeding;
  at('breed').setAttribute('aria-pressed', String(breeding));
  if (!breeding) return say('');
  say('Click the other parent.');
  return fill(i => Latents.creature(prior, wild(i))); // strangers to choose from
}

function openTab(name) {
  for (const id of ['creatures', 'game']) {
    at(id).hidden = id !== name;
    at(`tab-${id}`).setAttribute('aria-selected', String(id === name));
    at(`tab-${id}`).tabIndex = id === name ? 0 : -1;
  }
  if (name === 'game' && !at('game').firstChild) Game.mount(at('game'));
}

function listen() {
  for (const id of ['creatures', 'game']) {
    at(`tab-${id}`).addEventListener('click', () => openTab(id));
    at(`tab-${id}`).addEventListener('keydown', e => {
      if (!['ArrowLeft', 'ArrowRight'].includes(e.key)) return;
      const other = id === 'game' ? 'creatures' : 'game';
      openTab(other);
      at(`tab-${other}`).focus();
    });
  }
  addEventListener('keydown', e => {
    const typing = e.target.closest?.('button, input, select, a, #game');
    if (at('creatures').hidden || e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.key === ' ' && !typing) { e.preventDefault(); fresh(); }
    if (e.key === 'Escape' && chosen) leave();
    moveFocus(e);
  });
  addEventListener('popstate', recall);
  const page = at('creatures');
  for (const kind of ['dragover', 'dragleave', 'drop']) addEventListener(kind, e => {
    e.preventDefault();
    page.classList.toggle('drop', kind === 'dragover' && facts.reads);
    if (kind === 'drop' && facts.reads) likeness(e.dataTransfer.files[0]);
  });
}

function moveFocus(e) { // arrow keys walk through the grid
  const tiles = [...at('grid').children], i = tiles.indexOf(document.activeElement);
  if (i < 0) return;
  const columns = getComputedStyle(at('grid')).gridTemplateColumns.split(' ').length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[e.key];
  if (!step) return;
  e.preventDefault();
  tiles[i+step]?.focus();
}

async function start() {
  document.title = at('name').textContent = facts.name;
  at('about').textContent = facts.about;
  build();
  listen();
  try {
    const ort = await runtime();
    G = await Network.open(ort, 'G');
    const buffers = facts.buffers.length ? floats(facts, new Float32Array(await bytes('prior'))) : {};
    prior = new Latents.Prior(facts, buffers);
    say('');
    await recall();
  } catch (e) {
    const served = 'These files are for a web server. On your own computer, run in their folder: python -m http.server';
    const fetched = location.protocol === 'file:' && e instanceof TypeError; // a page in one file fetches nothing
    say(fetched ? served : `The generator cannot be opened: ${e.message}`, true);
  }
}

start();
