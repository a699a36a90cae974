// DEVICE.md, "Batches", "Clipping and encoding" and "Noise".
import { be, number, sha256 } from "./bytes.mjs";

// -- batches: SplitMix64 -----------------------------------------------------------------------
const WORD = (1n << 64n) - 1n, GOLDEN = 0x9e3779b97f4a7c15n;
const finalise = (z) => {
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & WORD;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & WORD;
  return z ^ (z >> 31n);
};
export const words = (seed, domain, count) => {
  const state = finalise((seed & WORD) ^ finalise(BigInt(domain)));
  return Array.from({ length: count }, (_, i) => finalise((state + GOLDEN * BigInt(i + 1)) & WORD));
};
export const batchSeed = (seed, round, client) => number(Buffer.from(
  sha256(Buffer.from("fedsys\0"), be(8, 4), be(seed, 8), Buffer.from(`batches ${round} ${client}`))
    .subarray(0, 8)).reverse());
export const keptRows = (count, heldOut) => [...Array(count).keys()].filter( // those that are trained on
  (row) => Number(finalise((BigInt(row) + GOLDEN) & WORD) >> 11n) * 2 ** -53 >= heldOut);
export function* batches(rows, seed, { epochs, batch_size: size }) { // places among the rows
  for (let epoch = 0; epoch < epochs; epoch++) {
    const keys = words(seed, epoch + 1, rows).map((word) => word >> 1n);
    const order = [...keys.keys()].sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    for (let start = 0; start < rows; start += size) yield order.slice(start, start + size);
  }
}

// -- clipping ----------------------------------------------------------------------------------
const rint = (x) => { // half to even
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 ? low : rest > 0.5 ? low + 1 : low % 2 === 0 ? low : low + 1;
};
const square = (values) => values.reduce((sum, value) => sum + value * value, 0);

export function clip(update, bound) { // float32 in, integers out
  const d = update.length, limit = 4096 * d, scale = (64 * Math.sqrt(d)) / bound;
  let squares = square(update), norm = Math.sqrt(squares);
  const peak = update.reduce((most, x) => (Number.isNaN(x) ? NaN : Math.max(most, Math.abs(x))), 0);
  const finite = Number.isFinite(peak);
  if (!finite) norm = 0;
  if (norm > 1e-300) { // to 24 significant bits
    const unit = 2 ** Math.floor(Math.log2(norm));
    norm = Math.fround(norm / unit) * unit;
  }
  let factor = scale * (bound / Math.max(norm, bound)), over = false;
  const row = finite ? update : new Float32Array(d);
  for (let attempt = 0; attempt <= 4; attempt++) {
    squares = square(Array.from(row, (x) => rint(x * factor)));
    over = squares > limit;
    if (attempt < 4 && over) factor *= Math.sqrt(limit / squares) * (1 - 2 ** (attempt - 9));
  }
  const cut = factor * (1 - 2 ** -20);
  const values = Array.from(row, (x) => (over ? Math.trunc(x * cut) : rint(x * factor)) + 0);
  return square(values) <= limit ? values : values.map(() => 0);
}
export const inRing = (values, bits) =>
  values.map((value) => BigInt.asUintN(bits, BigInt(value)));

// -- noise: round(sigma Phi^-1(U)), decided by integers ----------------------------------------
const rational = (x) => { // a double as numerator over a power of two
  let shift = 0n;
  while (!Number.isInteger(x)) { x *= 2; shift++; }
  return [BigInt(x), 1n << shift];
};
const constants = new Map();
function rootTwoPi(bits) { // sqrt(2 pi), in units of 2^-bits
  if (!constants.has(bits)) {
    const one = 1n << BigInt(bits + 64);
    const arctan = (n) => {
      let term = one / n, sum = term, sign = -1n;
      for (let k = 3n; term; k += 2n, sign = -sign) { term /= n * n; sum += (sign * term) / k; }
      return sum;
    };
    const pi = 4n * (4n * arctan(5n) - arctan(239n));
    let root = 1n << BigInt(bits + 66), before = 0n;
    const squared = (2n * pi) << BigInt(bits + 64);
    while (before !== root) { before = root; root = (root + squared / root) >> 1n; if (root - before === 1n) break; }
    constants.set(bits, root >> 64n);
  }
  return constants.get(bits);
}
// Q((k + 1/2) / sigma) for k >= 0, in units of 2^-bits, by the Taylor series around 0
export function upperTail(k, sigma, bits) {
  const [above, below] = rational(sigma);
  const x = Number(2n * BigInt(k) + 1n) / 2 / sigma;
  if (x > 40) return 0n;
  const work = bits + Math.ceil(0.73 * x * x) + 64;
  const point = (((2n * BigInt(k) + 1n) * below) << BigInt(work)) / (2n * above);
  const square = (point * point) >> BigInt(work);
  let term = point, sum = 0n;
  for (let n = 0n; term; n++) { sum += term / (2n * n + 1n); term = -((term * square) >> BigInt(work)) / (2n * (n + 1n)); }
  const one = 1n << BigInt(work);
  return (one / 2n - (sum * one) / rootTwoPi(work)) >> BigInt(work - bits);
}

