// The random numbers of PyTorch's generator on a CPU, so that a seed means the same creature here and in Python:
// the Mersenne Twister (Matsumoto and Nishimura 1998) and what torch.rand, randn and randint make of it.
const Random = (() => {
  'use strict';
  const N = 624, M = 397;

  class Twister {
    constructor(seed) { // a whole number from 0 to 2^32-1
      this.state = new Uint32Array(N);
      this.state[0] = seed >>> 0;
      for (let i = 1; i < N; i++) {
        const s = this.state[i-1] ^ (this.state[i-1] >>> 30);
        this.state[i] = Math.imul(s, 1812433253) + i;
      }
      this.at = N;
    }

    turn() {
      const s = this.state;
      for (let i = 0; i < N; i++) {
        const y = (s[i] & 0x80000000) | (s[(i+1) % N] & 0x7fffffff);
        s[i] = s[(i+M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }

    word() { // 32 bits
      if (this.at === N) this.turn();
      let y = this.state[this.at++];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      return (y ^ (y >>> 18)) >>> 0;
    }

    below(n) { return this.word() % n; } // as torch.randint for small n
    float() { return (this.word() & 0xffffff)/2**24; } // as torch.rand, float32
    double() { // as torch.rand, float64
      const high = this.word() & 0x1fffff;
      return (high*2**32 + this.word())/2**53;
    }
  }

  function floats(rng, n) { return Float32Array.from({length: n}, () => rng.float()); }

  // Box and Muller 1958, as torch.randn does it: in blocks of 16, the last block anew where n is no multiple
  function normals(rng, n) {
    if (n < 16) return few(rng, n);
    const x = floats(rng, n);
    for (let i = 0; i + 16 <= n; i += 16) turnBlock(x, i);
    if (n % 16) {
      x.set(floats(rng, 16), n-16);
      turnBlock(x, n-16);
    }
    return x;
  }

  function few(rng, n) { // fewer than 16: pairs, in double precision
    const out = [];
    while (out.length < n) {
      const angle = 2*Math.PI*rng.double(), radius = Math.sqrt(-2*Math.log1p(-rng.double()));
      out.push(radius*Math.cos(angle), radius*Math.sin(angle));
    }
    return Float32Array.from(out.slice(0, n));
  }

  function turnBlock(x, at) {
    for (let j = at; j < at+8; j++) {
      const radius = Math.sqrt(-2*Math.log(1 - x[j])), angle = 2*Math.PI*x[j+8];
      x[j] = radius*Math.cos(angle);
      x[j+8] = radius*Math.sin(angle);
    }
  }

  // The normal distribution function, by the series near 0 and by a continued fraction far out
  function cdf(x) {
    const a = Math.abs(x), density = Math.exp(-a*a/2)/Math.sqrt(2*Math.PI);
    let upper;
    if (a < 3) {
      let term = a, sum = a;
      for (let k = 1; k < 60; k++) sum += term *= a*a/(2*k+1);
      upper = .5 - density*sum;
    } else {
      let f = a;
      for (let k = 60; k > 0; k--) f = a + k/f;
      upper = density/f;
    }
    return x > 0 ? 1 - upper : upper;
  }

  // Its inverse, by bisection and then Newton's steps
  function inverse(p) {
    let low = -9, high = 9;
    for (let i = 0; i < 12; i++) {
      const middle = (low+high)/2;
      if (cdf(middle) < p) low = middle; else high = middle;
    }
    let x = (low+high)/2;
    for (let i = 0; i < 4; i++) x -= (cdf(x) - p)*Math.sqrt(2*Math.PI)*Math.exp(x*x/2);
    return x;
  }

  function truncated(rng, n, t) { // every value in [-t, t]
    const edge = cdf(-t);
    return Float32Array.from({length: n}, () => {
      return Math.max(-t, Math.min(t, inverse(edge + rng.double()*(1 - 2*edge))));
    });
  }

  return {Twister, floats, normals, truncated, cdf, inverse};
})();
if (typeof module !== 'undefined') module.exports = Random;
