// What a creature is before it is a picture: its origin in a few characters, and from that its latent.
//   s7      the creature of seed 7 (as in Python), s7t1.5 truncated at 1.5, s7k2 of kind number 2
//   c0n5d30 child number 5 of creature 0 of the family, different by 30 %
//   b0x1n2d30  child number 2 of creatures 0 and 1
//   pAbC…   the latent that was read from a picture, its values as float16 in base64
// A family is such words joined by _, each referring to those before it. So a link holds a whole ancestry.
const Latents = (() => {
  'use strict';
  const WORDS = {
    seed: /^s(\d{1,10})(?:t(\d{1,2}(?:\.\d{1,3})?))?(?:k(\d{1,4}))?$/,
    child: /^c(\d{1,3})n(\d{1,6})d(\d{1,3})$/,
    bred: /^b(\d{1,3})x(\d{1,3})n(\d{1,6})d(\d{1,3})$/,
    picture: /^p([A-Za-z0-9_-]{4,8000})$/,
  };
  const MOST = 200; // members of a family in a link

  function hash(text) { // 32 bits (Fowler, Noll, Vo: FNV-1a)
    let h = 0x811c9dc5;
    for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
    return h >>> 0;
  }

  function read(word) { // -> {how, …}; throws on what is none
    for (const [how, pattern] of Object.entries(WORDS)) {
      const m = word.match(pattern);
      if (!m) continue;
      if (how === 'seed') return {how, seed: +m[1], t: m[2] ? +m[2] : null, kind: m[3] ? +m[3] : null};
      if (how === 'child') return {how, of: [+m[1]], n: +m[2], d: +m[3]/100};
      if (how === 'bred') return {how, of: [+m[1], +m[2]], n: +m[3], d: +m[4]/100};
      return {how, code: m[1]};
    }
    throw new Error('this link is damaged');
  }

  function write(g, at = g.of) { // at: the numbers of its parents in the family that is written
    const d = Math.round(100*g.d);
    if (g.how === 'seed') return `s${g.seed}${g.t ? `t${g.t}` : ''}${g.kind === null ? '' : `k${g.kind}`}`;
    if (g.how === 'child') return `c${at[0]}n${g.n}d${d}`;
    if (g.how === 'bred') return `b${at[0]}x${at[1]}n${g.n}d${d}`;
    return `p${g.code}`;
  }

  const toHalf = x => { // a float as the 16 bits of float16, rounded
    const f = new Float32Array([x]), u = new Uint32Array(f.buffer)[0];
    const sign = (u >>> 16) & 0x8000, exponent = ((u >>> 23) & 255) - 112;
    if (exponent <= 0) return sign; // below 6e-5: nothing
    if (exponent >= 31) return sign | 0x7bff;
    return sign | Math.min(0x7bff, (exponent << 10) + ((u & 0x7fffff) + 0x1000 >>> 13));
  };
  const fromHalf = h => {
    const exponent = (h >> 10) & 31, fraction = h & 1023, sign = h & 0x8000 ? -1 : 1;
    if (exponent === 31) return NaN;
    return sign*(exponent ? 2**(exponent-15)*(1 + fraction/1024) : 2**-14*fraction/1024);
  };

  function pack(values) {
    const bytes = new Uint8Array(Uint16Array.from(values, toHalf).buffer);
    return btoa(String.fromCharCode(...bytes)).replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '');
  }

  function unpack(text) {
    const raw = atob(text.replace(/-/g, '+').replace(/_/g, '/'));
    const bytes = Uint8Array.from(raw, c => c.charCodeAt(0));
    return Float32Array.from(new Uint16Array(bytes.buffer, 0, bytes.length >> 1), fromHalf);
  }

  // Where wild latents come from. facts: {nz, latent, told, classes}; buffers: what the prior keeps, by name
  class Prior {
    constructor({nz, latent, told, classes}, buffers) {
      Object.assign(this, {nz, latent, told, classes, buffers, size: nz + told});
    }

    noise(rng, n, t) {
      if (this.latent === 'normal') return t ? Random.truncated(rng, n, t) : Random.normals(rng, n);
      const middle = this.latent === 'uniform01' ? .5 : 0, wide = 2*(1 - middle), bound = Math.min(t || 1, 1);
      return Random.floats(rng, n).map(u => middle + bound*(wide*u - wide/2));
    }

    pool(kind) { // numbers of the training pictures that may be had in mind
      const {codes, kinds} = this.buffers, all = codes ? codes.shape[0] : kinds.shape[0];
      const numbers = Array.from({length: all}, (_, i) => i);
      return kind === null || !this.classes ? numbers : numbers.filter(i => kinds.data[i] === kind);
    }

    about(which) { // what G is told of training picture number `which`
      const {codes, kinds} = this.buffers, out = new Float32Array(this.told), own = this.told - this.classes;
      if (own) out.set(codes.data.subarray(which*own, (which+1)*own));
      if (this.classes) out[own + kinds.data[which]] = Math.sqrt(this.classes);
      return out;
    }

    wild(seed, t = null, kind = null) { // -> Float32Array, as run.latents(1, seed, t, kind=…) in Python
      const rng = new Random.Twister(seed), out = new Float32Array(this.size);
      if (this.buffers.weights) return this.mixed(rng, t);
      if (this.told) {
        const pool = this.pool(kind);
        out.set(this.about(pool[rng.below(pool.length)]), this.nz);
      }
      out.set(this.noise(rng, this.nz, t));
      return out;
    }

    mixed(rng, t) { // of a mixture of Gaussians: a component by its weight, then noise
      const {weights, means, factors} = this.buffers, [k, d] = means.shape, u = rng.double();
      const sums = Float32Array.from(weights.data);
      for (let i = 1; i < k; i++) sums[i] += sums[i-1];
      let c = 0;
      while (c < k-1 && Math.fround(sums[c]/sums[k-1]) < u) c++;
      const e = this.noise(rng, d, t), out = means.data.slice(c*d, (c+1)*d);
      const full = factors.shape.length === 3;
      for (let i = 0; i < d; i++) {
        if (!full) out[i] += factors.data[c*d+i]*e[i];
        else for (let j = 0; j <= i; j++) out[i] += factors.data[(c*d+i)*d+j]*e[j];
      }
      return out;
    }

    // From a to b by share w: noise on the arc, so that it stays as long as noise is; all else straight
    between(a, b, w) {
      const out = a.map((v, i) => (1-w)*v + w*b[i]);
      if (this.latent !== 'normal' || this.buffers.weights) return out;
      let aa = 0, bb = 0, ab = 0;
      for (let i = 0; i < this.nz; i++) { aa += a[i]*a[i]; bb += b[i]*b[i]; ab += a[i]*b[i]; }
      const angle = Math.acos(Math.max(-1, Math.min(1, ab/Math.sqrt(aa*bb))));
      if (!(angle > 1e-3 && angle < Math.PI - 1e-3)) return out;
      const wa = Math.sin((1-w)*angle)/Math.sin(angle), wb = Math.sin(w*angle)/Math.sin(angle);
      for (let i = 0; i < this.nz; i++) out[i] = wa*a[i] + wb*b[i];
      return out;
    }

    keepKind(z, parent) { // a child is of its parent's kind
      for (let i = this.size - this.classes; i < this.size; i++) z[i] = parent[i];
      return z;
    }

    latent_of(g, parents) { // parents: creatures {key, z}
      if (g.how === 'seed') return this.wild(g.seed, g.t, g.kind);
      if (g.how === 'picture') return this.of_picture(unpack(g.code));
      const rng = new Random.Twister(hash(`${parents.map(p => p.key)}/${g.n}`));
      const stranger = this.wild(rng.word()), [a, b = a] = parents;
      const z = b === a ? a.z : this.between(a.z, b.z, .25 + .5*rng.double());
      const like = rng.double() < .5 ? a.z : b.z;
      return this.keepKind(this.between(z, stranger, b === a ? g.d : g.d/2), like);
    }

    of_picture(values) {
      if (values.length !== this.size || !values.every(isFinite)) throw new Error('this link is damaged');
      return values;
    }
  }

  function creature(prior, g, parents = []) { // -> {g, key, z, parents}
    const key = write(g, parents.map(p => `(${p.key})`)); // says all of its ancestry
    return {g, key: key.length > 80 ? `${hash(key)}` : key, z: prior.latent_of(g, parents), parents};
  }

  function ancestry(c, seen = new Map()) { // c and all before it, parents first -> Map from creature to number
    if (seen.has(c)) return seen;
    for (const p of c.parents) ancestry(p, seen);
    return seen.set(c, seen.size);
  }

  function toText(c) {
    const family = ancestry(c);
    return [...family.keys()].map(m => write(m.g, m.parents.map(p => family.get(p)))).join('_');
  }

  function fromText(prior, text) { // -> creatures, the last one is meant; throws on a damaged link
    const family = [], words = text.split(/_(?=[scbp])/);
    if (words.length > MOST) throw new Error('this link has too many ancestors');
    for (const word of words) {
      const g = read(word), parents = (g.of || []).map(i => family[i]);
      if (parents.includes(undefined)) throw new Error('this link is damaged');
      if (g.seed > 2**32-1 || g.kind >= Math.max(1, prior.classes)) throw new Error('this link is damaged');
      family.push(creature(prior, g, parents));
    }
    return family;
  }

  return {Prior, creature, toText, fromText, ancestry, pack, unpack, hash};
})();
if (typeof module !== 'undefined') module.exports = Latents;
