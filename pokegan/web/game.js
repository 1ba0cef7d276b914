// A GAN in the plane that one can watch and steer, as lesson 04 plays it, with its mathematics written out.
// `Game.mount(section)` builds the interface; the rest needs no page, so that Node can test it.
const Game = (() => {
  'use strict';
  const BATCH = 32, NZ = 4, WIDTH = 64, LEAK = .2, RATE = 4e-3, R1 = .1, STD = .1, SHOWN = 300;
  const EDGE = 3, GRID = 44, PALE = [248, 248, 244], BLUE = [84, 148, 210], ORANGE = [240, 164, 84];
  const INK = '#15151f', NAVY = '#1f5fa8', PLUM = '#5b0f3c'; // the colours of real points, of D, of G

  function random(seed) { // mulberry32; normals after Box and Muller 1958
    const spare = [];
    let state = seed >>> 0;
    function uniform() {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0)/2**32;
    }
    function normal() {
      if (spare.length) return spare.pop();
      const [x, y] = onCircle(uniform(), Math.sqrt(-2*Math.log(1 - uniform())));
      spare.push(y);
      return x;
    }
    return {uniform, normal, below: n => Math.floor(n*uniform())};
  }
  const onCircle = (turn, r) => [r*Math.cos(2*Math.PI*turn), r*Math.sin(2*Math.PI*turn)];

  // y = Wx for n points x, four at a time (n is a multiple of 4), which is what makes it fast. W[o][i] is
  // w[o*across + i*along], so that one loop serves W and its transpose; biases, if meant, begin at w[bias].
  function product(w, across, along, outs, ins, x, y, n, bias = -1) {
    for (let p = 0; p < n; p += 4) for (let o = 0; o < outs; o++) {
      const x0 = p*ins, x1 = x0 + ins, x2 = x1 + ins, x3 = x2 + ins, at = p*outs + o;
      let a = bias < 0 ? 0 : w[bias+o], b = a, c = a, d = a;
      for (let i = 0, k = o*across; i < ins; i++, k += along) {
        const v = w[k];
        a += v*x[x0+i]; b += v*x[x1+i]; c += v*x[x2+i]; d += v*x[x3+i];
      }
      y[at] = a; y[at+outs] = b; y[at+2*outs] = c; y[at+3*outs] = d;
    }
  }
  function outer(g, outs, ins, d, x, n, bias = 0) { // adds W's gradient: d times x, summed over the points
    for (let p = 0; p < n; p += 4) for (let o = 0; o < outs; o++) {
      const x0 = p*ins, x1 = x0 + ins, x2 = x1 + ins, x3 = x2 + ins, at = p*outs + o;
      const a = d[at], b = d[at+outs], c = d[at+2*outs], e = d[at+3*outs];
      for (let i = 0, k = o*ins; i < ins; i++, k++) g[k] += a*x[x0+i] + b*x[x1+i] + c*x[x2+i] + e*x[x3+i];
      g[outs*ins+o] += bias*(a + b + c + e);
    }
  }
  function leak(a, y, n) { // the leaky ReLU and its slope alike: where y is below 0, a is made smaller
    for (let i = 0; i < n; i++) if (y[i] < 0) a[i] *= LEAK;
  }

  class Net { // an MLP; the points of a batch lie one after another
    constructor(sizes, rng) {
      this.moves = this.room = 0;
      this.layers = sizes.slice(1).map((outs, l) => {
        const ins = sizes[l], w = new Float64Array(outs*ins + outs); // the last are biases
        for (let k = 0; k < outs*ins; k++) w[k] = Math.sqrt(2/ins)*rng.normal(); // He 2015
        return {ins, outs, w, g: w.slice().fill(0), m: w.slice().fill(0), v: w.slice().fill(0)};
      });
    }

    makeRoom(n) { // per layer: outputs, gradients of the sums, tangents
      for (const layer of this.layers) for (const k of 'ydt') layer[k] = new Float64Array(n*layer.outs);
      this.dx = new Float64Array(n*this.layers[0].ins);
      this.room = n;
    }

    forward(x, n) { // outputs of n points, in an array that the next call writes over
      if (n > this.room) this.makeRoom(n);
      this.x = x;
      this.layers.forEach(({w, ins, outs, y}, l) => {
        product(w, ins, 1, outs, ins, l ? this.layers[l-1].y : x, y, n, outs*ins);
        if (l < this.layers.length-1) leak(y, y, n*outs);
      });
      return this.layers.at(-1).y;
    }

    backward(slopes, n, learn = true) { // slopes by the outputs -> by the inputs; learn: by the weights too
      this.layers.at(-1).d.set(slopes);
      for (let l = this.layers.length-1; l >= 0; l--) {
        const {w, g, ins, outs, d} = this.layers[l], below = this.layers[l-1];
        if (learn) outer(g, outs, ins, d, below ? below.y : this.x, n, 1);
        product(w, 1, ins, ins, outs, d, below ? below.d : this.dx, n);
        if (below) leak(below.d, below.y, n*below.outs);
      }
      return this.dx;
    }

    // R1 (Mescheder 2018) at the first n points of the last forward: weight/2 of the mean squared slope. The
    // net is linear around a point, so this gradient is the slope sent ahead once more, without biases.
    penalty(n, weight) {
      let t = this.backward(new Float64Array(n).fill(1), n, false).slice(0, n*this.layers[0].ins);
      const value = t.reduce((sum, s) => sum + s*s, 0)*weight/2/n;
      t = t.map(s => s*weight/n);
      for (const layer of this.layers) {
        outer(layer.g, layer.outs, layer.ins, layer.d, t, n);
        product(layer.w, layer.ins, 1, layer.outs, layer.ins, t, layer.t, n);
        leak(layer.t, layer.y, n*layer.outs); // of the last layer nothing is used
        t = layer.t;
      }
      return value;
    }

    adam(rate, b1 = .5, b2 = .9, eps = 1e-8) { // Kingma and Ba 2015; the gradient is used up
      this.moves++;
      const c1 = 1 - b1**this.moves, c2 = 1 - b2**this.moves;
      for (const {w, g, m, v} of this.layers) for (let k = 0; k < w.length; k++) {
        m[k] += (1 - b1)*(g[k] - m[k]);
        v[k] += (1 - b2)*(g[k]*g[k] - v[k]);
        w[k] -= rate*m[k]/c1/(Math.sqrt(v[k]/c2) + eps);
        g[k] = 0;
      }
    }
  }

  // Each gives [value, slope]: d of one logit and its target (1 real, 0 made up), g of the logit of a fake.
  // D takes for real what lies above `mid`; `steep` says how fast its field takes on colour.
  const sigmoid = l => 1/(1 + Math.exp(-l));
  const softplus = l => Math.max(l, 0) + Math.log1p(Math.exp(-Math.abs(l)));
  const entropy = (l, t) => [softplus(l) - t*l, sigmoid(l) - t], square = (l, t) => [(l - t)**2/2, l - t];
  const margin = (l, sign) => sign*l < 1 ? [1 - sign*l, -sign] : [0, 0];
  const LOSSES = {
    bce: {name: 'cross-entropy (non-saturating)', mid: 0, steep: .5, d: entropy, g: l => entropy(l, 1)},
    minimax: {name: 'minimax', mid: 0, steep: .5, d: entropy, g: l => [-softplus(l), -sigmoid(l)]},
    hinge: {name: 'hinge', mid: 0, steep: 1, d: (l, t) => margin(l, 2*t - 1), g: l => [-l, -1]},
    squares: {name: 'least squares', mid: .5, steep: 2, d: square, g: l => square(l, 1)},
  };

  function blobs(name, centres, std = STD) {
    return {name, centres, draw: rng => centres[rng.below(centres.length)].map(c => c + std*rng.normal())};
  }
  function moon(rng) { // the second is the first, turned by half a circle
    const [x, y] = onCircle(rng.uniform()/2, 1.5), side = rng.below(2) ? 1 : -1;
    return [x - .75, y - .4].map(v => side*v + STD*rng.normal());
  }
  const DATA = {
    ring: blobs('ring of eight', [0, 1, 2, 3, 4, 5, 6, 7].map(k => onCircle(k/8, 2))),
    moons: {name: 'two moons', draw: moon},
    grid: blobs('square of nine', [-1.6, 0, 1.6].flatMap((x, _, all) => all.map(y => [x, y]))),
    blob: {name: 'one blob', draw: blobs('', [[.8, .5]], .4).draw},
    own: {name: 'draw your own', draw: (rng, own) => blobs('', own, .03).draw(rng)},
  };

  function near(a, b, r) { // the share of points of a that have one of b within r
    let count = 0;
    for (let i = 0; i < a.length; i += 2) for (let j = 0; j < b.length; j += 2) {
      if ((a[i]-b[j])**2 + (a[i+1]-b[j+1])**2 < r*r) { count++; break; }
    }
    return 2*count/a.length;
  }
  const share = (values, test) => values.filter(test).length/values.length;
  const flat = pairs => Float64Array.from(pairs.flat());
  const normals = (rng, n) => Float64Array.from({length: n}, rng.normal);

  class Play { // one game; a step is a move of D and a move of G
    constructor({data = 'ring', loss = 'bce', seed = 0, own = []} = {}) {
      Object.assign(this, {data: DATA[data], loss: LOSSES[loss], own});
      Object.assign(this, {who: 'both', next: 'D', rateD: RATE, rateG: RATE, r1: 0});
      this.steps = this.lossD = this.lossG = 0;
      this.rng = random(seed);
      this.G = new Net([NZ, WIDTH, WIDTH, 2], this.rng);
      this.D = new Net([2, WIDTH, WIDTH, 1], this.rng);
      this.batch = new Float64Array(4*BATCH); // reals, then fakes
      this.shown = normals(random(~seed), NZ*SHOWN); // looking on does not disturb the game
      [this.smooth, this.trace] = [[0, 0], [[], []]]; // of both losses; the trace has every fourth step
    }

    get ready() { return this.data !== DATA.own || this.own.length > 0; }
    reals(n, rng) { return flat(Array.from({length: n}, () => this.data.draw(rng, this.own))); }
    step() { do this.move(); while (this.next === 'G'); }

    move() { // of one player; who does not learn looks on
      if (!this.ready) return;
      if (this.next === 'D') this.moveD(); else this.moveG();
      this.next = this.next === 'D' ? 'G' : 'D';
    }

    moveD() {
      this.z = normals(this.rng, NZ*BATCH);
      this.batch.set(this.reals(BATCH, this.rng));
      this.batch.set(this.G.forward(this.z, BATCH).subarray(0, 2*BATCH), 2*BATCH);
      const logits = this.D.forward(this.batch, 2*BATCH), slopes = new Float64Array(2*BATCH);
      this.lossD = this.price(logits, slopes, (l, k) => this.loss.d(l, k < BATCH ? 1 : 0));
      if (this.who === 'G') return;
      this.D.backward(slopes, 2*BATCH);
      if (this.r1) this.D.penalty(BATCH, this.r1);
      this.D.adam(this.rateD);
    }

    moveG() { // the same fakes, before a D that has just moved; D only passes the message on
      const logits = this.D.forward(this.G.forward(this.z, BATCH), BATCH), slopes = new Float64Array(BATCH);
      this.lossG = this.price(logits, slopes, this.loss.g);
      this.record();
      if (this.who === 'D') return;
      this.G.backward(this.D.backward(slopes, BATCH, false).subarray(0, 2*BATCH), BATCH);
      this.G.adam(this.rateG);
    }

    price(logits, slopes, loss) { // the loss, a mean over BATCH of each kind of point; fills in its slopes
      let sum = 0;
      for (let k = 0; k < slopes.length; k++) {
        const [value, slope] = loss(logits[k], k);
        sum += value/BATCH;
        slopes[k] = slope/BATCH;
      }
      return sum;
    }

    record() {
      this.steps++;
      [this.lossD, this.lossG].forEach((loss, k) => {
        this.smooth[k] = this.steps > 1 ? .95*this.smooth[k] + .05*loss : loss;
        if (this.steps % 4 === 1) this.trace[k].push(this.smooth[k]);
      });
    }

    made() { return this.G.forward(this.shown, SHOWN).slice(0, 2*SHOWN); }
    opinion(points) { return this.D.forward(points, points.length/2).slice(0, points.length/2); }
    pushes(points) { // what each point hears: the loss of G, downhill
      const slopes = this.opinion(points).map(l => -this.loss.g(l)[1]);
      return this.D.backward(slopes, slopes.length, false).slice(0, points.length);
    }

    measure(reals, made = this.made()) { // a mode is covered, a point good, as lesson 04 counts them
      const {mid} = this.loss, {centres} = this.data, push = this.pushes(made);
      const hits = (centres || []).map(c => near(made, c, 4*STD));
      const lengths = push.filter((_, k) => k % 2).map((y, k) => Math.hypot(push[2*k], y)).sort();
      return {
        right: share(this.opinion(reals), l => l > mid), caught: share(this.opinion(made), l => l <= mid),
        push: lengths[lengths.length >> 1], total: hits.length, modes: hits.filter(h => h >= .02).length,
        good: centres ? near(made, centres.flat(), 4*STD) : near(made, reals, .3),
        reach: near(reals, made, .3), // the share of real points that have one of G's beside them
      };
    }
  }

  const percent = x => Number.isNaN(x) ? '–' : `${Math.round(100*x)} %`;
  const about = x => `about ${10*Math.round(10*x)} %`; // rounded, so that the sentence does not flicker

  function sentence({ready, steps, who, lossD, lossG}, m) { // what one sees
    if (!ready) return 'Draw the real points: press on the square and pull.';
    if (!steps) return 'G must bring its rings onto the dots; it hears of them through D alone. Press Start.';
    if (!Number.isFinite(lossD + lossG + m.push)) return 'The numbers ran away: lower the rates, then Reset.';
    if (who === 'D') return 'Only D learns: watch its field grow steep.';
    if (who === 'G') return 'Only G learns: its points run to where D says "real", and D does not answer.';
    if (m.right > .95 && m.caught > .95) {
      const heard = m.push < .05 ? 'G hears almost nothing' : 'G hears where to go, but not how far';
      return `D is right about nearly every point: ${heard}.`;
    }
    const good = `${about(m.good)} of G's points lie near a ${m.total ? 'mode' : 'real one'}`;
    if (m.total && m.good < .45) return `Only ${good}: D drives them on.`;
    const mild = 2*m.modes > m.total ? 'a mild ' : '';
    if (m.modes < m.total) return `G has found ${m.modes} of ${m.total} modes: ${mild}mode collapse.`;
    if (m.total) return `G covers all ${m.total} modes, and ${good}.`;
    if (m.reach < .75) return `G comes near ${about(m.reach)} of the real points and leaves the others out.`;
    if (m.good < .75) return `G reaches nearly all real points, but only ${good}.`;
    return 'G\'s points lie where the real ones are: D can do little more than guess.';
  }

  const CSS = `
    .game-root { font: 16px/1.45 system-ui, sans-serif; color: #1d1d24; }
    .game-frame { display: flex; flex-wrap: wrap; gap: 14px 28px; }
    .game-left { flex: 0 1 520px; min-width: 280px; }
    .game-right { flex: 1 1 280px; max-width: 520px; min-width: 0; }
    .game-right > * + * { margin-top: 12px; }
    .game-frame canvas { display: block; box-sizing: border-box; width: 100%; border: 1px solid #b9b9c2; }
    .game-plane { aspect-ratio: 1; }
    .game-curve { height: 120px; }
    .game-draw { cursor: crosshair; touch-action: none; }
    .game-row { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; margin: 8px 0; }
    .game-small { font-size: 14px; font-variant-numeric: tabular-nums; gap: 0 16px; }
    .game-says { font-weight: 600; min-height: 2.9em; margin: 8px 0; }
    .game-mark { box-sizing: border-box; display: inline-block;
      width: 11px; height: 11px; margin-right: 6px; }
    .game-dot { width: 6px; height: 6px; border-radius: 50%; background: ${INK}; }
    .game-ring { border-radius: 50%; border: 2px solid ${PLUM}; background: #fff; }
    .game-real { background: rgb(${BLUE}); }
    .game-made { background: rgb(${ORANGE}); }
    .game-root button { font: inherit; padding: 5px 14px; border: 1px solid #77778a; border-radius: 6px;
      background: #f4f4f7; color: inherit; cursor: pointer; }
    .game-root .game-start { background: ${NAVY}; color: #fff; min-width: 5.5em; }
    .game-root :is(select, input[type=number]) { font: inherit; padding: 2px 6px; max-width: 100%; }
    .game-root input[type=range] { width: 100%; margin: 0; }
    .game-root fieldset { border: 1px solid #c9c9d2; border-radius: 6px; min-width: 0; padding: 2px 12px 6px;
      margin-inline: 0; }
    .game-root label { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 6px; min-height: 32px; }
    .game-root [hidden] { display: none; }
    .game-root :focus-visible { outline: 3px solid ${NAVY}; outline-offset: 2px; }`;

  function make(tag, props = {}, ...kids) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(props)) if (k in e) e[k] = v; else e.setAttribute(k, v);
    e.append(...kids);
    return e;
  }
  const div = (name, ...kids) => make('div', {className: name}, ...kids);
  const labelled = (...kids) => make('label', {}, ...kids);
  const group = (title, ...kids) => make('fieldset', {}, make('legend', {}, title), ...kids);
  const button = (text, className = '') => make('button', {type: 'button', className}, text);
  const input = (type, props) => make('input', {type, ...props});
  const menu = of => make('select', {}, ...Object.keys(of).map(key => new Option(of[key].name, key)));

  function atMostEvery(ms, write) { // writes the newest text, and not oftener
    let last = -Infinity, timer = 0, text, written;
    function now() {
      [timer, last, written] = [0, performance.now(), text];
      write(text);
    }
    return newest => {
      text = newest;
      if (!timer && text !== written) timer = setTimeout(now, Math.max(0, last + ms - performance.now()));
    };
  }

  function fit(canvas) { // as many pixels as the screen has there
    const [w, h] = [canvas.clientWidth, canvas.clientHeight].map(size => Math.round(size*devicePixelRatio));
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, {width: w, height: h});
    return canvas.getContext('2d');
  }
  function circles(ctx, at, radius) {
    ctx.beginPath();
    for (let k = 0; k < at.length; k += 2) {
      ctx.moveTo(at[k] + radius, at[k+1]);
      ctx.arc(at[k], at[k+1], radius, 0, 2*Math.PI);
    }
    ctx.fill();
  }
  function arrows(ctx, from, to, head) {
    ctx.beginPath();
    for (let k = 0; k < from.length; k += 2) {
      const [x, y] = [to[k], to[k+1]], dx = x - from[k], dy = y - from[k+1], h = head/Math.hypot(dx, dy);
      if (!(h < 2)) continue; // too short to be seen
      ctx.moveTo(from[k], from[k+1]);
      ctx.lineTo(x, y);
      ctx.lineTo(x - h*(dx + dy/2), y - h*(dy - dx/2));
      ctx.moveTo(x, y);
      ctx.lineTo(x - h*(dx - dy/2), y - h*(dy + dx/2));
    }
    ctx.stroke();
  }

  const CELLS = Float64Array.from({length: 2*GRID*GRID}, (_, k) => { // the middles of the field's cells
    const middle = n => (2*n + 1)*EDGE/GRID - EDGE;
    return k % 2 ? -middle(Math.floor(k/2/GRID)) : middle((k >> 1) % GRID);
  });

  class Board { // the interface
    constructor(root) {
      Object.assign(this, {own: [], hand: random(1), seen: true, due: {field: 0, words: 0, move: 0}});
      this.calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
      this.build(root);
      this.listen(root);
      this.deal();
    }

    build(root) {
      this.plane = make('canvas', {className: 'game-plane', role: 'img'});
      this.curve = make('canvas', {className: 'game-curve', role: 'img'});
      this.field = make('canvas', {width: GRID, height: GRID}); // not in the page; stretched onto the plane
      this.says = make('p', {className: 'game-says', 'aria-live': 'polite'});
      this.numbers = div('game-numbers game-row game-small');
      this.speak = atMostEvery(2000, text => { this.says.textContent = text; });
      this.describe = atMostEvery(1000, text => this.plane.setAttribute('aria-label', text));
      [this.start, this.one, this.reset] = [button('Start', 'game-start'), button('Step'), button('Reset')];
      this.slow = input('checkbox');
      const buttons = div('game-row', this.start, this.one, this.reset, labelled(this.slow, 'Slow motion'));
      const item = (kind, text) => make('span', {}, make('i', {className: `game-mark game-${kind}`}), text);
      const legend = div('game-row game-small', item('dot', 'real point'), item('ring', 'G\'s point'),
        item('real', 'D: real'), item('made', 'D: made up'));
      root.classList.add('game-root');
      root.append(make('style', {}, CSS), div('game-frame',
        div('game-left', this.plane, legend, buttons, this.says, this.numbers),
        div('game-right', this.newGame(), this.steering(), this.curve)));
    }

    newGame() { // what begins a new game
      [this.data, this.loss] = [menu(DATA), menu(LOSSES)];
      this.seed = input('number', {min: 0, max: 2**32 - 1, value: 0});
      [this.clear, this.circle] = [button('Clear'), button('Add a circle')];
      this.drawing = div('game-row', this.clear, this.circle, 'or draw on the square');
      return group('A new game', labelled('Real points', this.data), this.drawing,
        labelled('Loss', this.loss), labelled('Seed', this.seed));
    }

    steering() { // what may change while it is played
      this.who = ['both', 'D', 'G'].map(value => input('radio', {name: 'game-who', value}));
      this.who[0].checked = true;
      this.rates = ['D', 'G'].map(() => [make('span'), input('range', {min: -6, max: 3, value: 0})]);
      [this.r1, this.push] = [input('checkbox'), input('checkbox')];
      const who = this.who.map((radio, k) => labelled(radio, ['both', 'D alone', 'G alone'][k]));
      const rates = this.rates.map((pair, k) => labelled(`Learning rate of ${'DG'[k]}:`, ...pair));
      const choice = make('div', {role: 'radiogroup', 'aria-label': 'Who learns', className: 'game-row'});
      choice.append('Who learns:', ...who);
      return group('While it plays', choice, ...rates, labelled(this.r1, 'R1 penalty: steepness costs D'),
        labelled(this.push, 'Arrows: the push that G hears'));
    }

    listen(root) {
      const on = (target, type, f) => target.addEventListener(type, f);
      on(this.start, 'click', () => this.run(!this.playing));
      on(this.one, 'click', () => { this.move(); this.run(false); });
      on(this.reset, 'click', () => { this.run(false); this.deal(); });
      on(root, 'input', e => {
        if ([this.data, this.loss, this.seed].includes(e.target)) this.deal(); else this.steer();
      });
      on(this.seed, 'change', () => { this.seed.value >>>= 0; }); // as random() reads it
      on(this.clear, 'click', () => { this.own.length = 0; this.deal(); });
      on(this.circle, 'click', () => this.drawn(this.randomCircle()));
      on(this.plane, 'pointerdown', e => { this.pen = null; this.stroke(e); });
      on(this.plane, 'pointermove', e => this.stroke(e));
      on(document, 'visibilitychange', () => this.wake());
      new IntersectionObserver(entries => {
        this.seen = entries.at(-1).isIntersecting;
        this.wake();
      }).observe(root);
      new ResizeObserver(() => this.show(true)).observe(this.plane);
    }

    deal() { // a new game; it goes on if one was going on
      const [data, loss, seed] = [this.data, this.loss, this.seed].map(control => control.value);
      this.play = new Play({data, loss, seed, own: this.own});
      this.before = null;
      this.drawing.hidden = this.data.value !== 'own';
      this.plane.classList.toggle('game-draw', !this.drawing.hidden);
      this.steer();
    }

    steer() {
      const p = this.play;
      [p.rateD, p.rateG] = this.rates.map(([out, slider]) => {
        const rate = Number((RATE*2**slider.value).toPrecision(2));
        out.textContent = rate;
        slider.setAttribute('aria-valuetext', rate);
        return rate;
      });
      p.who = this.who.find(radio => radio.checked).value;
      p.r1 = this.r1.checked ? R1 : 0;
      if (!this.slow.checked) this.before = null;
      this.look(true);
    }

    look(fresh) { // after real points or settings have changed
      this.reals = this.play.ready ? this.play.reals(SHOWN, random(2)) : new Float64Array(0);
      this.show(fresh);
      this.wake();
    }

    run(playing) {
      this.playing = playing;
      this.start.textContent = playing ? 'Pause' : 'Start';
      if (!playing) this.show(true);
      this.wake();
    }

    wake() { // it plays only where it is seen
      const awake = this.playing && this.play.ready && this.seen && !document.hidden;
      if (awake && !this.frame) this.frame = requestAnimationFrame(now => this.tick(now));
      return awake;
    }

    tick(now) {
      this.frame = 0;
      if (!this.wake() || this.slow.checked && now < this.due.move) return;
      this.due.move = now + 250;
      const end = performance.now() + 12;
      do this.move(); while (!this.slow.checked && performance.now() < end);
      if (!this.calm || now > this.due.words) this.show(this.slow.checked, now);
    }

    move() { // a step; in slow motion one player's move
      if (!this.slow.checked) return this.play.step();
      this.before = this.play.made();
      this.play.move();
    }

    stroke(e) { // real points along the pointer's way
      if (this.drawing.hidden || !(e.buttons & 1)) return;
      const box = this.plane.getBoundingClientRect();
      const to = [e.clientX - box.left, box.bottom - e.clientY].map(v => (2*v/box.width - 1)*EDGE);
      const from = this.pen || to, way = Math.hypot(to[0] - from[0], to[1] - from[1]);
      const n = this.pen ? Math.floor(way/.08) : 1;
      if (!n) return;
      this.pen = to;
      this.plane.setPointerCapture(e.pointerId);
      this.drawn(Array.from({length: n}, (_, k) => from.map((v, c) => v + (to[c] - v)*(k + 1)/n)));
    }

    randomCircle() { // for those who draw without a pointer
      const [x, y, r] = [3, 3, 1].map(width => width*(this.hand.uniform() - .5));
      return Array.from({length: 40}, (_, k) => onCircle(k/40, r + .8)).map(p => [x + p[0], y + p[1]]);
    }

    drawn(points) {
      const jitter = p => p.map(v => v + .06*this.hand.normal());
      this.own.push(...points.flatMap(p => [jitter(p), jitter(p), jitter(p)]));
      this.look(false);
    }

    show(fresh, now = performance.now()) {
      if (!this.plane.clientWidth) return;
      const made = this.play.made();
      if (fresh || now > this.due.field) this.paintField(now);
      if (fresh || now > this.due.words) this.write(made, now);
      this.paint(fit(this.plane), made);
    }

    write(made, now) {
      this.due.words = now + 250;
      const p = this.play, m = p.measure(this.reals, made);
      const items = [[p.steps.toLocaleString('en'), 'steps'],
        [percent(m.right), 'of real points D takes for real'],
        [percent(m.caught), 'of G\'s points D takes for made up'],
        m.total ? [`${m.modes} of ${m.total}`, 'modes covered'] : [percent(m.reach), 'of reals reached'],
        [percent(m.good), `of G's points near a ${m.total ? 'mode' : 'real one'}`],
        [m.push.toPrecision(2), 'push on a typical point of G']];
      const spans = items.map(([value, text]) => make('span', {}, make('b', {}, value), ` ${text}`));
      this.numbers.replaceChildren(...spans);
      this.describe(`The plane: ${spans.map(span => span.textContent).join(', ')}.`);
      this.speak(sentence(p, m));
      this.paintCurve(fit(this.curve), p.trace, p.smooth);
    }

    paintField(now) {
      this.due.field = now + 100;
      const {mid, steep} = this.play.loss, ctx = this.field.getContext('2d');
      const image = ctx.createImageData(GRID, GRID);
      this.play.opinion(CELLS).forEach((l, k) => {
        const sure = Math.tanh(steep*(l - mid)), to = sure > 0 ? BLUE : ORANGE;
        image.data.set([0, 1, 2].map(c => PALE[c] + Math.abs(sure)*(to[c] - PALE[c])).concat(255), 4*k);
      });
      ctx.putImageData(image, 0, 0);
    }

    paint(ctx, made) {
      const side = ctx.canvas.width, unit = side/520, at = (v, k) => (EDGE + (k % 2 ? -v : v))/EDGE/2*side;
      const dots = this.drawing.hidden ? this.reals : flat(this.own), rings = made.map(at);
      ctx.imageSmoothingQuality = 'high';
      ctx.drawImage(this.field, 0, 0, side, side);
      ctx.lineWidth = 1.3*unit;
      ctx.fillStyle = ctx.strokeStyle = INK;
      circles(ctx, dots.map(at), 2*unit);
      if (this.before) arrows(ctx, this.before.map(at), rings, 4*unit);
      ctx.fillStyle = '#ffffffb0';
      ctx.strokeStyle = PLUM;
      circles(ctx, rings, 3.6*unit);
      ctx.stroke();
      if (this.push.checked) this.paintPushes(ctx, made.subarray(0, 160), at, unit);
      if (this.before) this.caption(ctx, unit);
    }

    paintPushes(ctx, made, at, unit) { // long ones are drawn shorter than they are
      const push = this.play.pushes(made);
      const tips = made.map((v, k) => v + .5*push[k]/(1 + Math.hypot(push[k & ~1], push[k | 1])));
      ctx.strokeStyle = INK;
      arrows(ctx, made.map(at), tips.map(at), 5*unit);
    }

    caption(ctx, unit) { // whose move it was
      const {next, who} = this.play, mover = next === 'G' ? 'D' : 'G';
      const text = `${mover} ${who === 'both' || who === mover ? 'moves' : 'looks on'}`;
      ctx.font = `600 ${20*unit}px system-ui, sans-serif`;
      ctx.fillStyle = '#ffffffd0';
      ctx.fillRect(8*unit, 8*unit, ctx.measureText(text).width + 16*unit, 32*unit);
      ctx.fillStyle = mover === 'D' ? NAVY : PLUM;
      ctx.fillText(text, 16*unit, 31*unit);
    }

    paintCurve(ctx, traces, now) {
      const {width, height} = ctx.canvas, unit = devicePixelRatio, n = Math.min(traces[0].length, 400);
      const lines = traces.map(t => Array.from({length: n}, (_, k) => t[Math.floor(k*t.length/n)]));
      const low = Math.min(0, ...lines.flat()), high = Math.max(.1, ...lines.flat());
      ctx.clearRect(0, 0, width, height);
      ctx.font = `${13*unit}px system-ui, sans-serif`;
      ctx.lineWidth = 1.5*unit;
      const words = ['D', 'G'].map((name, k) => `loss of ${name} ${now[k].toFixed(2)}`);
      lines.forEach((line, k) => {
        ctx.fillStyle = ctx.strokeStyle = [NAVY, PLUM][k];
        ctx.setLineDash(k ? [5*unit, 3*unit] : []);
        ctx.fillText(`${['—', '- -'][k]} ${words[k]}`, (8 + 160*k)*unit, 16*unit);
        ctx.beginPath();
        const up = v => height - 2*unit - (v - low)/(high - low)*(height - 24*unit);
        line.forEach((v, i) => ctx.lineTo(i*width/(n - 1), up(v)));
        ctx.stroke();
      });
      this.curve.setAttribute('aria-label', words.join(', '));
    }
  }

  return {mount: root => { new Board(root); }, Net, Play, LOSSES, DATA, random};
})();
if (typeof module !== 'undefined') module.exports = Game;