class Table { // step round(N(0, sigma^2)), from the leading 16 bits of U, 48 more, and 960 more
  constructor(sigma, step = 1) { this.sigma = sigma; this.step = step; this.entries = new Map(); }
  entry(k) { // floor(2^64 P[R <= k])
    if (!this.entries.has(k)) {
      const tail = upperTail(k >= 0 ? k : -k - 1, this.sigma, 64 + 96) >> 96n;
      this.entries.set(k, k >= 0 ? WORD - tail : tail);
    }
    return this.entries.get(k);
  }
  least(word) { // the least k whose entry is not below the word
    const reach = Math.ceil(9.2 * this.sigma) + 1;
    let low = -reach, high = reach;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (this.entry(middle) < word) low = middle + 1; else high = middle;
    }
    return low;
  }
  draw(word, further) { // `further` gives 120 bytes, if the word does not decide
    const k = this.least(word);
    return this.entry(k) === word ? this.settle(word, number(further(120)), k) : k;
  }
  settle(word, more, k) { // U has 1,024 bits; the cell's midpoint decides between k and its neighbours
    const bits = 1024 + 64, middle = (2n * ((word << 960n) + more) + 1n) << 63n;
    const below = (j) => { // P[R <= j] in units of 2^-bits
      const tail = upperTail(j >= 0 ? j : -j - 1, this.sigma, bits);
      return j >= 0 ? (1n << BigInt(bits)) - tail : tail;
    };
    while (below(k - 1) > middle) k--;
    while (below(k) < middle) k++;
    return k;
  }
  batch(count, read) {
    const raw = read(2 * count);
    const heads = Array.from({ length: count }, (_, i) => BigInt(raw.readUInt16LE(2 * i)));
    const found = heads.map((head) => this.least(head << 48n));
    const open = [...found.keys()].filter((i) => this.entry(found[i]) >> 48n === heads[i]);
    const words = open.map((i) => (heads[i] << 48n) | (number(read(8)) >> 16n));
    open.forEach((i, at) => { found[i] = this.draw(words[at], read); });
    return found.map((k) => k * this.step);
  }
}
const squared = (...factors) => { // the exact square of a product of doubles, as a fraction
  const [above, below] = factors.map(rational).reduce(([a, b], [c, d]) => [a * c, b * d]);
  return [above * above, below * below];
};
function grids(sigma) { // a fine and a coarse table whose variances add up to sigma^2 at least
  const step = rint(Math.sqrt(sigma / 7)), fine = 7 * step;
  const bits = new DataView(new ArrayBuffer(8)), [above, below] = squared(sigma);
  bits.setFloat64(0, Math.sqrt(sigma * sigma - fine * fine) / step);
  for (;; bits.setBigInt64(0, bits.getBigInt64(0) + 1n)) { // the next double
    const coarse = bits.getFloat64(0), [top, bottom] = squared(step, coarse);
    if ((BigInt(fine) ** 2n * bottom + top) * below >= above * bottom) return [new Table(fine), new Table(coarse, step)];
  }
}
export class Noise { // round(N(0, sigma^2)); `read` gives the next bytes of a stream
  constructor(sigma) {
    if (sigma > 2 ** 19) throw new Error("noise that is not supported here");
    this.tables = sigma > 2 ** 11 ? grids(sigma) : [new Table(sigma)];
  }
  draws(count, read) {
    const found = [];
    for (let start = 0; start < count; start += 1 << 17) {
      const size = Math.min(1 << 17, count - start);
      const parts = this.tables.map((table) => table.batch(size, read));
      for (let i = 0; i < size; i++) found.push(parts.reduce((sum, part) => sum + part[i], 0));
    }
    return found;
  }
}
export { Table };
