// Frames as an animated GIF (the format of 1989: at most 256 colours, packed by Lempel, Ziv and Welch).
const Gif = (() => {
  'use strict';

  // The 256 most frequent colours of all frames, five bits a channel, and for each colour the nearest of them
  function palette(frames) {
    const count = new Map();
    for (const f of frames) {
      for (let i = 0; i < f.length; i += 4) {
        const c = (f[i] >> 3) << 10 | (f[i+1] >> 3) << 5 | f[i+2] >> 3, seen = count.get(c);
        if (seen) { seen[0]++; for (let k = 0; k < 3; k++) seen[k+1] += f[i+k]; }
        else count.set(c, [1, f[i], f[i+1], f[i+2]]);
      }
    }
    const most = [...count.values()].sort((a, b) => b[0] - a[0]).slice(0, 256);
    return most.map(([n, ...sums]) => sums.map(s => Math.round(s/n)));
  }

  function numbers(frame, colours, known) {
    const out = new Uint8Array(frame.length/4);
    for (let i = 0; i < out.length; i++) {
      const [r, g, b] = frame.subarray(4*i, 4*i+3), key = (r >> 3) << 10 | (g >> 3) << 5 | b >> 3;
      if (!known.has(key)) {
        let best = 0, least = Infinity;
        colours.forEach(([x, y, z], k) => {
          const d = (x-r)**2 + (y-g)**2 + (z-b)**2;
          if (d < least) { least = d; best = k; }
        });
        known.set(key, best);
      }
      out[i] = known.get(key);
    }
    return out;
  }

  function packed(pixels) { // LZW with codes of 9 to 12 bits, in blocks of 255 bytes
    const bytes = [];
    let table = new Map(), next = 258, width = 9, bits = 0, held = 0;
    function put(code) {
      held |= code << bits;
      for (bits += width; bits >= 8; bits -= 8) { bytes.push(held & 255); held >>>= 8; }
    }
    function anew() { put(256); table = new Map(); next = 258; width = 9; }
    anew();
    let current = pixels[0];
    for (let i = 1; i < pixels.length; i++) {
      const key = current << 8 | pixels[i];
      if (table.has(key)) { current = table.get(key); continue; }
      put(current);
      table.set(key, next);
      if (next === 1 << width && width < 12) width++;
      if (++next === 4096) anew();
      current = pixels[i];
    }
    put(current);
    put(257);
    if (bits) bytes.push(held & 255);
    const out = [8];
    for (let i = 0; i < bytes.length; i += 255) {
      const part = bytes.slice(i, i+255);
      out.push(part.length, ...part);
    }
    return [...out, 0];
  }

  function encode(frames, width, height, delay = 8) { // RGBA arrays; hundredths of a second -> Uint8Array
    const two = n => [n & 255, n >> 8], colours = palette(frames), known = new Map();
    const table = Array.from({length: 256}, (_, i) => colours[i] || [0, 0, 0]).flat();
    const loop = [0x21, 0xff, 11, ...'NETSCAPE2.0'].map(c => typeof c === 'string' ? c.charCodeAt(0) : c);
    const out = [...'GIF89a'].map(c => c.charCodeAt(0));
    out.push(...two(width), ...two(height), 0xf7, 0, 0, ...table, ...loop, 3, 1, 0, 0, 0);
    for (const f of frames) {
      out.push(0x21, 0xf9, 4, 0, ...two(delay), 0, 0, 0x2c, 0, 0, 0, 0, ...two(width), ...two(height), 0);
      for (const b of packed(numbers(f, colours, known))) out.push(b);
    }
    return Uint8Array.from([...out, 0x3b]);
  }

  return {encode};
})();
if (typeof module !== 'undefined') module.exports = Gif;
